//! `causeway node list | revoke`.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use proto::entry::{Body, Closing, Uses};
use proto::key::{Hash, PublicKey};
use proto::ledger::GrantState;
use proto::name::Name;
use proto::record::NodeState;
use serde::Serialize;

use crate::ask;
use crate::command::{Output, Signing, token};
use crate::outlook::{self, Listed, Outlook};
use crate::print::{self, Table};
use crate::signing::Desk;
use crate::time;

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
    /// Its name, SITE/NAME, or its key.
    #[arg(value_name = "NAME", allow_hyphen_values = true)]
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
    node: String,
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
    sequence: u64,
}

fn list(arguments: &List) -> anyhow::Result<()> {
    let mut outlook = Outlook::open(&arguments.signing)?;
    let Some(nodes) = outlook.nodes() else {
        bail!("only brokers know the nodes; see above why none could be asked, then repeat");
    };
    let mut shown: Vec<Shown> = nodes
        .iter()
        .filter(|listed| {
            let site = &listed.record.record().site;
            arguments.site.as_ref().is_none_or(|wanted| wanted == site)
        })
        .map(show)
        .collect();
    shown.sort_by(|one, other| (&one.site, &one.node).cmp(&(&other.site, &other.node)));
    if arguments.output.json {
        return print::json(&shown);
    }
    let heard = |listed: &Shown| match (&listed.heard, listed.connected) {
        (_, true) => "now".to_owned(),
        (Some(heard), false) => heard.clone(),
        (None, false) => "never".to_owned(),
    };
    let mut table = Table::new(["site", "node", "role", "state", "heard", "addresses", "key"]);
    for node in shown {
        let heard = heard(&node);
        table.row([
            node.site,
            node.node,
            node.role,
            node.state,
            heard,
            print::list(&node.addresses),
            node.identity,
        ]);
    }
    print::data(&table.text())
}

fn show(listed: &Listed) -> Shown {
    let record = listed.record.record();
    let presence = record.presence();
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    Shown {
        node: record.node.to_string(),
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
        sequence: record.sequence,
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
    name: String,
    grant: Option<Hash>,
}

#[derive(Serialize)]
struct Revoked {
    node: String,
    identity: String,
    entry: u64,
    /// The token that is closed with it, if it had more uses.
    closed: Option<String>,
    stay: Vec<String>,
}

fn revoke(arguments: &Revoke) -> anyhow::Result<()> {
    let mut desk = Desk::open(&arguments.signing)?;
    let found = find(&mut desk, &arguments.node)?;
    if desk.charter().revoked.contains(&found.key) {
        eprintln!("Node {} is revoked already.", found.name);
        desk.hand_over();
        return Ok(());
    }
    let closing = closing(&mut desk, &found)?;
    eprintln!(
        "This cuts off node {} ({}) for good.",
        found.name, found.key
    );
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
    eprintln!("Node {} is revoked.", found.name);
    desk.hand_over();
    if arguments.output.json {
        let stay = closing.iter().flat_map(|closing| &closing.stay);
        print::json(&Revoked {
            node: found.name,
            identity: found.key.to_string(),
            entry: entry.entry().number,
            closed: closing.as_ref().map(|closing| closing.grant.short()),
            stay: stay.map(ToString::to_string).collect(),
        })?;
    }
    Ok(())
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
                let taken = uses.iter().find(|taken| taken.identity == *key.as_bytes());
                taken.map(|taken| Hash(taken.grant))
            }
        };
        return Ok(Found {
            key,
            name: listed.map_or("of this key".to_owned(), name_of),
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
            name: name_of(one),
            grant: Some(one.enrolment.proof.grant),
        }),
        [] => bail!("no broker knows a node {text}; `causeway node list` shows those there are"),
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
    let mut stay = token::joined_with(desk, &grant)?;
    stay.retain(|key| *key != found.key);
    Ok(Some(Closing { grant, stay }))
}
