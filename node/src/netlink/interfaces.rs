//! The interfaces of this host with their addresses, and by which of them a router is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use ip_network::IpNetwork;
use nix::sys::socket::{MsgFlags, SockFlag, recv, send};

use super::{attribute, message, messages, route_socket, u32_at};

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
/// Not (or not yet) to be used.
const UNUSABLE: u32 = libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED;
/// Not for long, or beside another of the same network: the kernel has one bit for temporary ones of
/// IPv6 and secondary ones of IPv4.
const UNSTEADY: u32 = libc::IFA_F_DEPRECATED | libc::IFA_F_TEMPORARY;
/// Nothing that is asked for here is as long; it bounds what is read if the kernel never ends.
const MAX_READS: usize = 4096;

/// One that is up, with the addresses of it that last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// As `ip -details link` shows it; hardware has none.
    pub kind: Option<String>,
    /// Whether a router is reached by it.
    pub has_router: bool,
    /// Whether a default route leaves by it.
    pub has_default: bool,
    pub addresses: Vec<IpAddr>,
    /// How many bits of each the neighbours on the same segment share; of those that do not last
    /// as well.
    pub lengths: BTreeMap<IpAddr, u8>,
}

impl Interface {
    /// Whether one who has an address of ours finds this one without a router.
    pub fn is_near(&self, own: IpAddr, other: IpAddr) -> bool {
        let length = self.lengths.get(&own);
        let network = length.and_then(|length| IpNetwork::new_truncate(own, *length).ok());
        network.is_some_and(|network| network.contains(other))
    }
}

/// All interfaces that are up, by index.
pub fn interfaces() -> io::Result<BTreeMap<u32, Interface>> {
    let mut found = BTreeMap::new();
    dump(libc::RTM_GETLINK, 16, |body| {
        if let Some((index, interface)) = link(body) {
            found.insert(index, interface);
        }
    })?;
    dump(libc::RTM_GETADDR, 8, |body| {
        if let Some(found_address) = address(body)
            && let Some(interface) = found.get_mut(&found_address.index)
        {
            let Address { ip, length, .. } = found_address;
            interface.lengths.insert(ip, length);
            if found_address.lasts {
                interface.addresses.push(ip);
            }
        }
    })?;
    let (mut routers, mut defaults) = (BTreeSet::new(), BTreeSet::new());
    dump(libc::RTM_GETROUTE, 12, |body| {
        if let Some((index, is_default)) = router(body) {
            routers.insert(index);
            if is_default {
                defaults.insert(index);
            }
        }
    })?;
    for (index, interface) in &mut found {
        interface.has_router = routers.contains(index);
        interface.has_default = defaults.contains(index);
        interface.addresses.sort_unstable();
    }
    Ok(found)
}

/// Asks for all of a kind with an empty head of this length.
pub fn dump(kind: u16, head: usize, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let fd = route_socket(SockFlag::empty(), 0)?;
    let mut asked = message(kind, &vec![0; head]);
    let flags = libc::NLM_F_REQUEST as u16 | libc::NLM_F_DUMP as u16;
    asked[6..8].copy_from_slice(&flags.to_ne_bytes());
    send(fd.as_raw_fd(), &asked, MsgFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..MAX_READS {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..len]) {
            if kind == libc::NLMSG_DONE as u16 {
                return Ok(());
            }
            if kind == libc::NLMSG_ERROR as u16 {
                let code = u32_at(body, 0).map_or(0, u32::cast_signed);
                return Err(io::Error::from_raw_os_error(-code));
            }
            each(body);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn link(body: &[u8]) -> Option<(u32, Interface)> {
    let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
    if flags & libc::IFF_UP as u32 == 0 {
        return None;
    }
    let attributes = body.get(16..)?;
    let kind =
        attribute(attributes, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_KIND));
    let interface = Interface {
        name: text(attribute(attributes, IFLA_IFNAME)?),
        kind: kind.map(text),
        ..Interface::default()
    };
    Some((index, interface))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

#[derive(Debug, PartialEq, Eq)]
struct Address {
    index: u32,
    ip: IpAddr,
    length: u8,
    lasts: bool,
}

fn address(body: &[u8]) -> Option<Address> {
    let attributes = body.get(8..)?;
    let short = u32::from(*body.get(2)?);
    let flags = attribute(attributes, IFA_FLAGS).and_then(|flags| u32_at(flags, 0));
    let flags = flags.unwrap_or(short);
    if flags & UNUSABLE != 0 {
        return None;
    }
    // On a point-to-point interface the other end's is the first, ours the second.
    let bytes = attribute(attributes, IFA_LOCAL).or(attribute(attributes, IFA_ADDRESS))?;
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(Address {
        index: u32_at(body, 4)?,
        ip,
        length: *body.get(1)?,
        lasts: flags & UNSTEADY == 0,
    })
}

/// The interface of a route by a router, and whether it leads everywhere.
fn router(body: &[u8]) -> Option<(u32, bool)> {
    let attributes = body.get(12..)?;
    attribute(attributes, RTA_GATEWAY).or(attribute(attributes, RTA_VIA))?;
    let index = attribute(attributes, RTA_OIF).and_then(|index| u32_at(index, 0))?;
    Some((index, *body.get(1)? == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_with_its_address_and_no_router() {
        let found = interfaces().unwrap();
        let loopback = &found[&1];
        assert_eq!(loopback.name, "lo");
        assert!(!loopback.has_router);
        let own = [127, 0, 0, 1].into();
        assert!(loopback.addresses.contains(&own));
        assert!(loopback.is_near(own, [127, 9, 9, 9].into()));
        assert!(!loopback.is_near(own, [10, 0, 0, 1].into()));
    }

    #[test]
    fn cut_off_messages_tell_nothing() {
        for length in 0..16 {
            let body = vec![0xff; length];
            assert_eq!(link(&body), None);
            assert_eq!(address(&body), None);
            assert_eq!(router(&body), None);
        }
    }
}
