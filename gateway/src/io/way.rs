//! Whether this host has a way to an address, as its kernel says before anything is sent.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};

/// Those that datagrams with this mark cannot leave for, and why.
pub fn unrouted(
    addresses: impl Iterator<Item = SocketAddr>,
    fwmark: u32,
) -> BTreeMap<SocketAddr, String> {
    let mut sockets = [None, None];
    let mut found = BTreeMap::new();
    for address in addresses {
        let slot = &mut sockets[usize::from(address.is_ipv6())];
        if slot.is_none() {
            *slot = open(address, fwmark).ok();
        }
        // Connecting looks the route up and sends nothing.
        if let Some(Err(error)) = slot.as_ref().map(|socket| socket.connect(address))
            && is_of_routes(&error)
        {
            found.insert(address, error.to_string());
        }
    }
    found
}

fn open(like: SocketAddr, fwmark: u32) -> io::Result<UdpSocket> {
    let any: SocketAddr = if like.is_ipv6() {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    setsockopt(&socket, sockopt::Mark, &fwmark)?;
    Ok(socket)
}

fn is_of_routes(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EACCES)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_always_has_a_way() {
        let near: SocketAddr = "127.0.0.1:9".parse().unwrap();
        assert!(unrouted([near, near].into_iter(), 0).is_empty());
    }
}
