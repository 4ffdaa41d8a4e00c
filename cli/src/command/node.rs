//! `causeway node list | revoke`.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use proto::entry::{Body, Closing, Uses};
use proto::key::{Hash, PublicKey};
use proto::ledger::{GrantStanding, GrantState, Ledger, Standing};
use proto::message::GrantUse;
use proto::name::Name;
use proto::record::NodeState;
use serde::Serialize;

use crate::ask;
use crate::command::{Output, Signing, token};
use crate::outlook::{self, Listed, Outlook};
use crate::print::{self, Table};
use crate::signing::Desk;
use crate::time;
use crate::uses;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show the nodes that brokers know.
    List(List),
    /// Cut a node off for good.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    signing: Signing,
    /// Only those of this site.
    #[arg(long, value_name = "NAME", env = "CAUSEWAY_SITE", value_parser = crate::parse::name)]
    site: Option<Name>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    signing: Signing,
    /// Its name, SITE/NAME, or its key, as `node list` shows them.
    #[arg(value_name = "NODE", allow_hyphen_values = true)]
    node: String,
    /// Do not ask.
    #[arg(long, env = "CAUSEWAY_YES", value_parser = clap::builder::FalseyValueParser::new())]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List(arguments) => list(&arguments),
        Command::Revoke(arguments) => revoke(&arguments),
    }
}

#[derive(Serialize)]
struct Shown {
    /// `None` as long as it has no record.
    node: Option<String>,
    site: String,
    role: String,
    identity: String,
    state: String,
    connected: bool,
    /// `None` if no broker ever heard it.
    heard: Option<String>,
    addresses: Vec<String>,
    region: String,
    zone: String,
    token: String,
    sequence: Option<u64>,
}

const NOT_STARTED: &str = "joined, not started";

fn list(arguments: &List) -> anyhow::Result<()> {
    let mut outlook = Outlook::open(&arguments.signing)?;
    let Some(nodes) = outlook.nodes() else {
        bail!("only brokers know the nodes; see above why none could be asked, then repeat");
    };
    let uses = outlook.uses();
    let mut shown: Vec<Shown> = nodes.iter().map(show).collect();
    shown.extend(not_started(outlook.ledger(), uses.all(), &nodes));
    if let Some(wanted) = &arguments.site {
        shown.retain(|node| node.site == wanted.as_str());
    }
    let rank = |node: &Shown| (node.site.clone(), node.node.is_none(), node.node.clone());
    shown.sort_by_key(rank);
    if arguments.output.json {
        return print::json(&shown);
    }
    let is_any_new = shown.iter().any(|node| node.state == NOT_STARTED);
    let heard = |listed: &Shown| match (&listed.heard, listed.connected) {
        (_, true) => "now".to_owned(),
        (Some(heard), false) => heard.clone(),
        (None, false) => "never".to_owned(),
    };
    let mut table = Table::new([
        "site",
        "node",
        "role",
        "state",
        "heard",
        "addresses",
        "region",
        "zone",
        "token",
        "key",
    ]);
    for node in shown {
        let heard = heard(&node);
        table.row([
            node.site,
            node.node.unwrap_or("-".to_owned()),
            node.role,
            node.state,
            heard,
            print::list(&node.addresses),
            or_dash(node.region),
            or_dash(node.zone),
            node.token,
            node.identity,
        ]);
    }
    print::data(&table.text())?;
    if is_any_new {
        eprintln!(
            "{NOT_STARTED}: this key took a use of the token and has no record. Its daemon has not run yet, or the machine is gone for good. If it is none of yours: causeway node revoke KEY"
        );
    }
    Ok(())
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// Those who took a use of a grant, may stay, and have no record at any broker.
fn not_started(ledger: &Ledger, uses: &[GrantUse], nodes: &[Listed]) -> Vec<Shown> {
    let with_record: BTreeSet<[u8; 32]> = nodes
        .iter()
        .map(|listed| *listed.record.record().identity.as_bytes())
        .collect();
    let without = uses
        .iter()
        .filter(|taken| !with_record.contains(&taken.identity));
    let charter = ledger.charter();
    let may_stay = |taken: &&GrantUse| {
        PublicKey::new(taken.identity)
            .is_ok_and(|identity| charter.standing(&Hash(taken.grant), &identity) == Standing::Good)
    };
    let judged = uses::judge(without.filter(may_stay), ledger);
    judged.say_unproven();
    let shown = judged.proven.iter().filter_map(|(grant, identity)| {
        let standing = charter.grant(grant)?;
        Some(joined(grant, standing, identity))
    });
    shown.collect()
}

fn joined(grant: &Hash, standing: &GrantStanding, identity: &PublicKey) -> Shown {
    Shown {
        node: None,
        site: standing.grant.site.to_string(),
        role: standing.grant.role.to_string(),
        identity: identity.to_string(),
        state: NOT_STARTED.to_owned(),
        connected: false,
        heard: None,
        addresses: Vec::new(),
        region: String::new(),
        zone: String::new(),
        token: grant.short(),
        sequence: None,
    }
}

fn show(listed: &Listed) -> Shown {
    let record = listed.record.record();
    let presence = record.presence();
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    Shown {
        node: Some(record.node.to_string()),
        site: record.site.to_string(),
        role: record.role.to_string(),
        identity: record.identity.to_string(),
        state: state(listed),
        connected: listed.status.connected,
        heard: (listed.status.heard > 0).then(|| time::rfc3339(listed.status.heard)),
        addresses: presence.map_or(Vec::new(), |presence| {
            presence
                .candidates
                .iter()
                .map(ToString::to_string)
                .collect()
        }),
        region: text(presence.map(|presence| &presence.region)),
        zone: text(presence.map(|presence| &presence.zone)),
        token: listed.enrolment.proof.grant.short(),
        sequence: Some(record.sequence),
    }
}

/// As every receiver judges the record, whatever the broker says of it.
fn state(listed: &Listed) -> String {
    if let Some(why) = &listed.refusal {
        return format!("refused: {why}");
    }
    match (&listed.record.record().state, listed.status.connected) {
        (NodeState::Withdrawn, _) => "left".to_owned(),
        (NodeState::Present(_), true) => "connected".to_owned(),
        (NodeState::Present(_), false) => "away".to_owned(),
    }
}

/// A node to revoke, and the grant it came by where a broker knows it.
struct Found {
    key: PublicKey,
    /// `None` if no broker has a record of it.
    name: Option<String>,
    grant: Option<Hash>,
}

impl Found {
    fn text(&self) -> String {
        match &self.name {
            Some(name) => format!("node {name} ({})", self.key),
            None => format!("the node with the key {}", self.key),
        }
    }
}

#[derive(Serialize)]
struct Revoked {
    node: Option<String>,
    identity: String,
    /// `None` if it was revoked before.
    entry: Option<u64>,
    /// The token that is closed with it, if it had more uses.
    closed: Option<String>,
    stay: Vec<String>,
}

fn revoke(arguments: &Revoke) -> anyhow::Result<()> {
    let mut desk = Desk::open(&arguments.signing)?;
    let found = find(&mut desk, &arguments.node)?;
    if desk.charter().revoked.contains(&found.key) {
        eprintln!("Revoked already: {}.", found.text());
        desk.hand_over();
        return print_revoked(arguments.output, found, None, None);
    }
    let closing = closing(&mut desk, &found)?;
    eprintln!("This cuts off {} for good.", found.text());
    if let Some(closing) = &closing {
        eprintln!(
            "It joined with token {}, which has many uses and may still be in its hands, so the token is closed too.",
            closing.grant.short()
        );
        token::say_who_stays(&mut desk, &closing.stay);
        eprintln!("Every other node that shows this token is refused from now on.");
    }
    ask::confirm("Revoke it?", arguments.yes)?;
    let entry = desk.sign(Body::Revocation {
        keys: vec![found.key],
        closings: closing.iter().cloned().collect(),
    })?;
    eprintln!("Revoked: {}.", found.text());
    desk.hand_over();
    print_revoked(
        arguments.output,
        found,
        Some(entry.entry().number),
        closing.as_ref(),
    )
}

fn print_revoked(
    output: Output,
    found: Found,
    entry: Option<u64>,
    closing: Option<&Closing>,
) -> anyhow::Result<()> {
    if !output.json {
        return Ok(());
    }
    let stay = closing.iter().flat_map(|closing| &closing.stay);
    print::json(&Revoked {
        node: found.name,
        identity: found.key.to_string(),
        entry,
        closed: closing.map(|closing| closing.grant.short()),
        stay: stay.map(ToString::to_string).collect(),
    })
}

/// By key without any broker; by name as the brokers list it.
fn find(desk: &mut Desk, text: &str) -> anyhow::Result<Found> {
    let known = desk.brokers().nodes();
    let nodes = outlook::trusted(known, desk.ledger());
    if let Ok(key) = text.parse::<PublicKey>() {
        let listed = nodes
            .iter()
            .find(|listed| listed.record.record().identity == key);
        let grant = match listed {
            Some(listed) => Some(listed.enrolment.proof.grant),
            // One that joined and never published is known by its use alone.
            None => {
                let uses = desk.brokers().uses();
                let named = uses
                    .iter()
                    .filter(|taken| taken.identity == *key.as_bytes());
                let judged = uses::judge(named, desk.ledger());
                judged.say_unproven();
                judged.proven.first().map(|(grant, _)| *grant)
            }
        };
        return Ok(Found {
            key,
            name: listed.map(name_of),
            grant,
        });
    }
    if !desk.brokers().is_any() {
        for why in desk.brokers().failures() {
            eprintln!("causeway: {why}");
        }
        bail!(
            "no broker could be asked which key node {text} has; repeat when one can be reached, or give the key itself"
        );
    }
    let matching: Vec<&Listed> = nodes
        .iter()
        .filter(|listed| listed.record.record().node.as_str() == text || name_of(listed) == text)
        .collect();
    match matching.as_slice() {
        [one] => Ok(Found {
            key: one.record.record().identity,
            name: Some(name_of(one)),
            grant: Some(one.enrolment.proof.grant),
        }),
        [] => bail!(
            "no broker knows a node {text}; `causeway node list` shows those there are. One that joined and has not started has no name yet: give its key"
        ),
        many => {
            let names: BTreeSet<String> = many
                .iter()
                .map(|listed| format!("{} ({})", name_of(listed), listed.record.record().identity))
                .collect();
            let names: Vec<String> = names.into_iter().collect();
            bail!(
                "several nodes have the name {text}: {}; give SITE/NAME or the key",
                print::list(&names)
            )
        }
    }
}

fn name_of(listed: &Listed) -> String {
    let record = listed.record.record();
    format!("{}/{}", record.site, record.node)
}

/// What closes a grant of many uses that the node may have kept.
fn closing(desk: &mut Desk, found: &Found) -> anyhow::Result<Option<Closing>> {
    let Some(grant) = found.grant else {
        eprintln!(
            "causeway: no broker knows by which token this node joined; if that token has many uses, close it with `causeway token revoke`"
        );
        return Ok(None);
    };
    let standing = desk.charter().grant(&grant).with_context(|| {
        format!(
            "the ledger has no token {}, by which this node joined",
            grant.short()
        )
    })?;
    let has_one_use = standing.grant.uses == Uses::AtMost(1);
    let is_open = match &standing.state {
        GrantState::Open | GrantState::Quarantined => true,
        GrantState::Closed { .. } | GrantState::SiteRevoked => false,
    };
    if has_one_use || !is_open {
        return Ok(None);
    }
    let mut stay = token::joined_with(desk, &grant)?.keys;
    stay.retain(|key| *key != found.key);
    Ok(Some(Closing { grant, stay }))
}
