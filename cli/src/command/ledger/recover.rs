//! `causeway ledger recover`: another authority takes over, by the word of the recovery key.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use proto::entry::{Body, SignedEntry};
use proto::key::{Hash, SigningKey};
use proto::ledger::{Ledger, recovery_hash};
use serde::Serialize;

use crate::ask;
use crate::authority::{self, ledger_file};
use crate::brokers::{self, Brokers, Caller};
use crate::command::{Output, Signing, Usage};
use crate::parse;
use crate::print;
use crate::secret;
use crate::signing::Desk;
use crate::time;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    signing: Signing,
    /// The file that holds the recovery key; standard input if not given.
    #[arg(long, value_name = "F", env = "CAUSEWAY_RECOVERY_FILE")]
    recovery_file: Option<PathBuf>,
    /// A ledger file to go on from, if the authority's directory is lost.
    #[arg(long, value_name = "FILE", env = "CAUSEWAY_FILE")]
    file: Option<PathBuf>,
    /// The last entry that is yours, if the key was stolen: what was signed after it is void.
    #[arg(long, value_name = "ID", env = "CAUSEWAY_AFTER", value_parser = parse::id)]
    after: Option<String>,
    /// Do not ask.
    #[arg(long, env = "CAUSEWAY_YES", value_parser = clap::builder::FalseyValueParser::new())]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Recovered {
    mesh: String,
    authority_key: String,
    recovery_key: String,
    entry: u64,
    authority_dir: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let directory = arguments.signing.authority();
    let mut ledger = known_ledger(arguments, &directory)?;
    let text = secret::read(
        arguments.recovery_file.as_deref(),
        "recovery key",
        "--recovery-file",
    )?;
    let recovery = secret::parse_recovery(&text)?;
    let key = SigningKey::from_seed(&*authority::new_seed()?);
    let next = SigningKey::from_seed(&*authority::new_seed()?);
    let entry = change(arguments, &ledger, (&recovery, &key, &next))?;
    let void = ledger
        .entries()
        .filter(|other| other.entry().number >= entry.entry().number)
        .count();
    ledger
        .insert(entry.clone())
        .context("the recovery key does not fit this ledger; nothing was changed")?;
    eprintln!(
        "This makes a new authority for mesh {}, in {}. {}The old key signs nothing any more.",
        ledger.mesh().short(),
        directory.display(),
        if void > 0 {
            format!(
                "Void from then on: {} of the old key. ",
                print::count(void, "entry", "entries")
            )
        } else {
            String::new()
        }
    );
    ask::confirm("Replace the authority?", arguments.yes)?;
    let entries: Vec<SignedEntry> = ledger.entries().cloned().collect();
    let staged = authority::stage(&directory, &key, &entries)?;
    // Shown before anything counts: without it there is no next recovery.
    print_recovered(
        arguments,
        &Recovered {
            mesh: ledger.mesh().to_string(),
            authority_key: key.public().to_string(),
            recovery_key: secret::recovery_text(&next).to_string(),
            entry: entry.entry().number,
            authority_dir: directory.clone(),
        },
    )?;
    let old_key = authority::read(&directory).ok().map(|(key, _)| key);
    let old = staged.replace()?;
    if let Some(old) = old {
        eprintln!(
            "The old directory is kept as {}; delete it once all is well.",
            old.display()
        );
    }
    eprintln!(
        "Write the new recovery key down, keep it away from this machine, and destroy the old one: it is of no more use."
    );
    introduce(arguments, &ledger, old_key.as_ref())?;
    Desk::open(&arguments.signing)?.hand_over();
    Ok(())
}

/// A broker listens to the authority it knows, so the old key, if it is there, has to bring the
/// news of its end.
fn introduce(
    arguments: &Arguments,
    ledger: &Ledger,
    old_key: Option<&SigningKey>,
) -> anyhow::Result<()> {
    let Some(old_key) = old_key else {
        eprintln!(
            "Without the old key a broker elsewhere does not know the new one yet: carry {} to its machine and run `causeway ledger push --file` there.",
            arguments.signing.authority().join("ledger").display()
        );
        return Ok(());
    };
    if !arguments.signing.offline {
        let directories = &arguments.signing.directories;
        let places = brokers::places(ledger);
        let caller = Caller::Authority(old_key);
        // Who took it is told again, and named, by the new authority.
        let _told = Brokers::reach(directories, places, ledger.mesh(), caller)?.tell(ledger);
    }
    Ok(())
}

/// The authority's own, else the file that was given, else that of a broker on this machine.
fn known_ledger(arguments: &Arguments, directory: &Path) -> anyhow::Result<Ledger> {
    let own = directory.join("ledger");
    let local = arguments.signing.directories.broker_ledger();
    let path = match &arguments.file {
        Some(file) => file.clone(),
        None if own.exists() => own,
        None if local.exists() => local,
        None => bail!(
            "there is no ledger in {}; give a copy with --file: `causeway ledger` files lie beside the authority's key and in a broker's directory",
            directory.display()
        ),
    };
    let mut ledger = ledger_file::read(&path)?;
    // A broker on this machine may know more, and asks nobody who comes by its socket.
    let directories = &arguments.signing.directories;
    let mut brokers = Brokers::reach(directories, Vec::new(), ledger.mesh(), Caller::Local)?;
    for entry in brokers.fetch(&ledger) {
        if let Err(why) = ledger.insert(entry.clone()) {
            eprintln!(
                "causeway: {} is refused: {why}",
                authority::entry_name(&entry)
            );
        }
    }
    Ok(ledger)
}

fn change(
    arguments: &Arguments,
    ledger: &Ledger,
    (recovery, key, next): (&SigningKey, &SigningKey, &SigningKey),
) -> anyhow::Result<SignedEntry> {
    let body = Body::Authority {
        recovery: recovery.public(),
        authority: key.public(),
        next_recovery: recovery_hash(&next.public()),
    };
    let Some(after) = &arguments.after else {
        return Ok(ledger.next(time::now(), body)?.sign(recovery));
    };
    let after = find(ledger, after)?.hash();
    Ok(ledger.next_after(after, time::now(), body)?.sign(recovery))
}

fn find<'a>(ledger: &'a Ledger, id: &str) -> anyhow::Result<&'a SignedEntry> {
    let hash_of = |entry: &&SignedEntry| Hash::to_string(&entry.hash()).starts_with(id);
    let mut found = ledger.entries().filter(hash_of);
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry),
        (None, _) | (Some(_), Some(_)) => bail!(Usage(format!(
            "{id} names none or several entries; `causeway ledger show` lists them"
        ))),
    }
}

fn print_recovered(arguments: &Arguments, recovered: &Recovered) -> anyhow::Result<()> {
    if arguments.output.json {
        return print::json(recovered);
    }
    print::data(&format!(
        "mesh          {}\nauthority key {}\nrecovery key  {}\n",
        recovered.mesh, recovered.authority_key, recovered.recovery_key
    ))
}
