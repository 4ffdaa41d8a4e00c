//! Which rule ends a packet, found by sending one: a short-lived table of ours marks it, and the
//! kernel tells of every rule of nf_tables it meets then. Rules of the old iptables are not told of;
//! they are known by where a packet is lost.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ip_network::IpNetwork;

use super::attributes::Attributes;
use super::rules::Key;
use super::{ForeignRule, Packets, Program, Ruleset};
use crate::guard::Hook;
use crate::netlink::Refused;
use crate::netlink::raw::Raw;
use crate::netlink::trace::Marks;
use crate::settings::{TABLE_NAME, TRACE_TABLE};
use crate::wanted::Family;

const LOOK_EVERY: Duration = Duration::from_millis(5);
const UDP: u8 = 17;
/// Of a stream of packets that are marked the first will do.
const MOST: usize = 256;

/// Datagrams that are marked: from and to where, and to which port. Nothing said is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    /// Of UDP.
    pub port: Option<u16>,
    /// They come through everything and yet do not leave this node: nobody outside has to bear with
    /// them.
    pub stays: bool,
}

/// How a packet ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By this rule or policy.
    Dropped(Box<ForeignRule>),
    /// By this chain of our own.
    DroppedByUs(String),
    /// Within a hook, and nothing of nf_tables did it.
    LostIn(Hook),
    /// Behind the last chain of a hook and before the next: by routing or the check of sources.
    LostAfter(Hook),
    /// It came through to a socket (input) or out of an interface (postrouting).
    Passed(Hook),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub end: End,
    /// The interface by which it was to leave.
    pub output: Option<String>,
}

/// Marks packets of `flows` from its start on.
pub struct Trace {
    marks: Marks,
    packets: BTreeMap<u32, Packet>,
}

/// Calls `send` and tells how each packet of `flows` ended that was seen within `limit`; sooner if
/// every packet seen has ended and there are `expected` of them. Blocks.
pub fn trace_drops(
    flows: &[Flow],
    expected: usize,
    send: impl FnOnce(),
    limit: Duration,
) -> io::Result<Vec<Traced>> {
    let trace = Trace::start(flows)?;
    send();
    trace.finish(expected, limit)
}

/// What was told of one packet.
#[derive(Default)]
struct Packet {
    addresses: Option<(IpAddr, IpAddr)>,
    /// Of UDP.
    port: Option<u16>,
    devices: (Option<u32>, Option<u32>),
    end: Option<End>,
    /// The last hook it came to, and whether it came through.
    hook: Option<(Hook, bool)>,
    /// By a rule of another program.
    dropped: Option<(Key, u64)>,
}

fn failed(refused: Refused) -> io::Error {
    io::Error::new(refused.error.kind(), refused.to_string())
}

impl Trace {
    /// In the network namespace of the calling thread.
    pub fn start(flows: &[Flow]) -> io::Result<Trace> {
        Ok(Trace {
            marks: Marks::new(flows).map_err(failed)?,
            packets: BTreeMap::new(),
        })
    }

    pub fn finish(mut self, expected: usize, limit: Duration) -> io::Result<Vec<Traced>> {
        let begin = Instant::now();
        loop {
            for raw in self.marks.told()? {
                self.note(&raw);
            }
            let ended = |packet: &Packet| packet.end.is_some() || packet.dropped.is_some();
            let is_done = self.packets.len() >= expected && self.packets.values().all(ended);
            if is_done || begin.elapsed() >= limit {
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let ruleset = Ruleset::read()?;
        let packets = self.packets.values();
        Ok(packets
            .filter_map(|packet| packet.traced(&ruleset))
            .collect())
    }

    fn note(&mut self, raw: &Raw) {
        const POLICY: u32 = 1;
        const RULE: u32 = 3;
        const DROP: u32 = 0;
        let told = Attributes(&raw.attributes);
        let Some(id) = told.number(6) else { return };
        if self.packets.len() >= MOST && !self.packets.contains_key(&id) {
            return;
        }
        let packet = self.packets.entry(id).or_default();
        if let Some(header) = told.get(8) {
            packet.addresses = packet.addresses.or(addresses(header));
        }
        if let Some([_, _, high, low, ..]) = told.get(9) {
            packet.port = Some(u16::from_be_bytes([*high, *low]));
        }
        packet.devices.0 = told.number(10).or(packet.devices.0);
        packet.devices.1 = told.number(12).or(packet.devices.1);
        let (table, chain) = (
            told.text(1).unwrap_or_default(),
            told.text(2).unwrap_or_default(),
        );
        if table.starts_with(TRACE_TABLE) {
            packet.come_to(&chain);
            return;
        }
        let verdict = told.nested(5).and_then(|verdict| verdict.number(1));
        let handle = match told.number(4) {
            Some(RULE) if verdict == Some(DROP) => told.long(3).unwrap_or_default(),
            Some(POLICY) if told.number(16) == Some(DROP) => 0,
            _ => return,
        };
        if table == TABLE_NAME {
            packet.end = Some(End::DroppedByUs(chain));
        } else {
            // In the order of this machine in some kernels' words, but a small number in all.
            let family = raw.family;
            packet.dropped = Some(((family, table, chain), handle));
        }
    }
}

impl Packet {
    /// To one of our chains, which stand before and behind all others.
    fn come_to(&mut self, chain: &str) {
        let found = Hook::ALL.into_iter().find_map(|hook| {
            let end = chain.strip_prefix(&format!("{hook}-"))?;
            Some((hook, end == "last"))
        });
        self.hook = found.or(self.hook);
        if let Some((hook @ (Hook::Input | Hook::Postrouting), true)) = found {
            self.end = Some(End::Passed(hook));
        }
    }

    fn traced(&self, ruleset: &Ruleset) -> Option<Traced> {
        let (source, destination) = self.addresses?;
        let end = match (&self.end, &self.dropped) {
            (Some(end), _) => end.clone(),
            (None, Some((key, handle))) => ruleset.dropping(key, *handle)?,
            (None, None) => match self.hook? {
                (hook, true) => End::LostAfter(hook),
                (hook, false) => self.by_legacy(ruleset, hook),
            },
        };
        Some(Traced {
            source,
            destination,
            end,
            output: name(ruleset, self.devices.1),
        })
    }

    /// What is lost within a hook may be so by a rule that is not told of.
    fn by_legacy(&self, ruleset: &Ruleset, hook: Hook) -> End {
        let Some((source, destination)) = self.addresses else {
            return End::LostIn(hook);
        };
        let packets = Packets {
            source: vec![IpNetwork::from(source)],
            destination: vec![IpNetwork::from(destination)],
            input: name(ruleset, self.devices.0),
            output: name(ruleset, self.devices.1),
            protocol: Some(UDP),
            port: self.port,
            ..Packets::new(hook, Family::of(source))
        };
        let mut drops = ruleset.drops(&packets).into_iter();
        let legacy = drops.find(|drop| drop.rule.program == Program::LegacyIptables);
        legacy.map_or(End::LostIn(hook), |drop| End::Dropped(Box::new(drop.rule)))
    }
}

fn name(ruleset: &Ruleset, device: Option<u32>) -> Option<String> {
    let mut devices = ruleset.devices.iter();
    let found = devices.find(|(_, number)| Some(*number) == device);
    found.map(|(name, _)| name.clone())
}

impl Ruleset {
    /// The rule with this place, or the policy of its chain.
    fn dropping(&self, key: &Key, handle: u64) -> Option<End> {
        let (key, chain) = self.rules.chains.get_key_value(key)?;
        let at = chain.rules.iter().position(|rule| rule.handle == handle);
        let rule = at.and_then(|at| Some((at + 1, chain.rules.get(at)?)));
        let base = (key, chain.base.as_ref());
        let rule = self.rule(key, base, rule, "drop".to_owned());
        Some(End::Dropped(Box::new(rule)))
    }
}

fn addresses(header: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let at = |from: usize, len: usize| header.get(from..from + len);
    match header.first()? >> 4 {
        4 => {
            let [source, destination] =
                [at(12, 4)?, at(16, 4)?].map(|bytes| <[u8; 4]>::try_from(bytes).map(IpAddr::from));
            Some((source.ok()?, destination.ok()?))
        }
        6 => {
            let [source, destination] = [at(8, 16)?, at(24, 16)?]
                .map(|bytes| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
            Some((source.ok()?, destination.ok()?))
        }
        _ => None,
    }
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Dropped(rule) => write!(out, "dropped by {rule}"),
            End::DroppedByUs(chain) => write!(out, "dropped by our own chain {chain}"),
            End::LostIn(hook) => write!(
                out,
                "lost at {hook}, and no rule of nf_tables did it: look at rules of the old iptables"
            ),
            End::LostAfter(hook) => write!(
                out,
                "lost after {hook}: there is no route for it, or the check of sources (rp_filter) refused it"
            ),
            End::Passed(Hook::Input) => out.write_str("came to this node's sockets"),
            End::Passed(hook) => write!(out, "passed {hook}"),
        }
    }
}
