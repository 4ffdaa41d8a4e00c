//! What the nodes of one site say to each other in their own network: agents ask their gateways
//! whether they live and which sites they reach, and try the way of foreign packets with probes.
//!
//! Every datagram carries a MAC under a key that only the two nodes have, and is still read as
//! coming from someone who may lie. What a gateway sends without having heard from an agent that it
//! knows is nothing, save that it leaves. It answers a question to where that came from, with no
//! more than the question was long, until the question names an answer that was sent to that very
//! address a short while ago: only then does an address get more, or count as the agent's.

mod address;
mod key;

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use crate::blob::{BlobError, Reader, Writer};
use crate::control::site_tag;
use crate::key::{Domain, Hash, PublicKey};
use crate::name::Name;

pub use address::{is_probe_address, probe_address, probe_addresses};
pub use key::PairKey;

/// Of both sides.
pub const PORT: u16 = 7802;
/// Fits every network that nodes are in, with all headers.
pub const MAX_DATAGRAM: usize = 1200;
/// Between an agent's questions, unless its gateway asks for longer.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// No gateway can make an agent wait longer.
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(2);
/// Of a table; a question has one bit for each.
pub const MAX_PARTS: usize = 64;
/// Sites in one part.
pub const PART_SITES: usize = (MAX_DATAGRAM - HEAD - PART_HEAD - MAC) / SITE;

const VERSION: u8 = 1;
const MAC: usize = 16;
/// Kind, version, sender.
const HEAD: usize = 2 + 8;
/// Boot, version, part, number of parts, number of sites.
const PART_HEAD: usize = 8 + 8 + 3;
/// Hash, MTU, flags.
const SITE: usize = 8 + 2 + 1;
/// Of a question; no shorter than an answer, so that nobody gains by asking in another's name.
const ASK_LENGTH: usize = 112;
/// With all that later versions may add to one.
const LONGEST_ASK: usize = 2 * ASK_LENGTH;

const ASK: u8 = 0xd0;
const ANSWER: u8 = 0xd1;
const SITES: u8 = 0xd2;
const PROBE: u8 = 0xd3;
const PROBE_ANSWER: u8 = 0xd4;

const LEAVING: u8 = 1;
const FORWARDS: u8 = 2;
const BY_SIBLING: u8 = 1;

/// Stands for a node where room is short.
pub type Tag = [u8; 8];
/// Stands for a site where room is short.
pub type SiteHash = [u8; 8];

/// How packets go between an agent and its gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Undecided,
    Direct,
    Vxlan,
}

/// The way that a probe tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeBy {
    Direct,
    Vxlan,
}

/// A message of the other side, by the start it was sent in and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub boot: u64,
    pub number: u64,
}

/// Of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Another one after every start of the agent.
    pub boot: u64,
    /// Counts the questions to this gateway.
    pub number: u64,
    /// Until the next, in milliseconds.
    pub interval: u16,
    /// The last answer of the receiver that the sender took.
    pub heard: Option<Heard>,
    /// Which table of the receiver's boot the sender has, or collects; 0 is none.
    pub table: u64,
    /// The parts of that table that it has.
    pub parts: u64,
    pub mode: Mode,
    /// Whether foreign packets pass between both, if that is known.
    pub passes: Option<bool>,
    /// The sender's address in the family that its questions do not travel in.
    pub other_lan: Option<IpAddr>,
    /// It is sent from that other address, to show that the sender has it; nothing else in it
    /// counts. Such questions are numbered apart.
    pub shows_other: bool,
}

/// Of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub boot: u64,
    /// Grows with each answer of this boot to this agent. It tells the gateway when, and to which
    /// address, the answer was sent; to others it says no more than which is newer.
    pub number: u64,
    /// The question.
    pub to: Heard,
    /// What the agent is to keep between questions, in milliseconds.
    pub interval: u16,
    /// Which table the gateway has; the agent asks until it has all of it.
    pub table: u64,
    /// It is about to stop: nothing more should be sent through it.
    pub leaving: bool,
    /// Its kernel forwards packets of the mesh; before, an unanswered probe says nothing.
    pub forwards: bool,
    pub other_lan: Option<IpAddr>,
}

/// A part of the table of sites that a gateway reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sites {
    pub boot: u64,
    pub table: u64,
    pub part: u8,
    /// How many parts the table has: 1 to [`MAX_PARTS`].
    pub of: u8,
    pub sites: Vec<Site>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    pub hash: SiteHash,
    /// What fits through the tunnels to it.
    pub mtu: u16,
    /// The gateway itself does not reach it now, and hands its packets to one that does.
    pub by_sibling: bool,
}

/// From an agent through a gateway's tunnel interface and back, as a packet of the mesh goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub nonce: u64,
    pub by: ProbeBy,
    /// The last answer of the gateway that the agent took: what was recorded is older.
    pub heard: Heard,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Ask(Ask),
    Answer(Answer),
    Sites(Sites),
    Probe(Probe),
    ProbeAnswer(Probe),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LanError {
    #[error("this is no message between agents and gateways")]
    Form,
    #[error("the MAC of a message between agent and gateway does not hold")]
    Mac,
    #[error("a message between agent and gateway cannot be read: {0}")]
    Field(#[from] BlobError),
}

pub fn tag_of(identity: &PublicKey) -> Tag {
    let hash = Hash::of(Domain::LanTag, identity.as_bytes());
    std::array::from_fn(|at| hash.0[at])
}

pub fn site_hash(site: &Name) -> SiteHash {
    site_tag(site.as_str()).to_be_bytes()
}

/// Whether a node can have this address in its site's network.
pub fn is_usable(address: IpAddr) -> bool {
    let is_special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let is_scoped = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !is_special && !is_scoped
}

/// Whom a datagram claims to be from, so that the key can be looked up. Costs nothing and proves
/// nothing.
pub fn sender_of(datagram: &[u8]) -> Option<Tag> {
    let may_be = (HEAD + MAC..=MAX_DATAGRAM).contains(&datagram.len())
        && (ASK..=PROBE_ANSWER).contains(&datagram[0])
        && datagram[1] == VERSION;
    may_be.then(|| std::array::from_fn(|at| datagram[2 + at]))
}

/// Whether it has the form of a question, so that nothing else costs a gateway a MAC.
pub fn may_be_ask(datagram: &[u8]) -> bool {
    let is_of_kind = sender_of(datagram).is_some() && datagram[0] == ASK;
    is_of_kind && (ASK_LENGTH..=LONGEST_ASK).contains(&datagram.len())
}

/// How many parts a table of so many sites has; what does not fit is left out.
pub fn parts_of(sites: usize) -> usize {
    sites.div_ceil(PART_SITES).clamp(1, MAX_PARTS)
}

impl Message {
    /// The datagram; `from` is the tag of whoever sends it.
    pub fn seal(&self, from: Tag, key: &PairKey) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(self.kind()).u8(VERSION).raw(&from);
        match self {
            Message::Ask(ask) => ask.write(&mut out),
            Message::Answer(answer) => answer.write(&mut out),
            Message::Sites(sites) => sites.write(&mut out),
            Message::Probe(probe) | Message::ProbeAnswer(probe) => probe.write(&mut out),
        }
        let mut datagram = out.finish();
        if matches!(self, Message::Ask(_)) {
            datagram.resize(ASK_LENGTH - MAC, 0);
        }
        let mac = key.mac(&datagram);
        datagram.extend_from_slice(&mac);
        debug_assert!(datagram.len() <= MAX_DATAGRAM);
        datagram
    }

    /// The MAC comes first, so that nothing is told about a datagram without it. What follows the
    /// fields known here is for later versions.
    pub fn open(datagram: &[u8], key: &PairKey) -> Result<Message, LanError> {
        sender_of(datagram).ok_or(LanError::Form)?;
        let (content, mac) = datagram.split_at(datagram.len() - MAC);
        if !key.holds(content, mac) {
            return Err(LanError::Mac);
        }
        let mut from = Reader::new(&content[HEAD..]);
        let from = &mut from;
        match content[0] {
            ASK if datagram.len() >= ASK_LENGTH => Ok(Message::Ask(Ask::read(from)?)),
            ANSWER => Ok(Message::Answer(Answer::read(from)?)),
            SITES => Ok(Message::Sites(Sites::read(from)?)),
            PROBE => Ok(Message::Probe(Probe::read(from)?)),
            PROBE_ANSWER => Ok(Message::ProbeAnswer(Probe::read(from)?)),
            _ => Err(LanError::Form),
        }
    }

    const fn kind(&self) -> u8 {
        match self {
            Message::Ask(_) => ASK,
            Message::Answer(_) => ANSWER,
            Message::Sites(_) => SITES,
            Message::Probe(_) => PROBE,
            Message::ProbeAnswer(_) => PROBE_ANSWER,
        }
    }
}

impl Heard {
    fn write(self, out: &mut Writer) -> &mut Writer {
        out.u64(self.boot).u64(self.number)
    }

    fn read(from: &mut Reader<'_>) -> Result<Heard, BlobError> {
        Ok(Heard {
            boot: from.u64()?,
            number: from.u64()?,
        })
    }
}

impl Ask {
    fn write(&self, out: &mut Writer) {
        out.u64(self.boot)
            .u64(self.number)
            .u16(self.interval)
            .u64(self.table)
            .u64(self.parts)
            .u8(match self.mode {
                Mode::Undecided => 0,
                Mode::Direct => 1,
                Mode::Vxlan => 2,
            })
            .u8(match self.passes {
                None => 0,
                Some(false) => 1,
                Some(true) => 2,
            })
            .option(self.heard, |out, heard| heard.write(out))
            .option(self.other_lan, |out, address| out.address(address))
            .u8(u8::from(self.shows_other));
    }

    fn read(from: &mut Reader<'_>) -> Result<Ask, BlobError> {
        Ok(Ask {
            boot: from.u64()?,
            number: from.u64()?,
            interval: from.u16()?,
            table: from.u64()?,
            parts: from.u64()?,
            mode: match from.u8()? {
                0 => Mode::Undecided,
                1 => Mode::Direct,
                2 => Mode::Vxlan,
                _ => return Err(BlobError::Field("mode")),
            },
            passes: match from.u8()? {
                0 => None,
                1 => Some(false),
                2 => Some(true),
                _ => return Err(BlobError::Field("what a probe found")),
            },
            heard: from.option("answer heard", Heard::read)?,
            other_lan: from.option("other address", |from| from.address("other address"))?,
            shows_other: match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(BlobError::Field("what a question shows")),
            },
        })
    }
}

impl Answer {
    fn write(&self, out: &mut Writer) {
        let leaving = if self.leaving { LEAVING } else { 0 };
        let forwards = if self.forwards { FORWARDS } else { 0 };
        out.u64(self.boot).u64(self.number);
        self.to
            .write(out)
            .u16(self.interval)
            .u64(self.table)
            .u8(leaving | forwards)
            .option(self.other_lan, |out, address| out.address(address));
    }

    fn read(from: &mut Reader<'_>) -> Result<Answer, BlobError> {
        let (boot, number) = (from.u64()?, from.u64()?);
        let to = Heard::read(from)?;
        let (interval, table, flags) = (from.u16()?, from.u64()?, from.u8()?);
        Ok(Answer {
            boot,
            number,
            to,
            interval,
            table,
            leaving: flags & LEAVING != 0,
            forwards: flags & FORWARDS != 0,
            other_lan: from.option("other address", |from| from.address("other address"))?,
        })
    }
}

impl Sites {
    fn write(&self, out: &mut Writer) {
        let sites = &self.sites[..self.sites.len().min(PART_SITES)];
        out.u64(self.boot)
            .u64(self.table)
            .u8(self.part)
            .u8(self.of)
            .u8(sites.len() as u8);
        for site in sites {
            let flags = if site.by_sibling { BY_SIBLING } else { 0 };
            out.raw(&site.hash).u16(site.mtu).u8(flags);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Sites, BlobError> {
        let (boot, table) = (from.u64()?, from.u64()?);
        let (part, of, length) = (from.u8()?, from.u8()?, from.u8()?);
        if usize::from(of) > MAX_PARTS || part >= of {
            return Err(BlobError::Field("part"));
        }
        let sites = (0..length).map(|_| {
            Ok(Site {
                hash: from.array()?,
                mtu: from.u16()?,
                by_sibling: from.u8()? & BY_SIBLING != 0,
            })
        });
        Ok(Sites {
            boot,
            table,
            part,
            of,
            sites: sites.collect::<Result<_, BlobError>>()?,
        })
    }
}

impl Probe {
    fn write(self, out: &mut Writer) {
        out.u64(self.nonce).u8(match self.by {
            ProbeBy::Direct => 0,
            ProbeBy::Vxlan => 1,
        });
        self.heard.write(out);
    }

    fn read(from: &mut Reader<'_>) -> Result<Probe, BlobError> {
        Ok(Probe {
            nonce: from.u64()?,
            by: match from.u8()? {
                0 => ProbeBy::Direct,
                1 => ProbeBy::Vxlan,
                _ => return Err(BlobError::Field("way of a probe")),
            },
            heard: Heard::read(from)?,
        })
    }
}

#[cfg(test)]
mod tests;
