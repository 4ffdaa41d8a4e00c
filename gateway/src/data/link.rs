//! One peer: its `Tunn`s, where it is, and what waits for it. Owned by one data thread.
//!
//! boringtun keeps keys, counters and most timers; what it leaves to its caller is here: staging,
//! endpoints, persistent keepalive, limits of messages and age, and a change of preshared key
//! without a gap (a second `Tunn` beside the first until its handshake is done).

mod mesh;
mod spec;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use super::index::{IndexTable, TunnelIndex};
use super::mailbox::ControlInbox;
use super::outbox::Outbox;
use super::staging::Staging;
use super::tunnel::{Ticked, Tunnel, room};
use crate::drops::{DropReason, Drops};
use crate::io::udp::{Mark, UdpSocket};
use crate::packet::ecn;
use crate::packet::split::Segments;
use mesh::MeshState;
pub use spec::{Endpoint, LinkShared, LinkSpec, Rules};

/// Header and tag around every inner packet.
pub const OVERHEAD: usize = 32;
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A request and its answer closer together than this may count as one moment.
const TICK_APART: Duration = Duration::from_millis(1);
/// After this long without a tick the age of keys is looked at before they are used.
const TICK_BEFORE_USE: Duration = Duration::from_secs(1);
/// All keys are gone this long after the last handshake, and the link needs no ticks.
const FORGET_AFTER: Duration = Duration::from_secs(3 * 180 + 1);
/// How long datagrams that were on their way may still arrive under the previous preshared key.
const PREDECESSOR_LINGERS: Duration = Duration::from_secs(5);

/// Which way the last packet went. boringtun tells times apart by its ticks only, and what it does
/// after a silence hangs on whether something came after something went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
    Handshake,
}

/// What a link works with during one call.
pub struct Work<'a> {
    pub outbox: &'a mut Outbox,
    pub socket: Option<&'a UdpSocket>,
    pub table: &'a mut IndexTable,
    pub drops: &'a Drops,
    pub control: &'a ControlInbox,
    pub now: Duration,
    pub mtu: usize,
}

pub struct Link {
    slot: u32,
    spec: LinkSpec,
    endpoint: Option<Endpoint>,
    current: Box<Tunnel>,
    /// With the new preshared key, until its first session.
    successor: Option<Box<Tunnel>>,
    predecessor: Option<(Box<Tunnel>, Duration)>,
    staging: Staging,
    last_traffic: Duration,
    last_way: Way,
    awake_until: Duration,
    mesh: MeshState,
}

impl Link {
    /// `None` when the thread has no index left.
    pub fn new(spec: LinkSpec, slot: u32, table: &mut IndexTable, now: Duration) -> Option<Link> {
        let current = Tunnel::new(&spec, slot, table, now)?;
        let endpoint = spec.remote.map(|remote| Endpoint {
            remote,
            local: None,
        });
        spec.shared.set_endpoint(endpoint);
        Some(Link {
            slot,
            endpoint,
            current,
            successor: None,
            predecessor: None,
            staging: Staging::default(),
            last_traffic: Duration::ZERO,
            last_way: Way::Handshake,
            awake_until: Duration::ZERO,
            mesh: MeshState::new(),
            spec,
        })
    }

    /// Gives its indexes back and forgets its keys.
    pub fn remove(mut self, table: &mut IndexTable, drops: &Drops) {
        drops.add(DropReason::StagingGivenUp, self.staging.clear());
        for tunnel in self.into_tunnels() {
            table.release(tunnel.index);
        }
    }

    // ---- configuration ----------------------------------------------------------------------

    pub fn set_remote(&mut self, remote: SocketAddr) {
        self.set_endpoint(Endpoint {
            remote,
            local: None,
        });
    }

    fn set_endpoint(&mut self, endpoint: Endpoint) {
        self.endpoint = Some(endpoint);
        self.spec.shared.set_endpoint(self.endpoint);
    }

    pub fn forget_source(&mut self) {
        if let Some(endpoint) = self.endpoint {
            self.set_endpoint(Endpoint {
                local: None,
                ..endpoint
            });
        }
    }

    pub fn remote(&self) -> Option<SocketAddr> {
        self.endpoint.map(|endpoint| endpoint.remote)
    }

    /// A keepalive that begins is sent at once.
    pub fn set_keepalive(&mut self, seconds: u16, work: &mut Work<'_>) {
        let begins = self.spec.keepalive == 0 && seconds > 0;
        self.spec.keepalive = seconds;
        if begins {
            self.send_keepalive(work);
        }
    }

    /// The interface came up.
    pub fn start(&mut self, work: &mut Work<'_>) {
        if self.spec.keepalive > 0 {
            self.send_keepalive(work);
        }
        self.tick(work);
    }

    /// The interface went down, or our own key changed: every session is gone, every handshake too.
    pub fn reset(&mut self, work: &mut Work<'_>) {
        if let Some(fresh) = Tunnel::new(&self.spec, self.slot, work.table, work.now) {
            let old = std::mem::replace(&mut self.current, fresh);
            let predecessor = self.predecessor.take().map(|(tunnel, _)| tunnel);
            for tunnel in [Some(old), self.successor.take(), predecessor]
                .into_iter()
                .flatten()
            {
                work.table.release(tunnel.index);
            }
        }
        work.drops
            .add(DropReason::StagingGivenUp, self.staging.clear());
    }

    pub fn set_private_key(
        &mut self,
        key: x25519::StaticSecret,
        limiter: Arc<RateLimiter>,
        work: &mut Work<'_>,
    ) {
        (self.spec.private_key, self.spec.limiter) = (key, limiter);
        self.reset(work);
        self.start(work);
    }

    /// The new key counts from the next handshake on, which is begun at once; until it is done the
    /// session under the old one carries on.
    pub fn set_preshared_key(&mut self, key: Option<[u8; 32]>, work: &mut Work<'_>) {
        self.spec.preshared_key = key;
        let Some(fresh) = Tunnel::new(&self.spec, self.slot, work.table, work.now) else {
            return;
        };
        let in_use = self.current.has_session;
        let trying = self.current.initiation.is_some();
        let waiting = self.successor.take();
        let unused = if in_use {
            self.successor = Some(fresh);
            None
        } else {
            Some(std::mem::replace(&mut self.current, fresh))
        };
        for tunnel in [waiting, unused].into_iter().flatten() {
            work.table.release(tunnel.index);
        }
        if in_use || trying {
            self.initiate(work);
        }
    }

    // ---- out --------------------------------------------------------------------------------

    /// Seals and queues every packet of a superpacket; without a session they wait for one. `hops`
    /// is the outer hop limit, 0 the system's.
    pub fn transmit(&mut self, segments: &mut Segments<'_>, hops: u8, work: &mut Work<'_>) {
        self.tick_before(Way::Out, work);
        let mark = Mark {
            ecn: ecn::outer_for(segments.ecn()),
            hops,
        };
        let Some(to) = self.endpoint else {
            return work
                .drops
                .add(DropReason::NoEndpoint, segments.count() as u64);
        };
        if !self.current.has_session {
            if self.spec.rules == Rules::Mesh {
                return work
                    .drops
                    .add(DropReason::LinkNoSession, segments.count() as u64);
            }
            while let Some(packet) = segments.next_padded(work.mtu) {
                work.drops
                    .add(DropReason::StagingFull, self.staging.push(mark, packet));
            }
            return self.initiate(work);
        }
        let mtu = self.padding_limit(work);
        let before = self.current.messages;
        let (mut bytes, mut large) = (0, 0);
        while let Some(packet) = segments.next_padded(mtu) {
            large += u64::from(Link::is_large(packet));
            bytes += self.seal(packet, &to, mark, work);
        }
        self.sent(bytes, work.now);
        if self.spec.rules == Rules::Mesh {
            let packets = self.current.messages - before;
            self.count_sealed(bytes - packets * OVERHEAD as u64, large);
        }
        if self.current.messages >= REKEY_AFTER_MESSAGES {
            self.initiate(work);
        }
    }

    /// Seals one packet into the outbox; returns its size there.
    fn seal(&mut self, packet: &[u8], to: &Endpoint, mark: Mark, work: &mut Work<'_>) -> u64 {
        if work.outbox.reserve(packet.len() + OVERHEAD).is_none() {
            work.outbox.make_room(work.socket, work.now, work.drops);
        }
        let Some(room) = work.outbox.reserve(packet.len() + OVERHEAD) else {
            work.drops.count(DropReason::SendFull);
            return 0;
        };
        // A session is there, so this seals and never queues or initiates.
        let TunnResult::WriteToNetwork(datagram) = self.current.tunn.encapsulate(packet, room)
        else {
            work.drops.count(DropReason::NoSession);
            return 0;
        };
        let len = datagram.len();
        work.outbox.commit(to, mark, len);
        self.current.messages += 1;
        len as u64
    }

    fn sent(&mut self, bytes: u64, now: Duration) {
        if bytes == 0 {
            return;
        }
        self.last_traffic = now;
        self.spec
            .shared
            .tx_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    fn initiate(&mut self, work: &mut Work<'_>) {
        // What cannot leave must not count as tried.
        let (Some(to), Some(_)) = (self.endpoint, work.socket) else {
            return;
        };
        self.last_way = Way::Handshake;
        self.awake_until = work.now + FORGET_AFTER;
        let tunnel = self.successor.as_mut().unwrap_or(&mut self.current);
        let bytes = tunnel.initiate(&to, work);
        self.sent(bytes, work.now);
    }

    fn send_keepalive(&mut self, work: &mut Work<'_>) {
        let (Some(to), Some(_)) = (self.endpoint, work.socket) else {
            return;
        };
        self.tick_before(Way::Out, work);
        if self.current.has_session {
            let bytes = self.seal(&[], &to, Mark::default(), work);
            self.sent(bytes, work.now);
        } else {
            self.initiate(work);
        }
        self.last_traffic = work.now;
    }

    fn send_staged(&mut self, work: &mut Work<'_>) {
        let Some(to) = self.endpoint else { return };
        let mut bytes = 0;
        while let Some((mark, packet)) = self.staging.pop() {
            bytes += self.seal(&packet, &to, mark, work);
        }
        // Gives the memory of the queue back.
        self.staging.clear();
        self.sent(bytes, work.now);
    }

    // ---- in ---------------------------------------------------------------------------------

    /// A handshake message that passed control's screen.
    pub fn handshake(&mut self, datagram: &[u8], from: &Endpoint, work: &mut Work<'_>) {
        let receiver = handshake_receiver(datagram);
        let answers = datagram.first() == Some(&2);
        let to = match self.spec.rules {
            Rules::Mesh => {
                self.tick_before_handshake(receiver.is_some(), work);
                *from
            }
            Rules::WireGuard => {
                self.tick_before(Way::Handshake, work);
                self.endpoint.filter(|_| answers).unwrap_or(*from)
            }
        };
        self.awake_until = work.now + FORGET_AFTER;
        // Initiations do not depend on the preshared key, their answers do: the newest answers. An
        // answer to an older one would make a session under a key that was changed since.
        let tunnel = self.successor.as_mut().unwrap_or(&mut self.current);
        if receiver.is_some_and(|receiver| TunnelIndex::of(receiver) != tunnel.index) {
            return work.drops.count(DropReason::UnknownIndex);
        }
        let index = tunnel.index;
        if receiver.is_none() {
            tunnel.spare_sessions();
        }
        let Some(room) = room(work) else { return };
        match tunnel.tunn.decapsulate(None, datagram, room) {
            TunnResult::WriteToNetwork(answer) => {
                let len = answer.len();
                if receiver.is_none() {
                    tunnel.note_made(answer);
                }
                work.outbox.commit(&to, Mark::default(), len);
                self.spec
                    .shared
                    .tx_bytes
                    .fetch_add(len as u64, Ordering::Relaxed);
                self.spec
                    .shared
                    .rx_bytes
                    .fetch_add(datagram.len() as u64, Ordering::Relaxed);
                if answers {
                    tunnel.confirm(receiver.unwrap_or_default());
                    if self.endpoint.is_none() {
                        self.set_endpoint(*from);
                    }
                    self.established(index, from, work);
                }
            }
            TunnResult::Done => {}
            TunnResult::Err(error) => {
                tracing::debug!(%from.remote, ?error, "handshake message rejected");
                work.drops.count(DropReason::HandshakeRejected);
            }
            TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {}
        }
    }

    /// A session became the one to send under: the peer proved that it has it.
    #[cold]
    fn established(&mut self, index: TunnelIndex, from: &Endpoint, work: &mut Work<'_>) {
        if let Some(next) = self.successor.take_if(|tunnel| tunnel.index == index) {
            let old = std::mem::replace(&mut self.current, next);
            if let Some((older, _)) = self
                .predecessor
                .replace((old, work.now + PREDECESSOR_LINGERS))
            {
                work.table.release(older.index);
            }
        }
        if self.current.index != index {
            return;
        }
        self.current.initiation = None;
        self.current.messages = 0;
        self.current.look_at_session();
        self.awake_until = work.now + FORGET_AFTER;
        self.last_traffic = work.now;
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.spec
            .shared
            .last_handshake
            .store(wall.as_nanos() as u64, Ordering::Relaxed);
        if self.current.has_session {
            self.tell_session(*from, work);
            self.send_staged(work);
        }
    }

    /// Opens one data datagram into `into`; the inner packet then lies at its beginning. A
    /// keepalive has length 0. A datagram opened under a session, and nothing less, moves the
    /// endpoint.
    pub fn open(
        &mut self,
        datagram: &[u8],
        from: &Endpoint,
        into: &mut [u8],
        work: &mut Work<'_>,
    ) -> Result<usize, DropReason> {
        let receiver = receiver_index(datagram, 4).ok_or(DropReason::Malformed)?;
        let index = TunnelIndex::of(receiver);
        let tunnel = if self.current.index == index {
            &mut self.current
        } else if let Some(successor) = self
            .successor
            .as_mut()
            .filter(|tunnel| tunnel.index == index)
        {
            successor
        } else if let Some((old, _)) = self
            .predecessor
            .as_mut()
            .filter(|(tunnel, _)| tunnel.index == index)
        {
            old
        } else {
            return Err(DropReason::UnknownIndex);
        };
        let opened = tunnel.open(datagram, into);
        if !matches!(opened, Ok(_) | Err(DropReason::InnerMalformed)) {
            return opened;
        }
        // As responder we may send under a session once a datagram was opened under it.
        let news = tunnel.confirm(receiver) || !tunnel.has_session;
        if self.endpoint.as_ref() != Some(from) {
            self.came_from(from, work);
        }
        if self.spec.rules == Rules::Mesh {
            self.count_opened(&into[..*opened.as_ref().unwrap_or(&0)]);
        }
        if news {
            self.established(index, from, work);
        }
        opened
    }

    /// So many bytes of datagrams were opened and had something to deliver.
    pub fn received(&mut self, bytes: u64, now: Duration) {
        self.last_traffic = now;
        self.spec
            .shared
            .rx_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        self.publish(now);
    }

    // ---- time -------------------------------------------------------------------------------

    /// Whether time alone can make this link do something.
    pub fn is_awake(&self, now: Duration) -> bool {
        now < self.awake_until || self.spec.keepalive > 0 || !self.staging.is_empty()
    }

    /// Before packets go another way than the last did; and after a stop (SIGSTOP, suspend), when
    /// a key may be older than it may be used.
    pub fn tick_before(&mut self, way: Way, work: &mut Work<'_>) {
        let age = work.now.saturating_sub(self.current.ticked);
        let turned = self.last_way != way && (age > TICK_APART || self.last_way == Way::Handshake);
        self.last_way = way;
        if turned || way == Way::Handshake || age > TICK_BEFORE_USE {
            self.run_timers(work);
        }
    }

    /// boringtun's timers, and nothing that would call for them again.
    fn run_timers(&mut self, work: &mut Work<'_>) {
        if self.spec.rules == Rules::Mesh {
            return self.run_mesh_timers(work);
        }
        let to = self.endpoint;
        let mut sent = 0;
        // While a successor waits, the old preshared key must make no further session.
        match self
            .current
            .tick(to.as_ref(), self.successor.is_none(), work)
        {
            Ok(Ticked::Sent(bytes)) => sent += bytes,
            Ok(Ticked::Suppressed) => self.initiate(work),
            Err(_) if self.successor.is_some() => {}
            Err(_) => self.give_up(work),
        }
        match self
            .successor
            .as_mut()
            .map(|next| next.tick(to.as_ref(), true, work))
        {
            Some(Ok(Ticked::Sent(bytes))) => sent += bytes,
            Some(Ok(Ticked::Suppressed)) | None => {}
            Some(Err(_)) => self.give_up(work),
        }
        if self
            .predecessor
            .as_ref()
            .is_some_and(|(_, until)| work.now >= *until)
            && let Some((old, _)) = self.predecessor.take()
        {
            work.table.release(old.index);
        }
        self.sent(sent, work.now);
    }

    /// What waited for a session will not have one.
    fn give_up(&mut self, work: &Work<'_>) {
        work.drops
            .add(DropReason::StagingGivenUp, self.staging.clear());
    }

    pub fn tick(&mut self, work: &mut Work<'_>) {
        self.run_timers(work);
        if !self.current.has_session && !self.staging.is_empty() {
            // An initiation that crossed one of the peer's is forgotten by boringtun.
            self.initiate(work);
        }
        let keepalive = Duration::from_secs(self.spec.keepalive.into());
        if !keepalive.is_zero() && work.now.saturating_sub(self.last_traffic) >= keepalive {
            self.send_keepalive(work);
        }
    }
}

/// Whom a handshake message is for; an initiation names no one.
pub fn handshake_receiver(datagram: &[u8]) -> Option<u32> {
    match datagram.first() {
        Some(1) => None,
        Some(2) => receiver_index(datagram, 8),
        _ => receiver_index(datagram, 4),
    }
}

/// The little-endian index at `at`.
pub fn receiver_index(datagram: &[u8], at: usize) -> Option<u32> {
    datagram
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod wire;
