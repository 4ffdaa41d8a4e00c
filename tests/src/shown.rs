//! What `wg show` says of one peer, parsed.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::wireguard::Device;

/// Bytes with one peer, as the device counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    pub received: u64,
    pub sent: u64,
}

/// Bytes from and to the peer with the key `public`.
pub fn transfer(device: &Device, public: &str) -> Result<Bytes> {
    let fields = fields(device, "transfer", public)?;
    let number = |at: usize| -> Result<u64> {
        let field = fields.get(at).context("`wg show transfer` is short")?;
        Ok(field.parse()?)
    };
    Ok(Bytes {
        received: number(0)?,
        sent: number(1)?,
    })
}

/// Seconds since the epoch; 0 before the first handshake.
pub fn latest_handshake(device: &Device, public: &str) -> Result<u64> {
    let fields = fields(device, "latest-handshakes", public)?;
    let field = fields.first().context("`wg show` is short")?;
    Ok(field.parse()?)
}

/// Where the device sends to; `None` when it does not know yet.
pub fn endpoint(device: &Device, public: &str) -> Result<Option<SocketAddr>> {
    let fields = fields(device, "endpoints", public)?;
    let field = fields.first().context("`wg show endpoints` is short")?;
    if field == "(none)" {
        return Ok(None);
    }
    Ok(Some(field.parse()?))
}

/// The allowed-ips of a peer, sorted.
pub fn allowed_ips(device: &Device, public: &str) -> Result<Vec<String>> {
    let mut prefixes = fields(device, "allowed-ips", public)?;
    prefixes.sort();
    Ok(prefixes)
}

/// The public keys of all peers, sorted.
pub fn peers(device: &Device) -> Result<Vec<String>> {
    let mut keys: Vec<String> = device.show("peers")?.lines().map(str::to_owned).collect();
    keys.sort();
    Ok(keys)
}

fn fields(device: &Device, what: &str, public: &str) -> Result<Vec<String>> {
    let printed = device.show(what)?;
    let line = printed
        .lines()
        .find(|line| line.starts_with(public))
        .with_context(|| format!("{} has no peer {public}", device.interface()))?;
    Ok(line[public.len()..]
        .split_whitespace()
        .map(str::to_owned)
        .collect())
}

/// A key as the configuration socket wants it.
pub fn hex(key: &str) -> Result<String> {
    Ok(bytes(key)?
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// The 32 bytes of a key that `wg` printed.
pub fn bytes(key: &str) -> Result<[u8; 32]> {
    let mut bits = 0_u32;
    let mut width = 0;
    let mut bytes = Vec::with_capacity(33);
    for letter in key.trim().trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            other => anyhow::bail!("{other:#x} is no letter of base64"),
        };
        bits = (bits << 6) | u32::from(value);
        width += 6;
        if width >= 8 {
            width -= 8;
            bytes.push((bits >> width) as u8);
        }
    }
    bytes
        .try_into()
        .map_err(|bytes: Vec<u8>| anyhow::anyhow!("a key of {} bytes", bytes.len()))
}
