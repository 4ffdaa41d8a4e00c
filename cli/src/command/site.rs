//! `causeway site list | show | add-prefix | remove-prefix | revoke`.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use ip_network::IpNetwork;
use proto::entry::{Body, Role};
use proto::ledger::{Charter, PrefixState, SitePrefix};
use proto::name::Name;
use proto::record::Presence;
use serde::Serialize;

use crate::ask;
use crate::command::{Output, Signing, token};
use crate::outlook::{KnownUses, Listed, Outlook};
use crate::parse;
use crate::print::{self, Table};
use crate::signing::Desk;
use crate::time;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show all sites.
    List(List),
    /// Show one site and its prefixes.
    Show(Show),
    /// Give a site more prefixes.
    AddPrefix(AddPrefix),
    /// Take prefixes from a site.
    RemovePrefix(RemovePrefix),
    /// Cut a site off: all its nodes, tokens and prefixes.
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
pub(crate) struct Show {
    #[command(flatten)]
    signing: Signing,
    #[arg(value_name = "NAME", value_parser = parse::name)]
    site: Name,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddPrefix {
    #[command(flatten)]
    signing: Signing,
    #[arg(value_name = "NAME", value_parser = parse::name)]
    site: Name,
    #[arg(value_name = "PREFIX", value_parser = parse::cidr, required = true)]
    prefixes: Vec<IpNetwork>,
    /// They are prefixes of services, whose replies must return through the node that translated.
    #[arg(long, env = "CAUSEWAY_SERVICE", value_parser = clap::builder::FalseyValueParser::new())]
    service: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RemovePrefix {
    #[command(flatten)]
    signing: Signing,
    #[arg(value_name = "NAME", value_parser = parse::name)]
    site: Name,
    #[arg(value_name = "PREFIX", value_parser = parse::cidr, required = true)]
    prefixes: Vec<IpNetwork>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    signing: Signing,
    #[arg(value_name = "NAME", value_parser = parse::name)]
    site: Name,
    /// Do not ask.
    #[arg(long, env = "CAUSEWAY_YES", value_parser = clap::builder::FalseyValueParser::new())]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List(arguments) => list(&arguments),
        Command::Show(arguments) => show(&arguments),
        Command::AddPrefix(arguments) => add_prefix(&arguments),
        Command::RemovePrefix(arguments) => remove_prefix(&arguments),
        Command::Revoke(arguments) => revoke(&arguments),
    }
}

const OWNED: &str = "owned";

#[derive(Serialize)]
struct Site {
    site: String,
    prefixes: Vec<Prefix>,
    /// `None` where no broker could be asked.
    gateways: Option<usize>,
    agents: Option<usize>,
    /// Of its nodes, as far as they know.
    regions: Vec<String>,
    zones: Vec<String>,
    open_tokens: usize,
}

/// What a change leaves a site with.
#[derive(Serialize)]
struct Changed {
    site: String,
    prefixes: Vec<Prefix>,
}

#[derive(Serialize)]
struct Prefix {
    prefix: String,
    service: bool,
    state: String,
}

fn prefix(held: &SitePrefix) -> Prefix {
    Prefix {
        prefix: held.prefix.to_string(),
        service: held.service,
        state: match &held.state {
            PrefixState::Owned => OWNED.to_owned(),
            PrefixState::Overlaps { site, prefix } => {
                format!("quarantined: overlaps {prefix} of site {site}, which had it first")
            }
            PrefixState::Quarantined => "quarantined: the ledger is forked".to_owned(),
            PrefixState::Refused(why) => format!("refused: {why}"),
        },
    }
}

/// What brokers know, where one could be asked.
struct Known {
    nodes: Option<Vec<Listed>>,
    uses: KnownUses,
}

impl Known {
    fn of(outlook: &mut Outlook) -> Known {
        Known {
            nodes: outlook.nodes(),
            uses: outlook.uses(),
        }
    }
}

fn site(charter: &Charter, name: &Name, known: &Known) -> Site {
    let nodes = known.nodes.as_deref();
    let count = |role: Role| {
        nodes.map(|nodes| {
            let here = nodes.iter().filter(|listed| {
                let record = listed.record.record();
                record.site == *name && record.role == role && listed.is_good()
            });
            here.count()
        })
    };
    let now = time::now();
    let open = charter.grants.iter().filter(|(id, standing)| {
        standing.grant.site == *name
            && token::is_open(standing, known.uses.taken(id, standing), now)
    });
    Site {
        site: name.to_string(),
        prefixes: charter.prefixes_of(name).map(prefix).collect(),
        gateways: count(Role::Gateway),
        agents: count(Role::Agent),
        regions: places(nodes, name, |presence| &presence.region),
        zones: places(nodes, name, |presence| &presence.zone),
        open_tokens: open.count(),
    }
}

/// Each once.
fn places(nodes: Option<&[Listed]>, site: &Name, place: fn(&Presence) -> &String) -> Vec<String> {
    let here = nodes
        .unwrap_or_default()
        .iter()
        .filter(|listed| listed.is_good());
    let records = here.map(|listed| listed.record.record());
    let records = records.filter(|record| record.site == *site);
    let places = records.filter_map(|record| record.presence()).map(place);
    let known: BTreeSet<&String> = places.filter(|place| !place.is_empty()).collect();
    known.into_iter().cloned().collect()
}

fn list(arguments: &List) -> anyhow::Result<()> {
    let mut outlook = Outlook::open(&arguments.signing)?;
    let known = Known::of(&mut outlook);
    let charter = outlook.charter();
    let sites: Vec<Site> = charter
        .sites()
        .into_iter()
        .map(|name| site(charter, name, &known))
        .collect();
    if arguments.output.json {
        return print::json(&sites);
    }
    let number = |count: Option<usize>| count.map_or("?".to_owned(), |count| count.to_string());
    let mut prefixes = sites.iter().flat_map(|site| &site.prefixes);
    let is_any_odd = prefixes.any(|prefix| prefix.state != OWNED);
    let mut table = Table::new([
        "site",
        "region",
        "zones",
        "prefixes",
        "gateways",
        "agents",
        "open tokens",
    ]);
    for site in sites {
        let prefixes: Vec<String> = site.prefixes.iter().map(in_short).collect();
        table.row([
            site.site,
            print::list(&site.regions),
            print::list(&site.zones),
            print::list(&prefixes),
            number(site.gateways),
            number(site.agents),
            site.open_tokens.to_string(),
        ]);
    }
    print::data(&table.text())?;
    if is_any_odd {
        eprintln!("(!) nobody reaches this prefix; `causeway site show NAME` says why");
    }
    Ok(())
}

fn in_short(prefix: &Prefix) -> String {
    let service = if prefix.service { " (service)" } else { "" };
    let fault = if prefix.state == OWNED { "" } else { " (!)" };
    format!("{}{service}{fault}", prefix.prefix)
}

fn show(arguments: &Show) -> anyhow::Result<()> {
    let mut outlook = Outlook::open(&arguments.signing)?;
    refuse_unknown(outlook.charter(), &arguments.site)?;
    let known = Known::of(&mut outlook);
    let site = site(outlook.charter(), &arguments.site, &known);
    if arguments.output.json {
        return print::json(&site);
    }
    let number = |count: Option<usize>| count.map_or("?".to_owned(), |count| count.to_string());
    let mut text = format!(
        "site         {}\nregion       {}\nzones        {}\ngateways     {}\nagents       {}\nopen tokens  {}\n",
        site.site,
        print::list(&site.regions),
        print::list(&site.zones),
        number(site.gateways),
        number(site.agents),
        site.open_tokens
    );
    let mut table = Table::new(["prefix", "kind", "state"]);
    for prefix in site.prefixes {
        let kind = if prefix.service { "service" } else { "plain" };
        table.row([prefix.prefix, kind.to_owned(), prefix.state]);
    }
    text.push('\n');
    text.push_str(&table.text());
    print::data(&text)
}

fn refuse_unknown(charter: &Charter, name: &Name) -> anyhow::Result<()> {
    if charter.sites().contains(&name) {
        return Ok(());
    }
    bail!(
        "there is no site {name}; `causeway site list` shows those there are, `causeway token create --site {name}` makes one"
    );
}

fn add_prefix(arguments: &AddPrefix) -> anyhow::Result<()> {
    let given = arguments.prefixes.clone();
    let (added, added_service) = if arguments.service {
        (Vec::new(), given)
    } else {
        (given, Vec::new())
    };
    let body = Body::Prefixes {
        site: arguments.site.clone(),
        added,
        added_service,
        removed: Vec::new(),
    };
    change(&arguments.signing, &arguments.site, body, arguments.output)
}

fn remove_prefix(arguments: &RemovePrefix) -> anyhow::Result<()> {
    let body = Body::Prefixes {
        site: arguments.site.clone(),
        added: Vec::new(),
        added_service: Vec::new(),
        removed: arguments.prefixes.clone(),
    };
    change(&arguments.signing, &arguments.site, body, arguments.output)
}

fn change(signing: &Signing, name: &Name, body: Body, output: Output) -> anyhow::Result<()> {
    let mut desk = Desk::open(signing)?;
    if has_already(desk.charter(), &body) {
        eprintln!("Site {name} has that already; nothing was signed.");
    } else {
        desk.sign(body)
            .with_context(|| format!("site {name} was not changed"))?;
    }
    let prefixes: Vec<Prefix> = desk.charter().prefixes_of(name).map(prefix).collect();
    let texts: Vec<String> = prefixes.iter().map(in_short).collect();
    eprintln!("Site {name} now has: {}", print::list(&texts));
    desk.hand_over();
    if output.json {
        let site = name.to_string();
        print::json(&Changed { site, prefixes })?;
    }
    Ok(())
}

/// So that a script that is run again leaves no trace in the ledger.
fn has_already(charter: &Charter, body: &Body) -> bool {
    let Body::Prefixes {
        site,
        added,
        added_service,
        removed,
    } = body
    else {
        return false;
    };
    let holds = |prefix: &IpNetwork, service: bool| {
        charter
            .prefixes_of(site)
            .filter(|held| held.state == PrefixState::Owned)
            .any(|held| held.prefix == *prefix && held.service == service)
    };
    removed.is_empty()
        && added.iter().all(|prefix| holds(prefix, false))
        && added_service.iter().all(|prefix| holds(prefix, true))
}

#[derive(Serialize)]
struct Revoked {
    site: String,
    entry: u64,
}

fn revoke(arguments: &Revoke) -> anyhow::Result<()> {
    let mut desk = Desk::open(&arguments.signing)?;
    let name = &arguments.site;
    refuse_unknown(desk.charter(), name)?;
    let prefixes: Vec<IpNetwork> = desk
        .charter()
        .prefixes_of(name)
        .map(|held| held.prefix)
        .collect();
    eprintln!(
        "This cuts off every node of site {name}, closes all its tokens and takes its prefixes ({}). It cannot be undone; the nodes would have to join again with new tokens.",
        print::list(&prefixes)
    );
    ask::confirm("Revoke it?", arguments.yes)?;
    let entry = desk.sign(Body::SiteRevoked { site: name.clone() })?;
    eprintln!("Site {name} is revoked.");
    desk.hand_over();
    if arguments.output.json {
        print::json(&Revoked {
            site: name.to_string(),
            entry: entry.entry().number,
        })?;
    }
    Ok(())
}
