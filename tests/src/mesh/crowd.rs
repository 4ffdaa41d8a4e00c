//! Many remote gateways in one process, towards one real one: each has a site, a key, a record at
//! the broker, a UDP port, a WireGuard session and the deciding part of a real gateway.
//!
//! They carry no packets of sites: it is what a real gateway has to do for a thousand of them at
//! rest that is to be seen.

mod learned;
mod peer;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use boringtun::x25519::{PublicKey as X25519, StaticSecret};
use gateway::links::{Gateway, Roster};
use node::state::StateDir;
use proto::entry::{SignedEntry, Uses};
use proto::key::WireguardKey;
use proto::message::{Reply, Request};
use proto::record::{Member, NodeState, SignedRecord};
use tokio::runtime::Builder;

use super::{GatewayNode, Mesh};
use crate::broker;
use crate::broker::cast::{Actor, Authority, Ticket, presence, random};
use crate::broker::client::Target;
use crate::lab::{Namespace, wait_for};
use learned::Learned;
use peer::Peer;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 20, 0, 2);
const FIRST_PORT: u16 = 20_000;

/// One of the many before it runs.
struct Candidate {
    actor: Actor,
    ticket: Ticket,
    wireguard: StaticSecret,
    address: SocketAddr,
}

/// Runs until it is dropped.
pub struct Crowd {
    ended: Arc<AtomicBool>,
    up: Arc<AtomicUsize>,
    size: usize,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// `size` sites, known to the broker. The gateway need not run yet. The broker is started anew.
    pub fn start(mesh: &mut Mesh, size: u16, towards: (usize, usize)) -> Result<Crowd> {
        broker::allow_open_files(usize::from(size) + 1000)?;
        let namespace = place(mesh)?;
        let mut authority = Authority::of(&mesh.trust)?;
        let mut candidates = Vec::new();
        for number in 0..size {
            candidates.push(Candidate::new(&mut authority, number)?);
        }
        mesh.trust.brokers[0].kill();
        let entries = candidates.iter().map(|candidate| &candidate.ticket.entry);
        authority.save(entries.collect::<Vec<&SignedEntry>>().into_iter())?;
        mesh.start_broker()?;
        let target = authority.target(&mesh.trust.brokers[0])?;
        let node = &mesh.sites[towards.0].gateways[towards.1];
        let roster = roster(node)?;
        let ended = Arc::new(AtomicBool::new(false));
        let up = Arc::new(AtomicUsize::new(0));
        let (flag, count) = (Arc::clone(&ended), Arc::clone(&up));
        let thread = namespace.within(move || {
            // A socket stays in the namespace in which it was opened: all is done from this thread.
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let ready = runtime.block_on(prepare(candidates, &target, &roster))?;
            Ok::<_, anyhow::Error>((runtime, ready))
        })??;
        let (runtime, (peers, learned)) = thread;
        let thread = std::thread::spawn(move || {
            runtime.block_on(peer::run_all(peers, learned, &flag, &count));
        });
        Ok(Crowd {
            ended,
            up,
            size: usize::from(size),
            thread: Some(thread),
        })
    }

    /// Until each has an up link to the real gateway.
    pub fn wait_until_up(&self, limit: Duration) -> Result<()> {
        let up = || self.up.load(Ordering::Relaxed);
        wait_for("all of the crowd are up", limit, || up() == self.size)
            .with_context(|| format!("{} of {} are up", up(), self.size))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Candidate {
    fn new(authority: &mut Authority, number: u16) -> Result<Candidate> {
        let site = format!("crowd-{number}");
        let [high, low] = number.to_be_bytes();
        let prefix = format!("10.{}.{low}.0/24", 128 + high);
        Ok(Candidate {
            ticket: authority.grant(&site, &prefix, Uses::AtMost(1))?,
            actor: Actor::new(authority.mesh, &site, &format!("c{number}"))?,
            wireguard: StaticSecret::from(*random()),
            address: SocketAddr::new(ADDRESS.into(), FIRST_PORT + number),
        })
    }

    /// Enrols and publishes.
    async fn enter(&mut self, target: &Target) -> Result<()> {
        let mut client = target.connect(None).await?;
        let key = self.ticket.join_key();
        let identity = &self.actor.identity;
        let reply = client.enrol(&self.ticket.entry, &key, identity).await?;
        let Reply::Enrolled { enrolment } = &reply else {
            bail!("not enrolled: {reply:?}");
        };
        self.actor.enrolment.clone_from(enrolment);
        let mut client = target.connect(None).await?;
        let reply = client
            .authenticate(&self.actor.identity, &self.actor.enrolment)
            .await?;
        let Reply::Authenticated { .. } = &reply else {
            bail!("not authenticated: {reply:?}");
        };
        let mut said = presence("crowd");
        said.wireguard = WireguardKey::new(X25519::from(&self.wireguard).to_bytes())?;
        said.candidates = vec![self.address];
        said.lan_address = None;
        let member = self.actor.member(NodeState::Present(said));
        let reply = client.call(Request::Publish { member }).await?;
        let Reply::Published { .. } = &reply else {
            bail!("not published: {reply:?}");
        };
        Ok(())
    }
}

/// A namespace on the internet with an address for all of them.
fn place(mesh: &Mesh) -> Result<Namespace> {
    let namespace = mesh.lab.namespace("crowd")?;
    mesh.lab.veth(&mesh.internet, "crowd", &namespace, "wan")?;
    mesh.internet.address("crowd", "198.20.0.1/24")?;
    namespace.address("wan", &format!("{ADDRESS}/24"))?;
    namespace.run("ip", &["route", "add", "default", "via", "198.20.0.1"])?;
    Ok(namespace)
}

/// The real gateway as each of the crowd knows it.
fn roster(node: &GatewayNode) -> Result<Roster> {
    let local = StateDir::open(&node.state)?.joined()?;
    let gateway = Gateway {
        site: local.membership.site().clone(),
        node: local.membership.node.clone(),
        wireguard: local.wireguard.public(),
        candidates: vec![SocketAddr::new(node.outer, 51820)],
        lan: None,
    };
    let gateways = [(local.identity_key(), gateway)].into();
    Ok(Roster {
        gateways,
        prefixes: Vec::new(),
    })
}

async fn prepare(
    mut candidates: Vec<Candidate>,
    target: &Target,
    roster: &Roster,
) -> Result<(Vec<Peer>, Learned)> {
    for candidate in &mut candidates {
        candidate.enter(target).await?;
    }
    let learned = Learned::new(learn(&candidates, target).await?);
    let mut peers = Vec::new();
    for candidate in candidates {
        peers.push(Peer::new(candidate, roster).await?);
    }
    Ok((peers, learned))
}

/// What the broker has, so that none of the crowd asks the real gateway for everything.
async fn learn(candidates: &[Candidate], target: &Target) -> Result<proto::mesh::Mesh> {
    let first = candidates.first().context("an empty crowd")?;
    let mut client = target.connect(None).await?;
    client
        .authenticate(&first.actor.identity, &first.actor.enrolment)
        .await?;
    let mut mesh = proto::mesh::Mesh::new(target.mesh, None);
    let mut heads = Vec::new();
    loop {
        let asked = Request::Ledger {
            heads: std::mem::take(&mut heads),
        };
        let Reply::Ledger {
            entries,
            heads: reached,
            more,
        } = client.call(asked).await?
        else {
            bail!("no ledger");
        };
        for entry in entries {
            mesh.handle_entry(&entry)?;
        }
        heads = reached;
        if !more {
            break;
        }
    }
    let mut after = None;
    while let Reply::Nodes(nodes) = client.call(Request::ListNodes { after }).await? {
        let Some(last) = nodes.last() else { break };
        let last = Member::read(&last.member)?;
        let last = SignedRecord::read(&last.record)?;
        after = Some(*last.record().identity.as_bytes());
        for node in nodes {
            mesh.handle_member(&Member::read(&node.member)?)?;
        }
    }
    Ok(mesh)
}
