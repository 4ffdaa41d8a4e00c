//! What became of the packets, in words and with the way out.

use routeagent::guard::Hook;
use routeagent::inspect::{Accept, End, Finding, ForeignRule, Traced};

use super::PORT;
use super::ways::Way;
use crate::status;

pub(super) fn shown(ways: &[Way], traced: &[Traced], tun: &str) -> status::Passage {
    let one = |way: &Way| {
        let is_of = |one: &&Traced| one.source == way.source && one.destination == way.destination;
        // Of a packet that was sent twice the last.
        let traced = traced.iter().rev().find(is_of);
        let told = Told::of(way, traced, tun);
        status::Way {
            source: way.source.to_string(),
            destination: way.destination.to_string(),
            state: told.state.to_owned(),
            chain: told.chain,
            what: told.what,
            next: told.next,
        }
    };
    status::Passage {
        ways: ways.iter().map(one).collect(),
        untried: None,
    }
}

struct Told {
    state: &'static str,
    chain: Option<String>,
    what: String,
    next: String,
}

impl Told {
    fn of(way: &Way, traced: Option<&Traced>, tun: &str) -> Told {
        let Way {
            source,
            destination,
        } = way;
        let packet = format!(
            "a packet from {source} of another site to {destination} of this one (a probe, UDP port {PORT})"
        );
        let plain = |state, what, next: String| Told {
            state,
            chain: None,
            what,
            next,
        };
        let Some(traced) = traced else {
            return plain(
                "unseen",
                format!("{packet} was put into {tun}, and the packet filter saw nothing of it"),
                format!(
                    "see whether {tun} is up and whether a filter of tc or BPF takes what comes from it: tc filter show dev {tun} ingress"
                ),
            );
        };
        match &traced.end {
            End::Passed(Hook::Input) => plain(
                "lost",
                format!("{packet} is translated by a rule of this host and ends here"),
                "nft list ruleset shows who does that (dnat, redirect, tproxy); remove the rule".to_owned(),
            ),
            End::Passed(_) => {
                let by = traced.output.as_deref().unwrap_or("an interface");
                plain("passed", format!("{packet} is passed on by {by}"), String::new())
            }
            End::Dropped(rule) => Told {
                state: "dropped",
                chain: Some(format!("{} {} {}", rule.family, rule.table, rule.chain)),
                what: format!("{packet} is dropped on this host by {}", rule),
                next: way_out(rule, tun),
            },
            End::DroppedByUs(chain) => plain(
                "dropped",
                format!("{packet} is dropped by the packet filter of this gateway itself, chain {chain}"),
                "this is a defect unless prefixes are just changing; the log may say more".to_owned(),
            ),
            End::LostIn(hook) => plain(
                "lost",
                format!("{packet} is lost at {hook}, and no rule of nf_tables did it"),
                "look at rules of the old iptables (iptables-legacy-save, ip6tables-legacy-save) and at programs of BPF (bpftool net)".to_owned(),
            ),
            End::LostAfter(hook) => plain(
                "lost",
                format!("{packet} is lost after {hook}: there is no route for it, or the check of sources (rp_filter) refused it"),
                format!("ip route get {destination} from {source} iif {tun} shows what the kernel does with it; nstat -az IpReversePathFilter TcpExtIPReversePathFilter counts refused sources"),
            ),
        }
    }
}

/// A chain for forwarded packets is opened by a flag; of others the rule has to go.
fn way_out(rule: &ForeignRule, tun: &str) -> String {
    let is_forward = rule.hook.is_none_or(|hook| hook == Hook::Forward);
    if let Some(remove) = rule.remove.as_ref().filter(|_| !is_forward) {
        return format!("let through what comes from {tun} before it, or remove it: {remove}");
    }
    let finding = Finding {
        rule: rule.clone(),
        certain: true,
    };
    let command = finding.opening(&Accept::From(tun.to_owned()));
    if is_forward {
        format!("start with --open-forward, or: {command}")
    } else {
        command
    }
}
