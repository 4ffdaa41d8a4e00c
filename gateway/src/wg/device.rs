//! What a device shall be, and how a set request changes it. Pure: no clock, no kernel, no lock.
//!
//! The rules are those of the kernel's WireGuard. A request is applied to a copy, so that a refused
//! one leaves nothing behind; peers are shared between copies and only the touched ones are cloned,
//! and the table of prefixes only if the request changes one. With 130,560 prefixes on one peer, a
//! change of one prefix so takes 16 ms, and setting its endpoint 5 ms.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::{fmt, mem};

use crate::keys::{PresharedKey, PrivateKey, PublicKey};

/// As many as the kernel allows on one device.
pub const MAX_PEERS: usize = 1 << 20;

/// The wanted state of one interface.
#[derive(Clone, Debug, Default)]
pub struct Device {
    pub private_key: Option<PrivateKey>,
    /// 0: any free port.
    pub listen_port: u16,
    /// 0: no mark.
    pub fwmark: u32,
    pub peers: BTreeMap<PublicKey, Arc<Peer>>,
    /// The one peer each prefix belongs to; says the same as the peers' `allowed_ips`.
    owners: Arc<BTreeMap<Prefix, PublicKey>>,
    /// Rises with every endpoint set and every peer made, so that neither number comes twice.
    revision: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub preshared_key: Option<PresharedKey>,
    /// As configured; the packet path moves its own when the peer roams.
    pub endpoint: Option<SocketAddr>,
    /// Another number after every setting, so that an endpoint set to the same value again still
    /// overwrites a roamed one.
    pub endpoint_revision: u64,
    /// Seconds; 0 is off.
    pub keepalive: u16,
    pub allowed_ips: BTreeSet<Prefix>,
    /// Another number for every time this key was added: a peer removed and added within one request
    /// is a new peer, with no session and no counters.
    pub incarnation: u64,
}

/// An address range whose host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

/// Why a request is refused. `errno` goes to who asked, `what` to our log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct ConfigError {
    /// Positive, as in errno.h.
    pub errno: i32,
    pub what: String,
}

impl ConfigError {
    pub fn new(errno: i32, what: impl Into<String>) -> ConfigError {
        ConfigError {
            errno,
            what: what.into(),
        }
    }
}

/// One set request, already valid line by line. `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetRequest {
    /// `Some(None)` removes the key.
    pub private_key: Option<Option<PrivateKey>>,
    pub listen_port: Option<u16>,
    pub fwmark: Option<u32>,
    pub replace_peers: bool,
    /// In the order they came; one key may come more than once.
    pub peers: Vec<PeerRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRequest {
    pub public_key: PublicKey,
    pub remove: bool,
    pub update_only: bool,
    /// `Some(None)` removes the key.
    pub preshared_key: Option<Option<PresharedKey>>,
    pub endpoint: Option<SocketAddr>,
    pub keepalive: Option<u16>,
    /// Takes away what the peer has before anything of this request is added, wherever it is said.
    pub replace_allowed_ips: bool,
    pub allowed_ips: Vec<AllowedIp>,
}

/// One step of a change of allowed-ips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedIp {
    /// Taken from whichever peer has it.
    Add(Prefix),
    /// Only if this peer has it; else nothing happens.
    Remove(Prefix),
}

/// One difference between two states, for a packet path that applies nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    PrivateKey,
    ListenPort,
    Fwmark,
    PeerRemoved(PublicKey),
    /// With all that the peer has; no further change names it, except `Routes`.
    PeerAdded(PublicKey),
    PresharedKey(PublicKey),
    Endpoint(PublicKey),
    Keepalive(PublicKey),
    Routes,
}

impl Device {
    /// The state after this request, or why there is none.
    pub fn apply(&self, request: &SetRequest) -> Result<Device, ConfigError> {
        let mut next = self.clone();
        next.listen_port = request.listen_port.unwrap_or(next.listen_port);
        next.fwmark = request.fwmark.unwrap_or(next.fwmark);
        if request.replace_peers {
            next.peers.clear();
            next.owners = Arc::default();
        }
        if let Some(key) = &request.private_key {
            next.private_key.clone_from(key);
        }
        let own_key = next.private_key.as_ref().map(PrivateKey::public_key);
        if request.private_key.is_some()
            && let Some(key) = own_key
        {
            next.remove_peer(&key);
        }
        for peer in &request.peers {
            next.apply_peer(peer, own_key.as_ref())?;
        }
        Ok(next)
    }

    /// Every prefix with the peer it belongs to, in the order of addresses.
    pub fn routes(&self) -> impl Iterator<Item = (Prefix, &PublicKey)> {
        self.owners.iter().map(|(prefix, key)| (*prefix, key))
    }

    fn apply_peer(
        &mut self,
        request: &PeerRequest,
        own_key: Option<&PublicKey>,
    ) -> Result<(), ConfigError> {
        let key = request.public_key;
        if request.remove {
            self.remove_peer(&key);
            return Ok(());
        }
        if !self.peers.contains_key(&key) {
            // Ourselves as a peer is silently passed over, as is an update of a stranger.
            if request.update_only || own_key == Some(&key) {
                return Ok(());
            }
            self.add_peer(key)?;
        }
        self.update_peer(request);
        if request.replace_allowed_ips {
            self.clear_allowed_ips(&key);
        }
        self.change_allowed_ips(key, &request.allowed_ips);
        Ok(())
    }

    fn add_peer(&mut self, key: PublicKey) -> Result<(), ConfigError> {
        if self.peers.len() >= MAX_PEERS {
            return Err(ConfigError::new(
                libc::ENOMEM,
                format!(
                    "peer {key} not added: the device has {MAX_PEERS} peers, the most it can; remove some first"
                ),
            ));
        }
        self.revision += 1;
        self.peers.insert(
            key,
            Arc::new(Peer {
                incarnation: self.revision,
                ..Peer::default()
            }),
        );
        Ok(())
    }

    fn update_peer(&mut self, request: &PeerRequest) {
        let Some(shared) = self.peers.get_mut(&request.public_key) else {
            return;
        };
        if request.preshared_key.is_none()
            && request.endpoint.is_none()
            && request.keepalive.is_none()
        {
            return;
        }
        let peer = Arc::make_mut(shared);
        if let Some(preshared_key) = &request.preshared_key {
            peer.preshared_key.clone_from(preshared_key);
        }
        if request.endpoint.is_some() {
            self.revision += 1;
            peer.endpoint = request.endpoint;
            peer.endpoint_revision = self.revision;
        }
        peer.keepalive = request.keepalive.unwrap_or(peer.keepalive);
    }

    fn remove_peer(&mut self, key: &PublicKey) {
        self.clear_allowed_ips(key);
        self.peers.remove(key);
    }

    fn clear_allowed_ips(&mut self, key: &PublicKey) {
        let Some(shared) = self.peers.get_mut(key) else {
            return;
        };
        if shared.allowed_ips.is_empty() {
            return;
        }
        let prefixes = mem::take(&mut Arc::make_mut(shared).allowed_ips);
        let owners = Arc::make_mut(&mut self.owners);
        for prefix in &prefixes {
            owners.remove(prefix);
        }
    }

    fn change_allowed_ips(&mut self, key: PublicKey, steps: &[AllowedIp]) {
        for step in steps {
            match *step {
                AllowedIp::Add(prefix) => self.give(prefix, key),
                AllowedIp::Remove(prefix) => self.take(prefix, key),
            }
        }
    }

    fn give(&mut self, prefix: Prefix, key: PublicKey) {
        let former = self.owners.get(&prefix).copied();
        if former == Some(key) {
            return;
        }
        if let Some(peer) = former.and_then(|former| self.peers.get_mut(&former)) {
            Arc::make_mut(peer).allowed_ips.remove(&prefix);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            Arc::make_mut(peer).allowed_ips.insert(prefix);
            Arc::make_mut(&mut self.owners).insert(prefix, key);
        }
    }

    fn take(&mut self, prefix: Prefix, key: PublicKey) {
        if self.owners.get(&prefix) != Some(&key) {
            return;
        }
        Arc::make_mut(&mut self.owners).remove(&prefix);
        if let Some(peer) = self.peers.get_mut(&key) {
            Arc::make_mut(peer).allowed_ips.remove(&prefix);
        }
    }
}

/// What has to be done to get from one state to the next: the device, then peers that go, peers that
/// come, peers that stay, each in the order of keys, then the prefixes.
pub fn changes(old: &Device, new: &Device) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut note = |differs: bool, change: Change| {
        if differs {
            changes.push(change);
        }
    };
    note(old.private_key != new.private_key, Change::PrivateKey);
    note(old.listen_port != new.listen_port, Change::ListenPort);
    note(old.fwmark != new.fwmark, Change::Fwmark);
    for (key, peer) in &old.peers {
        note(!has_same_peer(new, key, peer), Change::PeerRemoved(*key));
    }
    for (key, peer) in &new.peers {
        note(!has_same_peer(old, key, peer), Change::PeerAdded(*key));
    }
    for (key, after) in &new.peers {
        let Some(before) = old.peers.get(key) else {
            continue;
        };
        if Arc::ptr_eq(before, after) || before.incarnation != after.incarnation {
            continue;
        }
        note(
            before.preshared_key != after.preshared_key,
            Change::PresharedKey(*key),
        );
        note(
            before.endpoint_revision != after.endpoint_revision,
            Change::Endpoint(*key),
        );
        note(before.keepalive != after.keepalive, Change::Keepalive(*key));
    }
    let moved = !Arc::ptr_eq(&old.owners, &new.owners) && old.owners != new.owners;
    note(
        moved
            || new
                .peers
                .iter()
                .any(|(key, peer)| is_new_owner(old, key, peer)),
        Change::Routes,
    );
    changes
}

fn has_same_peer(device: &Device, key: &PublicKey, peer: &Peer) -> bool {
    device
        .peers
        .get(key)
        .is_some_and(|found| found.incarnation == peer.incarnation)
}

/// Prefixes of a peer made anew lead to another peer, even if the key is the one they led to before.
fn is_new_owner(old: &Device, key: &PublicKey, peer: &Peer) -> bool {
    !peer.allowed_ips.is_empty() && !has_same_peer(old, key, peer)
}

impl Prefix {
    /// Clears the host bits. `None` if the length is beyond the family's.
    pub fn new(addr: IpAddr, len: u8) -> Option<Prefix> {
        let addr = match addr {
            IpAddr::V4(addr) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() & mask))
            }
            IpAddr::V6(addr) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & mask))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Prefix { addr, len })
    }

    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    #[expect(
        clippy::len_without_is_empty,
        reason = "the length of a prefix in bits, not a collection's"
    )]
    pub fn len(&self) -> u8 {
        self.len
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

#[cfg(test)]
mod tests;
