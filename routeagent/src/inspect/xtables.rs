//! Matches and targets of iptables inside rules of nf_tables: structures of the kernel, in this
//! machine's byte order, by `linux/netfilter/xt_*.h` and `nf_nat.h`.

use super::attributes::Attributes;
use super::decode::address;
use super::rules::{
    Act, ESTABLISHED, Field, INVALID, NEW, RELATED, Step, Translation, UNTRACKED, Value,
};

const V4: u8 = 2;
/// Bits of XT_CONNTRACK_STATE; those of XT_STATE differ in the last.
const XT_STATES: [(u32, u32); 4] = [(1, INVALID), (2, ESTABLISHED), (4, RELATED), (8, NEW)];

pub(super) fn matched(family: u8, data: Attributes<'_>) -> Vec<Step> {
    let name = data.text(1).unwrap_or_default();
    let revision = data.number(2).unwrap_or_default();
    let info = Info(data.get(3).unwrap_or_default());
    let steps = match (name.as_str(), revision) {
        ("comment", _) => Some(vec![]),
        ("conntrack", 2 | 3) => info.conntrack(),
        ("state", 0) => info.u32(0).map(|mask| vec![state(mask, 64, true)]),
        ("addrtype", 0 | 1) => info.addrtype(revision),
        ("tcp", 0) => info.ports(10, 6),
        ("udp", 0) => info.ports(8, 17),
        ("multiport", 1) => info.multiport(),
        ("iprange", 1) => info.iprange(family),
        ("mark", 1) => info.mark(),
        _ => None,
    };
    steps.unwrap_or_else(|| vec![Step::Unsure(format!("-m {name}"))])
}

pub(super) fn target(family: u8, data: Attributes<'_>) -> Vec<Step> {
    let name = data.text(1).unwrap_or_default();
    let revision = data.number(2).unwrap_or_default();
    let info = Info(data.get(3).unwrap_or_default());
    let to = || info.range(family, revision).unwrap_or_default();
    let act = match name.as_str() {
        "DNAT" => Act::Translate(Translation::Destination, to()),
        "NETMAP" => Act::Translate(Translation::Destination, format!("{} (NETMAP)", to())),
        "REDIRECT" => Act::Translate(Translation::Redirect, to()),
        "TPROXY" => Act::Translate(Translation::Redirect, "a proxy of this node".to_owned()),
        "SNAT" => Act::Translate(Translation::Source, to()),
        "MASQUERADE" => Act::Translate(Translation::Masquerade, String::new()),
        "REJECT" => Act::Reject,
        "NFQUEUE" => Act::Queue,
        "NOTRACK" => Act::Untrack,
        // Its first bit says that nothing is tracked.
        "CT" if info.u16(0).is_some_and(|flags| flags & 1 != 0) => Act::Untrack,
        "MARK" | "CONNMARK" => Act::Mark,
        // These go on with the next rule.
        _ => return vec![],
    };
    vec![Step::Act(act)]
}

/// Address and port as a person writes them.
pub(super) fn target_text(address: &str, port: Option<&str>) -> String {
    match port {
        None => address.to_owned(),
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
    }
}

pub(super) fn state(mask: u32, untracked: u32, is: bool) -> Step {
    let mut bits = XT_STATES
        .iter()
        .filter(|(bit, _)| mask & bit != 0)
        .fold(0, |all, (_, bit)| all | bit);
    if mask & untracked != 0 {
        bits |= UNTRACKED;
    }
    Value::any_of(Field::State, bits, is)
}

pub(super) fn own_type(field: Field, mask: u16, is: bool) -> Step {
    let spans = (0..16_u32)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(|kind| (kind.to_ne_bytes().to_vec(), kind.to_ne_bytes().to_vec()))
        .collect();
    Step::Test {
        value: Value::new(field, 4),
        is,
        spans,
    }
}

pub(super) fn ports(field: usize, is: bool, all: &[(u16, u16)]) -> Step {
    let bytes = |port: u16| port.to_be_bytes().to_vec();
    Step::Test {
        value: Value::new(Field::Transport(field), 2),
        is,
        spans: all
            .iter()
            .map(|(low, high)| (bytes(*low), bytes(*high)))
            .collect(),
    }
}

struct Info<'a>(&'a [u8]);

impl Info<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.0.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_ne_bytes(bytes))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    fn conntrack(&self) -> Option<Vec<Step>> {
        const STATE: u16 = 1;
        let (asked, inverted) = (self.u16(146)?, self.u16(148)?);
        let mut steps = vec![];
        if asked & STATE != 0 {
            let mask = u32::from(self.u16(150)?);
            // Whether addresses were translated is asked by the same word.
            if mask & 0xc0 != 0 {
                steps.push(Step::Unsure("-m conntrack".to_owned()));
            } else {
                steps.push(state(mask, 256, inverted & STATE == 0));
            }
        }
        if asked & !STATE != 0 {
            steps.push(Step::Unsure("-m conntrack".to_owned()));
        }
        Some(steps)
    }

    fn addrtype(&self, revision: u32) -> Option<Vec<Step>> {
        let (source, destination) = (self.u16(0)?, self.u16(2)?);
        let (not_source, not_destination) = if revision == 0 {
            (self.u32(4)? != 0, self.u32(8)? != 0)
        } else {
            let flags = self.u32(4)?;
            (flags & 1 != 0, flags & 2 != 0)
        };
        let mut steps = vec![];
        if source != 0 {
            steps.push(own_type(Field::SourceType, source, !not_source));
        }
        if destination != 0 {
            steps.push(own_type(
                Field::DestinationType,
                destination,
                !not_destination,
            ));
        }
        Some(steps)
    }

    /// What is turned over is said at `inversion`, or behind what only TCP has.
    fn ports(&self, inversion: usize, protocol: u8) -> Option<Vec<Step>> {
        let at = if protocol == 6 {
            inversion + 1
        } else {
            inversion
        };
        let inverted = *self.0.get(at)?;
        let mut steps = vec![Value::new(Field::Protocol, 1).is(true, vec![protocol])];
        for (field, at, bit) in [(0, 0, 1), (2, 4, 2)] {
            let span = (self.u16(at)?, self.u16(at + 2)?);
            if span != (0, u16::MAX) {
                steps.push(ports(field, inverted & bit == 0, &[span]));
            }
        }
        Some(steps)
    }

    fn multiport(&self) -> Option<Vec<Step>> {
        let (flags, count) = (*self.0.first()?, usize::from(*self.0.get(1)?));
        let is_range = |at: usize| self.0.get(32 + at).is_some_and(|flag| *flag != 0);
        let is = *self.0.get(47)? == 0;
        let mut all = vec![];
        let mut at = 0;
        while at < count {
            let low = self.u16(2 + 2 * at)?;
            let high = if is_range(at) {
                at += 1;
                self.u16(2 + 2 * at)?
            } else {
                low
            };
            all.push((low, high));
            at += 1;
        }
        Some(match flags {
            0 => vec![ports(0, is, &all)],
            1 => vec![ports(2, is, &all)],
            _ => vec![Step::Unsure("-m multiport".to_owned())],
        })
    }

    fn iprange(&self, family: u8) -> Option<Vec<Step>> {
        let flags = *self.0.get(64)?;
        let (len, source, destination) = if family == V4 {
            (4, 12, 16)
        } else {
            (16, 8, 24)
        };
        let mut steps = vec![];
        for (field, at, bit) in [(source, 0, 1), (destination, 32, 2)] {
            if flags & bit != 0 {
                let low = self.0.get(at..at + len)?.to_vec();
                let high = self.0.get(at + 16..at + 16 + len)?.to_vec();
                let is = flags & (bit << 4) == 0;
                steps.push(Value::new(Field::Network(field), len).lies(is, low, high));
            }
        }
        Some(steps)
    }

    fn mark(&self) -> Option<Vec<Step>> {
        let (mark, mask, inverted) = (self.u32(0)?, self.u32(4)?, *self.0.get(8)?);
        let mut value = Value::new(Field::Mark, 4);
        value.mask = Some((mask.to_ne_bytes().into(), vec![0; 4]));
        Some(vec![value.is(inverted == 0, mark.to_ne_bytes().into())])
    }

    /// Where a translation leads. The old form of IPv4 counts its ranges first.
    fn range(&self, family: u8, revision: u32) -> Option<String> {
        const ADDRESSES: u32 = 1;
        const PORTS: u32 = 2;
        let is_old = family == V4 && revision == 0;
        let (flags, low, high, port) = if is_old {
            (self.u32(4)?, 8, 12, 16)
        } else {
            (self.u32(0)?, 4, 20, 36)
        };
        let len = if family == V4 { 4 } else { 16 };
        let port = match flags & PORTS {
            0 => None,
            _ => {
                let bytes = self.0.get(port..port + 2)?.try_into().ok()?;
                Some(u16::from_be_bytes(bytes).to_string())
            }
        };
        if flags & ADDRESSES == 0 {
            return Some(port.map_or_else(String::new, |port| format!(":{port}")));
        }
        let (low, high) = (self.0.get(low..low + len)?, self.0.get(high..high + len)?);
        let first = target_text(&address(low), port.as_deref());
        Some(if low == high {
            first
        } else {
            format!("{first}-{}", address(high))
        })
    }
}
