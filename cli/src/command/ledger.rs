//! `causeway ledger show | push | settle | recover | restore`.

mod recover;
mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, bail};
use proto::entry::{Body, SignedEntry};
use proto::key::Hash;
use proto::ledger::{Charter, Ledger};
use serde::Serialize;

use crate::ask;
use crate::authority::ledger_file::{self, LedgerFile};
use crate::command::{Output, Signing, Usage};
use crate::outlook::Outlook;
use crate::parse;
use crate::print::{self, Table};
use crate::signing::Desk;
use crate::time;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show what the authority has signed.
    Show(Show),
    /// Hand the ledger to every broker that can be reached.
    Push(Push),
    /// End a fork: say which of its branches goes on.
    Settle(Settle),
    /// Replace a lost or stolen authority, with the recovery key.
    Recover(recover::Arguments),
    /// Fetch the ledger for an authority of which only the key is left.
    Restore(restore::Arguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    #[command(flatten)]
    signing: Signing,
    /// Print it as a ledger file, to keep or to carry.
    #[arg(long, env = "CAUSEWAY_EXPORT", value_parser = clap::builder::FalseyValueParser::new(), conflicts_with = "json")]
    export: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Push {
    #[command(flatten)]
    signing: Signing,
    /// A ledger file to hand over as well, as it was carried here.
    #[arg(long, value_name = "FILE", env = "CAUSEWAY_FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Settle {
    #[command(flatten)]
    signing: Signing,
    /// The head of the branch that goes on, as `ledger show` names it.
    #[arg(long, value_name = "ID", env = "CAUSEWAY_KEEP", value_parser = parse::id)]
    keep: Option<String>,
    /// Do not ask.
    #[arg(long, env = "CAUSEWAY_YES", value_parser = clap::builder::FalseyValueParser::new())]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Show(arguments) => show(&arguments),
        Command::Push(arguments) => push(&arguments),
        Command::Settle(arguments) => settle(&arguments),
        Command::Recover(arguments) => recover::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
    }
}

#[derive(Serialize)]
struct Shown {
    mesh: String,
    authority: Option<String>,
    /// More than one while it is forked.
    heads: Vec<String>,
    forked: bool,
    entries: Vec<ShownEntry>,
}

#[derive(Serialize)]
struct ShownEntry {
    number: u64,
    id: String,
    issued: String,
    what: String,
    previous: String,
}

fn show(arguments: &Show) -> anyhow::Result<()> {
    let outlook = Outlook::open(&arguments.signing)?;
    let ledger = outlook.ledger();
    if arguments.export {
        return print::data(&proto::ledger_file::text(ledger.entries()));
    }
    let mut entries: Vec<ShownEntry> = ledger.entries().map(show_entry).collect();
    entries.sort_by_key(|entry| entry.number);
    if arguments.output.json {
        return print::json(&Shown {
            mesh: ledger.mesh().to_string(),
            authority: ledger.charter().authority.map(|key| key.to_string()),
            heads: ledger.heads().iter().map(Hash::to_string).collect(),
            forked: ledger.charter().fork.is_some(),
            entries,
        });
    }
    let mut table = Table::new(["no", "id", "signed", "what"]);
    let given_up = given_up(ledger);
    for entry in entries {
        let mark = if given_up.contains(&entry.id) {
            " (given up)"
        } else {
            ""
        };
        table.row([
            entry.number.to_string(),
            entry.id[..12].to_owned(),
            entry.issued,
            entry.what + mark,
        ]);
    }
    print::data(&table.text())?;
    say_fork(ledger.charter());
    Ok(())
}

/// Entries beside the line that holds; none while a fork is open, when nobody has chosen yet.
fn given_up(ledger: &Ledger) -> BTreeSet<String> {
    if ledger.charter().fork.is_some() {
        return BTreeSet::new();
    }
    let mut beside: BTreeMap<Hash, &SignedEntry> = ledger
        .entries()
        .map(|entry| (entry.hash(), entry))
        .collect();
    let mut next = ledger.head().map(|head| head.hash);
    while let Some(entry) = next.and_then(|hash| beside.remove(&hash)) {
        next = Some(entry.entry().previous);
    }
    beside.keys().map(Hash::to_string).collect()
}

fn say_fork(charter: &Charter) {
    let Some(fork) = &charter.fork else { return };
    eprintln!(
        "causeway: the ledger is forked behind entry {}: what is above counts for nothing but revocations. Its branches end in:",
        fork.split
    );
    for head in &fork.heads {
        eprintln!("  entry {head}");
    }
    eprintln!("Say which goes on with `causeway ledger settle --keep ID`.");
}

fn show_entry(signed: &SignedEntry) -> ShownEntry {
    let entry = signed.entry();
    ShownEntry {
        number: entry.number,
        id: signed.hash().to_string(),
        issued: time::rfc3339(entry.issued),
        what: what(&entry.body),
        previous: entry.previous.to_string(),
    }
}

/// `given 10.1.0.0/16`; nothing for nothing.
fn named<T: ToString>(name: &str, values: &[T]) -> Option<String> {
    (!values.is_empty()).then(|| format!("{name} {}", print::list(values)))
}

fn joined(parts: [Option<String>; 2]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// One line for people.
fn what(body: &Body) -> String {
    match body {
        Body::Genesis { authority, .. } => format!("mesh made, authority {authority}"),
        Body::Grant(grant) => format!(
            "token for site {}, role {}, uses {}, expires {}, prefixes {}",
            grant.site,
            grant.role,
            grant.uses,
            time::rfc3339(grant.not_after),
            print::list(&[&*grant.prefixes, &*grant.service_prefixes].concat())
        ),
        Body::Prefixes {
            site,
            added,
            added_service,
            removed,
        } => {
            let added = [&**added, &**added_service].concat();
            let parts = [named("given", &added), named("taken", removed)];
            format!("site {site}: {}", joined(parts))
        }
        Body::Revocation { keys, closings } => {
            let closed: Vec<String> = closings
                .iter()
                .map(|closing| {
                    let stay = print::count(closing.stay.len(), "node stays", "nodes stay");
                    format!("{} ({stay})", closing.grant.short())
                })
                .collect();
            let parts = [named("nodes", keys), named("tokens", &closed)];
            format!("revoked: {}", joined(parts))
        }
        Body::SiteRevoked { site } => format!("site {site} revoked"),
        Body::Broker(broker) => {
            format!(
                "broker {} at {}",
                broker.key,
                print::list(&broker.addresses)
            )
        }
        Body::BrokerRemoved { key } => format!("broker {key} removed"),
        Body::Authority { authority, .. } => format!("authority changed to {authority}"),
        Body::Settlement { other } => format!("fork settled: branch {} given up", other.short()),
    }
}

#[derive(Serialize)]
struct Pushed {
    told: Vec<String>,
    entries: usize,
}

fn push(arguments: &Push) -> anyhow::Result<()> {
    let mut outlook = Outlook::open(&arguments.signing)?;
    if let Some(path) = &arguments.file {
        let carried = ledger_file::read(path)?;
        if carried.mesh() != outlook.ledger().mesh() {
            bail!(
                "{} is the ledger of another mesh ({}), and here is {}; carry the right file",
                path.display(),
                carried.mesh().short(),
                outlook.ledger().mesh().short()
            );
        }
        let entries: Vec<SignedEntry> = carried.entries().cloned().collect();
        outlook.take(&entries);
    }
    let kept = keep(arguments, outlook.ledger())?;
    let (told, entries) = outlook.tell();
    for refusal in &told.refused {
        eprintln!("causeway: {refusal}");
    }
    for why in outlook.brokers().failures() {
        eprintln!("causeway: {why}");
    }
    if told.by.is_empty() && !kept {
        bail!("no broker could be told; see above why, then repeat");
    }
    if told.by.is_empty() {
        eprintln!(
            "No broker could be told now; the one on this machine takes the entries in when it starts."
        );
    } else {
        eprintln!(
            "Told: {} ({}).",
            print::list(&told.by),
            print::count(entries, "entry in all", "entries in all")
        );
    }
    if arguments.output.json {
        print::json(&Pushed {
            told: told.by,
            entries,
        })?;
    }
    Ok(())
}

/// What was carried here also goes to the files of this machine; whether a broker has one.
fn keep(arguments: &Push, ledger: &Ledger) -> anyhow::Result<bool> {
    let entries: Vec<SignedEntry> = ledger.entries().cloned().collect();
    let authority = arguments.signing.authority().join("ledger");
    let broker = arguments.signing.directories.broker_ledger();
    if authority.exists() && arguments.file.is_some() {
        LedgerFile::open(&authority)?.take(&entries)?;
    }
    if !broker.exists() {
        return Ok(false);
    }
    let mut file = LedgerFile::open_for(&broker, ledger.mesh())?;
    if file.ledger().mesh() != ledger.mesh() {
        return Ok(false);
    }
    file.take(&entries)?;
    Ok(true)
}

#[derive(Serialize)]
struct Settled {
    kept: String,
    given_up: Vec<String>,
}

fn settle(arguments: &Settle) -> anyhow::Result<()> {
    let mut desk = Desk::open(&arguments.signing)?;
    let Some(fork) = desk.charter().fork.clone() else {
        eprintln!("The ledger is not forked; there is nothing to settle.");
        desk.hand_over();
        return Ok(());
    };
    let Some(keep) = &arguments.keep else {
        say_fork(desk.charter());
        bail!(Usage(
            "say which branch goes on: --keep with the id of its head, as listed above".to_owned()
        ));
    };
    let mut matching = fork
        .heads
        .iter()
        .filter(|head| head.hash.to_string().starts_with(keep));
    let kept = match (matching.next(), matching.next()) {
        (Some(head), None) => head.hash,
        (None, _) | (Some(_), Some(_)) => {
            say_fork(desk.charter());
            bail!(Usage(format!(
                "{keep} names none or several of the heads listed above"
            )));
        }
    };
    let others: Vec<Hash> = fork
        .heads
        .iter()
        .map(|head| head.hash)
        .filter(|hash| *hash != kept)
        .collect();
    eprintln!(
        "Of what the other branches say only the revocations remain; their tokens and prefixes are void:"
    );
    for other in &others {
        let entry = desk
            .ledger()
            .entry(other)
            .context("a head is in the ledger")?;
        eprintln!("  {}", what(&entry.entry().body));
    }
    ask::confirm("Settle the fork?", arguments.yes)?;
    let mut head = kept;
    for other in &others {
        head = desk
            .sign_after(head, Body::Settlement { other: *other })?
            .hash();
    }
    eprintln!(
        "The fork is settled; the ledger goes on with {}.",
        kept.short()
    );
    desk.hand_over();
    if arguments.output.json {
        print::json(&Settled {
            kept: kept.to_string(),
            given_up: others.iter().map(Hash::to_string).collect(),
        })?;
    }
    Ok(())
}
