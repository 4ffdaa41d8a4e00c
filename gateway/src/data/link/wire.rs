//! Two links in one process and the wire between them, on a clock that only the tests move.
//! boringtun's own clock is the real one: what it does after seconds is not to be seen here.

use std::net::IpAddr;

use super::*;
use crate::data::outbox::Datagram;
use crate::packet::split::SPARE;
use crate::packet::vnet::VnetHeader;

pub(in crate::data) const MTU: usize = 1420;
pub(in crate::data) const HANDSHAKE: u8 = 1;
pub(in crate::data) const ANSWER: u8 = 2;
pub(in crate::data) const DATA: u8 = 4;

/// A link with all that its thread would hold for it.
pub(in crate::data) struct Side {
    pub(in crate::data) link: Link,
    pub(in crate::data) shared: Arc<LinkShared>,
    pub(in crate::data) public: x25519::PublicKey,
    /// Where its datagrams come from.
    pub(in crate::data) at: Endpoint,
    pub(in crate::data) table: IndexTable,
    pub(in crate::data) drops: Drops,
    pub(in crate::data) control: ControlInbox,
    outbox: Outbox,
    /// Says that the interface is up; nothing is ever sent through it.
    socket: UdpSocket,
    /// Inner packets, in the order in which they were opened.
    pub(in crate::data) opened: Vec<Vec<u8>>,
}

pub(in crate::data) fn secret(number: u8) -> x25519::StaticSecret {
    [number; 32].into()
}

pub(in crate::data) fn public(number: u8) -> x25519::PublicKey {
    x25519::PublicKey::from(&secret(number))
}

pub(in crate::data) fn limiter(number: u8) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(&public(number), u64::MAX))
}

pub(in crate::data) fn at(port: u16) -> Endpoint {
    Endpoint {
        remote: (IpAddr::from([192, 0, 2, 1]), port).into(),
        local: None,
    }
}

/// An IPv4 packet of an experimental protocol, told apart by its number.
pub(in crate::data) fn packet(number: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![number; len];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 253]);
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet
}

pub(in crate::data) fn kinds(datagrams: &[Datagram]) -> Vec<u8> {
    datagrams.iter().map(|datagram| datagram.bytes[0]).collect()
}

impl Side {
    /// The side with this key number, whose peer has the other; each is found at its own as a port.
    pub(in crate::data) fn new(own: u8, peer: u8, preshared_key: Option<[u8; 32]>) -> Side {
        Side::with_rules(own, peer, preshared_key, Rules::WireGuard)
    }

    /// A gateway's link to another: nobody has said yet where that is.
    pub(in crate::data) fn in_mesh(own: u8, peer: u8) -> Side {
        Side::with_rules(own, peer, None, Rules::Mesh)
    }

    fn with_rules(own: u8, peer: u8, preshared_key: Option<[u8; 32]>, rules: Rules) -> Side {
        let shared = Arc::new(LinkShared::default());
        let spec = LinkSpec {
            shared: shared.clone(),
            private_key: secret(own),
            peer_key: public(peer),
            preshared_key,
            limiter: limiter(own),
            remote: (rules == Rules::WireGuard).then_some(at(peer.into()).remote),
            keepalive: 0,
            rules,
        };
        let mut table = IndexTable::new(0);
        let link = Link::new(spec, 0, &mut table, START).unwrap();
        Side {
            link,
            shared,
            public: public(own),
            at: at(own.into()),
            table,
            drops: Drops::default(),
            control: ControlInbox::for_mesh().unwrap(),
            outbox: Outbox::new(true),
            socket: UdpSocket::unbound().unwrap(),
            opened: Vec::new(),
        }
    }

    pub(in crate::data) fn act<R>(
        &mut self,
        now: Duration,
        act: impl FnOnce(&mut Link, &mut Work<'_>) -> R,
    ) -> R {
        let mut work = Work {
            outbox: &mut self.outbox,
            socket: Some(&self.socket),
            table: &mut self.table,
            drops: &self.drops,
            control: &self.control,
            now,
            mtu: MTU,
        };
        act(&mut self.link, &mut work)
    }

    pub(in crate::data) fn send(&mut self, packet: &[u8], now: Duration) {
        let vnet = VnetHeader {
            data_valid: true,
            ..VnetHeader::default()
        };
        let mut buffer = [packet, &[0; SPARE]].concat();
        let mut segments = Segments::new(vnet, &mut buffer, packet.len()).unwrap();
        self.act(now, |link, work| link.transmit(&mut segments, 0, work));
    }

    /// What waits to leave.
    pub(in crate::data) fn sent(&mut self) -> Vec<Datagram> {
        self.outbox.take()
    }

    /// What the thread does with a datagram. `Ok` of a handshake message says nothing of it.
    pub(in crate::data) fn hear(
        &mut self,
        datagram: &[u8],
        from: Endpoint,
        now: Duration,
    ) -> Result<usize, DropReason> {
        if datagram[0] != DATA {
            self.act(now, |link, work| link.handshake(datagram, &from, work));
            return Ok(0);
        }
        let mut room = vec![0; datagram.len()];
        let len = self.act(now, |link, work| {
            link.tick_before(Way::In, work);
            link.open(datagram, &from, &mut room, work)
        })?;
        self.link.received(datagram.len() as u64, now);
        if len > 0 {
            self.opened.push(room[..len].to_vec());
        }
        Ok(len)
    }

    pub(in crate::data) fn counters(&self) -> (u64, u64) {
        (
            self.shared.tx_bytes.load(Ordering::Relaxed),
            self.shared.rx_bytes.load(Ordering::Relaxed),
        )
    }
}

const START: Duration = Duration::from_secs(1000);

pub(in crate::data) struct Wire {
    pub(in crate::data) a: Side,
    pub(in crate::data) b: Side,
    pub(in crate::data) now: Duration,
}

impl Wire {
    pub(in crate::data) fn new() -> Wire {
        Wire::with_preshared_key(None)
    }

    pub(in crate::data) fn with_preshared_key(key: Option<[u8; 32]>) -> Wire {
        Wire {
            a: Side::new(1, 2, key),
            b: Side::new(2, 1, key),
            now: START,
        }
    }

    /// Two gateways that control has told nothing yet.
    pub(in crate::data) fn in_mesh() -> Wire {
        Wire {
            a: Side::in_mesh(1, 2),
            b: Side::in_mesh(2, 1),
            now: START,
        }
    }

    /// Two sides with a session, begun by `a`, and nothing under way.
    pub(in crate::data) fn connected() -> Wire {
        let mut wire = Wire::new();
        wire.connect();
        wire
    }

    pub(in crate::data) fn connect(&mut self) {
        self.a.send(&packet(0, 64), self.now);
        self.settle();
        assert_eq!(self.b.opened.pop(), Some(packet(0, 64)));
    }

    /// Brings everything over that waits, and what that leads to; returns both sides' datagrams in
    /// the order in which they went.
    pub(in crate::data) fn settle(&mut self) -> Vec<Datagram> {
        let mut all = Vec::new();
        loop {
            let (from_a, from_b) = (self.a.sent(), self.b.sent());
            if from_a.is_empty() && from_b.is_empty() {
                return all;
            }
            deliver(&from_a, self.a.at, &mut self.b, self.now);
            deliver(&from_b, self.b.at, &mut self.a, self.now);
            all.extend(from_a);
            all.extend(from_b);
        }
    }

    /// Whether a packet gets through, each way.
    pub(in crate::data) fn carries(&mut self) -> [bool; 2] {
        self.settle();
        (self.a.opened, self.b.opened) = (Vec::new(), Vec::new());
        self.a.send(&packet(0xa, 100), self.now);
        self.b.send(&packet(0xb, 100), self.now);
        self.settle();
        [
            self.b.opened == [packet(0xa, 100)],
            self.a.opened == [packet(0xb, 100)],
        ]
    }
}

fn deliver(datagrams: &[Datagram], from: Endpoint, to: &mut Side, now: Duration) {
    for datagram in datagrams {
        // What is refused is counted by the thread, not by the link.
        if let Err(reason) = to.hear(&datagram.bytes, from, now) {
            to.drops.count(reason);
        }
    }
}
