//! Rules, chains and sets as the kernel tells of them, by the numbers of
//! `linux/netfilter/nf_tables.h`. What is not understood makes a rule one that may hold or not.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::attributes::{Attributes, text};
use super::rules::{Act, Base, Chain, Field, Key, Rule, Set, Span, Step, Translation, Value};
use super::xtables;
use crate::netlink::raw::Raw;

/// The first four registers have sixteen bytes, those from here on four; they lie upon each other.
const NARROW: u32 = 8;
const VERDICT: u32 = 0;
const REGISTERS: usize = 16;
/// More elements than anyone writes by hand; a list of blocked addresses has more.
const ELEMENTS: usize = 20_000;

const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;

pub(super) fn chain(raw: &Raw) -> Option<(Key, Chain)> {
    let attributes = Attributes(&raw.attributes);
    let base = attributes.nested(4).and_then(|hook| {
        Some(Base {
            hook: hook.number(1)?,
            priority: hook.number(2)?.cast_signed(),
            is_nat: attributes.text(7).as_deref() == Some("nat"),
            drops: attributes.number(5) == Some(0),
        })
    });
    let key = (raw.family, attributes.text(1)?, attributes.text(3)?);
    let rules = vec![];
    Some((key, Chain { base, rules }))
}

/// The chain it stands in, and it.
pub(super) fn rule(raw: &Raw) -> Option<(Key, Rule)> {
    let attributes = Attributes(&raw.attributes);
    let mut reader = Reader {
        family: raw.family,
        ..Reader::default()
    };
    for (_, expression) in attributes.nested(4).into_iter().flatten() {
        let expression = Attributes(expression);
        let name = expression.text(1).unwrap_or_default();
        let data = expression.nested(2).unwrap_or(Attributes(&[]));
        reader.read(&name, data);
    }
    let key = (raw.family, attributes.text(1)?, attributes.text(2)?);
    let rule = Rule {
        handle: attributes.long(3)?,
        steps: reader.steps,
        text: None,
    };
    Some((key, rule))
}

/// Its elements without those beyond what is worth reading.
pub(super) fn set(raws: &[Raw]) -> Set {
    let mut edges: BTreeMap<(Vec<u8>, bool), Option<Act>> = BTreeMap::new();
    let mut whole: Vec<(Span, Option<Act>)> = vec![];
    let mut rest = None;
    let mut is_cut = false;
    let lists = raws
        .iter()
        .filter_map(|raw| Attributes(&raw.attributes).nested(3));
    for (_, element) in lists.flatten() {
        let element = Attributes(element);
        let value = |kind| {
            element
                .nested(kind)
                .and_then(|data: Attributes<'_>| data.get(1))
        };
        let flags = element.number(3).unwrap_or_default();
        let act = element
            .nested(2)
            .and_then(|data| data.nested(2))
            .and_then(verdict);
        if edges.len() + whole.len() >= ELEMENTS {
            is_cut = true;
            break;
        }
        match (value(1), value(10)) {
            _ if flags & 2 != 0 => rest = act,
            (Some(low), Some(high)) => whole.push(((low.to_vec(), high.to_vec()), act)),
            (Some(key), None) => {
                edges.insert((key.to_vec(), flags & 1 == 0), act);
            }
            (None, _) => is_cut = true,
        }
    }
    whole.extend(spans(edges));
    if let Some(act) = rest {
        // For keys of any length: nothing is compared.
        whole.push(((vec![], vec![]), Some(act)));
    }
    Set {
        elements: whole,
        is_cut,
    }
}

/// A key stands for itself, unless an end comes after it: then for all before that. The end of one
/// interval sorts before the beginning of the next.
fn spans(edges: BTreeMap<(Vec<u8>, bool), Option<Act>>) -> Vec<(Span, Option<Act>)> {
    let has_ends = edges.keys().any(|(_, begins)| !begins);
    let mut all = vec![];
    let mut open: Option<(Vec<u8>, Option<Act>)> = None;
    for ((key, begins), act) in edges {
        if let Some((first, act)) = open.take() {
            let last = if has_ends {
                before(&key)
            } else {
                first.clone()
            };
            all.push(((first, last), act));
        }
        if begins {
            open = Some((key, act));
        }
    }
    if let Some((first, act)) = open {
        let last = if has_ends {
            vec![0xff; first.len()]
        } else {
            first.clone()
        };
        all.push(((first, last), act));
    }
    all
}

fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    key
}

/// Sets that rules ask.
pub(super) fn asked<'a>(key: &Key, rule: &'a Rule) -> BTreeSet<(u8, &'a str, String)> {
    let names = rule.steps.iter().filter_map(|step| match step {
        Step::Lookup { set, .. } => Some((key.0, set.as_str(), key.1.clone())),
        Step::Test { .. } | Step::Unsure(_) | Step::Act(_) => None,
    });
    names.collect()
}

fn verdict(attributes: Attributes<'_>) -> Option<Act> {
    let chain = || attributes.text(2).unwrap_or_default();
    Some(match attributes.number(1)?.cast_signed() {
        0 => Act::Drop,
        1 => Act::Accept,
        -3 => Act::Jump(chain()),
        -4 => Act::Goto(chain()),
        -5 => Act::Return,
        // The number of the queue is in the upper half.
        code if code & 0xff == 3 => Act::Queue,
        _ => return None,
    })
}

/// Follows what a rule has in its registers.
#[derive(Default)]
struct Reader {
    family: u8,
    steps: Vec<Step>,
    loaded: BTreeMap<u32, Loaded>,
}

#[derive(Clone)]
enum Loaded {
    Value(Value),
    Constant(Vec<u8>),
}

/// In units of four bytes.
fn slot(register: u32) -> u32 {
    if register >= NARROW {
        register - NARROW
    } else {
        register.saturating_sub(1) * 4
    }
}

impl Reader {
    fn read(&mut self, name: &str, data: Attributes<'_>) {
        let done = match name {
            "payload" => self.payload(data),
            "meta" => self.meta(data),
            "ct" => self.conntrack(data),
            "fib" => self.fib(data),
            "rt" => self.route(data),
            "bitwise" => self.bitwise(data),
            "cmp" => self.compare(data),
            "range" => self.range(data),
            "lookup" => self.lookup(data),
            "immediate" => self.immediate(data),
            "nat" => self.translate(data),
            "match" => {
                self.steps.extend(xtables::matched(self.family, data));
                Some(())
            }
            "target" => {
                self.steps.extend(xtables::target(self.family, data));
                Some(())
            }
            "masq" => self.act(Act::Translate(Translation::Masquerade, String::new())),
            "redir" => {
                let port = self.constant(data.number(1)).map(|bytes| port(&bytes));
                let to = port.map_or_else(String::new, |port| format!(":{port}"));
                self.act(Act::Translate(Translation::Redirect, to))
            }
            "tproxy" => self.act(Act::Translate(
                Translation::Redirect,
                "a proxy of this node".to_owned(),
            )),
            "reject" => self.act(Act::Reject),
            "queue" => self.act(Act::Queue),
            "notrack" => self.act(Act::Untrack),
            "counter" | "log" | "last" | "dup" | "flow_offload" => Some(()),
            _ => None,
        };
        if done.is_none() {
            self.unknown(name, data);
        }
    }

    /// What loads something only makes that unknown; what decides may hold or not.
    fn unknown(&mut self, name: &str, data: Attributes<'_>) {
        let loads = ["numgen", "hash", "socket", "osf", "xfrm", "tunnel"];
        if (loads.contains(&name) || name == "exthdr" || name == "byteorder")
            && let Some(register) = data.number(if name == "byteorder" { 2 } else { 1 })
        {
            let value = Value::new(Field::Other(name.to_owned()), 0);
            self.loaded.insert(slot(register), Loaded::Value(value));
        } else {
            self.steps.push(Step::Unsure(name.to_owned()));
        }
    }

    fn act(&mut self, act: Act) -> Option<()> {
        self.steps.push(Step::Act(act));
        Some(())
    }

    fn load(&mut self, register: u32, field: Field, len: usize) -> Option<()> {
        let value = Value::new(field, len);
        self.loaded.insert(slot(register), Loaded::Value(value));
        Some(())
    }

    fn payload(&mut self, data: Attributes<'_>) -> Option<()> {
        let (offset, len) = (data.number(3)? as usize, data.number(4)? as usize);
        // Writing into the packet changes nothing that is asked here.
        let Some(register) = data.number(1) else {
            return Some(());
        };
        let field = match data.number(2)? {
            1 => Field::Network(offset),
            2 => Field::Transport(offset),
            base => Field::Other(format!("@{base},{offset},{len}")),
        };
        self.load(register, field, len)
    }

    fn meta(&mut self, data: Attributes<'_>) -> Option<()> {
        let key = data.number(2)?;
        let Some(register) = data.number(1) else {
            return if key == 3 {
                self.act(Act::Mark)
            } else {
                Some(())
            };
        };
        let (field, len) = match key {
            1 => (Field::EtherType, 2),
            3 => (Field::Mark, 4),
            4 => (Field::InputIndex, 4),
            5 => (Field::OutputIndex, 4),
            6 => (Field::InputName, 16),
            7 => (Field::OutputName, 16),
            15 => (Field::Family, 1),
            16 => (Field::Protocol, 1),
            other => (Field::Other(format!("meta {other}")), 4),
        };
        self.load(register, field, len)
    }

    fn conntrack(&mut self, data: Attributes<'_>) -> Option<()> {
        let Some(register) = data.number(1) else {
            return Some(());
        };
        let (field, len) = match data.number(2)? {
            CT_STATE => (Field::State, 4),
            CT_STATUS => (Field::Status, 4),
            other => (Field::Other(format!("ct {other}")), 4),
        };
        self.load(register, field, len)
    }

    fn fib(&mut self, data: Attributes<'_>) -> Option<()> {
        const ADDRESS_TYPE: u32 = 3;
        let field = match (data.number(2)?, data.number(3)? & 3) {
            (ADDRESS_TYPE, 1) => Field::SourceType,
            (ADDRESS_TYPE, 2) => Field::DestinationType,
            _ => Field::Other("fib".to_owned()),
        };
        self.load(data.number(1)?, field, 4)
    }

    fn route(&mut self, data: Attributes<'_>) -> Option<()> {
        let (field, len) = match data.number(2)? {
            1 => (Field::NextHop, 4),
            2 => (Field::NextHop, 16),
            _ => (Field::Other("rt".to_owned()), 4),
        };
        self.load(data.number(1)?, field, len)
    }

    fn bitwise(&mut self, data: Attributes<'_>) -> Option<()> {
        let (from, to) = (slot(data.number(1)?), slot(data.number(2)?));
        let bytes = |kind| {
            data.nested(kind)
                .and_then(|data: Attributes<'_>| data.get(1))
        };
        let Some(Loaded::Value(value)) = self.loaded.get(&from) else {
            self.loaded.remove(&to);
            return Some(());
        };
        let mut value = value.clone();
        match (data.number(6).unwrap_or_default(), bytes(4), bytes(5)) {
            (0, Some(mask), Some(xor)) if value.mask.is_none() => {
                value.mask = Some((mask.to_vec(), xor.to_vec()));
            }
            _ => value.field = Field::Other(value.field.to_string()),
        }
        self.loaded.insert(to, Loaded::Value(value));
        Some(())
    }

    fn value(&self, register: u32) -> Value {
        match self.loaded.get(&slot(register)) {
            Some(Loaded::Value(value)) => value.clone(),
            Some(Loaded::Constant(_)) | None => Value::new(Field::Other("?".to_owned()), 0),
        }
    }

    fn compare(&mut self, data: Attributes<'_>) -> Option<()> {
        let value = self.value(data.number(1)?);
        let bytes = data.nested(3)?.get(1)?.to_vec();
        let (zero, full) = (vec![0; bytes.len()], vec![0xff; bytes.len()]);
        let is = data.number(2)?;
        if is == 0
            && let Some(parts) = parts(&value, &bytes)
        {
            self.steps.extend(parts);
            return Some(());
        }
        self.steps.push(match is {
            0 | 1 => value.is(is == 0, bytes),
            2 => value.lies(false, bytes, full),
            3 => value.lies(true, zero, bytes),
            4 => value.lies(false, zero, bytes),
            5 => value.lies(true, bytes, full),
            _ => return None,
        });
        Some(())
    }

    fn range(&mut self, data: Attributes<'_>) -> Option<()> {
        let value = self.value(data.number(1)?);
        let end = |kind| Some(data.nested(kind)?.get(1)?.to_vec());
        let step = value.lies(data.number(2)? == 0, end(3)?, end(4)?);
        self.steps.push(step);
        Some(())
    }

    fn lookup(&mut self, data: Attributes<'_>) -> Option<()> {
        let first = slot(data.number(2)?);
        let to = data.number(3);
        let set = data.text(1)?;
        // A key of several values lies in registers that follow each other.
        let mut values = vec![];
        let mut at = first;
        while let Some(Loaded::Value(value)) = self.loaded.get(&at)
            && values.len() < REGISTERS
        {
            let registers = value.len.div_ceil(4).max(1);
            at = at.saturating_add(u32::try_from(registers).unwrap_or(u32::MAX));
            values.push(value.clone());
        }
        if let Some(to) = to
            && to != VERDICT
        {
            let value = Value::new(Field::Other(format!("@{set}")), 0);
            self.loaded.insert(slot(to), Loaded::Value(value));
        }
        self.steps.push(Step::Lookup {
            values,
            is: data.number(5).unwrap_or_default() & 1 == 0,
            set,
            decides: to == Some(VERDICT),
        });
        Some(())
    }

    fn immediate(&mut self, data: Attributes<'_>) -> Option<()> {
        let register = data.number(1)?;
        if register == VERDICT {
            let attributes = data.nested(2)?.nested(2)?;
            // Other verdicts go on with the next rule.
            if let Some(act) = verdict(attributes) {
                self.steps.push(Step::Act(act));
            }
            return Some(());
        }
        let bytes = data.nested(2)?.get(1)?.to_vec();
        self.loaded.insert(slot(register), Loaded::Constant(bytes));
        Some(())
    }

    fn constant(&self, register: Option<u32>) -> Option<Vec<u8>> {
        match self.loaded.get(&slot(register?)) {
            Some(Loaded::Constant(bytes)) => Some(bytes.clone()),
            Some(Loaded::Value(_)) | None => None,
        }
    }

    fn translate(&mut self, data: Attributes<'_>) -> Option<()> {
        let kind = match data.number(1)? {
            0 => Translation::Source,
            1 => Translation::Destination,
            _ => return None,
        };
        let address = self
            .constant(data.number(3))
            .map_or_else(|| "what a map says".to_owned(), |bytes| address(&bytes));
        let port = self.constant(data.number(5)).map(|bytes| port(&bytes));
        let to = xtables::target_text(&address, port.as_deref());
        self.act(Act::Translate(kind, to))
    }
}

/// Several fields that were read as one.
fn parts(value: &Value, bytes: &[u8]) -> Option<Vec<Step>> {
    let sizes: &[(usize, usize)] = match (&value.field, value.len) {
        (Field::Network(12), 8) => &[(12, 4), (16, 4)],
        (Field::Network(8), 32) => &[(8, 16), (24, 16)],
        (Field::Transport(0), 4) => &[(0, 2), (2, 2)],
        _ => return None,
    };
    let is_network = matches!(value.field, Field::Network(_));
    let mut rest = bytes;
    let mut steps = vec![];
    for (offset, len) in sizes {
        let (now, later) = rest.split_at_checked(*len)?;
        rest = later;
        let field = if is_network {
            Field::Network(*offset)
        } else {
            Field::Transport(*offset)
        };
        let mut part = Value::new(field, *len);
        if let Some((mask, xor)) = &value.mask {
            let begin = offset - sizes[0].0;
            let cut = |bytes: &[u8]| bytes.get(begin..begin + len).map(<[u8]>::to_vec);
            part.mask = Some((cut(mask)?, cut(xor)?));
        }
        steps.push(part.is(true, now.to_vec()));
    }
    Some(steps)
}

pub(super) fn address(bytes: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(bytes).map(std::net::Ipv4Addr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(std::net::Ipv6Addr::from);
    match (v4, v6) {
        (Ok(v4), _) => v4.to_string(),
        (_, Ok(v6)) => v6.to_string(),
        _ => text(bytes),
    }
}

fn port(bytes: &[u8]) -> String {
    let bytes = bytes.first_chunk::<2>().copied().unwrap_or_default();
    u16::from_be_bytes(bytes).to_string()
}
