//! Which peer's link lives where, and how a change of the configuration reaches it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use boringtun::noise::rate_limiter::RateLimiter;
use ip_network::IpNetwork;

use super::device::{Change, Device};
use super::protocol::PeerStats;
use crate::data::link::{Endpoint, LinkShared, LinkSpec, Rules};
use crate::data::mailbox::Command;
use crate::data::snapshot::{Carried, LinkPlace, Owner, OwnerId, Snapshot};
use crate::data::thread::Shared;
use crate::drops::DropReason;
use crate::io::boottime;
use crate::io::udp::Local;
use crate::keys::{PresharedKey, PrivateKey, PublicKey};
use crate::places::Places;
use crate::screen::Screen;

#[derive(Debug)]
struct Placed {
    shared: Arc<LinkShared>,
    place: LinkPlace,
    /// Whether there is a link: with our own key, and a peer's key that may be used.
    linked: bool,
}

#[derive(Debug)]
pub(crate) struct Peers {
    placed: HashMap<PublicKey, Placed>,
    places: Places,
}

impl Peers {
    pub(crate) fn new(threads: usize) -> Peers {
        Peers {
            placed: HashMap::new(),
            places: Places::new(threads),
        }
    }

    /// The place of a peer's link, if it has one.
    pub(crate) fn linked(&self, key: &PublicKey) -> Option<LinkPlace> {
        self.placed
            .get(key)
            .filter(|placed| placed.linked)
            .map(|placed| placed.place)
    }

    pub(crate) fn stats(&self, key: &PublicKey) -> PeerStats {
        let Some(placed) = self.placed.get(key) else {
            return PeerStats::default();
        };
        let handshake = placed.shared.last_handshake.load(Ordering::Relaxed);
        PeerStats {
            endpoint: placed.shared.endpoint().map(|endpoint| endpoint.remote),
            last_handshake: (handshake > 0).then_some({
                (
                    handshake / 1_000_000_000,
                    (handshake % 1_000_000_000) as u32,
                )
            }),
            tx_bytes: placed.shared.tx_bytes.load(Ordering::Relaxed),
            rx_bytes: placed.shared.rx_bytes.load(Ordering::Relaxed),
        }
    }

    /// Carries one difference to the threads; `device` is the state to come.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        device: &Device,
        shared: &Shared,
        screen: &mut Screen,
    ) {
        match change {
            Change::PrivateKey => self.change_key(device, shared, screen),
            Change::PeerAdded(key) => self.add(key, device, shared, screen),
            Change::PeerRemoved(key) => self.remove(key, shared),
            Change::PresharedKey(key) => self.tell(key, shared, |slot| Command::PresharedKey {
                slot,
                key: device
                    .peers
                    .get(key)
                    .and_then(|peer| peer.preshared_key.as_ref().map(expose)),
            }),
            Change::Endpoint(key) => {
                let Some(remote) = device.peers.get(key).and_then(|peer| peer.endpoint) else {
                    return;
                };
                if let Some(placed) = self.placed.get(key) {
                    placed.shared.set_endpoint(Some(Endpoint {
                        remote,
                        local: None,
                    }));
                }
                self.tell(key, shared, |slot| Command::Endpoint { slot, remote });
            }
            Change::Keepalive(key) => {
                let seconds = device.peers.get(key).map_or(0, |peer| peer.keepalive);
                self.tell(key, shared, |slot| Command::Keepalive { slot, seconds });
            }
            Change::ListenPort | Change::Fwmark | Change::Routes => {}
        }
    }

    fn tell(&self, key: &PublicKey, shared: &Shared, command: impl FnOnce(u32) -> Command) {
        if let Some(place) = self.linked(key) {
            shared.mailboxes[place.thread as usize].command(command(place.slot));
        }
    }

    fn change_key(&mut self, device: &Device, shared: &Shared, screen: &mut Screen) {
        let key = device.private_key.as_ref().map(PrivateKey::to_x25519);
        let limiter = screen.set_key(key.clone());
        let keys: Vec<PublicKey> = self.placed.keys().copied().collect();
        for peer in keys {
            let had = self.linked(&peer).is_some();
            match (key.clone(), limiter.clone()) {
                (Some(key), Some(limiter)) if had => {
                    self.tell(&peer, shared, |slot| Command::PrivateKey {
                        slot,
                        key,
                        limiter,
                    });
                }
                (Some(_), Some(limiter)) => self.link(&peer, device, shared, limiter),
                _ => self.unlink(&peer, shared),
            }
        }
    }

    fn add(&mut self, key: &PublicKey, device: &Device, shared: &Shared, screen: &Screen) {
        let place = self.places.take(boottime());
        self.placed.insert(
            *key,
            Placed {
                shared: Arc::default(),
                place,
                linked: false,
            },
        );
        if let Some(limiter) = screen.open_limiter() {
            self.link(key, device, shared, limiter);
        }
    }

    fn link(
        &mut self,
        key: &PublicKey,
        device: &Device,
        shared: &Shared,
        limiter: Arc<RateLimiter>,
    ) {
        let (Some(placed), Some(peer), Some(own)) = (
            self.placed.get_mut(key),
            device.peers.get(key),
            &device.private_key,
        ) else {
            return;
        };
        if key.is_low_order() {
            tracing::warn!(peer = %key, "this public key is low-order: the peer is listed but never used");
            return;
        }
        let spec = Box::new(LinkSpec {
            shared: placed.shared.clone(),
            private_key: own.to_x25519(),
            peer_key: key.to_x25519(),
            preshared_key: peer.preshared_key.as_ref().map(expose),
            limiter,
            remote: placed
                .shared
                .endpoint()
                .map(|endpoint| endpoint.remote)
                .or(peer.endpoint),
            keepalive: peer.keepalive,
            rules: Rules::WireGuard,
        });
        placed.linked = true;
        shared.mailboxes[placed.place.thread as usize].command(Command::AddLink {
            slot: placed.place.slot,
            spec,
        });
    }

    fn unlink(&mut self, key: &PublicKey, shared: &Shared) {
        self.tell(key, shared, |slot| Command::RemoveLink { slot });
        if let Some(placed) = self.placed.get_mut(key) {
            placed.linked = false;
        }
    }

    fn remove(&mut self, key: &PublicKey, shared: &Shared) {
        self.unlink(key, shared);
        if let Some(placed) = self.placed.remove(key) {
            self.places.give_back(placed.place, boottime());
        }
    }

    /// The configuration as the data threads see it.
    pub(crate) fn snapshot(&self, device: &Device, mtu: usize, port: Option<u16>) -> Snapshot {
        let mut ids = HashMap::with_capacity(device.peers.len());
        let mut owners = Vec::with_capacity(device.peers.len());
        for key in device.peers.keys() {
            ids.insert(*key, OwnerId(owners.len() as u32));
            let nobody = |reason| Owner {
                carried: Carried::Nobody(reason),
            };
            owners.push(match self.linked(key) {
                Some(place) => Owner::peer(place),
                None if key.is_low_order() => nobody(DropReason::LowOrderKey),
                None => nobody(DropReason::NoPrivateKey),
            });
        }
        let prefixes = device.routes().filter_map(|(prefix, key)| {
            let network = IpNetwork::new(prefix.addr(), prefix.len()).ok()?;
            Some((network, *ids.get(key)?))
        });
        Snapshot::new(prefixes, owners, mtu, port.filter(|_| device.fwmark == 0))
    }

    pub(crate) fn attach_queues(&mut self, shared: &Shared) {
        self.places.attach_queues(shared);
    }

    /// Forgets source addresses that are no longer the kernel's way to their peer.
    pub(crate) fn check_sources(
        &self,
        shared: &Shared,
        still_used: impl Fn(IpAddr, Local) -> bool,
    ) {
        for placed in self.placed.values().filter(|placed| placed.linked) {
            let Some(Endpoint {
                remote,
                local: Some(local),
            }) = placed.shared.endpoint()
            else {
                continue;
            };
            if !still_used(remote.ip(), local) {
                let slot = placed.place.slot;
                shared.mailboxes[placed.place.thread as usize]
                    .command(Command::ForgetSource { slot });
            }
        }
    }
}

fn expose(key: &PresharedKey) -> [u8; 32] {
    *key.expose()
}
