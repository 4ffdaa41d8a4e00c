//! What becomes of packets on their way through all chains of one hook.

use ip_network::IpNetwork;

use super::rules::{
    Act, Base, Chain, ESTABLISHED, Field, Key, NAME_LEN, NEW, Rule, Rules, Span, Step, Translation,
    UNTRACKED, Value,
};
use super::{Packets, State};
use crate::wanted::Family;

const INET: u8 = 1;
const V4: u8 = 2;
const V6: u8 = 10;
/// The kernel allows so many.
const DEPTH: usize = 16;
/// Rules asked for one answer; more would be a burden to the node.
const RULES: usize = 200_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    Never,
    Perhaps,
    Always,
}

/// A rule that ends packets or changes their address, or the policy of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Met<'a> {
    pub(super) chain: &'a Key,
    /// Where the way through chains began.
    pub(super) base: (&'a Key, &'a Base),
    /// None for the policy.
    pub(super) rule: Option<(usize, &'a Rule)>,
    pub(super) act: Act,
    /// All of the packets, as far as they come so far.
    pub(super) is_certain: bool,
}

/// Everything that drops or translates `packets`, in their order.
pub(super) fn walk<'a>(rules: &'a Rules, packets: &Packets) -> Vec<Met<'a>> {
    let family = match packets.family {
        Family::V4 => V4,
        Family::V6 => V6,
    };
    let mut bases: Vec<(&Key, &Chain, &Base)> = rules
        .chains
        .iter()
        .filter_map(|(key, chain)| Some((key, chain, chain.base.as_ref()?)))
        .filter(|(key, _, base)| {
            (key.0 == family || key.0 == INET) && base.hook == packets.hook as u32
        })
        .collect();
    bases.sort_by_key(|(_, _, base)| base.priority);
    let mut walk = Walk {
        rules,
        packets,
        met: vec![],
        is_marked: false,
        asked: 0,
        base: None,
    };
    for (key, chain, base) in bases {
        if base.is_nat && packets.state != State::New {
            continue;
        }
        walk.base = Some((key, base));
        let mut reached = Reached {
            is_certain: true,
            is_let_off: false,
            depth: 0,
        };
        let ended = walk.chain(key, chain, &mut reached);
        match ended {
            Some(Ended::Dropped) => return walk.met,
            Some(Ended::Accepted) => continue,
            Some(Ended::Returned) | None => {}
        }
        if base.drops {
            walk.note(key, None, Act::Drop, reached.is_certain);
            if reached.is_certain {
                break;
            }
        }
    }
    walk.met
}

struct Walk<'a, 'b> {
    rules: &'a Rules,
    packets: &'b Packets,
    met: Vec<Met<'a>>,
    /// Somebody sets marks: what stands in one is not known any more.
    is_marked: bool,
    asked: usize,
    base: Option<(&'a Key, &'a Base)>,
}

#[derive(Clone, Copy)]
struct Reached {
    /// All of the packets come here.
    is_certain: bool,
    /// Some may have been let off on the way.
    is_let_off: bool,
    /// Jumps behind us.
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Accepted,
    Dropped,
    Returned,
}

impl Reached {
    /// All of them, or some.
    fn let_off(&mut self, is_all: bool) {
        self.is_certain &= is_all;
        self.is_let_off = true;
    }

    fn give_up(&mut self) {
        self.let_off(false);
    }
}

impl<'a> Walk<'a, '_> {
    fn note(&mut self, chain: &'a Key, rule: Option<(usize, &'a Rule)>, act: Act, sure: bool) {
        if let Some(base) = self.base {
            self.met.push(Met {
                chain,
                base,
                rule,
                act,
                is_certain: sure,
            });
        }
    }

    /// How all of the packets end in it, if they do.
    fn chain(&mut self, key: &'a Key, chain: &'a Chain, reached: &mut Reached) -> Option<Ended> {
        for (number, rule) in chain.rules.iter().enumerate() {
            self.asked += 1;
            if self.asked > RULES {
                reached.give_up();
                return None;
            }
            for (holds, act) in self.acts(key, rule) {
                let place = (key, number, rule);
                if let Some(ended) = self.act(place, (holds, act), reached) {
                    if ended == Ended::Returned {
                        return None;
                    }
                    return Some(ended);
                }
            }
        }
        None
    }

    fn act(
        &mut self,
        (key, number, rule): (&'a Key, usize, &'a Rule),
        (holds, act): (Holds, Act),
        reached: &mut Reached,
    ) -> Option<Ended> {
        let is_all = holds == Holds::Always;
        let ends = |ended| is_all.then_some(ended);
        match act {
            Act::Drop | Act::Reject => {
                let sure = reached.is_certain && is_all;
                self.note(key, Some((number + 1, rule)), act, sure);
                ends(Ended::Dropped)
            }
            Act::Translate(..) => {
                let sure = reached.is_certain && is_all;
                self.note(key, Some((number + 1, rule)), act, sure);
                reached.let_off(is_all);
                ends(Ended::Accepted)
            }
            Act::Accept | Act::Queue => {
                reached.let_off(is_all);
                ends(Ended::Accepted)
            }
            Act::Return => {
                reached.is_certain &= is_all;
                ends(Ended::Returned)
            }
            Act::Jump(name) => {
                let ended = self.follow(key, &name, is_all, reached);
                ended.filter(|_| is_all)
            }
            Act::Goto(name) => {
                let ended = self.follow(key, &name, is_all, reached);
                ended.filter(|_| is_all).or(ends(Ended::Returned))
            }
            Act::Untrack => None,
            Act::Mark => {
                self.is_marked = true;
                None
            }
        }
    }

    fn follow(
        &mut self,
        key: &'a Key,
        name: &str,
        is_all: bool,
        reached: &mut Reached,
    ) -> Option<Ended> {
        let target = (key.0, key.1.clone(), name.to_owned());
        let (key, chain) = self.rules.chains.get_key_value(&target)?;
        if reached.depth >= DEPTH {
            reached.give_up();
            return None;
        }
        let mut inner = Reached {
            is_certain: reached.is_certain && is_all,
            is_let_off: false,
            depth: reached.depth + 1,
        };
        let ended = self.chain(key, chain, &mut inner);
        if inner.is_let_off {
            reached.let_off(false);
        }
        ended
    }

    /// What `rule` does with the packets, and whether with all of them.
    fn acts(&self, key: &Key, rule: &Rule) -> Vec<(Holds, Act)> {
        let mut holds = Holds::Always;
        let mut all = vec![];
        for step in &rule.steps {
            match step {
                Step::Test { value, is, spans } => {
                    // Packets that come from nowhere known come from outside at least.
                    if self.packets.input.is_none() && is_loopback(value, spans) {
                        holds = holds.min(turned(Holds::Never, *is));
                    } else {
                        let domain = self.domain(value);
                        holds = holds.min(turned(inside(domain.as_deref(), spans), *is));
                    }
                }
                Step::Lookup {
                    values,
                    is,
                    set,
                    decides,
                } => {
                    let found = self.look_up(key, values, set);
                    if *decides {
                        let acts = found
                            .into_iter()
                            .filter_map(|(found, act)| act.map(|act| (found.min(holds), act)));
                        all.extend(acts);
                        continue;
                    }
                    let found = found.iter().map(|(found, _)| *found).max();
                    holds = holds.min(turned(found.unwrap_or(Holds::Never), *is));
                }
                Step::Unsure(_) => holds = holds.min(Holds::Perhaps),
                Step::Act(act) => all.push((holds, act.clone())),
            }
            if holds == Holds::Never {
                break;
            }
        }
        all
    }

    /// Elements that may be the packets', with what they say.
    fn look_up(&self, key: &Key, values: &[Value], set: &str) -> Vec<(Holds, Option<Act>)> {
        let name = (key.0, key.1.clone(), set.to_owned());
        let Some(set) = self.rules.sets.get(&name) else {
            return vec![(Holds::Perhaps, None)];
        };
        let domains: Vec<Option<Vec<Span>>> =
            values.iter().map(|value| self.domain(value)).collect();
        let mut found = vec![];
        for ((low, high), act) in &set.elements {
            let mut at = 0;
            let mut holds = Holds::Always;
            for (value, domain) in values.iter().zip(&domains) {
                let end = (at + value.len).min(low.len());
                let cut = |bytes: &[u8]| bytes.get(at..end).map(<[u8]>::to_vec);
                let part = cut(low).zip(cut(high));
                // A key shorter than what was loaded has fewer values.
                let Some(part) = part.filter(|(low, _)| !low.is_empty()) else {
                    break;
                };
                holds = holds.min(inside(domain.as_deref(), &[part]));
                at += value.len.next_multiple_of(4);
            }
            if holds == Holds::Always {
                found.push((holds, act.clone()));
                break;
            }
            if holds == Holds::Perhaps {
                found.push((holds, act.clone()));
            }
        }
        if set.is_cut {
            found.push((Holds::Perhaps, None));
        }
        found
    }

    /// What `value` may be for the packets; `None` is anything.
    fn domain(&self, value: &Value) -> Option<Vec<Span>> {
        let spans = self.field(value)?;
        let Some((mask, xor)) = &value.mask else {
            return Some(spans);
        };
        let masked = |bytes: &[u8]| -> Vec<u8> {
            let pairs = bytes.iter().zip(mask).zip(xor);
            pairs
                .map(|((byte, mask), xor)| (byte & mask) ^ xor)
                .collect()
        };
        // The order of many values is kept by a prefix only.
        let is_one = spans.iter().all(|(low, high)| low == high);
        let is_prefix = xor.iter().all(|byte| *byte == 0) && is_prefix(mask);
        (is_one || is_prefix).then(|| {
            let all = spans.iter();
            all.map(|(low, high)| (masked(low), masked(high))).collect()
        })
    }

    fn field(&self, value: &Value) -> Option<Vec<Span>> {
        let packets = self.packets;
        let one = |bytes: &[u8]| Some(vec![(bytes.to_vec(), bytes.to_vec())]);
        let native = |number: u32| one(&number.to_ne_bytes());
        let family = packets.family;
        match &value.field {
            Field::Network(offset) => self.network(*offset, value.len),
            Field::Transport(0) if value.len == 2 => one(&packets.source_port?.to_be_bytes()),
            Field::Transport(2) if value.len == 2 => one(&packets.port?.to_be_bytes()),
            Field::Transport(_) => None,
            Field::InputName => one(&device(packets.input.as_ref()?)),
            Field::OutputName => one(&device(packets.output.as_ref()?)),
            Field::InputIndex => native(packets.index_of(packets.input.as_ref()?)?),
            Field::OutputIndex => native(packets.index_of(packets.output.as_ref()?)?),
            Field::NextHop => {
                let hop = IpNetwork::from(packets.next_hop?);
                // Of the other family there is none to compare.
                let span = ends(hop);
                (span.0.len() == value.len).then(|| vec![span])
            }
            Field::Mark if self.is_marked => None,
            Field::Mark => native(packets.mark),
            Field::Family => one(&[match family {
                Family::V4 => V4,
                Family::V6 => V6,
            }]),
            Field::EtherType => one(match family {
                Family::V4 => &[0x08, 0x00],
                Family::V6 => &[0x86, 0xdd],
            }),
            Field::Protocol => one(&[packets.protocol?]),
            Field::State => native(match packets.state {
                State::New => NEW,
                State::Established => ESTABLISHED,
                State::Untracked => UNTRACKED,
            }),
            Field::Status => native(0),
            Field::SourceType => native(if packets.source_is_own { 2 } else { 1 }),
            Field::DestinationType => native(if packets.destination_is_own { 2 } else { 1 }),
            Field::Other(_) => None,
        }
    }

    fn network(&self, offset: usize, len: usize) -> Option<Vec<Span>> {
        let packets = self.packets;
        let (source, size, protocol) = match packets.family {
            Family::V4 => (12, 4, 9),
            Family::V6 => (8, 16, 6),
        };
        if (offset, len) == (protocol, 1) {
            return Some(vec![(vec![packets.protocol?], vec![packets.protocol?])]);
        }
        let (begin, networks) = if offset >= source + size {
            (offset - source - size, &packets.destination)
        } else {
            (offset.checked_sub(source)?, &packets.source)
        };
        if networks.is_empty() || begin + len > size {
            return None;
        }
        let spans = networks.iter().map(|network| ends(*network));
        // Within an address the order of its parts is lost, but for the first.
        spans
            .map(|(low, high)| {
                let same = low[..begin] == high[..begin];
                let cut = |bytes: &[u8]| bytes[begin..begin + len].to_vec();
                (begin == 0 || same).then(|| (cut(&low), cut(&high)))
            })
            .collect()
    }
}

fn is_loopback(value: &Value, spans: &[Span]) -> bool {
    const INDEX: u32 = 1;
    let only = |wanted: Vec<u8>| *spans == [(wanted.clone(), wanted)];
    match value.field {
        Field::InputName => only(device("lo")),
        Field::InputIndex => only(INDEX.to_ne_bytes().into()),
        Field::Network(_)
        | Field::Transport(_)
        | Field::OutputName
        | Field::OutputIndex
        | Field::NextHop
        | Field::Mark
        | Field::Family
        | Field::EtherType
        | Field::Protocol
        | Field::State
        | Field::Status
        | Field::SourceType
        | Field::DestinationType
        | Field::Other(_) => false,
    }
}

fn device(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME_LEN, 0);
    bytes
}

pub(super) fn ends(network: IpNetwork) -> Span {
    match network {
        IpNetwork::V4(v4) => (
            v4.network_address().octets().into(),
            v4.broadcast_address().octets().into(),
        ),
        IpNetwork::V6(v6) => (
            v6.network_address().octets().into(),
            v6.last_address().octets().into(),
        ),
    }
}

fn is_prefix(mask: &[u8]) -> bool {
    let bits: String = mask.iter().map(|byte| format!("{byte:08b}")).collect();
    !bits.contains("01")
}

fn turned(holds: Holds, is: bool) -> Holds {
    match (holds, is) {
        (holds, true) => holds,
        (Holds::Never, false) => Holds::Always,
        (Holds::Perhaps, false) => Holds::Perhaps,
        (Holds::Always, false) => Holds::Never,
    }
}

/// Whether what lies in `domain` lies in one of `spans`. Where those are shorter, they are of the
/// beginning.
fn inside(domain: Option<&[Span]>, spans: &[Span]) -> Holds {
    let Some(domain) = domain else {
        return Holds::Perhaps;
    };
    let (mut all, mut any) = (true, false);
    for (low, high) in domain {
        let mut whole = false;
        for (first, last) in spans {
            let cut = |bytes: &[u8]| bytes[..first.len().min(bytes.len())].to_vec();
            let (low, high) = (cut(low), cut(high));
            whole |= *first <= low && high <= *last;
            any |= *first <= high && low <= *last;
        }
        all &= whole;
    }
    match (any, all) {
        (true, true) => Holds::Always,
        (true, false) => Holds::Perhaps,
        (false, _) => Holds::Never,
    }
}

/// Whether a translation changes where packets go.
pub(super) fn changes_destination(act: &Act) -> bool {
    matches!(
        act,
        Act::Translate(Translation::Destination | Translation::Redirect, _)
    )
}
