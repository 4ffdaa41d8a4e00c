//! Rules of all programs in one form: what they ask of a packet and what they do with it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// From the lowest to the highest; both of one length.
pub(super) type Span = (Vec<u8>, Vec<u8>);

/// What a chain hangs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) is_nat: bool,
    pub(super) drops: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// 0 where there is none.
    pub(super) handle: u64,
    pub(super) steps: Vec<Step>,
    /// As its program writes it, where this is known.
    pub(super) text: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Whether the value lies in one of the spans.
    Test {
        value: Value,
        is: bool,
        spans: Vec<Span>,
    },
    /// The same against a set of the table; several values are one key.
    Lookup {
        values: Vec<Value>,
        is: bool,
        set: String,
        /// The set says what to do.
        decides: bool,
    },
    /// Nothing that is judged here: it may hold or not.
    Unsure(String),
    Act(Act),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Accept,
    Drop,
    Reject,
    /// Another program decides.
    Queue,
    Return,
    Jump(String),
    Goto(String),
    Translate(Translation, String),
    Untrack,
    /// The mark changes, to what is not followed.
    Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Translation {
    Destination,
    Redirect,
    Source,
    Masquerade,
}

/// What of a packet is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) field: Field,
    pub(super) len: usize,
    /// What is kept of it, and what is turned over.
    pub(super) mask: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Network(usize),
    Transport(usize),
    InputName,
    OutputName,
    InputIndex,
    OutputIndex,
    /// Of the route, by family: 4 or 16 bytes.
    NextHop,
    Mark,
    Family,
    EtherType,
    Protocol,
    State,
    Status,
    SourceType,
    DestinationType,
    Other(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// Keys in the order in which they are asked.
    pub(super) elements: Vec<(Span, Option<Act>)>,
    /// Not all of it was read.
    pub(super) is_cut: bool,
}

/// Family (in the kernel's numbers), table, name.
pub(super) type Key = (u8, String, String);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) chains: BTreeMap<Key, Chain>,
    pub(super) sets: BTreeMap<Key, Set>,
}

pub(super) const INVALID: u32 = 1;
pub(super) const ESTABLISHED: u32 = 2;
pub(super) const RELATED: u32 = 4;
pub(super) const NEW: u32 = 8;
pub(super) const UNTRACKED: u32 = 64;

pub(super) const NAME_LEN: usize = 16;

impl Value {
    pub(super) fn new(field: Field, len: usize) -> Value {
        Value {
            field,
            len,
            mask: None,
        }
    }

    /// The bits of `mask` are not all clear, or are.
    pub(super) fn any_of(field: Field, mask: u32, is: bool) -> Step {
        let value = Value {
            field,
            len: 4,
            mask: Some((mask.to_ne_bytes().into(), vec![0; 4])),
        };
        Step::Test {
            value,
            is: !is,
            spans: vec![(vec![0; 4], vec![0; 4])],
        }
    }

    pub(super) fn is(self, is: bool, data: Vec<u8>) -> Step {
        Step::Test {
            value: self,
            is,
            spans: vec![(data.clone(), data)],
        }
    }

    pub(super) fn lies(self, is: bool, low: Vec<u8>, high: Vec<u8>) -> Step {
        Step::Test {
            value: self,
            is,
            spans: vec![(low, high)],
        }
    }
}

impl Rule {
    pub(super) fn said(&self) -> String {
        if let Some(text) = &self.text {
            return text.clone();
        }
        let words: Vec<String> = self.steps.iter().map(Step::to_string).collect();
        let words: Vec<&str> = words
            .iter()
            .map(String::as_str)
            .filter(|word| !word.is_empty())
            .collect();
        words.join(" ")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Test { value, is, spans } => {
                // The family is said by the addresses.
                if value.field == Field::Family {
                    return Ok(());
                }
                let clear = spans.len() == 1 && value.mask.is_some() && is_zero(&spans[0]);
                let bits = value
                    .mask
                    .as_ref()
                    .and_then(|(mask, _)| number(mask))
                    .filter(|_| clear && matches!(value.field, Field::State | Field::Status));
                if let Some(bits) = bits {
                    let not = if *is { "not " } else { "" };
                    return write!(out, "{} {not}{}", value.field, flags(&value.field, bits));
                }
                let not = if *is { "" } else { "!= " };
                let all: Vec<String> = spans.iter().map(|span| value.span(span)).collect();
                let mask = match &value.mask {
                    Some((mask, _)) if !value.is_address() => {
                        format!(" & {:#x}", number(mask).unwrap_or_default())
                    }
                    Some(_) | None => String::new(),
                };
                write!(out, "{}{mask} {not}{}", value.field, all.join(", "))
            }
            Step::Lookup {
                values, is, set, ..
            } => {
                let names: Vec<String> =
                    values.iter().map(|value| value.field.to_string()).collect();
                let not = if *is { "" } else { "!= " };
                write!(out, "{} {not}@{set}", names.join(" . "))
            }
            Step::Unsure(word) => out.write_str(word),
            Step::Act(act) => write!(out, "{act}"),
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Accept => out.write_str("accept"),
            Act::Drop => out.write_str("drop"),
            Act::Reject => out.write_str("reject"),
            Act::Queue => out.write_str("queue"),
            Act::Return => out.write_str("return"),
            Act::Jump(chain) => write!(out, "jump {chain}"),
            Act::Goto(chain) => write!(out, "goto {chain}"),
            Act::Translate(kind, to) if to.is_empty() => write!(out, "{kind}"),
            Act::Translate(kind, to) => write!(out, "{kind} to {to}"),
            Act::Untrack => out.write_str("notrack"),
            Act::Mark => out.write_str("meta mark set"),
        }
    }
}

impl fmt::Display for Translation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Translation::Destination => "dnat",
            Translation::Redirect => "redirect",
            Translation::Source => "snat",
            Translation::Masquerade => "masquerade",
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Field::Network(12) => "ip saddr",
            Field::Network(16) => "ip daddr",
            Field::Network(9) => "ip protocol",
            Field::Network(8) => "ip6 saddr",
            Field::Network(24) => "ip6 daddr",
            Field::Network(6) => "ip6 nexthdr",
            Field::Network(offset) => return write!(out, "@nh,{offset}"),
            Field::Transport(0) => "sport",
            Field::Transport(2) => "dport",
            Field::Transport(offset) => return write!(out, "@th,{offset}"),
            Field::InputName => "iifname",
            Field::OutputName => "oifname",
            Field::InputIndex => "iif",
            Field::OutputIndex => "oif",
            Field::NextHop => "rt nexthop",
            Field::Mark => "meta mark",
            Field::Family => "meta nfproto",
            Field::EtherType => "meta protocol",
            Field::Protocol => "meta l4proto",
            Field::State => "ct state",
            Field::Status => "ct status",
            Field::SourceType => "fib saddr type",
            Field::DestinationType => "fib daddr type",
            Field::Other(name) => name,
        })
    }
}

impl Value {
    fn is_address(&self) -> bool {
        matches!(self.field, Field::Network(8 | 12 | 16 | 24))
    }

    fn span(&self, (low, high): &Span) -> String {
        match &self.field {
            Field::Network(12 | 16) => self.addresses(low, high, 4),
            Field::Network(8 | 24) => self.addresses(low, high, 16),
            Field::Transport(0 | 2) => range(&port(low), &port(high)),
            Field::InputName | Field::OutputName => name(low),
            Field::Protocol | Field::Network(6 | 9) => range(&protocol(low), &protocol(high)),
            Field::State | Field::Status => flags(&self.field, number(low).unwrap_or_default()),
            Field::SourceType | Field::DestinationType => kind(low),
            Field::InputIndex | Field::OutputIndex => number(low).unwrap_or_default().to_string(),
            Field::NextHop => range(&address(low, low.len()), &address(high, high.len())),
            Field::Network(_)
            | Field::Transport(_)
            | Field::Mark
            | Field::Family
            | Field::EtherType
            | Field::Other(_) => range(&hex(low), &hex(high)),
        }
    }

    /// A prefix where it is one: by its mask, by its length or by its ends.
    fn addresses(&self, low: &[u8], high: &[u8], len: usize) -> String {
        let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
        let masked = self.mask.as_ref().map(|(mask, _)| ones(mask));
        let full = 8 * len as u32;
        let written = masked.unwrap_or(8 * low.len() as u32);
        if low == high {
            let base = address(low, len);
            return if written == full {
                base
            } else {
                format!("{base}/{written}")
            };
        }
        range(&address(low, len), &address(high, len))
    }
}

fn is_zero((low, high): &Span) -> bool {
    low.iter().chain(high).all(|byte| *byte == 0)
}

fn range(low: &str, high: &str) -> String {
    if low == high {
        low.to_owned()
    } else {
        format!("{low}-{high}")
    }
}

fn address(bytes: &[u8], len: usize) -> String {
    let mut whole = bytes.to_vec();
    whole.resize(len, 0);
    let v4 = <[u8; 4]>::try_from(&whole[..]).map(Ipv4Addr::from);
    let v6 = <[u8; 16]>::try_from(&whole[..]).map(Ipv6Addr::from);
    match (v4, v6) {
        (Ok(v4), _) => v4.to_string(),
        (_, Ok(v6)) => v6.to_string(),
        _ => hex(bytes),
    }
}

fn port(bytes: &[u8]) -> String {
    <[u8; 2]>::try_from(bytes).map_or_else(
        |_| hex(bytes),
        |bytes| u16::from_be_bytes(bytes).to_string(),
    )
}

fn name(bytes: &[u8]) -> String {
    let text = super::attributes::text(bytes);
    // Less than a whole name is the beginning of one.
    if bytes.len() < NAME_LEN && !bytes.contains(&0) {
        format!("\"{text}*\"")
    } else {
        format!("\"{text}\"")
    }
}

fn protocol(bytes: &[u8]) -> String {
    match bytes {
        [1] => "icmp".to_owned(),
        [6] => "tcp".to_owned(),
        [17] => "udp".to_owned(),
        [58] => "icmpv6".to_owned(),
        other => other
            .first()
            .map_or_else(String::new, |number| number.to_string()),
    }
}

fn kind(bytes: &[u8]) -> String {
    match number(bytes) {
        Some(1) => "unicast".to_owned(),
        Some(2) => "local".to_owned(),
        Some(3) => "broadcast".to_owned(),
        Some(5) => "multicast".to_owned(),
        Some(_) | None => hex(bytes),
    }
}

fn flags(field: &Field, bits: u32) -> String {
    const STATES: [(u32, &str); 5] = [
        (INVALID, "invalid"),
        (ESTABLISHED, "established"),
        (RELATED, "related"),
        (NEW, "new"),
        (UNTRACKED, "untracked"),
    ];
    const STATUS: [(u32, &str); 2] = [(16, "snat"), (32, "dnat")];
    let names: &[(u32, &str)] = if *field == Field::State {
        &STATES
    } else {
        &STATUS
    };
    let words: Vec<&str> = names
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, word)| *word)
        .collect();
    if words.is_empty() {
        format!("{bits:#x}")
    } else {
        words.join(",")
    }
}

/// In the byte order of this machine.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}
