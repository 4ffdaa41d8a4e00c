//! A UDP socket that answers from the address that was asked: a NAT or firewall before the caller
//! lets no other answer through, and a host may have many addresses.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::cmsg_space;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

const BUFFER: usize = 4 << 20;

pub(crate) struct AskedSocket(UdpSocket);

/// A datagram's way here, to be gone back.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) from: SocketAddr,
    asked: Asked,
}

/// The address that was asked, as the kernel takes it back.
#[derive(Clone, Copy)]
enum Asked {
    V4(in_pktinfo),
    V6(in6_pktinfo),
    /// The kernel did not say.
    Unknown,
}

impl AskedSocket {
    pub(crate) fn new(socket: UdpSocket) -> io::Result<AskedSocket> {
        // As much as the kernel allows: what all gateways send comes through this one.
        setsockopt(&socket.as_fd(), sockopt::RcvBuf, &BUFFER)?;
        setsockopt(&socket.as_fd(), sockopt::SndBuf, &BUFFER)?;
        if socket.local_addr()?.is_ipv4() {
            setsockopt(&socket.as_fd(), sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket.as_fd(), sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(AskedSocket(socket))
    }

    pub(crate) async fn receive(&self, datagram: &mut [u8]) -> io::Result<(usize, Way)> {
        self.0
            .async_io(Interest::READABLE, || self.try_receive(datagram))
            .await
    }

    fn try_receive(&self, datagram: &mut [u8]) -> io::Result<(usize, Way)> {
        let mut room = cmsg_space!(in6_pktinfo);
        let mut parts = [IoSliceMut::new(datagram)];
        let got = recvmsg::<SockaddrStorage>(
            self.0.as_raw_fd(),
            &mut parts,
            Some(&mut room),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let from = got.address.as_ref().and_then(socket_address);
        let from = from.ok_or_else(|| io::Error::other("a datagram without a source"))?;
        let asked = got.cmsgs()?.find_map(|message| asked(&message));
        let way = Way {
            from,
            asked: asked.unwrap_or(Asked::Unknown),
        };
        Ok((got.bytes, way))
    }

    /// Does not wait: a full socket buffer loses the answer, as the network may.
    pub(crate) fn try_answer(&self, answer: &[u8], way: &Way) -> io::Result<()> {
        let parts = [IoSlice::new(answer)];
        let told = match &way.asked {
            Asked::V4(info) => Some(ControlMessage::Ipv4PacketInfo(info)),
            Asked::V6(info) => Some(ControlMessage::Ipv6PacketInfo(info)),
            Asked::Unknown => None,
        };
        self.0.try_io(Interest::WRITABLE, || {
            sendmsg(
                self.0.as_raw_fd(),
                &parts,
                told.as_slice(),
                MsgFlags::MSG_DONTWAIT,
                Some(&SockaddrStorage::from(way.from)),
            )?;
            Ok(())
        })
    }
}

/// Without the interface: the answer takes the route that answers take, which may be another.
fn asked(message: &ControlMessageOwned) -> Option<Asked> {
    if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
        return Some(Asked::V4(in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: info.ipi_addr,
            ..*info
        }));
    }
    if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
        let link_local = info.ipi6_addr.s6_addr[0] == 0xfe && info.ipi6_addr.s6_addr[1] >> 6 == 2;
        return Some(Asked::V6(in6_pktinfo {
            ipi6_ifindex: if link_local { info.ipi6_ifindex } else { 0 },
            ..*info
        }));
    }
    None
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|address| SocketAddr::V6((*address).into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered_from(listen: &str, ask: &str) -> String {
        let socket = UdpSocket::bind(listen).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let socket = AskedSocket::new(socket).unwrap();
        let caller = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        caller
            .send_to(b"question", format!("{ask}:{port}"))
            .await
            .unwrap();
        let mut datagram = [0; 64];
        let (length, way) = socket.receive(&mut datagram).await.unwrap();
        socket.try_answer(&datagram[..length], &way).unwrap();
        let (length, from) = caller.recv_from(&mut datagram).await.unwrap();
        assert_eq!(&datagram[..length], b"question");
        from.ip().to_string()
    }

    #[tokio::test]
    async fn the_answer_comes_from_the_address_that_was_asked() {
        for listen in ["0.0.0.0:0", "[::]:0"] {
            assert_eq!(answered_from(listen, "127.0.0.9").await, "127.0.0.9");
            assert_eq!(answered_from(listen, "127.0.0.1").await, "127.0.0.1");
        }
    }
}
