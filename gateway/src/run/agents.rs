//! The agents of this site: what they are told comes from the event loop, and a task of its own
//! answers them, so that neither waits for the other. Without agents it sleeps.

mod sockets;
mod taken;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use boringtun::x25519;
use node::follow::{Handle, Peer, View};
use node::status::Problem;
use proto::entry::Role;
use proto::key::PublicKey;
use proto::lan::{Mode, PORT, Site, parts_of, site_hash};
use proto::ledger::Standing;
use proto::record::Capabilities;
use routeagent::facts::Neighbour;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::{Daemon, Error};
use crate::agents::{AgentAt, AgentStatus, Agents, Own};
use crate::io::boottime;
use crate::links::{Carriers, Carry};
use crate::packet::probe::Probe;
use crate::plane::Command;
use crate::roster;
use crate::status::Agent;
use sockets::{Failed, Sockets};
use taken::{Claim, Taken, taken};

/// A table of many parts goes to all agents whenever it has changed: not more often than this for
/// each part.
const PARTS_APART: Duration = Duration::from_millis(50);

/// A problem of the kernel that is mended sooner is not worth moving all flows for.
const STOPS_AFTER: Duration = Duration::from_secs(1);

/// How this host's kernel does.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// It does what it was told, or it is known why not.
    pub(super) is_applied: bool,
    /// Something in it stops traffic.
    pub(super) stops: bool,
}

/// What both the event loop and the task have.
struct Shared {
    agents: Mutex<Agents>,
    /// There is something to send, or another deadline.
    news: Notify,
}

pub(super) struct Hellos {
    shared: Arc<Shared>,
    lan: watch::Sender<Vec<IpAddr>>,
    failed: watch::Receiver<Vec<Failed>>,
    task: JoinHandle<()>,
    /// Our kernel has been in line with what it was told; it stays so whatever comes next.
    was_applied: bool,
    /// Since when it has had a problem that stops traffic.
    stopped: Option<Duration>,
    forwards: bool,
    next_table: Duration,
    is_table_old: bool,
    taken: Vec<Taken>,
}

impl Shared {
    /// Nothing panics while it is held; if something did, what it holds is still whole.
    fn agents(&self) -> MutexGuard<'_, Agents> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hellos {
    pub(super) fn start(node: &Handle, fwmark: u32) -> Result<Hellos, Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| Error::System("get random numbers", io::Error::other(error)))?;
        let random = u128::from_ne_bytes(random);
        let local = node.node();
        let own = Own {
            mesh: local.membership.mesh,
            identity: local.identity_key(),
            wireguard: x25519::StaticSecret::from(*local.wireguard.bytes()),
            boot: random as u64,
            secret: (random >> 64) as u64,
        };
        let shared = Arc::new(Shared {
            agents: Mutex::new(Agents::new(own)),
            news: Notify::new(),
        });
        let (lan, addresses) = watch::channel(Vec::new());
        let (failing, failed) = watch::channel(Vec::new());
        let sockets = Sockets::new(fwmark, failing);
        Ok(Hellos {
            task: tokio::spawn(serve(shared.clone(), addresses, sockets)),
            shared,
            lan,
            failed,
            was_applied: false,
            stopped: None,
            forwards: false,
            next_table: Duration::ZERO,
            is_table_old: true,
            taken: Vec::new(),
        })
    }

    /// Several records name one address: whose it is changes with who is heard.
    pub(super) const fn is_disputed(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Who there is in our site.
    pub(super) fn handle_view(&mut self, view: &View, now: Duration) {
        let peers = view
            .peers
            .iter()
            .filter(|(_, peer)| peer.node.record.site == view.site);
        let recorded: BTreeSet<IpAddr> = peers
            .clone()
            .filter_map(|(_, peer)| peer.lan_address)
            .collect();
        let heard: BTreeSet<(PublicKey, IpAddr)> = self
            .shared
            .agents()
            .statuses(now)
            .into_iter()
            .filter(|status| status.is_heard)
            .filter_map(|status| Some((status.identity, status.address?)))
            .collect();
        let taken = taken(peers.clone().filter_map(|(identity, peer)| {
            let lan = peer.lan_address?;
            Some(Claim {
                is_heard: heard.contains(&(*identity, lan)),
                joined: peer.joined,
                identity: *identity,
                name: &peer.node.record.node,
                lan,
            })
        }));
        let is_member = view.standing == Standing::Good;
        let known: BTreeMap<PublicKey, AgentAt> = peers
            .filter(|_| is_member)
            .filter_map(|(identity, peer)| {
                let mut agent = agent(peer)?;
                if taken.iter().any(|one| one.identity == *identity) {
                    agent.lan = None;
                }
                Some((*identity, agent))
            })
            .collect();
        for news in taken.iter().filter(|one| !self.taken.contains(one)) {
            let problem = news.problem();
            tracing::warn!(next = problem.next, "{}", problem.what);
        }
        self.taken = taken;
        self.shared.agents().handle_roster(known, recorded);
    }

    pub(super) fn handle_lan(&self, lan: &[IpAddr]) {
        let changed = self.lan.send_if_modified(|known| {
            let is_new = known != lan;
            if is_new {
                *known = lan.to_vec();
            }
            is_new
        });
        if changed {
            self.shared.agents().handle_lan(lan);
        }
    }

    /// Something that the table rests on has changed.
    pub(super) const fn handle_sites(&mut self) {
        self.is_table_old = true;
    }

    /// What is not urgent. A gateway whose kernel has a problem still tells what it reaches: agents
    /// take it last, and one that is the only one does what it can.
    pub(super) fn sweep(
        &mut self,
        kernel: Kernel,
        carriers: &Carriers,
        mtus: &BTreeMap<PublicKey, u16>,
        now: Duration,
    ) {
        self.was_applied |= kernel.is_applied;
        self.stopped = kernel.stops.then(|| self.stopped.unwrap_or(now));
        let stops = self
            .stopped
            .is_some_and(|since| now.saturating_sub(since) >= STOPS_AFTER);
        let forwards = self.was_applied && !stops;
        self.is_table_old |= forwards != self.forwards;
        self.forwards = forwards;
        if self.is_table_old && now >= self.next_table {
            let sites = if self.was_applied {
                sites(carriers, mtus)
            } else {
                Vec::new()
            };
            let parts = u32::try_from(parts_of(sites.len())).unwrap_or(u32::MAX);
            self.next_table = now + PARTS_APART.saturating_mul(parts);
            self.is_table_old = false;
            self.shared.agents().handle_sites(sites, self.forwards);
        }
    }

    /// Whether [`Hellos::reached`] may be another than before.
    pub(super) fn take_change(&self) -> bool {
        self.shared.agents().take_change()
    }

    /// The agents that our kernel has to reach by VXLAN.
    pub(super) fn reached(&self) -> BTreeMap<PublicKey, Neighbour> {
        let reached = self.shared.agents().reached().into_iter();
        let all = reached.map(|(identity, agent)| {
            let neighbour = Neighbour {
                name: agent.name,
                lan: agent.lan,
                other: agent.other,
                probes: Vec::new(),
            };
            (identity, neighbour)
        });
        all.collect()
    }

    /// The answer to a probe that came through the tunnel's interface to the address `to`.
    fn handle_probe(&self, to: IpAddr, datagram: &[u8], now: Duration) -> Option<Vec<u8>> {
        self.shared.agents().handle_probe(to, datagram, now)
    }

    /// Told to all at once; what they send until they have heard it still goes through.
    pub(super) fn handle_stop(&self, now: Duration) {
        self.shared.agents().handle_stop(now);
        self.shared.news.notify_one();
    }

    /// When all have heard that we stop, at the latest.
    pub(super) fn leaves_at(&self) -> Option<Duration> {
        self.shared.agents().leaves_at()
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }

    pub(super) fn statuses(&self, now: Duration) -> Vec<Agent> {
        let statuses = self.shared.agents().statuses(now);
        statuses.iter().map(|status| show(status, now)).collect()
    }

    /// Datagrams that were refused, by reason.
    pub(super) fn refused(&self) -> [(&'static str, u64); 4] {
        let refused = self.shared.agents().refused();
        [
            ("agent_unknown", refused.unknown),
            ("agent_forged", refused.forged),
            ("agent_stale", refused.stale),
            ("agent_limited", refused.limited),
        ]
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let failed = self.failed.borrow();
        let failed = failed.iter().map(problem);
        failed
            .chain(self.taken.iter().map(Taken::problem))
            .collect()
    }
}

impl Daemon {
    /// A packet out of the TUN for one of our probe addresses.
    pub(super) fn answer_probe(&self, thread: usize, packet: &[u8], now: Duration) {
        // An answer goes nowhere but into our own site, whoever made the question.
        let probe = Probe::parse(packet);
        let probe = probe.filter(|probe| roster::is_own(&self.view, probe.from.ip()));
        let answer = probe.and_then(|probe| {
            let datagram = self.hellos.handle_probe(probe.to, probe.datagram, now)?;
            probe.answer(&datagram)
        });
        if let Some(packet) = answer {
            let packet = packet.into();
            self.plane.transmit([Command::ToTun { thread, packet }]);
        }
    }
}

fn problem(failed: &Failed) -> Problem {
    let Failed { address, error } = failed;
    let next = if error.kind() == io::ErrorKind::AddrInUse {
        format!(
            "`ss -lunp 'sport = :{PORT}'` shows which program has it: end that one; it is tried again every second"
        )
    } else {
        "see whether this address is still this node's, or give another with --address; it is tried again every second".to_owned()
    };
    Problem::new(
        format!(
            "cannot listen on UDP {address}: {error}; the agents of this site do not hear this gateway, and do not send through it"
        ),
        next,
    )
}

fn agent(peer: &Peer) -> Option<AgentAt> {
    let record = &peer.node.record;
    let presence = record.presence()?;
    (record.role == Role::Agent).then(|| AgentAt {
        name: record.node.clone(),
        wireguard: presence.wireguard,
        lan: peer.lan_address,
        by_vxlan: presence.capabilities.has(Capabilities::VXLAN),
    })
}

/// The table of what is carried now.
fn sites(carriers: &Carriers, mtus: &BTreeMap<PublicKey, u16>) -> Vec<Site> {
    let all = carriers.sites.iter().filter_map(|(site, carry)| {
        Some(Site {
            hash: site_hash(site),
            mtu: roster::mtu_of(site, carriers, mtus)?,
            by_sibling: matches!(carry, Carry::Siblings(_)),
        })
    });
    all.collect()
}

fn show(status: &AgentStatus, now: Duration) -> Agent {
    let since = |at: Duration| now.saturating_sub(at).as_secs_f64();
    let state = match status.last_heard {
        Some(_) if status.is_heard => "up",
        Some(_) => "silent",
        None => "never",
    };
    Agent {
        name: status.name.to_string(),
        identity: status.identity.to_string(),
        address: status.address.map(|address| address.to_string()),
        state: state.to_owned(),
        mode: match status.mode {
            Mode::Undecided => "undecided",
            Mode::Direct => "direct",
            Mode::Vxlan => "vxlan",
        }
        .to_owned(),
        last_heard_s: status
            .last_heard
            .map(|at| (since(at) * 1000.0).round() / 1000.0),
        interval_ms: status
            .interval
            .map(|interval| u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)),
        passes: status.passes,
    }
}

/// Reads all that has come before anything falls due, and sends what that gave.
async fn serve(
    shared: Arc<Shared>,
    mut addresses: watch::Receiver<Vec<IpAddr>>,
    mut sockets: Sockets,
) {
    loop {
        let due = shared.agents().poll_timeout();
        let due = due.into_iter().chain(sockets.poll_timeout()).min();
        let wait = due.map(|at| at.saturating_sub(boottime()));
        tokio::select! {
            () = sockets.readable() => {
                sockets.read(|from, datagram, now| {
                    shared.agents().handle_datagram(from, datagram, now);
                });
            }
            changed = addresses.changed() => {
                if changed.is_err() {
                    return;
                }
                let lan = addresses.borrow_and_update().clone();
                sockets.handle_addresses(&lan);
            }
            () = shared.news.notified() => {}
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {
                shared.agents().handle_timeout(boottime());
                sockets.handle_timeout(boottime());
            }
        }
        loop {
            let next = shared.agents().poll_transmit();
            let Some((to, datagram)) = next else { break };
            sockets.send(to, &datagram);
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    #[test]
    fn the_table_tells_the_mtu_and_whether_a_sibling_has_to_help() {
        let identity = |number| SigningKey::from_seed(&[number; 32]).public();
        let mut carriers = Carriers::default();
        let (berlin, cork) = ("berlin".parse().unwrap(), "cork".parse().unwrap());
        let (near, far) = (site_hash(&berlin), site_hash(&cork));
        carriers
            .sites
            .insert(berlin, Carry::Direct(vec![identity(1), identity(2)]));
        carriers
            .sites
            .insert(cork, Carry::Siblings(vec![identity(3)]));
        let mtus = BTreeMap::from([(identity(1), 1420), (identity(2), 1380)]);
        let mut table = sites(&carriers, &mtus);
        table.sort_by_key(|site| site.by_sibling);
        assert_eq!(
            (table[0].hash, table[0].mtu, table[0].by_sibling),
            (near, 1380, false)
        );
        assert_eq!(
            (table[1].hash, table[1].mtu, table[1].by_sibling),
            (far, 1280, true)
        );
    }
}
