//! What this node's daemon and its cache tell: prefixes, links and their paths, the gateways of an
//! agent.

use node::cloud::{Cloud, Found};
use proto::ledger::{PrefixState, Standing};

use super::check::{Check, Group, Sheet};
use super::host::Privileges;
use super::known::{Known, Told};
use super::nat;

/// IPv6 needs it inside.
const LEAST_MTU: u16 = 1280;

pub(super) fn checks(known: &Known, privileges: &Privileges) -> Vec<Check> {
    let mut sheet = Sheet::new(Group::Mesh);
    for why in &known.unread {
        if privileges.is_admin {
            sheet.failed("state", why.clone(), "");
        } else {
            sheet.skipped("state", format!("{why}; or use sudo"));
        }
    }
    for why in &known.silent {
        if !privileges.is_admin {
            sheet.skipped("daemon", format!("{why}; use sudo"));
            continue;
        }
        sheet.failed(
            "daemon",
            format!("a daemon's socket is there, and nobody answers: {why}"),
            "start it again (`causeway gateway run` or `causeway routeagent run`) and see its log",
        );
    }
    joined(&mut sheet, known);
    for (role, told) in known.daemons() {
        daemon(&mut sheet, role, told);
    }
    if let Some(told) = &known.gateway {
        links(&mut sheet, told);
    }
    nat::check(&mut sheet, known);
    if let Some(told) = &known.agent {
        gateways(&mut sheet, told);
    }
    cloud(&mut sheet, known);
    sheet.done()
}

fn joined(sheet: &mut Sheet, known: &Known) {
    let Some(node) = &known.node else {
        if known.unread.is_empty() {
            let why = "this machine has not joined a mesh (or --state-dir names another directory)";
            sheet.skipped("membership", why);
        }
        return;
    };
    let view = &node.view;
    let whose = format!("node {} of site {}", view.node, view.site);
    match view.standing {
        Standing::Good => sheet.passed("membership", format!("{whose}, in good standing")),
        Standing::NoGrant => sheet.skipped(
            "membership",
            format!("{whose}; its cache is empty, so nothing of the mesh is known yet"),
        ),
        Standing::GrantClosed
        | Standing::SiteRevoked
        | Standing::Revoked
        | Standing::Quarantined => {
            let problem = node::follow::Problem::Standing(view.standing);
            sheet.failed("membership", problem.to_string(), problem.next());
        }
    }
    if known.daemons().next().is_none() && known.silent.is_empty() {
        sheet.warning(
            "daemon",
            "no daemon of this node runs (or --runtime-dir names another directory)",
            "causeway gateway run, or causeway routeagent run",
        );
    }
    for held in view.prefixes.iter() {
        let why = match &held.state {
            PrefixState::Owned => continue,
            PrefixState::Overlaps { site, prefix } => {
                format!("overlaps {prefix} of site {site}, which had it first")
            }
            PrefixState::Quarantined => "the ledger is forked".to_owned(),
            PrefixState::Refused(why) => why.to_string(),
        };
        sheet.failed(
            "prefix",
            format!(
                "{} of site {} is not reached from here: {why}",
                held.prefix, held.site
            ),
            format!(
                "causeway site remove-prefix {} {}, or settle the ledger",
                held.site, held.prefix
            ),
        );
    }
}

/// What it says itself is not found out again.
fn daemon(sheet: &mut Sheet, role: &str, told: &Told) {
    let who = format!("the {role} {} of site {}", told.node, told.site);
    if told.ready {
        sheet.passed("daemon", format!("{who} runs and is ready"));
    } else {
        sheet.warning(
            "daemon",
            format!("{who} runs and is not ready"),
            "causeway status --wait",
        );
    }
    for problem in &told.problems {
        if problem.stops {
            sheet.failed("problem", problem.what.clone(), problem.next.clone());
        } else {
            sheet.warning("problem", problem.what.clone(), problem.next.clone());
        }
    }
    for prefix in &told.prefixes {
        if prefix.state == "unreachable" {
            sheet.failed(
                "prefix",
                format!(
                    "{} of site {} is unreachable now",
                    prefix.prefix, prefix.site
                ),
                format!(
                    "causeway ping {} on a gateway, and see that site's gateways",
                    prefix.site
                ),
            );
        }
    }
}

fn links(sheet: &mut Sheet, told: &Told) {
    for link in &told.links {
        let whose = format!("{} of site {}", link.gateway, link.site);
        if link.state != "up" {
            let why = link.why_text.clone().unwrap_or_else(|| link.state.clone());
            let saw = format!("gateway {whose} is not reached: {why}");
            let next = "see that UDP passes between the two, in one direction at least; `causeway status` shows which addresses were tried";
            let mut all = told.links.iter();
            // Traffic goes on by another one of its site.
            if all.any(|other| other.site == link.site && other.state == "up") {
                sheet.warning("link", saw, next);
            } else {
                sheet.failed("link", saw, next);
            }
            continue;
        }
        let by_relay = link.path.as_deref() == Some("relay");
        if by_relay {
            sheet.warning(
                "link",
                format!("gateway {whose} is reached through a broker's relay only"),
                "let UDP pass between the two, or give one of them an address that the other reaches with --endpoint",
            );
        } else {
            let rtt = link
                .rtt_ms
                .map_or_else(String::new, |rtt| format!(", {rtt:.1} ms"));
            sheet.passed("link", format!("gateway {whose} is reached{rtt}"));
        }
        let saw = format!("{} bytes fit through to gateway {whose}", link.mtu);
        if link.mtu < LEAST_MTU {
            sheet.warning(
                "path-mtu",
                format!("{saw}: IPv6 travels in pieces"),
                "raise the MTU of the network between the two, or of the interface there",
            );
        } else {
            sheet.passed("path-mtu", saw);
        }
    }
}

fn gateways(sheet: &mut Sheet, told: &Told) {
    sheet.passed("mode", format!("{}: {}", told.mode.used, told.mode.why));
    let answers = |state: &str| matches!(state, "up" | "held_down");
    let is_any = told.gateways.iter().any(|one| answers(&one.state));
    for gateway in &told.gateways {
        let who = format!("gateway {} at {}", gateway.name, gateway.address);
        let saw = format!(
            "{who} does not answer this agent: {}",
            gateway.state.replace('_', " ")
        );
        let next = "see that it runs, and that UDP 7802 passes both ways between the two";
        if answers(&gateway.state) {
            sheet.passed("gateway", format!("{who} answers"));
        } else if is_any {
            // The others carry what it would.
            sheet.warning("gateway", saw, next);
        } else {
            sheet.failed("gateway", saw, next);
        }
    }
    if told.gateways.is_empty() {
        sheet.failed(
            "gateway",
            "no gateway of this site is known here",
            "start one: causeway gateway run",
        );
    }
}

/// Whether a cloud lets packets of foreign addresses pass, as they do between agents and gateways
/// that do without VXLAN.
fn cloud(sheet: &mut Sheet, known: &Known) {
    let Some(found) = &known.cloud else {
        return one_way(sheet, known, None);
    };
    let place = &found.place;
    sheet.passed(
        "cloud",
        format!(
            "{}, region {}, zone {}",
            found.cloud, place.region, place.zone
        ),
    );
    one_way(sheet, known, Some(found));
}

fn one_way(sheet: &mut Sheet, known: &Known, found: Option<&Found>) {
    const NAME: &str = "source-destination-check";
    let next = found.map_or_else(
        || "nothing, VXLAN is used instead; to do without, let the network pass foreign addresses (source/destination check off, IP forwarding on, no port security)".to_owned(),
        |found| format!("nothing, VXLAN is used instead; to do without: {}", switch(found)),
    );
    if let Some(told) = &known.agent {
        let tried = |result: &str| -> Vec<&str> {
            let all = told.gateways.iter();
            let all = all.filter(|one| one.direct == result);
            all.map(|one| one.name.as_str()).collect()
        };
        let (passed, failed) = (tried("passed"), tried("failed"));
        let between = format!("between this node and {}", failed.join(", "));
        let used = told.mode.used.as_str();
        if failed.is_empty() && passed.is_empty() {
            sheet.skipped(NAME, format!("not tried: {}", told.mode.why));
        } else if failed.is_empty() {
            sheet.passed(
                NAME,
                format!(
                    "packets of foreign addresses pass both ways between this node and {}",
                    passed.join(", ")
                ),
            );
        } else if used == "vxlan" {
            sheet.warning(
                NAME,
                format!("packets of foreign addresses do not pass {between}; VXLAN is used"),
                next,
            );
        } else if used == "direct" && passed.is_empty() {
            sheet.failed(
                NAME,
                format!(
                    "packets of foreign addresses do not pass {between}, and mode direct needs them"
                ),
                found.map_or_else(
                    || "run the agent with --mode auto or vxlan".to_owned(),
                    |found| format!("run the agent with --mode auto, or: {}", switch(found)),
                ),
            );
        } else {
            sheet.warning(NAME, format!("packets of foreign addresses do not pass {between}"), "causeway diagnose on that gateway names what is in the way there: forwarding, rules of a firewall, or this check of the cloud");
        }
        return;
    }
    match found {
        Some(found) => sheet.skipped(NAME, format!("the metadata service of {} does not tell; agents find out and use VXLAN where foreign addresses do not pass. For those without an agent it must be off on gateways: {}", found.cloud, switch(found))),
        None => sheet.skipped(NAME, "only an agent can see this, and no cloud's metadata service answers"),
    }
}

/// Lets this machine pass on packets that are not its own.
fn switch(found: &Found) -> String {
    let instance = found.instance.as_deref();
    match found.cloud {
        Cloud::Aws => format!(
            "aws ec2 modify-instance-attribute --instance-id {} --no-source-dest-check",
            instance.unwrap_or("INSTANCE")
        ),
        Cloud::Azure => format!(
            "az network nic update --ip-forwarding true --ids $(az vm show --name {} --resource-group GROUP --query 'networkProfile.networkInterfaces[].id' --output tsv)",
            instance.unwrap_or("MACHINE")
        ),
        Cloud::Google => {
            "make the instance anew with --can-ip-forward; it cannot be changed later".to_owned()
        }
    }
}
