//! What makes a link, and what others see of it.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use zeroize::Zeroize as _;

use crate::io::udp::Local;

/// Where a peer is, and the local address it knows us by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub remote: SocketAddr,
    pub local: Option<Local>,
}

/// What others may read of a link while its thread works.
#[derive(Debug, Default)]
pub struct LinkShared {
    pub tx_bytes: AtomicU64,
    pub rx_bytes: AtomicU64,
    /// Nanoseconds since 1970; 0 before the first handshake.
    pub last_handshake: AtomicU64,
    /// In a mesh: bytes of packets, padding included and control's not.
    pub tx_data: AtomicU64,
    /// In a mesh: bytes of packets, control's not.
    pub rx_data: AtomicU64,
    /// In a mesh: datagrams that were opened, whatever was in them.
    pub rx_any: AtomicU64,
    /// In a mesh: packets above 1200 bytes that were sealed.
    pub large: AtomicU64,
    /// In a mesh: when something was opened last; nanoseconds since boot.
    pub last_opened: AtomicU64,
    endpoint: Mutex<Option<Endpoint>>,
}

impl LinkShared {
    pub fn endpoint(&self) -> Option<Endpoint> {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_endpoint(&self, endpoint: Option<Endpoint>) {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = endpoint;
    }
}

/// Who decides where a link's peer is and when a handshake is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// The protocol: what is opened moves the endpoint, what is to be sent begins a handshake.
    WireGuard,
    /// Control.
    Mesh,
}

/// All that a thread needs to make a link.
pub struct LinkSpec {
    pub shared: Arc<LinkShared>,
    pub private_key: x25519::StaticSecret,
    pub peer_key: x25519::PublicKey,
    pub preshared_key: Option<[u8; 32]>,
    pub limiter: Arc<RateLimiter>,
    pub remote: Option<SocketAddr>,
    /// Seconds; none in a mesh.
    pub keepalive: u16,
    pub rules: Rules,
}

impl Drop for LinkSpec {
    fn drop(&mut self) {
        self.preshared_key.zeroize();
    }
}
