//! What is different for a link of a mesh: control says when a handshake is tried and where, and
//! which address is used; what comes from elsewhere is told and moves nothing.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Endpoint, Link, Rules, Way, Work};
use crate::data::link_local;
use crate::data::mailbox::News;
use crate::data::snapshot::LinkPlace;
use crate::data::tunnel::{Ticked, Tunnel};
use crate::drops::DropReason;
use crate::io::udp::Mark;

/// What any path is expected to carry before it was measured.
const FIRST_MTU: usize = 1280;
/// Packets above this are of interest to whoever watches a path's MTU.
const LARGE: usize = 1200;
/// How often the same source is told, and so how many of them in that time.
const TELL_AGAIN: Duration = Duration::from_secs(1);
const SOURCES: usize = 4;
/// So many control packets of one link in so much time reach control, so that nobody's flood keeps
/// it from hearing the others. At most, an honest gateway has some twenty parts of gossip to say, a
/// round of MTU probes or the echoes of one, and a few of everything else.
const CONTROL_PACKETS: u32 = 64;
const CONTROL_WINDOW: Duration = Duration::from_millis(100);
/// boringtun gives up a handshake after this long, and every session with it.
const ATTEMPT: Duration = Duration::from_secs(90);

/// A link's part of a mesh.
pub(super) struct MeshState {
    /// Inner packets that the path in use carries.
    mtu: usize,
    /// Sources told of, and when.
    told: [Option<(SocketAddr, Duration)>; SOURCES],
    /// A session that control could not be told of yet.
    untold: Option<Endpoint>,
    counted: Counted,
    control_since: Duration,
    control_left: u32,
}

/// What was opened since it was last told to others.
#[derive(Default)]
struct Counted {
    datagrams: u64,
    data: u64,
}

impl MeshState {
    pub(super) fn new() -> MeshState {
        MeshState {
            mtu: FIRST_MTU,
            told: [None; SOURCES],
            untold: None,
            counted: Counted::default(),
            control_since: Duration::ZERO,
            control_left: CONTROL_PACKETS,
        }
    }
}

impl Link {
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mesh.mtu = mtu.into();
    }

    /// The largest packet that the path carries; in `causeway wg` nobody asks.
    pub fn limit(&self) -> Option<usize> {
        (self.spec.rules == Rules::Mesh).then_some(self.mesh.mtu)
    }

    /// Up to where packets are padded.
    pub(super) fn padding_limit(&self, work: &Work<'_>) -> usize {
        match self.spec.rules {
            Rules::WireGuard => work.mtu,
            Rules::Mesh => self.mesh.mtu,
        }
    }

    // ---- out --------------------------------------------------------------------------------

    /// Begins a handshake, whatever else is under way: one initiation goes to every address, and
    /// the first that arrives counts.
    pub fn initiate_at(&mut self, to: &[SocketAddr], work: &mut Work<'_>) {
        if to.is_empty() || work.socket.is_none() {
            return;
        }
        self.last_way = Way::Handshake;
        self.awake_until = work.now + super::FORGET_AFTER;
        let to: Vec<Endpoint> = to.iter().map(|remote| self.endpoint_at(*remote)).collect();
        let bytes = self.current.initiate_at(&to, work);
        self.sent(bytes, work.now);
    }

    /// Seals a packet of control's as it is, without padding: its size may be what matters.
    pub fn send_control(&mut self, packet: &[u8], to: Option<SocketAddr>, work: &mut Work<'_>) {
        let to = match to {
            Some(remote) => Some(self.endpoint_at(remote)),
            None => self.endpoint,
        };
        let Some(to) = to else {
            return work.drops.count(DropReason::NoEndpoint);
        };
        self.tick_before(Way::Out, work);
        if !self.current.has_session {
            return work.drops.count(DropReason::ControlNoSession);
        }
        // A probe that the path refuses must not take what was sealed before it along.
        work.outbox.close();
        let bytes = self.seal(packet, &to, Mark::default(), work);
        if bytes > 0 {
            // All of control's but probes of a size fits any path.
            work.outbox.note_probe();
        }
        work.outbox.close();
        self.sent(bytes, work.now);
    }

    fn endpoint_at(&self, remote: SocketAddr) -> Endpoint {
        let in_use = self.endpoint.filter(|endpoint| endpoint.remote == remote);
        in_use.unwrap_or(Endpoint {
            remote,
            local: None,
        })
    }

    pub(super) fn is_large(packet: &[u8]) -> bool {
        packet.len() > LARGE
    }

    pub(super) fn count_sealed(&self, data: u64, large: u64) {
        let shared = &self.spec.shared;
        shared.tx_data.fetch_add(data, Ordering::Relaxed);
        if large > 0 {
            shared.large.fetch_add(large, Ordering::Relaxed);
        }
    }

    // ---- in ---------------------------------------------------------------------------------

    /// Something was opened that came from elsewhere than before.
    #[cold]
    pub(super) fn came_from(&mut self, from: &Endpoint, work: &Work<'_>) {
        match (self.spec.rules, self.endpoint) {
            (Rules::Mesh, Some(endpoint)) if endpoint.remote != from.remote => {
                self.tell_source(from, work);
            }
            (Rules::Mesh | Rules::WireGuard, _) => self.set_endpoint(*from),
        }
    }

    fn tell_source(&mut self, from: &Endpoint, work: &Work<'_>) {
        let now = work.now;
        let is_recent = |at: Duration| now.saturating_sub(at) < TELL_AGAIN;
        let mut free = None;
        for (index, told) in self.mesh.told.iter().enumerate() {
            match told {
                Some((remote, at)) if is_recent(*at) => {
                    if *remote == from.remote {
                        return;
                    }
                }
                Some(_) | None => free = Some(index),
            }
        }
        let Some(index) = free else { return };
        let (place, from) = (self.place(work), *from);
        if work.control.push_news(News::Source { place, from }) {
            self.mesh.told[index] = Some((from.remote, now));
        }
    }

    pub(super) fn tell_session(&mut self, from: Endpoint, work: &Work<'_>) {
        if self.spec.rules == Rules::Mesh {
            let place = self.place(work);
            let told = work.control.push_news(News::Session { place, from });
            self.mesh.untold = (!told).then_some(from);
        }
    }

    fn place(&self, work: &Work<'_>) -> LinkPlace {
        LinkPlace {
            thread: work.table.thread(),
            slot: self.slot,
        }
    }

    pub(super) fn count_opened(&mut self, packet: &[u8]) {
        self.mesh.counted.datagrams += 1;
        if !link_local::is_control(packet) {
            self.mesh.counted.data += packet.len() as u64;
        }
    }

    /// Whether another control packet may go to control now.
    pub fn may_reach_control(&mut self, now: Duration) -> bool {
        let mesh = &mut self.mesh;
        if now.saturating_sub(mesh.control_since) >= CONTROL_WINDOW {
            (mesh.control_since, mesh.control_left) = (now, CONTROL_PACKETS);
        }
        let left = mesh.control_left.checked_sub(1);
        mesh.control_left = left.unwrap_or(0);
        left.is_some()
    }

    /// Lets others see what was counted, once for many packets.
    pub fn publish(&mut self, now: Duration) {
        let counted = std::mem::take(&mut self.mesh.counted);
        if counted.datagrams == 0 {
            return;
        }
        let shared = &self.spec.shared;
        shared
            .rx_any
            .fetch_add(counted.datagrams, Ordering::Relaxed);
        shared.rx_data.fetch_add(counted.data, Ordering::Relaxed);
        shared
            .last_opened
            .store(now.as_nanos() as u64, Ordering::Relaxed);
    }

    // ---- time -------------------------------------------------------------------------------

    /// boringtun's timers keep a living session young; without one it is control that tries.
    pub(super) fn run_mesh_timers(&mut self, work: &mut Work<'_>) {
        if let Some(from) = self.mesh.untold {
            self.tell_session(from, work);
        }
        if self.current.has_session || !self.current.tried_within(ATTEMPT, work.now) {
            self.run_tunnel_timers(work);
        }
    }

    /// Before a handshake message is read. What is under way without a session must not be given
    /// up or repeated just before its answer is read, or the cookie that it has to bring.
    pub(super) fn tick_before_handshake(&mut self, names_ours: bool, work: &mut Work<'_>) {
        self.last_way = Way::Handshake;
        let waits = names_ours && !self.current.has_session && self.current.initiation.is_some();
        if !waits {
            self.run_tunnel_timers(work);
        }
    }

    fn run_tunnel_timers(&mut self, work: &mut Work<'_>) {
        let (to, may_initiate) = (self.endpoint, self.current.has_session);
        match self.current.tick(to.as_ref(), may_initiate, work) {
            Ok(Ticked::Sent(bytes)) => self.sent(bytes, work.now),
            // Without a session boringtun may have given up: control begins again.
            Ok(Ticked::Suppressed) | Err(_) => {}
        }
    }

    /// Every tunnel there is.
    pub(super) fn into_tunnels(self) -> impl Iterator<Item = Box<Tunnel>> {
        let predecessor = self.predecessor.map(|(tunnel, _)| tunnel);
        [Some(self.current), self.successor, predecessor]
            .into_iter()
            .flatten()
    }
}

#[cfg(test)]
mod tests;
