//! Many agents in one process, beside the real gateways of one site: each has a record at the
//! broker, an address in the site, a socket, and the deciding part of a real agent. They program
//! no kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use boringtun::x25519::{PublicKey as X25519, StaticSecret};
use node::state::StateDir;
use proto::entry::Role;
use proto::key::{PublicKey, WireguardKey};
use proto::lan::{MAX_DATAGRAM, Mode, PORT, PairKey};
use proto::message::{Reply, Request};
use proto::name::Name;
use proto::record::{Capabilities, NodeState};
use routeagent::health::{GatewayAt, Health, Own};
use tokio::net::UdpSocket;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

use super::{Mesh, Site};
use crate::broker;
use crate::broker::cast::{Actor, Authority, Ticket, presence, random};
use crate::broker::client::Target;
use crate::lab::wait_for;

/// Of those that share the third octet of an address.
const ROW: u16 = 250;
const FIRST_ROW: u16 = 100;

/// Runs until it is dropped.
pub struct Askers {
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

/// What one of them uses for the site that is looked at, and since when.
#[derive(Clone)]
struct Seen {
    used: BTreeSet<String>,
    since: Instant,
}

/// One of them before it runs.
struct Asker {
    actor: Actor,
    wireguard: StaticSecret,
    address: SocketAddr,
}

/// A gateway as they know it from its record.
struct Known {
    identity: PublicKey,
    wireguard: WireguardKey,
    name: Name,
    address: SocketAddr,
}

impl Askers {
    /// `size` agents of a site without agents of its own, who look at how they reach another.
    pub fn start(mesh: &Mesh, (site, towards): (usize, usize), size: u16) -> Result<Askers> {
        broker::allow_open_files(usize::from(size) + 1000)?;
        let towards: Name = mesh.sites[towards].name.parse()?;
        let site = &mesh.sites[site];
        place(site, size)?;
        let askers = enter(mesh, site, size)?;
        let gateways = known(site)?;
        let bind = |asker: &Asker| {
            let socket = StdSocket::bind(asker.address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        // A socket stays in the namespace in which it was opened.
        let sockets = site
            .worker
            .within(|| askers.iter().map(bind).collect::<Result<Vec<_>>>())??;
        let ended = Arc::new(AtomicBool::new(false));
        let nothing = Seen {
            used: BTreeSet::new(),
            since: Instant::now(),
        };
        let seen = Arc::new(Mutex::new(vec![nothing; askers.len()]));
        let (flag, told) = (Arc::clone(&ended), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be made");
            let all = LocalSet::new();
            for (index, (asker, socket)) in askers.into_iter().zip(sockets).enumerate() {
                let health = asker.health(&gateways);
                let (told, towards) = (Arc::clone(&told), towards.clone());
                let names = names(&gateways);
                all.spawn_local(async move {
                    let tell = |used| {
                        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                        if told[index].used != used {
                            let since = Instant::now();
                            told[index] = Seen { used, since };
                        }
                    };
                    live(health, socket, |health| {
                        let by = health.choice().of(&towards).by;
                        tell(
                            by.iter()
                                .filter_map(|one| names.get(one).cloned())
                                .collect(),
                        );
                    })
                    .await
                });
            }
            runtime.block_on(all.run_until(async {
                while !flag.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }));
        });
        Ok(Askers {
            ended,
            seen,
            thread: Some(thread),
        })
    }

    /// Until each uses exactly these gateways; when the last one began to.
    pub fn wait_until_used(&self, gateways: &[&str], limit: Duration) -> Result<Instant> {
        let wanted: BTreeSet<String> = gateways.iter().map(|name| (*name).to_owned()).collect();
        let seen = || {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.clone()
        };
        let fit = || seen().iter().all(|one| one.used == wanted);
        wait_for("all agents use the gateways they should", limit, fit)?;
        let last = seen().iter().map(|one| one.since).max();
        last.context("there are no agents")
    }
}

impl Drop for Askers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Asker {
    fn new(mesh: &Authority, site: &Site, number: u16) -> Result<Asker> {
        let mut actor = Actor::new(mesh.mesh, &site.name, &format!("asker-{number}"))?;
        actor.role = Role::Agent;
        Ok(Asker {
            actor,
            wireguard: StaticSecret::from(*random()),
            address: SocketAddr::new(address(site, number).into(), PORT),
        })
    }

    /// Enrols and publishes.
    async fn enter(&mut self, target: &Target, ticket: &Ticket) -> Result<()> {
        let mut client = target.connect(None).await?;
        let identity = &self.actor.identity;
        let reply = client
            .enrol(&ticket.entry, &ticket.join_key(), identity)
            .await?;
        let Reply::Enrolled { enrolment } = &reply else {
            bail!("not enrolled: {reply:?}");
        };
        self.actor.enrolment.clone_from(enrolment);
        let mut client = target.connect(None).await?;
        let reply = client.authenticate(identity, &self.actor.enrolment).await?;
        let Reply::Authenticated { .. } = &reply else {
            bail!("not authenticated: {reply:?}");
        };
        let mut said = presence("askers");
        said.wireguard = WireguardKey::new(X25519::from(&self.wireguard).to_bytes())?;
        said.candidates = Vec::new();
        said.lan_address = Some(self.address.ip());
        said.capabilities = Capabilities::default();
        let member = self.actor.member(NodeState::Present(said));
        let reply = client.call(Request::Publish { member }).await?;
        let Reply::Published { .. } = &reply else {
            bail!("not published: {reply:?}");
        };
        Ok(())
    }

    fn health(&self, gateways: &[Known]) -> Health {
        let seeds = random();
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| seeds[at + byte]));
        let own = self.actor.identity.public();
        let at = gateways.iter().filter_map(|known| {
            let theirs = X25519::from(*known.wireguard.as_bytes());
            let shared = self.wireguard.diffie_hellman(&theirs);
            let mesh = self.actor.mesh();
            let key = PairKey::derive(shared.as_bytes(), &mesh, &own, &known.identity)?;
            let at = GatewayAt {
                name: known.name.clone(),
                address: known.address,
                key,
                is_near: true,
            };
            Some((known.identity, at))
        });
        let own = Own {
            identity: own,
            boot: number(0),
            seed: number(8),
        };
        let mut health = Health::new(own, gateway::io::boottime());
        health.set_mode(Mode::Direct, gateway::io::boottime());
        health.handle_gateways(&at.collect::<BTreeMap<_, _>>(), gateway::io::boottime());
        health
    }
}

fn address(site: &Site, number: u16) -> Ipv4Addr {
    let row = FIRST_ROW + number / ROW;
    Ipv4Addr::new(10, site.number, row as u8, (number % ROW + 1) as u8)
}

/// The worker's machine has all their addresses.
fn place(site: &Site, size: u16) -> Result<()> {
    let lines: String = (0..size)
        .map(|number| format!("address add {}/32 dev eth0\n", address(site, number)))
        .collect();
    site.worker
        .sh(&format!("ip -batch /dev/stdin <<'END'\n{lines}END"))?;
    for gateway in &site.gateways {
        for row in FIRST_ROW..=FIRST_ROW + size / ROW {
            let net = format!("10.{}.{row}.0/24", site.number);
            let via = site.worker_address().to_string();
            gateway
                .namespace
                .run("ip", &["route", "add", &net, "via", &via])?;
        }
    }
    Ok(())
}

/// All of them become members.
fn enter(mesh: &Mesh, site: &Site, size: u16) -> Result<Vec<Asker>> {
    let authority = Authority::of(&mesh.trust)?;
    let prefix = format!("10.{}.0.0/16", site.number);
    let uses = ["--uses", "unlimited"];
    let ticket = Ticket::of(&mesh.trust.token(&site.name, &prefix, &uses)?)?;
    let target = authority.target(&mesh.trust.brokers[0])?;
    let mut askers = (0..size)
        .map(|number| Asker::new(&authority, site, number))
        .collect::<Result<Vec<_>>>()?;
    mesh.hub.within(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            for asker in &mut askers {
                asker.enter(&target, &ticket).await?;
            }
            Ok(askers)
        })
    })?
}

fn known(site: &Site) -> Result<Vec<Known>> {
    let all = site.gateways.iter().map(|gateway| {
        let local = StateDir::open(&gateway.state)?.joined()?;
        Ok(Known {
            identity: local.identity_key(),
            wireguard: local.wireguard.public(),
            name: local.membership.node.clone(),
            address: SocketAddr::new(gateway.lan, PORT),
        })
    });
    all.collect()
}

fn names(gateways: &[Known]) -> BTreeMap<PublicKey, String> {
    let all = gateways.iter();
    all.map(|known| (known.identity, known.name.to_string()))
        .collect()
}

/// As a real agent does: what waits is read before silence is judged.
async fn live(mut health: Health, socket: StdSocket, changed: impl Fn(&Health)) {
    let socket = UdpSocket::from_std(socket).expect("it does not block");
    let mut datagram = [0; MAX_DATAGRAM + 1];
    loop {
        if health.take_change() {
            changed(&health);
        }
        while let Some((to, bytes)) = health.poll_transmit() {
            let _lost = socket.try_send_to(&bytes, to);
        }
        let now = gateway::io::boottime();
        let due = health
            .poll_timeout()
            .unwrap_or(now + Duration::from_secs(1));
        tokio::select! {
            biased;
            received = socket.recv_from(&mut datagram) => {
                if let Ok((length, from)) = received {
                    health.handle_datagram(from, &datagram[..length], gateway::io::boottime());
                }
            }
            () = tokio::time::sleep(due.saturating_sub(now)) => {
                health.handle_timeout(gateway::io::boottime());
            }
        }
    }
}
