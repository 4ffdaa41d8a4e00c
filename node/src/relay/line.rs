//! The socket on this host that stands for one remote gateway.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use proto::relay::{HEAD, MAX_PAYLOAD, OVERHEAD};
use tokio::net::UdpSocket;

use super::outlet::Outlet;
use super::pause_after;

pub(super) struct Line {
    socket: UdpSocket,
    address: SocketAddr,
    /// The number by which brokers know the peer.
    pub(super) channel: u32,
    outlet: Mutex<Option<Arc<Outlet>>>,
}

impl Line {
    /// Connected to the tunnel, so that the kernel lets nobody else of this host in.
    pub(super) async fn open(tunnel: SocketAddr, channel: u32) -> io::Result<Line> {
        let socket = UdpSocket::bind((tunnel.ip(), 0)).await?;
        socket.connect(tunnel).await?;
        Ok(Line {
            address: socket.local_addr()?,
            socket,
            channel,
            outlet: Mutex::default(),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which way what the tunnel sends is to go; without one it is dropped.
    pub(super) fn set_outlet(&self, outlet: Option<Arc<Outlet>>) {
        *self.outlet.lock().unwrap_or_else(PoisonError::into_inner) = outlet;
    }

    /// What the peer has sent.
    pub(super) fn deliver(&self, payload: &[u8]) {
        // A tunnel that is too slow loses it, as by any other way.
        let _sent = self.socket.try_send(payload);
    }

    /// Passes on what the tunnel sends, until it is dropped.
    pub(super) async fn run(self: Arc<Line>) {
        let mut datagram = vec![0; MAX_PAYLOAD + 1 + OVERHEAD];
        loop {
            let room = HEAD..=HEAD + MAX_PAYLOAD;
            match self.socket.recv(&mut datagram[room]).await {
                // Too long for a path of 1500 bytes: the tunnel finds out by what does not arrive.
                Ok(length) if length > MAX_PAYLOAD || length == 0 => {}
                Ok(length) => {
                    let outlet = self.outlet.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(outlet) = outlet.clone() {
                        outlet.send(self.channel, &mut datagram[..length + OVERHEAD]);
                    }
                }
                // The tunnel does not listen at present.
                Err(error) => pause_after(&error).await,
            }
        }
    }
}
