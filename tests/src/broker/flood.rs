//! Connections that never become sessions: TCP opened and left, a TLS handshake begun and left, and
//! one that arrives a byte a second. Each comes from an address of its own; what the broker closes
//! is opened again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::sleep;

/// The beginning of a record that announces a ClientHello of 512 bytes.
const BEGUN: [u8; 9] = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc];
const SECOND: Duration = Duration::from_secs(1);
/// Addresses share the crowd, so that each stays below a limit per address.
const EACH: usize = 8;

/// Goes on until dropped.
pub struct Flood {
    _runtime: Runtime,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    opened: AtomicUsize,
    failed: AtomicUsize,
}

impl Flood {
    /// Keeps `size` connections open, as far as the broker lets it.
    pub fn start(target: SocketAddr, size: usize) -> Result<Flood> {
        super::allow_open_files(size + 1000)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let counts = Arc::<Counts>::default();
        for number in 0..size {
            let counts = Arc::clone(&counts);
            runtime.spawn(async move { keep_open(target, number, &counts).await });
        }
        Ok(Flood {
            _runtime: runtime,
            counts,
        })
    }

    /// Connections that have been opened so far.
    pub fn opened(&self) -> usize {
        self.counts.opened.load(Ordering::Relaxed)
    }

    /// Those that neither side has closed.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Attempts that did not come to a connection.
    pub fn failed(&self) -> usize {
        self.counts.failed.load(Ordering::Relaxed)
    }
}

async fn keep_open(target: SocketAddr, number: usize, counts: &Counts) {
    let from = address(number);
    // Not all in one moment: the point is how many are there, not how fast they come.
    sleep(SECOND * u32::try_from(number % 50).unwrap_or(0) / 10).await;
    loop {
        match open(target, from).await {
            Ok(stream) => {
                counts.opened.fetch_add(1, Ordering::Relaxed);
                counts.open.fetch_add(1, Ordering::Relaxed);
                stay(stream, number).await;
                counts.open.fetch_sub(1, Ordering::Relaxed);
            }
            Err(_) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        sleep(5 * SECOND).await;
    }
}

async fn open(target: SocketAddr, from: IpAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    Ok(socket.connect(target).await?)
}

/// Until the broker closes it.
async fn stay(mut stream: TcpStream, number: usize) {
    match number % 3 {
        0 => {}
        1 => {
            let _ = stream.write_all(&BEGUN).await;
        }
        _ => return trickle(stream).await,
    }
    let mut answer = [0; 64];
    while stream.read(&mut answer).await.is_ok_and(|read| read > 0) {}
}

async fn trickle(mut stream: TcpStream) {
    for byte in BEGUN.iter().chain(std::iter::repeat(&0)) {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        sleep(SECOND).await;
    }
}

/// 127.1.0.0 and on, apart from the brokers' own addresses.
fn address(number: usize) -> IpAddr {
    let number = u32::try_from(number / EACH).unwrap_or(0);
    Ipv4Addr::from_bits(0x7f01_0001 + number).into()
}
