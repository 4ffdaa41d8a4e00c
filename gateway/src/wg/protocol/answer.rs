//! The answers: what a device is and does, as text.

use std::fmt::{Display, Write as _};
use std::net::SocketAddr;

use zeroize::Zeroizing;

use crate::drops::DropReason;
use crate::keys::{self, KEY_LENGTH, PublicKey};
use crate::wg::device::{ConfigError, Device, Peer};
use crate::wg::protocol::line::decimal;

/// What the packet path knows of a peer and the configuration does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Where the peer is now; `None` if it never roamed from the configured one.
    pub endpoint: Option<SocketAddr>,
    /// Seconds and nanoseconds since the Unix epoch.
    pub last_handshake: Option<(u64, u32)>,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
}

/// The answer to a get. `running_port` is the one the socket has, also if any was asked for.
pub fn print_get(
    device: &Device,
    running_port: u16,
    stats: impl Fn(&PublicKey) -> PeerStats,
) -> Zeroizing<String> {
    // Room for everything at once: a growing string would leave copies of the keys behind.
    let routes: usize = device
        .peers
        .values()
        .map(|peer| peer.allowed_ips.len())
        .sum();
    let mut text = Zeroizing::new(String::with_capacity(
        256 + 640 * device.peers.len() + 64 * routes,
    ));
    if let Some(key) = &device.private_key {
        push_key(&mut text, "private_key", key.expose());
    }
    if running_port != 0 {
        push_line(&mut text, "listen_port", running_port);
    }
    if device.fwmark != 0 {
        push_line(&mut text, "fwmark", device.fwmark);
    }
    for (key, peer) in &device.peers {
        push_key(&mut text, "public_key", &key.0);
        push_peer(&mut text, peer, &stats(key));
    }
    text.push_str("errno=0\n\n");
    text
}

fn push_peer(text: &mut String, peer: &Peer, stats: &PeerStats) {
    if let Some(key) = &peer.preshared_key {
        push_key(text, "preshared_key", key.expose());
    }
    push_line(text, "protocol_version", 1);
    if let Some(endpoint) = stats.endpoint.or(peer.endpoint) {
        push_line(text, "endpoint", endpoint);
    }
    let (seconds, nanoseconds) = stats.last_handshake.unwrap_or_default();
    push_line(text, "last_handshake_time_sec", seconds);
    push_line(text, "last_handshake_time_nsec", nanoseconds);
    push_line(text, "tx_bytes", stats.tx_bytes);
    push_line(text, "rx_bytes", stats.rx_bytes);
    push_line(text, "persistent_keepalive_interval", peer.keepalive);
    for prefix in &peer.allowed_ips {
        push_line(text, "allowed_ip", prefix);
    }
}

fn push_key(text: &mut String, key: &str, value: &[u8; KEY_LENGTH]) {
    text.push_str(key);
    text.push('=');
    keys::push_hex(text, value);
    text.push('\n');
}

fn push_line(text: &mut String, key: &str, value: impl Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{key}={value}");
}

/// The answer to a set. `wg` turns the sign round, so that a failure has to be negative here.
pub fn print_set(refused: Option<&ConfigError>) -> Zeroizing<String> {
    let errno = refused.map_or(0, |error| -error.errno);
    Zeroizing::new(format!("errno={errno}\n\n"))
}

/// The answer to a get that failed: here `wg` takes nothing but a positive number.
pub fn print_get_error(error: &ConfigError) -> Zeroizing<String> {
    Zeroizing::new(format!("errno={}\n\n", error.errno))
}

/// The answer to `get_drops=1`: one line per reason, also for those that never occurred.
pub fn print_drops(count: impl Fn(DropReason) -> u64) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for reason in DropReason::ALL {
        push_line(&mut text, reason.label(), count(*reason));
    }
    text.push_str("errno=0\n\n");
    text
}

/// Reads what `print_drops` wrote; `None` if it is not that, or the errno is not 0.
pub fn parse_drops(answer: &str) -> Option<Vec<(&str, u64)>> {
    let mut drops = Vec::new();
    for line in answer.strip_suffix("errno=0\n\n")?.lines() {
        let (label, count) = line.split_once('=')?;
        let is_label = label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if !is_label || label == "errno" {
            return None;
        }
        drops.push((label, decimal(count)?));
    }
    Some(drops)
}
