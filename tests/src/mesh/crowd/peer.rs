//! One of the crowd: a UDP port, a WireGuard session, and the deciding part of a gateway.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::PublicKey as X25519;
use gateway::links::{Event, Links, Local, Roster};
use proto::key::{PublicKey, WireguardKey};
use proto::knowledge::Knowledge;
use tokio::net::UdpSocket;
use tokio::task::LocalSet;
use tokio::time::{sleep, sleep_until};

use super::Candidate;
use super::learned::Learned;
use crate::broker::cast::random;

/// How often boringtun looks at the age of its keys.
const TICK: Duration = Duration::from_secs(1);
const DATAGRAM: usize = 16 << 10;

pub(super) struct Peer {
    socket: UdpSocket,
    tunnel: Tunn,
    links: Links,
    /// The real gateway.
    of: PublicKey,
    remote: SocketAddr,
    has_session: bool,
    knowledge: Arc<Knowledge>,
    started: Instant,
}

impl Peer {
    pub(super) async fn new(candidate: Candidate, roster: &Roster) -> Result<Peer> {
        let (of, gateway) = roster
            .gateways
            .first_key_value()
            .ok_or_else(|| anyhow::anyhow!("nobody to talk to"))?;
        let peer_key = X25519::from(*gateway.wireguard.as_bytes());
        let public = WireguardKey::new(X25519::from(&candidate.wireguard).to_bytes())?;
        let index = u32::from(candidate.address.port());
        let tunnel = Tunn::new(candidate.wireguard, peer_key, None, None, index, None);
        let local = Local {
            identity: candidate.actor.identity,
            wireguard: public,
            site: candidate.actor.site,
            boot: number(),
        };
        let mut links = Links::new(local, number(), Duration::ZERO);
        links.handle_roster(roster, Duration::ZERO);
        Ok(Peer {
            socket: UdpSocket::bind(candidate.address).await?,
            tunnel,
            links,
            of: *of,
            remote: gateway.candidates[0],
            has_session: false,
            knowledge: Arc::default(),
            started: Instant::now(),
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    async fn live(mut self, learned: Rc<Learned>, up: Arc<AtomicUsize>) {
        let mut was_up = false;
        let mut buffer = vec![0; DATAGRAM];
        let mut tick = tokio::time::interval(TICK);
        self.learn(&learned);
        loop {
            self.drain(&learned).await;
            let is_up = self
                .links
                .statuses(self.now())
                .iter()
                .all(|link| link.state.is_ok());
            if is_up != was_up {
                was_up = is_up;
                if is_up {
                    up.fetch_add(1, Ordering::Relaxed);
                } else {
                    up.fetch_sub(1, Ordering::Relaxed);
                }
            }
            let due = self.links.poll_timeout().map(|due| self.started + due);
            let timer = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => poll_fn(|_| std::task::Poll::Pending).await,
                }
            };
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    if let Ok((length, from)) = received {
                        self.receive(&buffer[..length], from).await;
                    }
                }
                () = timer => {
                    let now = self.now();
                    self.links.handle_timeout(now);
                }
                _ = tick.tick() => {
                    self.tick().await;
                    self.learn(&learned);
                }
            }
        }
    }

    async fn receive(&mut self, datagram: &[u8], from: SocketAddr) {
        let mut out = vec![0; DATAGRAM];
        let kind = datagram.first().copied();
        match self.tunnel.decapsulate(None, datagram, &mut out) {
            TunnResult::WriteToNetwork(answer) => {
                let _ = self.socket.send_to(answer, from).await;
                if kind == Some(2) {
                    self.session(from);
                }
            }
            TunnResult::WriteToTunnelV6(packet, _) => {
                let packet = packet.to_vec();
                self.session(from);
                let now = self.now();
                self.links.handle_control(&self.of, from, &packet, now);
            }
            TunnResult::WriteToTunnelV4(..) | TunnResult::Done | TunnResult::Err(_) => {}
        }
    }

    fn session(&mut self, from: SocketAddr) {
        if !self.has_session {
            self.has_session = true;
            let now = self.now();
            self.links.handle_session(&self.of, from, now);
        }
    }

    async fn tick(&mut self) {
        let mut out = [0; 256];
        if let TunnResult::WriteToNetwork(datagram) = self.tunnel.update_timers(&mut out) {
            let _ = self.socket.send_to(datagram, self.remote).await;
        }
    }

    fn learn(&mut self, learned: &Learned) {
        let knowledge = learned.knowledge();
        if !Arc::ptr_eq(&knowledge, &self.knowledge) {
            self.knowledge = Arc::clone(&knowledge);
            let now = self.now();
            self.links.handle_knowledge(knowledge, now);
        }
    }

    /// Does what the links ask for.
    async fn drain(&mut self, learned: &Learned) {
        let mut out = vec![0; DATAGRAM];
        while let Some(event) = self.links.poll_event() {
            if let Event::HandedOver { handover, .. } = &event {
                learned.handle(handover);
                self.learn(learned);
            }
            if let Event::Initiate { .. } = event
                && let TunnResult::WriteToNetwork(datagram) =
                    self.tunnel.format_handshake_initiation(&mut out, true)
            {
                let _ = self.socket.send_to(datagram, self.remote).await;
            }
        }
        while let Some(transmit) = self.links.poll_transmit() {
            let to = transmit.path.unwrap_or(self.remote);
            if !self.has_session {
                continue;
            }
            if let TunnResult::WriteToNetwork(datagram) =
                self.tunnel.encapsulate(&transmit.packet, &mut out)
            {
                let _ = self.socket.send_to(datagram, to).await;
            }
        }
    }
}

/// Runs all of them on this thread until the flag is set.
pub(super) async fn run_all(
    peers: Vec<Peer>,
    learned: Learned,
    ended: &AtomicBool,
    up: &Arc<AtomicUsize>,
) {
    let all = LocalSet::new();
    let learned = Rc::new(learned);
    for peer in peers {
        all.spawn_local(peer.live(Rc::clone(&learned), Arc::clone(up)));
    }
    all.run_until(async {
        while !ended.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

fn number() -> u64 {
    let bytes = random();
    u64::from_le_bytes(std::array::from_fn(|at| bytes[at]))
}
