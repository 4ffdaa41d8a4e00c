//! Other programs' packet filters: which of their rules would swallow, change or lead astray what
//! belongs to the mesh. Everything of nf_tables is read over netlink, what iptables put there
//! included; the tables of the old iptables by their own program. Nothing is changed.
//!
//! [`Ruleset::read`] reads, [`judge()`] answers for a node. [`trace_drops`] finds by trying which rule
//! ends a packet.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ip_network::IpNetwork;

use crate::guard::Hook;
use crate::netlink::nft::Nft;
use crate::settings::TABLE_NAME;
use crate::wanted::Family;

mod attributes;
mod decode;
mod judge;
mod legacy;
mod read;
mod rules;
mod save;
mod trace;
mod walk;
mod xtables;

pub use judge::{Judged, Listening, Situation, Topic, judge, private_networks};
pub use trace::{End, Flow, Trace, Traced, trace_drops};

use rules::{Act, Base, Key, Rules};
use walk::Met;

/// All rules of this network namespace but ours.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    rules: Rules,
    /// Interfaces by name, for rules that know them by number.
    devices: Vec<(String, u32)>,
    /// What could not be read, in words.
    pub unread: Option<String>,
}

/// Packets that are alike for the question. Nothing said of a field means any value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packets {
    pub hook: Hook,
    pub family: Family,
    pub source: Vec<IpNetwork>,
    pub destination: Vec<IpNetwork>,
    pub source_is_own: bool,
    pub destination_is_own: bool,
    pub input: Option<String>,
    pub output: Option<String>,
    /// Who gets them next: a router, or the destination itself.
    pub next_hop: Option<IpAddr>,
    /// 6 is TCP, 17 UDP.
    pub protocol: Option<u8>,
    pub source_port: Option<u16>,
    pub port: Option<u16>,
    pub mark: u32,
    pub state: State,
    devices: Vec<(String, u32)>,
}

/// What conntrack says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    New,
    Established,
    Untracked,
}

/// One rule of another program, or the policy of one of its chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    pub program: Program,
    /// As nft calls it.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    /// Where the way to it begins.
    pub base_chain: String,
    pub hook: Option<Hook>,
    pub priority: i32,
    /// Of nf_tables; `None` for a policy and for the old iptables.
    pub handle: Option<u64>,
    pub text: String,
    pub verdict: String,
    /// The command that removes it; none for a policy.
    pub remove: Option<String>,
}

/// Whose rule it is, as far as its place tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Nft,
    /// iptables on nf_tables.
    Iptables,
    LegacyIptables,
    Firewalld,
    Ufw,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub rule: ForeignRule,
    /// All packets asked about meet it; else it depends on what was not said or cannot be judged.
    pub certain: bool,
}

/// What a person may want to let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accept {
    From(String),
    To(String),
    Udp(u16),
    Tcp(u16),
}

impl Packets {
    pub fn new(hook: Hook, family: Family) -> Packets {
        Packets {
            hook,
            family,
            source: vec![],
            destination: vec![],
            source_is_own: false,
            destination_is_own: false,
            input: None,
            output: None,
            next_hop: None,
            protocol: None,
            source_port: None,
            port: None,
            mark: 0,
            state: State::New,
            devices: vec![],
        }
    }

    fn index_of(&self, device: &str) -> Option<u32> {
        let mut all = self.devices.iter();
        all.find(|(name, _)| name == device)
            .map(|(_, index)| *index)
    }
}

/// Whether somebody has changed rules, told without reading them.
pub struct Watch(Nft);

impl Watch {
    /// Of the calling thread's network namespace.
    pub fn new() -> io::Result<Watch> {
        Nft::new().map(Watch)
    }

    /// Another number after each transaction of nf_tables.
    pub fn generation(&self) -> io::Result<u32> {
        self.0.generation()
    }
}

impl Ruleset {
    /// Of the calling thread's network namespace.
    pub fn read() -> io::Result<Ruleset> {
        let nft = Nft::new()?;
        read::ruleset(&nft, false)
    }

    /// With our own among them, for the way of one packet.
    pub fn read_whole() -> io::Result<Ruleset> {
        let nft = Nft::new()?;
        read::ruleset(&nft, true)
    }

    /// Rules and policies that drop `packets`, in the order of their way.
    pub fn drops(&self, packets: &Packets) -> Vec<Finding> {
        let met = self.met(packets);
        let drops = met
            .into_iter()
            .filter(|met| matches!(met.act, Act::Drop | Act::Reject));
        drops.map(|met| self.finding(&met)).collect()
    }

    /// Rules that change an address of `packets`.
    pub fn translations(&self, packets: &Packets) -> Vec<Finding> {
        let met = self.met(packets);
        let changes = met
            .into_iter()
            .filter(|met| matches!(met.act, Act::Translate(..)));
        changes.map(|met| self.finding(&met)).collect()
    }

    /// Every rule there is.
    pub fn all(&self) -> Vec<ForeignRule> {
        let chains = self.rules.chains.iter();
        let rules = chains.flat_map(|(key, chain)| {
            let rules = chain.rules.iter().enumerate();
            rules.map(move |(at, rule)| {
                let act = rule.steps.iter().rev().find_map(|step| match step {
                    rules::Step::Act(act) => Some(act.to_string()),
                    rules::Step::Test { .. }
                    | rules::Step::Lookup { .. }
                    | rules::Step::Unsure(_) => None,
                });
                let base = (key, chain.base.as_ref());
                self.rule(key, base, Some((at + 1, rule)), act.unwrap_or_default())
            })
        });
        rules.collect()
    }

    fn met(&self, packets: &Packets) -> Vec<Met<'_>> {
        let packets = Packets {
            devices: self.devices.clone(),
            ..packets.clone()
        };
        walk::walk(&self.rules, &packets)
    }

    fn finding(&self, met: &Met<'_>) -> Finding {
        let base = (met.base.0, Some(met.base.1));
        Finding {
            rule: self.rule(met.chain, base, met.rule, met.act.to_string()),
            certain: met.is_certain,
        }
    }

    fn rule(
        &self,
        key: &Key,
        (base_key, base): (&Key, Option<&Base>),
        rule: Option<(usize, &rules::Rule)>,
        verdict: String,
    ) -> ForeignRule {
        let program = self.program(key);
        let table = key.1.strip_prefix(legacy::LEGACY).unwrap_or(&key.1);
        let text = rule.map_or_else(|| "policy drop".to_owned(), |(_, rule)| rule.said());
        let family = family_name(key.0);
        let remove = rule.map(|(_, rule)| match program {
            Program::LegacyIptables => {
                format!("{} -t {table} -D {} {text}", iptables(key.0, true), key.2)
            }
            Program::Nft | Program::Iptables | Program::Firewalld | Program::Ufw => format!(
                "nft delete rule {family} {table} {} handle {}",
                key.2, rule.handle
            ),
        });
        ForeignRule {
            program,
            family,
            table: table.to_owned(),
            chain: key.2.clone(),
            base_chain: base_key.2.clone(),
            hook: base.and_then(|base| hook(base.hook)),
            priority: base.map_or(0, |base| base.priority),
            handle: rule
                .map(|(_, rule)| rule.handle)
                .filter(|handle| *handle != 0),
            text,
            verdict,
            remove,
        }
    }

    fn program(&self, key: &Key) -> Program {
        let (family, table, _) = key;
        if table.starts_with(legacy::LEGACY) {
            return Program::LegacyIptables;
        }
        if table == "firewalld" {
            return Program::Firewalld;
        }
        let mut chains = self
            .rules
            .chains
            .keys()
            .filter(|other| other.0 == *family && other.1 == *table);
        let is_of_iptables = matches!(family, 2 | 10)
            && ["filter", "nat", "mangle", "raw", "security"].contains(&table.as_str())
            && chains
                .clone()
                .any(|chain| chain.2 == chain.2.to_uppercase());
        if chains.any(|chain| chain.2.starts_with("ufw")) {
            Program::Ufw
        } else if is_of_iptables {
            Program::Iptables
        } else {
            Program::Nft
        }
    }
}

impl ForeignRule {
    /// Found by [`Ruleset::read_whole`] alone.
    pub fn is_ours(&self) -> bool {
        (self.family, self.table.as_str()) == ("inet", TABLE_NAME)
    }
}

impl Finding {
    /// The command that lets this through before the rule is met.
    pub fn opening(&self, accept: &Accept) -> String {
        let rule = &self.rule;
        match (rule.program, accept) {
            (Program::Firewalld, Accept::From(device) | Accept::To(device)) => format!(
                "firewall-cmd --permanent --zone=trusted --add-interface={device} && firewall-cmd --reload"
            ),
            (Program::Firewalld, Accept::Udp(port)) => {
                format!("firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload")
            }
            (Program::Firewalld, Accept::Tcp(port)) => {
                format!("firewall-cmd --permanent --add-port={port}/tcp && firewall-cmd --reload")
            }
            (Program::Ufw, Accept::From(device)) => format!("ufw route allow in on {device}"),
            (Program::Ufw, Accept::To(device)) => format!("ufw route allow out on {device}"),
            (Program::Ufw, Accept::Udp(port)) => format!("ufw allow {port}/udp"),
            (Program::Ufw, Accept::Tcp(port)) => format!("ufw allow {port}/tcp"),
            (Program::Iptables | Program::LegacyIptables, accept) => {
                let is_legacy = rule.program == Program::LegacyIptables;
                let number = if rule.family == "ip6" { 10 } else { 2 };
                let program = iptables(number, is_legacy);
                let what = match accept {
                    Accept::From(device) => format!("-i {device}"),
                    Accept::To(device) => format!("-o {device}"),
                    Accept::Udp(port) => format!("-p udp --dport {port}"),
                    Accept::Tcp(port) => format!("-p tcp --dport {port}"),
                };
                let table = match rule.table.as_str() {
                    "filter" => String::new(),
                    other => format!("-t {other} "),
                };
                format!("{program} {table}-I {} {what} -j ACCEPT", rule.base_chain)
            }
            (Program::Nft, accept) => {
                let what = match accept {
                    Accept::From(device) => format!("iifname {device}"),
                    Accept::To(device) => format!("oifname {device}"),
                    Accept::Udp(port) => format!("udp dport {port}"),
                    Accept::Tcp(port) => format!("tcp dport {port}"),
                };
                format!(
                    "nft insert rule {} {} {} {what} accept",
                    rule.family, rule.table, rule.base_chain
                )
            }
        }
    }
}

impl fmt::Display for ForeignRule {
    /// Where it stands and what it says.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ForeignRule {
            family,
            table,
            chain,
            text,
            ..
        } = self;
        match (self.program, self.handle) {
            (Program::LegacyIptables, _) => {
                let number = if *family == "ip6" { 10 } else { 2 };
                write!(out, "{} {table} {chain}: {text}", iptables(number, true))
            }
            (_, Some(handle)) => {
                write!(out, "{family} {table} {chain} handle {handle}: {text}")
            }
            (_, None) => write!(out, "{family} {table} {chain}: {text}"),
        }
    }
}

fn iptables(family: u8, is_legacy: bool) -> &'static str {
    match (family, is_legacy) {
        (10, true) => "ip6tables-legacy",
        (10, false) => "ip6tables",
        (_, true) => "iptables-legacy",
        (_, false) => "iptables",
    }
}

fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

fn hook(number: u32) -> Option<Hook> {
    Hook::ALL.into_iter().find(|hook| *hook as u32 == number)
}
