//! What arrives on the UDP port: a link of ours, a peer in session with it, and anyone else.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac};
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use gateway::data::index::{IndexTable, TunnelIndex};
use gateway::data::link::{
    Endpoint, Link, LinkShared, LinkSpec, OVERHEAD, Rules, Way, Work, receiver_index,
};
use gateway::data::mailbox::{ControlInbox, HANDSHAKE_LEN};
use gateway::data::outbox::Outbox;
use gateway::drops::{DropReason, Drops};
use gateway::io::udp::UdpSocket;
use gateway::packet::split::{SPARE, Segments};
use gateway::packet::vnet::VnetHeader;

const OURS: u8 = 1;
const PEER: u8 = 2;
const STRANGER: u8 = 3;
const PRESHARED: Option<[u8; 32]> = Some([7; 32]);
/// Enough to come around all places that a `Tunn` has for sessions.
const STEPS: usize = 64;

/// Steps that bytes describe: datagrams sealed, delivered whole, damaged, twice or never.
///
/// # Panics
/// If anything panics, if a datagram opens to other than was sealed in it or a second time, or if
/// one that does not open moves the endpoint.
pub fn udp_input(steps: &[u8]) {
    let mut script = Script(steps);
    let mut scene = Scene::new();
    scene.send_ours(&mut Script(&[]));
    for _ in 0..STEPS {
        let Some(step) = script.byte() else { break };
        scene.step(step, &mut script);
        scene.settle(script.byte().unwrap_or_default());
    }
}

/// Bytes that are used up; numbers are 0 when there are no more.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte().unwrap_or_default())
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

struct Scene {
    ours: Ours,
    peer: Tunn,
    stranger: Tunn,
    /// Datagrams seen on the wire, to be delivered at any time.
    held: Vec<Vec<u8>>,
    /// What each datagram may open to, by receiver and counter; gone once it did.
    sealed: HashMap<[u8; 12], Vec<u8>>,
}

struct Ours {
    link: Link,
    table: IndexTable,
    outbox: Outbox,
    drops: Drops,
    control: ControlInbox,
    socket: UdpSocket,
    limiter: Arc<RateLimiter>,
    shared: Arc<LinkShared>,
    now: Duration,
}

fn secret(number: u8) -> x25519::StaticSecret {
    [number; 32].into()
}

fn public(number: u8) -> x25519::PublicKey {
    x25519::PublicKey::from(&secret(number))
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint {
        remote: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        local: None,
    }
}

impl Scene {
    fn new() -> Scene {
        let tunn = |own, index| Tunn::new(secret(own), public(OURS), PRESHARED, None, index, None);
        Scene {
            ours: Ours::new(),
            peer: tunn(PEER, 5),
            stranger: tunn(STRANGER, 6),
            held: Vec::new(),
            sealed: HashMap::new(),
        }
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        match step % 12 {
            0 => self.seal(script),
            1 => self.deliver(script, |_, _| {}),
            2 => self.deliver(script, damage),
            3 => self.deliver(script, |datagram, script| {
                damage(datagram, script);
                sign(datagram);
            }),
            4 => {
                let len = script.number() * 8 + script.number();
                let datagram = script.bytes(len).to_vec();
                self.receive(&datagram, script.number() as u16);
            }
            5 => self.hold_initiation(),
            6 => {
                let mut room = [0; 256];
                let made = self.stranger.format_handshake_initiation(&mut room, true);
                if let TunnResult::WriteToNetwork(initiation) = made {
                    let initiation = initiation.to_vec();
                    self.receive(&initiation, 9);
                }
            }
            7 => self.send_ours(script),
            8 => {
                self.ours.now += Duration::from_millis(100 * script.number() as u64);
                self.ours.act(|link, work| link.tick(work));
            }
            9 => {
                let key = (!script.number().is_multiple_of(3)).then_some([7; 32]);
                self.ours
                    .act(|link, work| link.set_preshared_key(key, work));
            }
            10 => {
                let seconds = script.number() as u16;
                self.ours
                    .act(|link, work| link.set_keepalive(seconds, work));
            }
            _ => self.ours.act(|link, work| link.reset(work)),
        }
    }

    /// The peer puts something into the tunnel: a packet that is one, or whatever the script says.
    fn seal(&mut self, script: &mut Script<'_>) {
        let len = script.number() * 4;
        let mut inner = script.bytes(len).to_vec();
        if script.number().is_multiple_of(2) && inner.len() >= 20 {
            inner[0] = 0x45;
            let len = inner.len() as u16;
            inner[2..4].copy_from_slice(&len.to_be_bytes());
        }
        let mut room = vec![0; inner.len() + HANDSHAKE_LEN];
        if let TunnResult::WriteToNetwork(datagram) = self.peer.encapsulate(&inner, &mut room) {
            let datagram = datagram.to_vec();
            self.hold(datagram, inner);
        }
    }

    fn hold(&mut self, datagram: Vec<u8>, inner: Vec<u8>) {
        if datagram.first() == Some(&4) {
            self.sealed.insert(name(&datagram), inner);
        }
        self.held.push(datagram);
    }

    fn hold_initiation(&mut self) {
        let mut room = [0; 256];
        let made = self.peer.format_handshake_initiation(&mut room, true);
        if let TunnResult::WriteToNetwork(initiation) = made {
            self.held.push(initiation.to_vec());
        }
    }

    fn deliver(&mut self, script: &mut Script<'_>, change: fn(&mut Vec<u8>, &mut Script<'_>)) {
        let from_last = script.number();
        let Some(at) = self.held.len().checked_sub(1 + from_last % 16) else {
            return;
        };
        let mut datagram = self.held[at].clone();
        change(&mut datagram, script);
        self.receive(&datagram, script.number() as u16);
    }

    fn receive(&mut self, datagram: &[u8], port: u16) {
        let before = self.ours.shared.endpoint();
        match self.ours.receive(datagram, endpoint(port)) {
            Some(opened) => {
                let inner = self.sealed.remove(&name(datagram));
                let inner = inner.expect("what opened was sealed, and did not open before");
                assert!(
                    inner.starts_with(&opened),
                    "opened to other than was sealed"
                );
            }
            None => assert_eq!(self.ours.shared.endpoint(), before),
        }
    }

    fn send_ours(&mut self, script: &mut Script<'_>) {
        let len = 20 + script.number() * 8;
        let mut packet = vec![0; len + SPARE];
        (packet[0], packet[9]) = (0x45, 253);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        let vnet = VnetHeader {
            data_valid: true,
            ..VnetHeader::default()
        };
        let mut segments = Segments::new(vnet, &mut packet, len).expect("it is a packet");
        self.ours
            .act(|link, work| link.transmit(&mut segments, 0, work));
    }

    /// What we sent reaches the peer, or not; what it answers is held.
    fn settle(&mut self, arrives: u8) {
        for datagram in self.ours.outbox.take() {
            if arrives % 4 == 3 {
                continue;
            }
            let mut room = vec![0; datagram.bytes.len() + 256];
            let answer = self.peer.decapsulate(None, &datagram.bytes, &mut room);
            if let TunnResult::WriteToNetwork(answer) = answer {
                // An answer, or the keepalive that proves a session.
                let answer = answer.to_vec();
                self.hold(answer, Vec::new());
            }
        }
    }
}

/// Receiver and counter.
fn name(datagram: &[u8]) -> [u8; 12] {
    datagram
        .get(4..16)
        .and_then(|name| name.try_into().ok())
        .unwrap_or_default()
}

impl Ours {
    fn new() -> Ours {
        let shared = Arc::new(LinkShared::default());
        let limiter = Arc::new(RateLimiter::new(&public(OURS), u64::MAX));
        let spec = LinkSpec {
            shared: shared.clone(),
            private_key: secret(OURS),
            peer_key: public(PEER),
            preshared_key: PRESHARED,
            limiter: limiter.clone(),
            remote: Some(endpoint(1).remote),
            keepalive: 0,
            rules: Rules::WireGuard,
        };
        let now = Duration::from_secs(1000);
        let mut table = IndexTable::new(0);
        Ours {
            link: Link::new(spec, 0, &mut table, now).expect("the table is empty"),
            table,
            outbox: Outbox::new(true),
            drops: Drops::default(),
            control: ControlInbox::new().expect("an event counter"),
            socket: UdpSocket::unbound().expect("a socket can be made"),
            limiter,
            shared,
            now,
        }
    }

    fn act<R>(&mut self, act: impl FnOnce(&mut Link, &mut Work<'_>) -> R) -> R {
        let mut work = Work {
            outbox: &mut self.outbox,
            socket: Some(&self.socket),
            table: &mut self.table,
            drops: &self.drops,
            control: &self.control,
            now: self.now,
            mtu: super::MTU,
        };
        act(&mut self.link, &mut work)
    }

    /// The way that a datagram takes through control's screen or a data thread. What was opened, if
    /// it was authentic; nothing of it is left if it was no packet.
    fn receive(&mut self, datagram: &[u8], from: Endpoint) -> Option<Vec<u8>> {
        let kind = receiver_index(datagram, 0)?;
        match kind {
            4 if datagram.len() >= OVERHEAD => {
                self.table
                    .find(TunnelIndex::of(receiver_index(datagram, 4)?))?;
                return self.open(datagram, from);
            }
            1..=3 if datagram.len() <= HANDSHAKE_LEN => {}
            _ => return None,
        }
        self.limiter
            .verify_packet(Some(from.remote.ip()), datagram, &mut [0; 64])
            .ok()?;
        self.act(|link, work| link.handshake(datagram, &from, work));
        None
    }

    fn open(&mut self, datagram: &[u8], from: Endpoint) -> Option<Vec<u8>> {
        let mut room = vec![0; datagram.len()];
        let opened = self.act(|link, work| {
            link.tick_before(Way::In, work);
            link.open(datagram, &from, &mut room, work)
        });
        let len = match opened {
            Ok(len) => len,
            Err(DropReason::InnerMalformed) => 0,
            Err(_) => return None,
        };
        self.link.received(datagram.len() as u64, self.now);
        room.truncate(len);
        Some(room)
    }
}

/// Changes a few bytes, or the length.
fn damage(datagram: &mut Vec<u8>, script: &mut Script<'_>) {
    for _ in 0..=script.number() % 4 {
        let at = script.number() * 4 + script.number();
        let with = script.number() as u8;
        let len = datagram.len();
        match at.checked_sub(900) {
            Some(len) => datagram.resize(len, with),
            None if len > 0 => datagram[at % len] ^= with,
            None => {}
        }
    }
}

/// Gives a handshake message the code of one that was made for us.
fn sign(message: &mut [u8]) {
    let Some(end) = message.len().checked_sub(32) else {
        return;
    };
    let mut key = Blake2s256::new();
    Digest::update(&mut key, b"mac1----");
    Digest::update(&mut key, public(OURS).as_bytes());
    let mut mac = Blake2sMac::<U16>::new_from_slice(&key.finalize()).expect("a key has 32 bytes");
    mac.update(&message[..end]);
    message[end..end + 16].copy_from_slice(&mac.finalize_fixed());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(scene: &mut Scene, steps: &[&[u8]]) {
        for step in steps {
            scene.step(step[0], &mut Script(&step[1..]));
            scene.settle(0);
        }
    }

    /// A peer's initiation, our answer, its proof; then a packet, twice.
    const SESSION: [&[u8]; 3] = [&[5], &[1, 0], &[1, 0]];
    const PACKET: &[u8] = &[
        0, 5, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9,
    ];

    #[test]
    fn the_script_can_make_a_session_and_have_a_datagram_opened_once() {
        let mut scene = Scene::new();
        play(&mut scene, &SESSION);
        assert!(scene.sealed.is_empty(), "the proof opened");
        play(&mut scene, &[PACKET]);
        assert_eq!(scene.sealed.len(), 1);
        play(&mut scene, &[&[1, 0, 77], &[1, 0, 78]]);
        assert!(scene.sealed.is_empty());
        assert_eq!(scene.ours.shared.endpoint(), Some(endpoint(77)));
    }

    #[test]
    #[should_panic = "what opened was sealed"]
    fn what_opens_though_nobody_sealed_it_is_noticed() {
        let mut scene = Scene::new();
        play(&mut scene, &SESSION);
        play(&mut scene, &[PACKET]);
        scene.sealed.clear();
        play(&mut scene, &[&[1, 0]]);
    }

    #[test]
    fn a_changed_message_that_is_signed_again_passes_the_first_code() {
        let mut scene = Scene::new();
        play(&mut scene, &[&[5]]);
        let mut message = scene.held.remove(0);
        message[50] ^= 1;
        let verify = |scene: &Scene, message: &[u8]| {
            let mut room = [0; 64];
            let verified = scene.ours.limiter.verify_packet(None, message, &mut room);
            verified.is_ok()
        };
        assert!(!verify(&scene, &message));
        sign(&mut message);
        assert!(verify(&scene, &message));
    }
}
