//! The text that `wg` speaks over the configuration socket: requests in, answers out. Pure.
//!
//! A request is lines of `key=value`, ended by an empty line; `get=1` or `set=1` comes first, and
//! `get_drops=1` is our own. A request with one bad line is refused as a whole, and the rest of it is
//! skipped up to its empty line, so that the next one is understood. Reading deadlines are the socket's.

use std::fmt::{Display, Write as _};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use zeroize::{Zeroize, Zeroizing};

use crate::drops::DropReason;
use crate::wg::device::{AllowedIp, ConfigError, Device, Peer, PeerRequest, Prefix, SetRequest};
use crate::wg::keys::{self, KEY_LENGTH, PresharedKey, PrivateKey, PublicKey};

/// Bytes before the line feed. The longest line with a meaning has under 100.
pub const MAX_LINE: usize = 4096;
/// Bytes of a whole request: some 2 million allowed-ips.
pub const MAX_REQUEST: usize = 64 << 20;

/// The number of the interface of this name, for link-local endpoints (`fe80::1%eth0`).
pub type ScopeIndex = fn(&str) -> Option<u32>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    Set(SetRequest),
    /// The drop counters.
    Drops,
}

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

/// Collects bytes until they make a request.
#[derive(Debug)]
pub struct RequestReader {
    scope_index: ScopeIndex,
    /// The start of a line whose end has not come. Never grows, so that no key is left behind in
    /// memory given back.
    line: Zeroizing<Vec<u8>>,
    /// Bytes and lines of the request so far.
    length: usize,
    line_number: usize,
    draft: Draft,
}

#[derive(Debug)]
enum Draft {
    Empty,
    Get,
    Drops,
    Set(Box<SetRequest>),
    Refused(ConfigError),
}

/// What is wrong with one line, before it is known which line it is.
struct Fault {
    errno: i32,
    what: String,
}

/// Reads exactly one request, its empty line included.
pub fn parse_request(bytes: &[u8], scope_index: ScopeIndex) -> Result<Request, ConfigError> {
    let mut reader = RequestReader::new(scope_index);
    match reader.handle_bytes(bytes) {
        (_, Some(request)) => request,
        (_, None) => match reader.handle_end() {
            Err(error) => Err(error),
            Ok(()) => Err(ConfigError::new(
                libc::EPROTO,
                "the request is empty; begin it with get=1 or set=1",
            )),
        },
    }
}

impl RequestReader {
    pub fn new(scope_index: ScopeIndex) -> RequestReader {
        RequestReader {
            scope_index,
            line: Zeroizing::new(Vec::with_capacity(MAX_LINE)),
            length: 0,
            line_number: 1,
            draft: Draft::Empty,
        }
    }

    /// Takes bytes up to the end of one request at most. Says how many it took, and the request if
    /// it ended in them; call again with the rest.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> (usize, Option<Result<Request, ConfigError>>) {
        let mut taken = 0;
        while let Some(end) = bytes[taken..].iter().position(|byte| *byte == b'\n') {
            let piece = &bytes[taken..taken + end];
            taken += end + 1;
            self.count(end + 1);
            if self.line.is_empty() && piece.is_empty() {
                return (taken, Some(self.finish()));
            }
            self.handle_line(piece);
        }
        self.count(bytes.len() - taken);
        self.append(&bytes[taken..]);
        (bytes.len(), None)
    }

    /// The other side will say no more. An error if that cuts a request off.
    pub fn handle_end(&mut self) -> Result<(), ConfigError> {
        if self.is_idle() {
            return Ok(());
        }
        let line_number = self.line_number;
        self.reset();
        Err(ConfigError::new(
            libc::EPROTO,
            format!(
                "request cut off in line {line_number}, nothing was changed; end it with an empty line"
            ),
        ))
    }

    /// Between requests.
    pub fn is_idle(&self) -> bool {
        self.length == 0
    }

    fn reset(&mut self) -> Draft {
        self.forget_line();
        self.length = 0;
        self.line_number = 1;
        mem::replace(&mut self.draft, Draft::Empty)
    }

    fn count(&mut self, bytes: usize) {
        self.length = self.length.saturating_add(bytes);
        if self.length > MAX_REQUEST {
            self.refuse(Fault::new(
                libc::E2BIG,
                format!("the request is longer than {MAX_REQUEST} bytes; send it in parts"),
            ));
        }
    }

    /// Keeps the start of a line until its end comes.
    fn append(&mut self, piece: &[u8]) {
        if self.line.len() + piece.len() > MAX_LINE {
            self.refuse(Fault::new(
                libc::E2BIG,
                format!("longer than {MAX_LINE} bytes; no key needs that much"),
            ));
        }
        if !matches!(self.draft, Draft::Refused(_)) {
            self.line.extend_from_slice(piece);
        } else if self.line.is_empty() && !piece.is_empty() {
            // Of a request that is skipped, only whether the line is empty matters.
            self.line.push(b'?');
        }
    }

    fn handle_line(&mut self, end: &[u8]) {
        let outcome = if self.line.is_empty() && end.len() <= MAX_LINE {
            self.read_line(end)
        } else {
            self.append(end);
            let line = mem::take(&mut *self.line);
            let outcome = self.read_line(&line);
            *self.line = line;
            outcome
        };
        if let Err(fault) = outcome {
            self.refuse(fault);
        }
        self.forget_line();
        self.line_number += 1;
    }

    /// Wipes what was used and no more: the whole buffer once a line would take most of the time.
    fn forget_line(&mut self) {
        self.line.as_mut_slice().zeroize();
        self.line.clear();
    }

    /// Only the first fault is kept; what was read before it is wiped.
    fn refuse(&mut self, fault: Fault) {
        if !matches!(self.draft, Draft::Refused(_)) {
            let what = format!("line {} of the request: {}", self.line_number, fault.what);
            self.draft = Draft::Refused(ConfigError::new(fault.errno, what));
        }
    }

    fn read_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        if matches!(self.draft, Draft::Refused(_)) {
            return Ok(());
        }
        let text = str::from_utf8(line)
            .map_err(|_| Fault::new(libc::EPROTO, "not UTF-8; the protocol is plain ASCII"))?;
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| Fault::new(libc::EPROTO, "no `=`; write key=value"))?;
        match &mut self.draft {
            Draft::Empty => {
                self.draft = read_operation(key, value)?;
                Ok(())
            }
            Draft::Set(request) => match request.peers.last_mut() {
                _ if key == "public_key" => {
                    request
                        .peers
                        .push(PeerRequest::new(read_public_key(value)?));
                    Ok(())
                }
                Some(peer) => read_peer_line(peer, key, value, self.scope_index),
                None => read_device_line(request, key, value),
            },
            Draft::Get | Draft::Drops => Err(Fault::new(
                libc::EINVAL,
                format!("{} after a get; end a get with an empty line", quote(key)),
            )),
            Draft::Refused(_) => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<Request, ConfigError> {
        match self.reset() {
            Draft::Empty => Err(ConfigError::new(
                libc::EPROTO,
                "a request of one empty line; begin it with get=1 or set=1",
            )),
            Draft::Get => Ok(Request::Get),
            Draft::Drops => Ok(Request::Drops),
            Draft::Set(request) => Ok(Request::Set(*request)),
            Draft::Refused(error) => Err(error),
        }
    }
}

impl Fault {
    fn new(errno: i32, what: impl Into<String>) -> Fault {
        Fault {
            errno,
            what: what.into(),
        }
    }

    fn value(key: &str, wanted: &str) -> Fault {
        Fault::new(libc::EINVAL, format!("the value of {key} is not {wanted}"))
    }
}

/// What came from outside, short and printable enough for a log.
fn quote(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    format!("`{}`", start.escape_debug())
}

fn read_operation(key: &str, value: &str) -> Result<Draft, Fault> {
    let draft = match key {
        "get" => Draft::Get,
        "set" => Draft::Set(Box::default()),
        "get_drops" => Draft::Drops,
        _ => {
            let what = format!(
                "{} begins no request; begin it with get=1 or set=1",
                quote(key)
            );
            return Err(Fault::new(libc::EPROTO, what));
        }
    };
    if value != "1" {
        let what = format!("{key}={} is unknown; this speaks version 1", quote(value));
        return Err(Fault::new(libc::EPROTONOSUPPORT, what));
    }
    Ok(draft)
}

fn read_device_line(request: &mut SetRequest, key: &str, value: &str) -> Result<(), Fault> {
    match key {
        "private_key" => {
            let bytes = read_secret(key, value)?;
            set_once(&mut request.private_key, key, PrivateKey::new(*bytes))
        }
        "listen_port" => set_once(&mut request.listen_port, key, read_u16(key, value)?),
        "fwmark" => set_once(&mut request.fwmark, key, read_fwmark(value)?),
        "replace_peers" => set_flag(&mut request.replace_peers, key, value),
        "remove"
        | "update_only"
        | "preshared_key"
        | "endpoint"
        | "persistent_keepalive_interval"
        | "replace_allowed_ips"
        | "allowed_ip"
        | "-allowed_ip"
        | "protocol_version" => Err(Fault::new(
            libc::EINVAL,
            format!("{key} before any public_key; say first which peer it is for"),
        )),
        _ => Err(Fault::new(
            libc::EINVAL,
            format!(
                "unknown key {}; see `man wg` for what can be set",
                quote(key)
            ),
        )),
    }
}

fn read_peer_line(
    peer: &mut PeerRequest,
    key: &str,
    value: &str,
    scope_index: ScopeIndex,
) -> Result<(), Fault> {
    match key {
        "remove" => set_flag(&mut peer.remove, key, value),
        "update_only" => set_flag(&mut peer.update_only, key, value),
        "replace_allowed_ips" => set_flag(&mut peer.replace_allowed_ips, key, value),
        "preshared_key" => {
            let bytes = read_secret(key, value)?;
            set_once(&mut peer.preshared_key, key, PresharedKey::new(*bytes))
        }
        "endpoint" => set_once(&mut peer.endpoint, key, read_endpoint(value, scope_index)?),
        "persistent_keepalive_interval" => {
            set_once(&mut peer.keepalive, key, read_u16(key, value)?)
        }
        // Newer `wg` writes a removal as allowed_ip=-10.0.0.0/8.
        "allowed_ip" => {
            let step = match value.strip_prefix('-') {
                Some(rest) => AllowedIp::Remove(read_prefix(rest)?),
                None => AllowedIp::Add(read_prefix(value)?),
            };
            peer.allowed_ips.push(step);
            Ok(())
        }
        "-allowed_ip" => {
            peer.allowed_ips
                .push(AllowedIp::Remove(read_prefix(value)?));
            Ok(())
        }
        "protocol_version" if value == "1" => Ok(()),
        "protocol_version" => Err(Fault::new(
            libc::EPROTONOSUPPORT,
            format!(
                "protocol_version={} is unknown; this speaks version 1",
                quote(value)
            ),
        )),
        "private_key" | "listen_port" | "fwmark" | "replace_peers" => Err(Fault::new(
            libc::EINVAL,
            format!("{key} after a public_key; say it before the first peer"),
        )),
        _ => Err(Fault::new(
            libc::EINVAL,
            format!(
                "unknown key {}; see `man wg` for what can be set",
                quote(key)
            ),
        )),
    }
}

impl PeerRequest {
    fn new(public_key: PublicKey) -> PeerRequest {
        PeerRequest {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

fn set_once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), Fault> {
    match slot {
        Some(_) => Err(Fault::new(
            libc::EINVAL,
            format!("{key} a second time; say it once"),
        )),
        None => {
            *slot = Some(value);
            Ok(())
        }
    }
}

fn set_flag(flag: &mut bool, key: &str, value: &str) -> Result<(), Fault> {
    if value != "true" {
        return Err(Fault::value(
            key,
            "`true`; leave the line out for the contrary",
        ));
    }
    if mem::replace(flag, true) {
        return Err(Fault::new(
            libc::EINVAL,
            format!("{key} a second time; say it once"),
        ));
    }
    Ok(())
}

fn read_public_key(value: &str) -> Result<PublicKey, Fault> {
    PublicKey::from_hex(value).ok_or_else(|| Fault::value("public_key", "64 hexadecimal digits"))
}

fn read_secret(key: &str, value: &str) -> Result<Zeroizing<[u8; KEY_LENGTH]>, Fault> {
    keys::parse_hex(value)
        .map(Zeroizing::new)
        .ok_or_else(|| Fault::value(key, "64 hexadecimal digits"))
}

/// Digits only: `u16::from_str` would take a plus sign.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| text.parse().ok()).flatten()
}

fn read_u16(key: &str, value: &str) -> Result<u16, Fault> {
    decimal(value).ok_or_else(|| Fault::value(key, "a number from 0 to 65535"))
}

fn read_fwmark(value: &str) -> Result<u32, Fault> {
    let number = match value.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None => decimal(value),
    };
    number.ok_or_else(|| {
        Fault::value(
            "fwmark",
            "a number below 2^32, decimal or 0x and hexadecimal",
        )
    })
}

fn read_prefix(value: &str) -> Result<Prefix, Fault> {
    let prefix = value.split_once('/').and_then(|(addr, len)| {
        let addr: IpAddr = addr.parse().ok()?;
        Prefix::new(addr, decimal(len)?)
    });
    prefix.ok_or_else(|| {
        Fault::new(
            libc::EINVAL,
            format!(
                "allowed_ip {} is not ADDRESS/LENGTH; write for example 10.0.0.0/8",
                quote(value)
            ),
        )
    })
}

fn read_endpoint(value: &str, scope_index: ScopeIndex) -> Result<SocketAddr, Fault> {
    let endpoint = match value.strip_prefix('[') {
        Some(rest) => rest
            .split_once("]:")
            .and_then(|(host, port)| read_endpoint_v6(host, port, scope_index)),
        None => value.split_once(':').and_then(|(host, port)| {
            let addr: Ipv4Addr = host.parse().ok()?;
            Some(SocketAddr::from((addr, decimal(port)?)))
        }),
    };
    endpoint.ok_or_else(|| {
        Fault::new(
            libc::EINVAL,
            format!("endpoint {} is not ADDRESS:PORT; write for example 192.0.2.1:51820 or [2001:db8::1]:51820", quote(value)),
        )
    })
}

fn read_endpoint_v6(host: &str, port: &str, scope_index: ScopeIndex) -> Option<SocketAddr> {
    let (addr, scope) = match host.split_once('%') {
        Some((addr, scope)) => (addr, decimal(scope).or_else(|| scope_index(scope))?),
        None => (host, 0),
    };
    let addr: Ipv6Addr = addr.parse().ok()?;
    let port = decimal(port)?;
    // An IPv4 address in IPv6 clothes would never match the source of what that peer sends.
    Some(match addr.to_ipv4_mapped() {
        Some(addr) => SocketAddr::from((addr, port)),
        None => SocketAddr::V6(SocketAddrV6::new(addr, port, 0, scope)),
    })
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

#[cfg(test)]
mod tests;
