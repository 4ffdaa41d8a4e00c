//! One line of a request: what it says, and whether it may say so here.

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use zeroize::Zeroizing;

use crate::keys::{self, KEY_LENGTH, PresharedKey, PrivateKey, PublicKey};
use crate::wg::device::{AllowedIp, ConfigError, PeerRequest, Prefix, SetRequest};
use crate::wg::protocol::ScopeIndex;

/// A request as far as it is read.
#[derive(Debug)]
pub(super) enum Draft {
    Empty,
    Get,
    Drops,
    Set(Box<SetRequest>),
    Refused(ConfigError),
}

/// What is wrong with one line, before it is known which line it is.
pub(super) struct Fault {
    pub(super) errno: i32,
    pub(super) what: String,
}

impl Fault {
    pub(super) fn new(errno: i32, what: impl Into<String>) -> Fault {
        Fault {
            errno,
            what: what.into(),
        }
    }

    fn value(key: &str, wanted: &str) -> Fault {
        Fault::new(libc::EINVAL, format!("the value of {key} is not {wanted}"))
    }
}

/// Takes one line into the draft.
pub(super) fn read(
    draft: &mut Draft,
    key: &str,
    value: &str,
    scope_index: ScopeIndex,
) -> Result<(), Fault> {
    match draft {
        Draft::Empty => {
            *draft = read_operation(key, value)?;
            Ok(())
        }
        Draft::Set(request) => match request.peers.last_mut() {
            _ if key == "public_key" => {
                request
                    .peers
                    .push(PeerRequest::new(read_public_key(value)?));
                Ok(())
            }
            Some(peer) => read_peer_line(peer, key, value, scope_index),
            None => read_device_line(request, key, value),
        },
        Draft::Get | Draft::Drops => Err(Fault::new(
            libc::EINVAL,
            format!("{} after a get; end a get with an empty line", quote(key)),
        )),
        Draft::Refused(_) => Ok(()),
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
pub(super) fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
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
