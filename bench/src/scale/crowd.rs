//! The idle peers: keys, configuration, and sessions made by boringtun within this process.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ::tests::wireguard::Device;
use anyhow::{Context as _, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::cases::Case;
use crate::topology::Topology;

/// A handshake limiter is there to slow down crowds that come at once, and this one need not.
const PAUSE: Duration = Duration::from_millis(5);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
const ATTEMPTS: u32 = 3;

/// Keys of peers that could be; a case uses the first so many of them.
pub(super) struct Crowd {
    secrets: Vec<StaticSecret>,
}

impl Crowd {
    pub(super) fn new(size: u16) -> Result<Crowd> {
        let mut random = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
        let mut secrets = Vec::new();
        for _ in 0..size {
            let mut bytes = [0; 32];
            random
                .read_exact(&mut bytes)
                .context("cannot read /dev/urandom")?;
            secrets.push(StaticSecret::from(bytes));
        }
        Ok(Crowd { secrets })
    }

    /// Adds the idle peers of `case` and its allowed-ips to `device`, where one peer already is.
    pub(super) fn configure(&self, device: &Device, case: Case) -> Result<()> {
        let path = device.socket();
        let mut socket = UnixStream::connect(&path)
            .with_context(|| format!("cannot configure through {}", path.display()))?;
        socket.write_all(self.configuration(device, case)?.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(&socket).read_line(&mut answer)?;
        if answer.trim() != "errno=0" {
            bail!(
                "the configuration of {} was refused: {}",
                case.name(),
                answer.trim()
            );
        }
        Ok(())
    }

    fn configuration(&self, device: &Device, case: Case) -> Result<String> {
        let busy = device.show("peers")?;
        let mut text = "set=1\n".to_owned();
        for peer in 0..case.peers {
            // Peer 0 is the busy one.
            let key = match peer {
                0 => decode_base64(busy.trim()).context("wg shows no peer")?,
                number => PublicKey::from(self.secret(number)).to_bytes(),
            };
            let _ = writeln!(text, "public_key={}", hex(&key));
            let own = (0..case.allowed_ips).filter(|&number| case.owner(number) == peer);
            for number in own {
                let _ = writeln!(text, "allowed_ip={}/32", allowed_ip(number));
            }
        }
        Ok(text + "\n")
    }

    fn secret(&self, peer: u16) -> &StaticSecret {
        &self.secrets[usize::from(peer)]
    }

    /// Makes a session for each idle peer; returns how many came about.
    pub(super) fn shake_hands(
        &self,
        topology: &Topology,
        device: &Device,
        case: Case,
    ) -> Result<usize> {
        let key = decode_base64(&device.keys().public).context("a public key is 32 bytes")?;
        let gateway = topology.near_endpoint();
        topology.far.gateway.within(|| {
            let outcomes = (1..case.peers).map(|peer| {
                std::thread::sleep(PAUSE);
                let secret = self.secret(peer).clone();
                let mut tunnel = Tunn::new(secret, key.into(), None, None, peer.into(), None);
                shake(&mut tunnel, crowd_address(peer), gateway)
            });
            outcomes.sum::<Result<usize>>()
        })?
    }
}

/// One handshake and the keepalive that confirms it; 1 if it succeeded.
fn shake(tunnel: &mut Tunn, from: Ipv4Addr, gateway: SocketAddr) -> Result<usize> {
    let socket = UdpSocket::bind((from, 0)).with_context(|| format!("cannot send from {from}"))?;
    socket.connect(gateway)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    let (mut out, mut answer) = ([0; 256], [0; 256]);
    for _ in 0..ATTEMPTS {
        if let TunnResult::WriteToNetwork(datagram) =
            tunnel.format_handshake_initiation(&mut out, true)
        {
            socket.send(datagram)?;
        }
        let Ok(length) = socket.recv(&mut answer) else {
            continue;
        };
        if let TunnResult::WriteToNetwork(keepalive) =
            tunnel.decapsulate(None, &answer[..length], &mut out)
        {
            socket.send(keepalive)?;
            return Ok(1);
        }
    }
    Ok(0)
}

/// Every idle peer has an address of its own, as peers of one gateway have in life.
fn crowd_address(peer: u16) -> Ipv4Addr {
    let [high, low] = peer.to_be_bytes();
    Ipv4Addr::new(10, 99, high, low)
}

/// Spread over a /9 that nothing else here uses.
fn allowed_ip(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits((0x0a80_0000) + u32::from(number) * 17)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A key as `wg` prints it.
fn decode_base64(text: &str) -> Option<[u8; 32]> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|&known| known == letter)?;
        bits = (bits << 6 | u32::try_from(value).ok()?) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_wg_prints_them() {
        let text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let counting: Vec<u8> = (0..32).collect();
        assert_eq!(decode_base64(text).unwrap().to_vec(), counting);
        assert_eq!(decode_base64("AAEC"), None);
        assert_eq!(decode_base64("not base64!"), None);
    }

    #[test]
    fn allowed_ips_are_all_different_and_outside_the_sites() {
        let all: std::collections::BTreeSet<_> = (0..10_000).map(allowed_ip).collect();
        assert_eq!(all.len(), 10_000);
        assert!(all.iter().all(|address| address.octets()[1] >= 128));
    }

    #[test]
    fn every_allowed_ip_has_one_owner_among_the_peers() {
        let case = super::super::cases::MOST;
        let of_last = (0..case.allowed_ips).filter(|&number| case.owner(number) == 999);
        assert_eq!(of_last.count(), 10);
    }
}
