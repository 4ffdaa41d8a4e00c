//! The table as nft prints it.

use std::fmt;

use ip_network::IpNetwork;

use super::{Chain, Hook, Rule, SetName, Span, Table, Term};
use crate::wanted::Family;

impl fmt::Display for SetName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.first.is_ipv4() { 32 } else { 128 };
        // As nft: a prefix where it is one.
        let prefix = (0..=bits)
            .filter_map(|length| IpNetwork::new(self.first, length).ok())
            .find(|prefix| Span::of(*prefix) == *self);
        match prefix {
            _ if self.first == self.last => write!(out, "{}", self.first),
            Some(prefix) => write!(out, "{prefix}"),
            None => write!(out, "{}-{}", self.first, self.last),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "table inet {} {{", crate::settings::TABLE_NAME)?;
        for (name, spans) in &self.sets {
            let kind = match name.family() {
                Family::V4 => "ipv4_addr",
                Family::V6 => "ipv6_addr",
            };
            writeln!(out, "\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval")?;
            let spans: Vec<String> = spans.iter().map(Span::to_string).collect();
            if !spans.is_empty() {
                writeln!(out, "\t\telements = {{ {} }}", spans.join(", "))?;
            }
            writeln!(out, "\t}}")?;
        }
        for chain in &self.chains {
            let Chain {
                name,
                kind,
                hook,
                priority,
                rules,
            } = chain;
            writeln!(out, "\tchain {name} {{")?;
            writeln!(
                out,
                "\t\ttype {kind} hook {hook} priority {priority}; policy accept;"
            )?;
            for rule in rules {
                writeln!(out, "\t\t{rule}")?;
            }
            writeln!(out, "\t}}")?;
        }
        writeln!(out, "}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: Vec<String> = self.0.iter().map(Term::to_string).collect();
        out.write_str(&terms.join(" "))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unless = |is: bool| if is { "" } else { "!= " };
        let header = |family: Family| match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        match self {
            Term::Input { is, device } => write!(out, "iifname {}\"{device}\"", unless(*is)),
            Term::Output { is, device } => write!(out, "oifname {}\"{device}\"", unless(*is)),
            Term::From { is, index } => write!(out, "iif {}{index}", unless(*is)),
            Term::To(index) => write!(out, "oif {index}"),
            Term::Source(set) => write!(out, "{} saddr @{set}", header(set.family())),
            Term::SourceNot(set) => write!(out, "{} saddr != @{set}", header(set.family())),
            Term::OriginalSource(set) => {
                write!(out, "ct original {} saddr @{set}", header(set.family()))
            }
            Term::OriginalDestination(set) => {
                write!(out, "ct original {} daddr @{set}", header(set.family()))
            }
            Term::NextHop(set) => write!(out, "rt {} nexthop @{set}", header(set.family())),
            Term::NotTranslated => out.write_str("ct status & dnat == 0"),
            Term::Destination(set) => write!(out, "{} daddr @{set}", header(set.family())),
            Term::OwnSource => out.write_str("fib saddr type local"),
            Term::ComesAstray => out.write_str("fib saddr . iif oif missing"),
            Term::DestinationIsOwn(is) => write!(out, "fib daddr type {}local", unless(*is)),
            Term::UdpTo(port) => write!(out, "udp dport {port}"),
            Term::Marked(value, mask) => {
                write!(out, "meta mark & {mask:#010x} == {value:#010x}")
            }
            Term::Mark(value, mask) if value == mask => {
                write!(out, "meta mark set meta mark | {value:#010x}")
            }
            Term::Mark(value, mask) => {
                write!(
                    out,
                    "meta mark set meta mark & {:#010x} | {value:#010x}",
                    !mask
                )
            }
            Term::Count => out.write_str("counter"),
            Term::Accept => out.write_str("accept"),
            Term::Drop => out.write_str("drop"),
            Term::Untracked => out.write_str("notrack"),
            Term::KeepSource(family) => {
                let header = header(*family);
                write!(out, "snat {header} to {header} saddr")
            }
            Term::TranslateSource(address) => {
                write!(out, "snat {} to {address}", header(Family::of(*address)))
            }
        }
    }
}
