//! Paths through brokers, for gateways that nothing else reaches.
//!
//! For each remote gateway that is wanted so, a socket on this host stands: what the tunnel sends
//! there goes through a broker to the other side, and what comes back is sent to the tunnel from
//! it. Both sides ask at every broker, and use the first in an order that both know of those where
//! the other is too; what comes by another is taken all the same.

mod hub;
mod line;
mod outlet;
mod place;
mod udp;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proto::key::PublicKey;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::follow::View;
use crate::state::LocalNode;
use hub::Hub;

/// Events that wait to be taken; beyond, nothing is lost but told later.
const MAX_EVENTS: usize = 256;
/// As many as a broker takes.
const MAX_WANTED: usize = 256;

pub struct Options {
    pub local: Arc<LocalNode>,
    /// Where the tunnel listens; an unspecified address stands for the loopback one.
    pub tunnel: SocketAddr,
    /// Names the brokers.
    pub view: watch::Receiver<Arc<View>>,
    /// For all that leaves this host.
    pub fwmark: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What is sent to this address reaches the peer's tunnel, and what comes from it is the peer's.
    Ready {
        peer: PublicKey,
        address: SocketAddr,
    },
    /// There is no path at present, for this reason; it is tried on. Also said of one that was
    /// never ready when no broker can help.
    Lost { peer: PublicKey, why: String },
}

/// Dropping it ends everything.
pub struct RelayClient {
    wanted: watch::Sender<BTreeSet<PublicKey>>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl RelayClient {
    /// Must be called within a tokio runtime. Speaks to no broker until somebody is wanted.
    pub fn start(options: Options) -> Result<RelayClient, getrandom::Error> {
        let seed = getrandom::u64()?;
        let wanted = watch::Sender::new(BTreeSet::new());
        let (told, events) = mpsc::channel(MAX_EVENTS);
        let options = Options {
            tunnel: reachable(options.tunnel),
            ..options
        };
        let hub = Hub::new(options, seed, told);
        let task = tokio::spawn(hub.run(wanted.subscribe()));
        Ok(RelayClient {
            wanted,
            events,
            task,
        })
    }

    /// A path to this peer is wanted until it is given back. `false` if there are too many already.
    pub fn want(&self, peer: PublicKey) -> bool {
        let mut fits = true;
        self.wanted.send_if_modified(|wanted| {
            fits = wanted.len() < MAX_WANTED || wanted.contains(&peer);
            fits && wanted.insert(peer)
        });
        fits
    }

    /// No event about it follows, save for those that wait already.
    pub fn give_back(&self, peer: &PublicKey) {
        self.wanted.send_if_modified(|wanted| wanted.remove(peer));
    }

    /// `None` once there will be no more. Loses nothing when it is dropped while it waits.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for RelayClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn reachable(tunnel: SocketAddr) -> SocketAddr {
    if tunnel.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), tunnel.port())
    } else {
        tunnel
    }
}

/// A shortage or an interface that is down must not become a busy loop.
async fn pause_after(error: &io::Error) {
    tracing::debug!("relay: a socket: {error}");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}
