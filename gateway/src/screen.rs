//! What every handshake message passes before a data thread spends a Diffie-Hellman on it: first
//! authentication code, cookie and per-source limit under load, whose it is.

mod limiter;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519;

use crate::data::index::thread_of;
use crate::data::link::Endpoint;
use crate::data::mailbox::{Handshake, RawHandshake, Stray};
use crate::data::snapshot::LinkPlace;
use crate::data::thread::Shared;
use crate::drops::{DropReason, Drops};
use crate::io::boottime;
use crate::io::udp::{Inbox, Mark, Message, Received, Sender, UdpSocket};
use crate::keys::{self, PublicKey};
use limiter::SourceLimiter;

/// As in the kernel: handshakes that may wait, and from how many on we are under load.
const WAITING: usize = 4096;
const LOAD: usize = WAITING / 8;
/// Load is over this long after the last time so many waited.
const LOAD_LASTS: Duration = Duration::from_secs(1);
/// Handshakes screened before the rest of control gets its turn.
const TURN: usize = 64;
/// As on the data sockets: the kernel merges what arrives before it picks a socket, so that this
/// one must take merged datagrams too, or nothing is merged for remotes that hash to it.
const SLOTS: usize = 4;
const SLOT: usize = 64 << 10;
/// Receives before the rest of control gets its turn.
const RECEIVES: usize = 64;
const COOKIE_REPLY: usize = 64;

pub(crate) struct Screen {
    socket: Option<UdpSocket>,
    inbox: Inbox,
    sender: Sender,
    waiting: VecDeque<RawHandshake>,
    keys: Option<Keys>,
    sources: SourceLimiter,
    load_until: Duration,
    /// Keys the hash that stands for address and port in a cookie.
    cookie_hash: RandomState,
    drops: Arc<Drops>,
}

struct Keys {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// Never demands a cookie.
    open: Arc<RateLimiter>,
    /// Always demands one.
    strict: RateLimiter,
}

/// What becomes of a handshake message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// For this thread; an initiation also for this slot of it.
    Passed {
        slot: Option<u32>,
        thread: usize,
    },
    /// Its sender has to show first that it hears us, by the cookie in this reply.
    Demanded([u8; COOKIE_REPLY]),
    Refused(DropReason),
}

impl Screen {
    pub(crate) fn new(drops: Arc<Drops>) -> Screen {
        Screen {
            socket: None,
            inbox: Inbox::new(SLOTS, SLOT),
            sender: Sender::default(),
            waiting: VecDeque::new(),
            keys: None,
            sources: SourceLimiter::default(),
            load_until: Duration::ZERO,
            cookie_hash: RandomState::new(),
            drops,
        }
    }

    /// The limiter that links share: theirs must never refuse, since this screen is before them.
    pub(crate) fn set_key(
        &mut self,
        key: Option<x25519::StaticSecret>,
    ) -> Option<Arc<RateLimiter>> {
        self.keys = key.map(|private| {
            let public = x25519::PublicKey::from(&private);
            let open = Arc::new(RateLimiter::new(&public, u64::MAX));
            Keys {
                strict: RateLimiter::new(&public, 0),
                private,
                public,
                open,
            }
        });
        self.open_limiter()
    }

    pub(crate) fn open_limiter(&self) -> Option<Arc<RateLimiter>> {
        self.keys.as_ref().map(|keys| keys.open.clone())
    }

    pub(crate) fn set_socket(&mut self, socket: Option<UdpSocket>) {
        self.socket = socket;
        self.waiting.clear();
    }

    pub(crate) fn set_mark(&self, fwmark: u32) {
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.set_mark(fwmark)) {
            tracing::error!(%error, fwmark, "the firewall mark cannot be set");
        }
    }

    pub(crate) fn socket(&self) -> Option<&UdpSocket> {
        self.socket.as_ref()
    }

    pub(crate) fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes what arrived and screens a turn's worth of it; `linked` is where a peer's link lives.
    pub(crate) fn work(
        &mut self,
        shared: &Shared,
        linked: impl Fn(&PublicKey) -> Option<LinkPlace>,
    ) {
        self.receive(shared);
        while let Some(raw) = shared.control.pop() {
            enqueue(&mut self.waiting, raw, &self.drops);
        }
        if self.waiting.is_empty() {
            return;
        }
        let now = boottime();
        if self.waiting.len() >= LOAD {
            self.load_until = now + LOAD_LASTS;
        }
        for _ in 0..TURN {
            let Some(raw) = self.waiting.pop_front() else {
                break;
            };
            if let Err(reason) = self.screen(&raw, now, shared, &linked) {
                self.drops.count(reason);
            }
        }
    }

    fn receive(&mut self, shared: &Shared) {
        let Screen {
            socket: Some(socket),
            inbox,
            waiting,
            drops,
            ..
        } = self
        else {
            return;
        };
        for _ in 0..RECEIVES {
            let count = inbox.receive(socket).unwrap_or(0);
            for (received, datagrams) in (0..count).filter_map(|index| inbox.get(index)) {
                for datagram in datagrams.chunks(received.segment.max(1)) {
                    take(waiting, &received, datagram, shared, drops);
                }
            }
            if count < inbox.slots() {
                return;
            }
        }
    }

    fn screen(
        &mut self,
        raw: &RawHandshake,
        now: Duration,
        shared: &Shared,
        linked: impl Fn(&PublicKey) -> Option<LinkPlace>,
    ) -> Result<(), DropReason> {
        match self.judge(raw, now, linked) {
            Verdict::Passed { slot, thread } => pass_on(raw, slot, thread, shared),
            Verdict::Demanded(cookie) => {
                self.reply(&raw.from, &cookie);
                Err(DropReason::HandshakeCookie)
            }
            Verdict::Refused(reason) => Err(reason),
        }
    }

    /// What is to become of a message. Pure but for the limiter's memory of sources.
    fn judge(
        &mut self,
        raw: &RawHandshake,
        now: Duration,
        linked: impl Fn(&PublicKey) -> Option<LinkPlace>,
    ) -> Verdict {
        let Some(keys) = &self.keys else {
            return Verdict::Refused(DropReason::HandshakeUnknownPeer);
        };
        let under_load = now < self.load_until;
        let limiter = if under_load {
            &keys.strict
        } else {
            &*keys.open
        };
        let mut reply = [0; COOKIE_REPLY];
        let source = cookie_address(&self.cookie_hash, raw.from.remote);
        let packet = match limiter.verify_packet(Some(source), raw.bytes(), &mut reply) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(_)) => return Verdict::Demanded(reply),
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                return Verdict::Refused(DropReason::HandshakeMac);
            }
            Err(_) => return Verdict::Refused(DropReason::Malformed),
        };
        if under_load && !self.sources.allows(raw.from.remote.ip(), now) {
            return Verdict::Refused(DropReason::HandshakeLimited);
        }
        addressee(keys, raw, packet, linked).unwrap_or_else(Verdict::Refused)
    }

    /// Sends a datagram of another kind from the tunnel's own port.
    pub(crate) fn send(&mut self, remote: SocketAddr, bytes: &[u8]) {
        let to = Endpoint {
            remote,
            local: None,
        };
        self.reply(&to, bytes);
    }

    fn reply(&mut self, to: &Endpoint, bytes: &[u8]) {
        let message = Message {
            to: to.remote,
            local: to.local,
            mark: Mark::default(),
            at: 0,
            len: bytes.len(),
            segment: bytes.len(),
        };
        if let Some(socket) = &self.socket
            && self.sender.send(socket, bytes, &[message]).is_err()
        {
            self.drops.count(DropReason::SendFailed);
        }
    }
}

fn take(
    waiting: &mut VecDeque<RawHandshake>,
    received: &Received,
    datagram: &[u8],
    shared: &Shared,
    drops: &Drops,
) {
    if datagram.first() == Some(&4) {
        // Reached us past the steering: its thread looks at it again.
        if !Stray::pass_on(&shared.mailboxes, received, datagram) {
            drops.count(DropReason::UnknownIndex);
        }
        return;
    }
    if shared.control.push_reflected(received.from, datagram) {
        return;
    }
    match RawHandshake::new(received, datagram) {
        Some(raw) => enqueue(waiting, raw, drops),
        None => drops.count(DropReason::Malformed),
    }
}

fn enqueue(waiting: &mut VecDeque<RawHandshake>, raw: RawHandshake, drops: &Drops) {
    if waiting.len() < WAITING {
        waiting.push_back(raw);
    } else {
        drops.count(DropReason::HandshakeQueueFull);
    }
}

/// Whose link a message with valid codes is for.
fn addressee(
    keys: &Keys,
    raw: &RawHandshake,
    packet: Packet<'_>,
    linked: impl Fn(&PublicKey) -> Option<LinkPlace>,
) -> Result<Verdict, DropReason> {
    let to_receiver = |index| Verdict::Passed {
        slot: None,
        thread: thread_of(index),
    };
    match packet {
        Packet::HandshakeInit(initiation) => {
            refuse_low_order(raw.bytes(), 8)?;
            let half = parse_handshake_anon(&keys.private, &keys.public, &initiation)
                .map_err(|_| DropReason::HandshakeRejected)?;
            let place = linked(&PublicKey(half.peer_static_public))
                .ok_or(DropReason::HandshakeUnknownPeer)?;
            Ok(Verdict::Passed {
                slot: Some(place.slot),
                thread: place.thread as usize,
            })
        }
        Packet::HandshakeResponse(response) => {
            refuse_low_order(raw.bytes(), 12)?;
            Ok(to_receiver(response.receiver_idx))
        }
        Packet::PacketCookieReply(reply) => Ok(to_receiver(reply.receiver_idx)),
        Packet::PacketData(_) => Err(DropReason::Malformed),
    }
}

/// Stands for address and port in a cookie, which boringtun binds to an address only.
fn cookie_address(hash: &RandomState, remote: SocketAddr) -> IpAddr {
    let high = u128::from(hash.hash_one((0_u8, remote)));
    let low = u128::from(hash.hash_one((1_u8, remote)));
    Ipv6Addr::from_bits(high << 64 | low).into()
}

/// boringtun does not look at the result of its Diffie-Hellman: a low-order point would make it known to all.
fn refuse_low_order(message: &[u8], at: usize) -> Result<(), DropReason> {
    match message.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(ephemeral) if !keys::is_low_order(ephemeral) => Ok(()),
        _ => Err(DropReason::HandshakeRejected),
    }
}

fn pass_on(
    raw: &RawHandshake,
    slot: Option<u32>,
    thread: usize,
    shared: &Shared,
) -> Result<(), DropReason> {
    let owner = shared
        .mailboxes
        .get(thread)
        .ok_or(DropReason::UnknownIndex)?;
    let handshake = Handshake {
        slot,
        from: raw.from,
        len: raw.len,
        datagram: raw.datagram,
    };
    let taken = owner.handshakes.push(handshake);
    owner.wake();
    taken.map_err(|_| DropReason::HandshakeQueueFull)
}

#[cfg(test)]
mod tests;
