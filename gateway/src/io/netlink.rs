//! Watches the kernel: is our interface up, how large may its packets be, is it gone, did routes change.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, SockFlag, recv, send};
use node::netlink::{attribute, message, messages, put_attribute, route_socket, u32_at};

use super::sys;

const GROUPS: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE) as u32;

/// What the kernel told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    Link {
        index: u32,
        up: bool,
        mtu: Option<u32>,
    },
    LinkGone {
        index: u32,
    },
    /// It went to another network namespace.
    LinkMoved {
        index: u32,
    },
    /// An address or a route came or went.
    Routes,
    /// The kernel had more to tell than the socket could hold.
    Overrun,
}

/// A subscription to link, address and route changes.
#[derive(Debug)]
pub struct Monitor {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Monitor {
    pub fn new() -> io::Result<Monitor> {
        Ok(Monitor {
            fd: route_socket(SockFlag::SOCK_NONBLOCK, GROUPS)?,
            buffer: vec![0; 64 << 10],
        })
    }

    /// A subscription in the network namespace of a TUN, wherever that was moved to.
    pub fn beside(tun: BorrowedFd<'_>) -> io::Result<Monitor> {
        let namespace = sys::tun_namespace(tun)?;
        // Entering a namespace concerns the calling thread only: one that is thrown away.
        let entered = std::thread::spawn(move || {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Monitor::new()
        });
        entered
            .join()
            .map_err(|_| io::Error::from_raw_os_error(libc::EIO))?
    }

    /// The index of a TUN in the namespace that is listened to.
    pub fn index_of(&self, tun: BorrowedFd<'_>) -> io::Result<u32> {
        sys::interface_index(self.fd.as_fd(), &sys::tun_name(tun)?)
    }

    pub fn has(&self, index: u32) -> bool {
        sys::interface_exists(self.fd.as_fd(), index)
    }

    /// Asks for the present state of interface `index`; the answer arrives as a [`KernelEvent::Link`].
    pub fn request_link(&self, index: u32) -> io::Result<()> {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let message = message(libc::RTM_GETLINK, &body);
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Everything told since the last call.
    pub fn read(&mut self, mut event: impl FnMut(KernelEvent)) -> io::Result<()> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(len) => parse(&self.buffer[..len], &mut event),
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(nix::Error::ENOBUFS) => event(KernelEvent::Overrun),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const IFLA_NEW_NETNSID: u16 = 45;
const IFLA_NEW_IFINDEX: u16 = 49;

fn parse(bytes: &[u8], event: &mut impl FnMut(KernelEvent)) {
    for (kind, body) in messages(bytes) {
        match kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                let (Some(index), Some(flags)) = (u32_at(body, 4), u32_at(body, 8)) else {
                    continue;
                };
                let attributes = body.get(16..).unwrap_or_default();
                if kind == libc::RTM_DELLINK {
                    let moved = [IFLA_NEW_NETNSID, IFLA_NEW_IFINDEX]
                        .iter()
                        .any(|kind| attribute(attributes, *kind).is_some());
                    event(if moved {
                        KernelEvent::LinkMoved { index }
                    } else {
                        KernelEvent::LinkGone { index }
                    });
                    continue;
                }
                let mtu = attribute(attributes, libc::IFLA_MTU).and_then(|mtu| u32_at(mtu, 0));
                event(KernelEvent::Link {
                    index,
                    up: flags & libc::IFF_UP as u32 != 0,
                    mtu,
                });
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE | libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                event(KernelEvent::Routes);
            }
            _ => {}
        }
    }
}

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    /// What its owner wrote beside it.
    pub alias: Option<Vec<u8>>,
}

impl Interface {
    pub fn find(name: &str) -> io::Result<Option<Interface>> {
        let index = match nix::net::if_::if_nametoindex(name) {
            Ok(index) => index,
            Err(nix::Error::ENODEV) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let alias = match request(libc::RTM_GETLINK, &body) {
            Ok(answer) => messages(&answer)
                .find(|(kind, _)| *kind == libc::RTM_NEWLINK)
                .and_then(|(_, body)| attribute(body.get(16..)?, libc::IFLA_IFALIAS))
                .map(|alias| alias.split(|byte| *byte == 0).next().unwrap_or_default())
                .map(<[u8]>::to_vec),
            // It went in between.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Interface { index, alias }))
    }
}

/// Writes a name beside an interface.
pub(super) fn set_alias(index: u32, alias: &str) -> io::Result<()> {
    set_link(index, |body| {
        put_attribute(body, libc::IFLA_IFALIAS, alias.as_bytes());
    })
}

/// Lets the kernel give an interface no IPv6 address of its own making.
pub(super) fn set_no_link_local(index: u32) -> io::Result<()> {
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const NONE: u8 = 1;
    let (mut mode, mut family) = (Vec::new(), Vec::new());
    put_attribute(&mut mode, IFLA_INET6_ADDR_GEN_MODE, &[NONE]);
    put_attribute(&mut family, libc::AF_INET6 as u16, &mode);
    set_link(index, |body| {
        put_attribute(body, libc::IFLA_AF_SPEC, &family);
    })
}

fn set_link(index: u32, attributes: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    attributes(&mut body);
    request(libc::RTM_SETLINK, &body).map(drop)
}

/// Asks once and returns the answer; a refusal is the error.
fn request(kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let fd = route_socket(SockFlag::empty(), 0)?;
    let mut asked = message(kind, body);
    let flags = libc::NLM_F_REQUEST as u16 | libc::NLM_F_ACK as u16;
    asked[6..8].copy_from_slice(&flags.to_ne_bytes());
    send(fd.as_raw_fd(), &asked, MsgFlags::empty())?;
    let mut answer = vec![0; 32 << 10];
    let len = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(len);
    for (kind, body) in messages(&answer) {
        let code = u32_at(body, 0).map_or(0, u32::cast_signed);
        if kind == libc::NLMSG_ERROR as u16 && code != 0 {
            return Err(io::Error::from_raw_os_error(-code));
        }
    }
    Ok(answer)
}

/// Asks the kernel which way packets go.
#[derive(Debug)]
pub struct RouteQuery {
    fd: OwnedFd,
    fwmark: u32,
}

impl RouteQuery {
    pub fn new(fwmark: u32) -> io::Result<RouteQuery> {
        Ok(RouteQuery {
            fd: route_socket(SockFlag::empty(), 0)?,
            fwmark,
        })
    }

    /// The interface by which the kernel would send from `local` to `remote`; `None` if it would not.
    pub fn interface(&self, remote: IpAddr, local: IpAddr) -> io::Result<Option<u32>> {
        const RTA_DST: u16 = 1;
        const RTA_SRC: u16 = 2;
        const RTA_OIF: u16 = 4;
        const RTA_MARK: u16 = 16;
        let (family, bits) = match remote {
            IpAddr::V4(_) => (libc::AF_INET, 32),
            IpAddr::V6(_) => (libc::AF_INET6, 128),
        };
        let mut body = vec![0; 12];
        body[..3].copy_from_slice(&[family as u8, bits, bits]);
        for (kind, address) in [(RTA_DST, remote), (RTA_SRC, local)] {
            match address {
                IpAddr::V4(v4) => put_attribute(&mut body, kind, &v4.octets()),
                IpAddr::V6(v6) => put_attribute(&mut body, kind, &v6.octets()),
            }
        }
        if self.fwmark != 0 {
            put_attribute(&mut body, RTA_MARK, &self.fwmark.to_ne_bytes());
        }
        send(
            self.fd.as_raw_fd(),
            &message(libc::RTM_GETROUTE, &body),
            MsgFlags::empty(),
        )?;
        let mut buffer = [0; 4096];
        let len = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        Ok(messages(&buffer[..len])
            .find(|(kind, _)| *kind == libc::RTM_NEWROUTE)
            .and_then(|(_, body)| attribute(body.get(12..)?, RTA_OIF))
            .and_then(|oif| u32_at(oif, 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_message_is_read() {
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        body[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        put_attribute(&mut body, 3, b"wg0\0");
        put_attribute(&mut body, libc::IFLA_MTU, &1300_u32.to_ne_bytes());
        let mut seen = vec![];
        parse(&message(libc::RTM_NEWLINK, &body), &mut |event| {
            seen.push(event)
        });
        assert_eq!(
            seen,
            [KernelEvent::Link {
                index: 7,
                up: true,
                mtu: Some(1300)
            }]
        );
    }

    #[test]
    fn a_link_that_moves_to_another_namespace_is_not_gone() {
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        let mut seen = vec![];
        parse(&message(libc::RTM_DELLINK, &body), &mut |event| {
            seen.push(event)
        });
        put_attribute(&mut body, IFLA_NEW_IFINDEX, &9_u32.to_ne_bytes());
        parse(&message(libc::RTM_DELLINK, &body), &mut |event| {
            seen.push(event)
        });
        assert_eq!(
            seen,
            [
                KernelEvent::LinkGone { index: 7 },
                KernelEvent::LinkMoved { index: 7 }
            ]
        );
    }

    #[test]
    fn cut_off_and_lying_messages_end_the_walk() {
        let whole = message(libc::RTM_DELLINK, &[0; 16]);
        for len in 0..whole.len() {
            parse(&whole[..len], &mut |event| panic!("{event:?}"));
        }
        let mut lying = whole.clone();
        for size in [0_u32, 3, 15, 4000, u32::MAX] {
            lying[..4].copy_from_slice(&size.to_ne_bytes());
            parse(&lying, &mut |event| panic!("{event:?}"));
        }
    }

    #[test]
    fn the_route_to_loopback_leaves_by_loopback() {
        let local = "127.0.0.1".parse().unwrap();
        let query = RouteQuery::new(0).unwrap();
        assert_eq!(query.interface(local, local).unwrap(), Some(1));
    }
}
