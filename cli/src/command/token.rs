//! `causeway token create | list | revoke`.

mod create;

use std::collections::BTreeSet;

use anyhow::bail;
use proto::entry::{Body, Closing, MAX_KEYS, Uses};
use proto::key::{Hash, PublicKey};
use proto::ledger::{Charter, GrantStanding, GrantState, Ledger};
use proto::message::GrantUse;
use serde::Serialize;

use crate::ask;
use crate::command::{Output, Signing};
use crate::outlook::{self, Outlook};
use crate::parse;
use crate::print::{self, Table};
use crate::signing::Desk;
use crate::time;
use crate::uses::{self, Judged};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print a token that lets machines join a site.
    Create(create::Arguments),
    /// Show the tokens that were made.
    List(List),
    /// Close a token: nobody joins with it any more.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    signing: Signing,
    /// As `token list` shows it; the first digits are enough.
    #[arg(value_name = "ID", value_parser = parse::id)]
    id: String,
    /// Revoke the nodes that joined with it too.
    #[arg(long, env = "CAUSEWAY_WITH_NODES", value_parser = clap::builder::FalseyValueParser::new())]
    with_nodes: bool,
    /// Do not ask.
    #[arg(long, env = "CAUSEWAY_YES", value_parser = clap::builder::FalseyValueParser::new())]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(arguments) => create::run(&arguments),
        Command::List(arguments) => list(&arguments),
        Command::Revoke(arguments) => revoke(&arguments),
    }
}

fn allowed(uses: Uses) -> Option<u32> {
    match uses {
        Uses::AtMost(uses) => Some(uses),
        Uses::Unlimited => None,
    }
}

#[derive(Serialize)]
struct Shown {
    id: String,
    site: String,
    role: String,
    prefixes: Vec<String>,
    service_prefixes: Vec<String>,
    /// `None` for any number.
    uses: Option<u32>,
    /// `None` if no broker of its store could be asked.
    taken: Option<usize>,
    /// `None` from the start.
    not_before: Option<String>,
    expires: String,
    state: &'static str,
    grant: String,
}

fn list(arguments: &List) -> anyhow::Result<()> {
    let mut outlook = Outlook::open(&arguments.signing)?;
    outlook.has_broker("the uses taken");
    let uses = outlook.uses();
    let now = time::now();
    let mut grants: Vec<(&Hash, &GrantStanding)> = outlook.charter().grants.iter().collect();
    grants.sort_by_key(|(_, standing)| standing.number);
    let shown: Vec<Shown> = grants
        .into_iter()
        .map(|(id, standing)| show(id, standing, uses.taken(id, standing), now))
        .collect();
    if arguments.output.json {
        return print::json(&shown);
    }
    let mut table = Table::new(["id", "site", "role", "uses", "expires", "state"]);
    for token in shown {
        let taken = token
            .taken
            .map_or("?".to_owned(), |taken| taken.to_string());
        let uses = token
            .uses
            .map_or("unlimited".to_owned(), |uses| uses.to_string());
        table.row([
            token.id,
            token.site,
            token.role,
            format!("{taken}/{uses}"),
            token.expires,
            token.state.to_owned(),
        ]);
    }
    print::data(&table.text())
}

fn show(id: &Hash, standing: &GrantStanding, taken: Option<usize>, now: u64) -> Shown {
    let grant = &standing.grant;
    Shown {
        id: id.short(),
        site: grant.site.to_string(),
        role: grant.role.to_string(),
        prefixes: grant.prefixes.iter().map(ToString::to_string).collect(),
        service_prefixes: grant
            .service_prefixes
            .iter()
            .map(ToString::to_string)
            .collect(),
        uses: allowed(grant.uses),
        taken,
        not_before: (grant.not_before > 0).then(|| time::rfc3339(grant.not_before)),
        expires: time::rfc3339(grant.not_after),
        state: state(standing, taken, now),
        grant: id.to_string(),
    }
}

/// Whether machines join with it, now or once its time has come.
pub(crate) fn is_open(standing: &GrantStanding, taken: Option<usize>, now: u64) -> bool {
    matches!(state(standing, taken, now), "open" | "not yet valid")
}

/// One word for what a machine that shows the token now would meet.
fn state(standing: &GrantStanding, taken: Option<usize>, now: u64) -> &'static str {
    let grant = &standing.grant;
    let is_used_up = match (grant.uses, taken) {
        (Uses::AtMost(most), Some(taken)) => taken >= usize::try_from(most).unwrap_or(usize::MAX),
        (Uses::AtMost(_) | Uses::Unlimited, _) => false,
    };
    match &standing.state {
        GrantState::Closed { .. } => "revoked",
        GrantState::SiteRevoked => "site revoked",
        GrantState::Quarantined => "quarantined",
        GrantState::Open if is_used_up => "used",
        GrantState::Open if now > grant.not_after => "expired",
        GrantState::Open if now < grant.not_before => "not yet valid",
        GrantState::Open => "open",
    }
}

/// The grant whose id begins with this.
pub(crate) fn find(charter: &Charter, id: &str) -> anyhow::Result<Hash> {
    let mut found = charter
        .grants
        .keys()
        .filter(|hash| hash.to_string().starts_with(id));
    match (found.next(), found.next()) {
        (Some(hash), None) => Ok(*hash),
        (None, _) => bail!("there is no token {id}; `causeway token list` shows those there are"),
        (Some(_), Some(_)) => bail!("several tokens begin with {id}; give more of its digits"),
    }
}

#[derive(Serialize)]
struct Revoked {
    id: String,
    /// `None` if it was closed before.
    entry: Option<u64>,
    stay: Vec<String>,
}

fn revoke(arguments: &Revoke) -> anyhow::Result<()> {
    let mut desk = Desk::open(&arguments.signing)?;
    let grant = find(desk.charter(), &arguments.id)?;
    if let Some(standing) = desk.charter().grant(&grant) {
        match &standing.state {
            GrantState::Closed { stay } if stay.is_empty() || !arguments.with_nodes => {
                let stay = stay.iter().map(ToString::to_string).collect();
                eprintln!("Token {} is revoked already.", grant.short());
                desk.hand_over();
                return print_revoked(arguments.output, &grant, None, stay);
            }
            GrantState::Closed { .. }
            | GrantState::Open
            | GrantState::SiteRevoked
            | GrantState::Quarantined => {}
        }
    }
    let stay = if arguments.with_nodes {
        Vec::new()
    } else {
        let staying = joined_with(&mut desk, &grant)?;
        ask_who_stays(&mut desk, &grant, &staying, arguments.yes)?;
        staying.keys
    };
    let entry = desk.sign(Body::Revocation {
        keys: Vec::new(),
        closings: vec![Closing {
            grant,
            stay: stay.clone(),
        }],
    })?;
    eprintln!(
        "Token {} is revoked: nobody joins with it any more.",
        grant.short()
    );
    if arguments.with_nodes {
        eprintln!("No node that joined with it stays.");
    }
    desk.hand_over();
    let stay = stay.iter().map(ToString::to_string).collect();
    print_revoked(arguments.output, &grant, Some(entry.entry().number), stay)
}

fn print_revoked(
    output: Output,
    grant: &Hash,
    entry: Option<u64>,
    stay: Vec<String>,
) -> anyhow::Result<()> {
    if !output.json {
        return Ok(());
    }
    print::json(&Revoked {
        id: grant.short(),
        entry,
        stay,
    })
}

/// Who may stay when a grant is closed.
pub(crate) struct Staying {
    pub(crate) keys: Vec<PublicKey>,
    /// Nobody whom a broker listed was left out, and all could be asked.
    is_whole: bool,
}

/// Before anything is signed: what a closing leaves out is cut off for good, and what it lists may
/// be whoever had the leaked token.
fn ask_who_stays(
    desk: &mut Desk,
    grant: &Hash,
    staying: &Staying,
    is_sure: bool,
) -> anyhow::Result<()> {
    say_who_stays(desk, &staying.keys);
    if staying.keys.is_empty() && staying.is_whole {
        return Ok(());
    }
    eprintln!("Every other node that shows this token is refused from now on.");
    if !staying.keys.is_empty() {
        eprintln!(
            "A node on this list that you do not know came in with the token while it was in other hands. Cut it off with `causeway node revoke KEY`, or all of them with `causeway token revoke {} --with-nodes`.",
            grant.short()
        );
    }
    ask::confirm("Revoke the token?", is_sure)
}

/// Who took a use of a grant and may stay: the closing has to list them. Brokers know them, and
/// each use proves itself.
pub(crate) fn joined_with(desk: &mut Desk, grant: &Hash) -> anyhow::Result<Staying> {
    if !desk.knows_uses_of(grant) {
        for why in desk.brokers().failures() {
            eprintln!("causeway: {why}");
        }
        bail!(
            "no broker could be asked that counts the uses of token {0}, and the entry that closes it must list the nodes that stay. Repeat when one can be reached, or cut them all off with: causeway token revoke {0} --with-nodes",
            grant.short()
        );
    }
    let asked = desk.brokers().failures().len();
    let known = desk.brokers().uses();
    let unasked = &desk.brokers().failures()[asked..];
    for why in unasked {
        eprintln!("causeway: {why}");
    }
    let is_everyone_asked = unasked.is_empty();
    let judged = judged_uses(desk.ledger(), grant, &known);
    judged.say_unproven();
    let mut keys: Vec<PublicKey> = judged.proven.iter().map(|(_, key)| *key).collect();
    // What was closed once stays closed: only fewer can stay.
    if let Some(GrantState::Closed { stay }) = desk.charter().grant(grant).map(|found| &found.state)
    {
        keys.retain(|key| stay.contains(key));
    }
    let used = keys.len();
    let keys = that_fit(keys, || {
        let listed = outlook::trusted(desk.brokers().nodes(), desk.ledger());
        let present = listed.iter().filter(|listed| listed.is_good());
        present
            .map(|listed| listed.record.record().identity)
            .collect()
    });
    if keys.len() < used {
        eprintln!(
            "causeway: token {} brought {used} nodes, more than an entry can list; {} of them have no record any more and do not stay",
            grant.short(),
            used - keys.len()
        );
    }
    Ok(Staying {
        is_whole: is_everyone_asked && judged.unproven.is_empty() && keys.len() == used,
        keys,
    })
}

/// Those of this grant; who is revoked stays nowhere, proven or not.
fn judged_uses(ledger: &Ledger, grant: &Hash, known: &[GrantUse]) -> Judged {
    let revoked = &ledger.charter().revoked;
    let is_revoked = |taken: &GrantUse| {
        PublicKey::new(taken.identity).is_ok_and(|identity| revoked.contains(&identity))
    };
    let of_this = known
        .iter()
        .filter(|taken| taken.grant == grant.0 && !is_revoked(taken));
    uses::judge(of_this, ledger)
}

/// A site that makes its nodes anew every day uses its token more often than an entry has room
/// for; those that are gone must not keep anybody from closing it.
fn that_fit(used: Vec<PublicKey>, present: impl FnOnce() -> BTreeSet<PublicKey>) -> Vec<PublicKey> {
    if used.len() <= MAX_KEYS {
        return used;
    }
    let present = present();
    let is_there = |key: &PublicKey| present.contains(key);
    used.into_iter().filter(is_there).collect()
}

/// By name where a broker knows it, and always by key.
pub(crate) fn say_who_stays(desk: &mut Desk, stay: &[PublicKey]) {
    if stay.is_empty() {
        eprintln!("No node that joined with it stays.");
        return;
    }
    let known = desk.brokers().nodes();
    let nodes = outlook::trusted(known, desk.ledger());
    eprintln!(
        "{} that joined with it stay{}:",
        print::count(stay.len(), "node", "nodes"),
        if stay.len() == 1 { "s" } else { "" }
    );
    for key in stay {
        let name = nodes
            .iter()
            .map(|listed| listed.record.record())
            .find(|record| record.identity == *key)
            .map_or("(no record)".to_owned(), |record| {
                format!("{}/{}", record.site, record.node)
            });
        eprintln!("  {key}  {name}");
    }
}

#[cfg(test)]
mod tests {
    use proto::entry::{Grant, GrantRole, StoreId};
    use proto::key::SigningKey;

    use super::*;

    fn standing(state: GrantState) -> GrantStanding {
        GrantStanding {
            grant: Grant {
                site: "berlin".parse().unwrap(),
                prefixes: vec!["10.1.0.0/16".parse().unwrap()],
                service_prefixes: Vec::new(),
                role: GrantRole::Any,
                not_before: 100,
                not_after: 200,
                uses: Uses::AtMost(2),
                join_key: SigningKey::from_seed(&[3; 32]).public(),
                store: StoreId([0; 16]),
            },
            number: 2,
            issued: 100,
            state,
        }
    }

    #[test]
    fn a_token_that_brought_more_nodes_than_an_entry_lists_keeps_those_that_are_there() {
        let key = |number: u32| {
            let mut seed = [7; 32];
            seed[..4].copy_from_slice(&number.to_be_bytes());
            SigningKey::from_seed(&seed).public()
        };
        let mut used: Vec<PublicKey> = (0..4096).map(key).collect();
        assert_eq!(that_fit(used.clone(), BTreeSet::new), used);
        used.push(key(4096));
        let present: BTreeSet<PublicKey> = [key(5), key(4096), key(9999)].into();
        assert_eq!(
            that_fit(used, || present.clone()),
            [key(5), key(4096)],
            "and none that never used it"
        );
    }

    #[test]
    fn a_token_has_one_word_for_what_it_is_worth_now() {
        let open = standing(GrantState::Open);
        assert_eq!(state(&open, None, 50), "not yet valid");
        assert_eq!(state(&open, Some(1), 150), "open");
        assert_eq!(state(&open, None, 200), "open");
        assert_eq!(state(&open, None, 201), "expired");
        assert_eq!(state(&open, Some(2), 201), "used");
        assert!(is_open(&open, Some(1), 150));
        assert!(is_open(&open, None, 50));
        assert!(!is_open(&open, Some(2), 150));
        assert!(!is_open(&open, None, 201));
        let closed = standing(GrantState::Closed { stay: [].into() });
        assert_eq!(state(&closed, Some(2), 150), "revoked");
        assert_eq!(
            state(&standing(GrantState::SiteRevoked), None, 150),
            "site revoked"
        );
    }
}
