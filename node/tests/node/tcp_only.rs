//! A way to a broker whose firewall lets TCP through and eats UDP.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;

pub(crate) struct TcpOnly {
    address: SocketAddr,
    eaten: Arc<AtomicUsize>,
    tasks: Vec<AbortHandle>,
}

impl TcpOnly {
    /// On another address, and on the broker's port: where its relay is looked for.
    pub(crate) async fn start(broker: &str) -> TcpOnly {
        let broker: SocketAddr = broker.parse().unwrap();
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), broker.port()));
        let listener = TcpListener::bind(address).await.unwrap();
        let socket = UdpSocket::bind(address).await.unwrap();
        let eaten = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&eaten);
        let accepting = tokio::spawn(async move {
            loop {
                let (mut caller, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(broker).await.unwrap();
                    copy_bidirectional(&mut caller, &mut to).await.ok();
                });
            }
        });
        let eating = tokio::spawn(async move {
            let mut datagram = [0; 2048];
            while socket.recv(&mut datagram).await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        TcpOnly {
            address,
            eaten,
            tasks: vec![accepting.abort_handle(), eating.abort_handle()],
        }
    }

    pub(crate) fn at(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn datagrams(&self) -> usize {
        self.eaten.load(Ordering::Relaxed)
    }
}

impl Drop for TcpOnly {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
