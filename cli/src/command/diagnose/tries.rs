//! What this kernel can do, found by doing it in a network namespace that ends with this process.
//!
//! The parent starts the program again for this, so that nothing can be left behind and a kernel
//! that never answers holds up nobody.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use gateway::io::tun::{Tun, TunError};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use node::netlink::{message, messages, put_attribute, u32_at};
use serde::{Deserialize, Serialize};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const ERROR: u16 = 2;
const NESTED: u16 = 0x8000;
const NEWLINK: u16 = 16;
const NEWRULE: u16 = 32;
const NEWNEXTHOP: u16 = 104;
const NFT: u16 = 10 << 8;
const NFT_BEGIN: u16 = 16;
const NFT_END: u16 = 17;
const V4: u8 = 2;
const V6: u8 = 10;
const LOOPBACK: u32 = 1;

/// What came of one try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tried {
    pub(super) what: Feature,
    /// Why not.
    pub(super) error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Feature {
    /// Without it nothing can be tried.
    Namespace,
    /// With headers for superpackets and several queues.
    Tun,
    UdpOffload,
    Vxlan,
    RulesV4,
    RulesV6,
    Nexthop,
    Resilient,
    Nftables,
}

/// In the child.
pub(super) fn try_all(as_user: bool) -> Vec<Tried> {
    let tried = |what, result: io::Result<()>| Tried {
        what,
        error: result.err().map(|error| error.to_string()),
    };
    let apart = if as_user {
        CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET
    } else {
        CloneFlags::CLONE_NEWNET
    };
    let inside = tried(Feature::Namespace, unshare(apart).map_err(io::Error::from));
    if inside.error.is_some() {
        return vec![inside];
    }
    let up = route(NEWLINK, &link(LOOPBACK, 1));
    let mut all = vec![inside];
    all.extend(tun());
    let nexthop = up.and_then(|()| route(NEWNEXTHOP, &nexthop()));
    all.extend([
        tried(Feature::Vxlan, route(NEWLINK, &vxlan())),
        tried(Feature::RulesV4, route(NEWRULE, &rule(V4))),
        tried(Feature::RulesV6, route(NEWRULE, &rule(V6))),
        tried(Feature::Nexthop, nexthop),
        tried(Feature::Resilient, route(NEWNEXTHOP, &resilient_group())),
        tried(Feature::Nftables, nftables()),
    ]);
    all
}

fn tun() -> Vec<Tried> {
    let tried = |what, error| Tried { what, error };
    match Tun::create("cwtry0", 2, &[]) {
        Ok(tun) if tun.queues.len() < 2 => {
            let why = "it has one queue only".to_owned();
            vec![tried(Feature::Tun, Some(why))]
        }
        Ok(tun) => {
            let why = (!tun.uso).then(|| "the kernel has none (before Linux 6.2)".to_owned());
            vec![tried(Feature::Tun, None), tried(Feature::UdpOffload, why)]
        }
        Err(TunError::Device(error)) => {
            vec![tried(Feature::Tun, Some(format!("/dev/net/tun: {error}")))]
        }
        Err(error) => vec![tried(Feature::Tun, Some(error.to_string()))],
    }
}

/// Header of an interface; with `flags` it comes up.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, flags, flags] {
        body.extend(word.to_ne_bytes());
    }
    body
}

fn vxlan() -> Vec<u8> {
    let mut data = Vec::new();
    put_attribute(&mut data, 1, &7803_u32.to_ne_bytes());
    put_attribute(&mut data, 7, &[0]);
    put_attribute(&mut data, 15, &7803_u16.to_be_bytes());
    let mut info = Vec::new();
    put_attribute(&mut info, 1, b"vxlan");
    put_attribute(&mut info, 2 | NESTED, &data);
    let mut body = link(0, 0);
    put_attribute(&mut body, 3, b"cwtry-vx\0");
    put_attribute(&mut body, 18 | NESTED, &info);
    body
}

/// By mark, to a table of a number that needs more than a byte.
fn rule(family: u8) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0, 0, 0, 0, 1];
    body.extend(0_u32.to_ne_bytes());
    for (kind, value) in [(6, 100_u32), (10, 0x1000), (16, 0x1000), (15, 7100)] {
        put_attribute(&mut body, kind, &value.to_ne_bytes());
    }
    body
}

fn nexthop() -> Vec<u8> {
    let mut body = vec![V4, 0, 199, 0, 0, 0, 0, 0];
    put_attribute(&mut body, 1, &1_u32.to_ne_bytes());
    put_attribute(&mut body, 5, &LOOPBACK.to_ne_bytes());
    body
}

fn resilient_group() -> Vec<u8> {
    let mut member = 1_u32.to_ne_bytes().to_vec();
    member.extend([0; 4]);
    let mut buckets = Vec::new();
    put_attribute(&mut buckets, 1, &256_u16.to_ne_bytes());
    let mut body = vec![0, 0, 199, 0, 0, 0, 0, 0];
    put_attribute(&mut body, 1, &2_u32.to_ne_bytes());
    put_attribute(&mut body, 2, &member);
    put_attribute(&mut body, 3, &1_u16.to_ne_bytes());
    put_attribute(&mut body, 12 | NESTED, &buckets);
    body
}

/// A table with a chain that translates, in one transaction.
fn nftables() -> io::Result<()> {
    let name = b"causeway-try\0";
    let head = |family: u8, resource: u16| {
        let [high, low] = resource.to_be_bytes();
        vec![family, 0, high, low]
    };
    let mut table = head(1, 0);
    put_attribute(&mut table, 1, name);
    let mut hook = Vec::new();
    put_attribute(&mut hook, 1, &4_u32.to_be_bytes());
    put_attribute(&mut hook, 2, &99_u32.to_be_bytes());
    let mut chain = head(1, 0);
    put_attribute(&mut chain, 1, name);
    put_attribute(&mut chain, 3, b"kept\0");
    put_attribute(&mut chain, 4 | NESTED, &hook);
    put_attribute(&mut chain, 7, b"nat\0");
    let parts = [
        (NFT_BEGIN, REQUEST, head(0, NFT >> 8)),
        (NFT, REQUEST | ACK | CREATE, table),
        (NFT | 3, REQUEST | ACK | CREATE, chain),
        (NFT_END, REQUEST, head(0, NFT >> 8)),
    ];
    let parts = parts.iter().enumerate();
    let batch: Vec<u8> = parts
        .flat_map(|(number, (kind, flags, body))| request(*kind, *flags, number as u32, body))
        .collect();
    talk(SockProtocol::NetlinkNetFilter, &batch, 2)
}

fn route(kind: u16, body: &[u8]) -> io::Result<()> {
    let bytes = request(kind, REQUEST | ACK | CREATE, 1, body);
    talk(SockProtocol::NetlinkRoute, &bytes, 1)
}

fn request(kind: u16, flags: u16, number: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = message(kind, body);
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&number.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Until so many answers have come, or one that is a refusal.
fn talk(protocol: SockProtocol, bytes: &[u8], answers: usize) -> io::Result<()> {
    let fd: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    send(fd.as_raw_fd(), bytes, MsgFlags::empty())?;
    let mut buffer = vec![0; 16 << 10];
    let mut got = 0;
    while got < answers {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..len]) {
            let code = u32_at(body, 0).map_or(0, u32::cast_signed);
            if kind == ERROR && code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            got += 1;
        }
    }
    Ok(())
}
