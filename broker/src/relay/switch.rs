//! Who may have datagrams relayed to whom, and where they go. Pure: time and seeds are arguments.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proto::key::{Hash, PublicKey};
use proto::relay::{
    self, BIND_LENGTH, Bind, Bound, FROM_RELAY, Key, MAX_PAYLOAD, OVERHEAD, TO_RELAY,
};

use super::shares::{Flow, Node, Shares};
use crate::pace::Bucket;

/// Pairs at a time: a hundred times the load that the rate for all could serve well.
pub(super) const MAX_PAIRS: usize = 1024;
/// Gateways that one may ask for: all of a mesh of a size that still works over a relay.
pub(crate) const MAX_PEERS: usize = 256;
/// An address counts for so long after it was confirmed; gateways do so every 5 s.
const BOUND_FOR: Duration = Duration::from_secs(16);
/// Who sends over its connection again has lost UDP, unless it has just bound its address.
const BOUND_FRESH: Duration = Duration::from_secs(7);
/// What a datagram costs beside its payload: heads on the wire, and the work that is the same for
/// every length, so that a flood of small ones is no way around the rates.
const COST: usize = 100;
/// A challenge is of one such span, and is still taken in the next: who once had an address does not
/// bind it for its next owner. A gateway that echoes an older one is given the new one and asks again.
const CHALLENGE_OF: Duration = Duration::from_secs(60);
/// Of one session: some at once, then two a second.
const BINDS_AT_ONCE: u32 = 16;
const BINDS_EVERY: Duration = Duration::from_millis(500);

/// `W` is a way back to whom a datagram came from.
pub(super) struct Switch<W> {
    /// Of the challenges, and since when their spans are counted.
    secret: Key,
    began: Instant,
    sessions: HashMap<u64, Session<W>>,
    by_identity: HashMap<PublicKey, u64>,
    open: HashSet<(PublicKey, PublicKey)>,
    shares: Shares,
}

struct Session<W> {
    identity: PublicKey,
    grant: Hash,
    key: Key,
    address: Option<Address<W>>,
    channels: HashMap<u32, Channel>,
    by_peer: HashMap<PublicKey, u32>,
    node: Node,
    binds: Bucket,
}

/// Where a session's datagrams come from and go to.
#[derive(Clone, Copy)]
struct Address<W> {
    is: SocketAddr,
    way: W,
    until: Instant,
}

struct Channel {
    peer: PublicKey,
    flow: Flow,
}

/// A session to be.
pub(super) struct New {
    pub(super) number: u64,
    pub(super) key: Key,
    pub(super) identity: PublicKey,
    pub(super) grant: Hash,
}

/// Where a datagram goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Forward<W> {
    /// As it lies in the buffer now.
    Udp(W),
    /// Over the connection of this session, as its channel.
    Tls { session: u64, channel: u32 },
}

/// Why a datagram was not relayed; names are labels of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// Of no session here.
    Session,
    Mac,
    /// From an address that has not echoed a challenge, or not lately.
    Unbound,
    /// Not asked for by both.
    Pair,
    /// More than the pair, its node or all may have.
    Rate,
    Length,
    /// The connection that it had to take is too slow.
    Queue,
    /// The socket would not take it.
    Socket,
}

impl Dropped {
    pub(super) fn label(self) -> &'static str {
        match self {
            Dropped::Session => "session",
            Dropped::Mac => "mac",
            Dropped::Unbound => "unbound",
            Dropped::Pair => "pair",
            Dropped::Rate => "rate",
            Dropped::Length => "length",
            Dropped::Queue => "queue",
            Dropped::Socket => "socket",
        }
    }
}

impl<W: Copy> Switch<W> {
    pub(super) fn new(secret: &[u8; 32], now: Instant) -> Switch<W> {
        Switch {
            secret: Key::new(secret),
            began: now,
            sessions: HashMap::new(),
            by_identity: HashMap::new(),
            open: HashSet::new(),
            shares: Shares::new(now),
        }
    }

    pub(super) fn pairs(&self) -> usize {
        self.open.len()
    }

    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// A node that comes anew has its former session no more; who is told is returned.
    pub(super) fn handle_session(&mut self, new: New) -> Vec<u64> {
        let former = self.by_identity.insert(new.identity, new.number);
        let told = former.map_or(Vec::new(), |former| self.remove(former));
        self.sessions.insert(
            new.number,
            Session {
                identity: new.identity,
                grant: new.grant,
                key: new.key,
                address: None,
                channels: HashMap::new(),
                by_peer: HashMap::new(),
                node: Node::default(),
                binds: Bucket::new(BINDS_AT_ONCE, BINDS_EVERY),
            },
        );
        told
    }

    /// The sessions of those it was paired with.
    pub(super) fn handle_left(&mut self, number: u64) -> Vec<u64> {
        let Some(session) = self.sessions.get(&number) else {
            return Vec::new();
        };
        if self.by_identity.get(&session.identity) == Some(&number) {
            self.by_identity.remove(&session.identity);
        }
        self.remove(number)
    }

    fn remove(&mut self, number: u64) -> Vec<u64> {
        let Some(session) = self.sessions.remove(&number) else {
            return Vec::new();
        };
        let peers: Vec<PublicKey> = session.by_peer.into_keys().collect();
        self.close(&session.identity, &peers)
    }

    fn close(&mut self, identity: &PublicKey, peers: &[PublicKey]) -> Vec<u64> {
        let closed = peers
            .iter()
            .filter(|peer| self.open.remove(&pair(identity, peer)));
        let others: Vec<PublicKey> = closed.copied().collect();
        let numbers = others.iter().filter_map(|peer| self.by_identity.get(peer));
        numbers.copied().collect()
    }

    /// Ends the sessions of those for whom this holds; the sessions of those they were paired with.
    pub(super) fn cut_off(&mut self, out: impl Fn(&PublicKey, &Hash) -> bool) -> Vec<u64> {
        let gone = self.sessions.iter();
        let gone = gone.filter(|(_, session)| out(&session.identity, &session.grant));
        let gone: Vec<u64> = gone.map(|(number, _)| *number).collect();
        let told = gone.into_iter().map(|number| self.handle_left(number));
        told.collect::<Vec<_>>().concat()
    }

    /// Whom a session wants from now on; the sessions whose open channels may have changed.
    pub(super) fn handle_wanted(&mut self, number: u64, wanted: &[(u32, PublicKey)]) -> Vec<u64> {
        let Some(session) = self.sessions.get_mut(&number) else {
            return Vec::new();
        };
        let identity = session.identity;
        let mut former = std::mem::take(&mut session.channels);
        let mut formerly: HashSet<PublicKey> =
            session.by_peer.drain().map(|(peer, _)| peer).collect();
        for (channel, peer) in wanted {
            let flow = former.remove(channel).filter(|former| former.peer == *peer);
            let flow = flow.map_or_else(Flow::default, |former| former.flow);
            let is_first = session.by_peer.insert(*peer, *channel).is_none();
            if is_first && *peer != identity {
                session
                    .channels
                    .insert(*channel, Channel { peer: *peer, flow });
            }
            formerly.remove(peer);
        }
        let gone: Vec<PublicKey> = formerly.into_iter().collect();
        let mut told = self.close(&identity, &gone);
        told.push(number);
        for (_, peer) in wanted {
            let Some(other) = self.by_identity.get(peer) else {
                continue;
            };
            let both = self.sessions[other].by_peer.contains_key(&identity);
            let new = both && *peer != identity && self.open.len() < MAX_PAIRS;
            if new && self.open.insert(pair(&identity, peer)) {
                told.push(*other);
            }
        }
        told
    }

    /// The channels of a session whose other side is here and wants it.
    pub(super) fn open_channels(&self, number: u64) -> Vec<u32> {
        let Some(session) = self.sessions.get(&number) else {
            return Vec::new();
        };
        let channels = session.channels.iter();
        let open = channels
            .filter(|(_, channel)| self.open.contains(&pair(&session.identity, &channel.peer)));
        let mut open: Vec<u32> = open.map(|(number, _)| *number).collect();
        open.sort_unstable();
        open
    }

    /// The answer, which is as long as the question, for where it came from.
    pub(super) fn handle_bind(
        &mut self,
        datagram: &[u8],
        from: (SocketAddr, W),
        now: Instant,
    ) -> Result<[u8; BIND_LENGTH], Dropped> {
        let session = relay::session_of(datagram).and_then(|number| self.sessions.get_mut(&number));
        let session = session.ok_or(Dropped::Session)?;
        let Bind {
            session: number,
            nonce,
            echo,
        } = relay::read_bind(datagram, &session.key).map_err(|_| Dropped::Mac)?;
        session.binds.take(now).map_err(|_| Dropped::Rate)?;
        let (address, way) = from;
        let span = now.saturating_duration_since(self.began).as_secs() / CHALLENGE_OF.as_secs();
        let challenge_of =
            |span: u64| (self.secret).challenge(number, format!("{span} {address}").as_bytes());
        let challenge = challenge_of(span);
        let former = span.checked_sub(1).map(challenge_of);
        let is_echo = echo == challenge || Some(echo) == former;
        if is_echo {
            session.address = Some(Address {
                is: address,
                way,
                until: now + BOUND_FOR,
            });
        }
        let answer = Bound {
            session: number,
            nonce,
            challenge: if is_echo { 0 } else { challenge },
        };
        Ok(relay::bound(answer, &session.key))
    }

    /// What came by UDP. For [`Forward::Udp`] it is rewritten where it lies.
    pub(super) fn handle_datagram(
        &mut self,
        datagram: &mut [u8],
        from: SocketAddr,
        now: Instant,
    ) -> Result<Forward<W>, Dropped> {
        let number = relay::session_of(datagram).ok_or(Dropped::Session)?;
        let channel = relay::channel_of(datagram);
        let length = datagram.len().saturating_sub(OVERHEAD) + COST;
        let session = self.sessions.get_mut(&number).ok_or(Dropped::Session)?;
        // All that costs little first: a flood is to cost no MAC.
        let bound = session
            .address
            .filter(|address| address.is == from && address.until > now);
        bound.ok_or(Dropped::Unbound)?;
        let wanted = session.channels.get_mut(&channel).ok_or(Dropped::Pair)?;
        let flow = (&session.node, &mut wanted.flow);
        if !self.shares.has_room(flow, length, now) {
            return Err(Dropped::Rate);
        }
        relay::open(datagram, TO_RELAY, &session.key).map_err(|_| Dropped::Mac)?;
        let forward = self.pass(number, channel, length, now)?;
        if let Forward::Udp(_) = forward {
            self.seal(datagram, number, channel)?;
        }
        Ok(forward)
    }

    /// What came over a connection; the datagram for [`Forward::Udp`].
    pub(super) fn handle_carried(
        &mut self,
        (number, channel): (u64, u32),
        payload: &[u8],
        now: Instant,
    ) -> Result<(Forward<W>, Vec<u8>), Dropped> {
        if payload.is_empty() || payload.len() > MAX_PAYLOAD {
            return Err(Dropped::Length);
        }
        if let Some(session) = self.sessions.get_mut(&number) {
            let fresh = |address: &Address<W>| address.until + BOUND_FRESH > now + BOUND_FOR;
            session.address = session.address.filter(fresh);
        }
        let forward = self.pass(number, channel, payload.len() + COST, now)?;
        if let Forward::Tls { .. } = forward {
            return Ok((forward, payload.to_vec()));
        }
        let mut datagram = vec![0; payload.len() + OVERHEAD];
        datagram[relay::HEAD..relay::HEAD + payload.len()].copy_from_slice(payload);
        self.seal(&mut datagram, number, channel)?;
        Ok((forward, datagram))
    }

    /// Takes its part of the rates, and says where it goes.
    fn pass(
        &mut self,
        number: u64,
        channel: u32,
        length: usize,
        now: Instant,
    ) -> Result<Forward<W>, Dropped> {
        let (to, back) = self.other_end(number, channel)?;
        let forward = match self.sessions[&to].address {
            Some(address) if address.until > now => Forward::Udp(address.way),
            Some(_) | None => Forward::Tls {
                session: to,
                channel: back,
            },
        };
        let session = self.sessions.get_mut(&number).ok_or(Dropped::Session)?;
        let wanted = session.channels.get_mut(&channel).ok_or(Dropped::Pair)?;
        let flow = (&session.node, &mut wanted.flow);
        if !self.shares.has_room(flow, length, now) {
            return Err(Dropped::Rate);
        }
        let (node, flow) = (&mut session.node, &mut wanted.flow);
        self.shares.take(node, flow, length, now);
        Ok(forward)
    }

    /// The session at the other end of an open channel, and what that calls it.
    fn other_end(&self, number: u64, channel: u32) -> Result<(u64, u32), Dropped> {
        let session = self.sessions.get(&number).ok_or(Dropped::Session)?;
        let peer = session.channels.get(&channel).ok_or(Dropped::Pair)?.peer;
        if !self.open.contains(&pair(&session.identity, &peer)) {
            return Err(Dropped::Pair);
        }
        let to = self.by_identity.get(&peer).ok_or(Dropped::Pair)?;
        let back = self.sessions[to].by_peer.get(&session.identity);
        Ok((*to, *back.ok_or(Dropped::Pair)?))
    }

    fn seal(&self, datagram: &mut [u8], number: u64, channel: u32) -> Result<(), Dropped> {
        let (to, back) = self.other_end(number, channel)?;
        let key = &self.sessions[&to].key;
        let sealed = relay::seal(datagram, FROM_RELAY, (to, back), key);
        sealed.then_some(()).ok_or(Dropped::Length)
    }
}

/// In one order, whoever asks.
fn pair(one: &PublicKey, other: &PublicKey) -> (PublicKey, PublicKey) {
    (*one.min(other), *one.max(other))
}

#[cfg(test)]
mod tests;
