//! Which way this host's kernel would send a packet, asked of the kernel itself.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, recv, send};
use serde::{Deserialize, Serialize};

use super::interfaces::dump;
use super::{attribute, message, messages, put_attribute, route_socket, u32_at};

const HEAD: usize = 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
const RTAX_MTU: u16 = 2;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// The table that answered is told, and not the one that was asked for.
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;

/// A packet, as far as routes go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub source: Option<IpAddr>,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ports: Option<(u16, u16)>,
    /// The interface that it comes in by; none if it is this host's own.
    pub from: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// This host is its destination.
    Local,
    Out {
        device: u32,
        /// The next hop, if there is one.
        via: Option<IpAddr>,
        /// The address that this host would send from.
        source: Option<IpAddr>,
        table: u32,
        mtu: Option<u32>,
    },
    /// Nowhere: the kernel's own word for it.
    Nowhere(String),
}

/// An error is the kernel's refusal to answer.
pub fn look_up(question: &Question) -> io::Result<Way> {
    let fd = route_socket(SockFlag::empty(), 0)?;
    let asked = message(libc::RTM_GETROUTE, &body(question));
    send(fd.as_raw_fd(), &asked, MsgFlags::empty())?;
    let mut buffer = vec![0; 16 << 10];
    let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = messages(&buffer[..len]).next();
    let (kind, body) = answer.ok_or(io::ErrorKind::InvalidData)?;
    if kind == libc::NLMSG_ERROR as u16 {
        let code = u32_at(body, 0).map_or(0, u32::cast_signed);
        return refused(Errno::from_raw(-code));
    }
    way(body).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The priority of the first rule that leads to this table.
pub fn rule_of(table: u32, is_v4: bool) -> io::Result<Option<u32>> {
    let family = family(is_v4);
    let mut first: Option<u32> = None;
    dump(libc::RTM_GETRULE, HEAD, |body| {
        let Some(attributes) = body.get(HEAD..) else {
            return;
        };
        let short = body.get(4).copied().map(u32::from);
        let leads_to = number(attributes, FRA_TABLE).or(short);
        if body.first() == Some(&family) && leads_to == Some(table) {
            let priority = number(attributes, FRA_PRIORITY).unwrap_or(0);
            first = Some(first.map_or(priority, |first| first.min(priority)));
        }
    })?;
    Ok(first)
}

fn refused(errno: Errno) -> io::Result<Way> {
    let is_answer = matches!(
        errno,
        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL | Errno::EXDEV
    );
    if is_answer {
        Ok(Way::Nowhere(errno.desc().to_owned()))
    } else {
        Err(errno.into())
    }
}

const fn family(is_v4: bool) -> u8 {
    if is_v4 {
        libc::AF_INET as u8
    } else {
        libc::AF_INET6 as u8
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn body(question: &Question) -> Vec<u8> {
    let destination = octets(question.destination);
    let mut body = vec![0; HEAD];
    body[0] = family(question.destination.is_ipv4());
    body[1] = destination.len() as u8 * 8;
    body[8..12].copy_from_slice(&RTM_F_LOOKUP_TABLE.to_ne_bytes());
    put_attribute(&mut body, RTA_DST, &destination);
    if let Some(source) = question.source {
        let source = octets(source);
        body[2] = source.len() as u8 * 8;
        put_attribute(&mut body, RTA_SRC, &source);
    }
    if let Some(from) = question.from {
        put_attribute(&mut body, RTA_IIF, &from.to_ne_bytes());
    }
    put_attribute(&mut body, RTA_IP_PROTO, &[question.protocol]);
    if let Some((source, destination)) = question.ports {
        put_attribute(&mut body, RTA_SPORT, &source.to_be_bytes());
        put_attribute(&mut body, RTA_DPORT, &destination.to_be_bytes());
    }
    body
}

fn way(body: &[u8]) -> Option<Way> {
    let attributes = body.get(HEAD..)?;
    match *body.get(7)? {
        RTN_LOCAL => return Some(Way::Local),
        RTN_UNICAST => {}
        6 => return Some(Way::Nowhere("a blackhole route".to_owned())),
        7 => return Some(Way::Nowhere("an unreachable route".to_owned())),
        8 => return Some(Way::Nowhere("a prohibit route".to_owned())),
        _ => return Some(Way::Nowhere("no route for one host".to_owned())),
    }
    let foreign = || attribute(attributes, RTA_VIA)?.get(2..);
    let via = attribute(attributes, RTA_GATEWAY).or_else(foreign);
    let metrics = attribute(attributes, RTA_METRICS);
    Some(Way::Out {
        device: number(attributes, RTA_OIF)?,
        via: via.and_then(address),
        source: attribute(attributes, RTA_PREFSRC).and_then(address),
        table: number(attributes, RTA_TABLE).unwrap_or_else(|| u32::from(body[4])),
        mtu: metrics.and_then(|metrics| number(metrics, RTAX_MTU)),
    })
}

fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    attribute(attributes, kind).and_then(|bytes| u32_at(bytes, 0))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(destination: &str) -> Question {
        Question {
            source: None,
            destination: destination.parse().unwrap(),
            protocol: 6,
            ports: Some((1, 2)),
            from: None,
        }
    }

    #[test]
    fn what_is_for_this_host_is_local_and_what_no_route_takes_goes_nowhere() {
        assert_eq!(look_up(&question("127.0.0.1")).unwrap(), Way::Local);
        let reserved = look_up(&question("240.0.0.1")).unwrap();
        assert_ne!(reserved, Way::Local);
        let foreign = Question {
            source: Some("203.0.113.77".parse().unwrap()),
            ..question("198.51.100.1")
        };
        // Not its own address, and by no interface.
        let told = look_up(&foreign).unwrap();
        assert!(matches!(told, Way::Nowhere(_)), "{told:?}");
    }

    #[test]
    fn the_rule_of_the_main_table_is_found() {
        const MAIN: u32 = 254;
        assert_eq!(rule_of(MAIN, true).unwrap(), Some(32766));
        assert_eq!(rule_of(987_654, true).unwrap(), None);
    }

    #[test]
    fn cut_off_answers_are_no_way() {
        for length in 0..HEAD {
            assert_eq!(way(&vec![1; length]), None);
        }
        assert_eq!(way(&[RTN_UNICAST; HEAD]), None, "no interface");
    }
}
