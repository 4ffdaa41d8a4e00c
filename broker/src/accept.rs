//! The door: TLS for whoever connects, within limits that hold before anybody has said who he is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::hello::ALPN;
use rustls::ServerConfig;
use tokio::io;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::broker::{Broker, lock};
use crate::gate::{Gate, Source, Waiter};
use crate::session::{self, Link};
use crate::tls;

const HANDSHAKE: Duration = Duration::from_secs(5);
const SEND_BUFFER: usize = 128 * 1024;
/// Commands at a time on the local socket.
const MOST_LOCAL: usize = 32;

pub(crate) struct Door {
    broker: Arc<Broker>,
    tls: TlsAcceptor,
    waiting: Mutex<Waiting>,
    local: Arc<tokio::sync::Semaphore>,
    /// Held by each connection, so that a stopping broker knows when the last one has ended.
    alive: mpsc::Sender<()>,
}

#[derive(Default)]
struct Waiting {
    gate: Gate,
    tasks: HashMap<Waiter, AbortHandle>,
}

/// One connection's place among those that wait to be known; given up when dropped.
pub(crate) struct Pass {
    door: Arc<Door>,
    waiter: Waiter,
}

impl Door {
    pub(crate) fn new(
        broker: Arc<Broker>,
        tls: Arc<ServerConfig>,
        alive: mpsc::Sender<()>,
    ) -> Arc<Door> {
        Arc::new(Door {
            broker,
            tls: TlsAcceptor::from(tls),
            waiting: Mutex::new(Waiting::default()),
            local: Arc::new(tokio::sync::Semaphore::new(MOST_LOCAL)),
            alive,
        })
    }

    pub(crate) fn handle_connection(self: &Arc<Door>, stream: TcpStream, peer: SocketAddr) {
        self.broker.metrics.connections.inc();
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let source = Source::of(peer.ip());
        let mut waiting = lock(&self.waiting);
        let (waiter, goes) = waiting.gate.handle_connection(source, Instant::now());
        let pass = Pass {
            door: Arc::clone(self),
            waiter,
        };
        let served = serve(Arc::clone(self), stream, peer, pass);
        let task = tokio::spawn(served);
        waiting.tasks.insert(waiter, task.abort_handle());
        let gone = goes.and_then(|goes| waiting.tasks.remove(&goes));
        self.show_waiting(&waiting);
        drop(waiting);
        if let Some(gone) = gone {
            self.broker.metrics.handle_closed("crowded_out");
            gone.abort();
        }
    }

    /// The process has no descriptors left: makes room, so that the next one can come in.
    pub(crate) fn handle_shortage(&self) {
        let mut waiting = lock(&self.waiting);
        let goes = waiting.gate.handle_shortage();
        let gone = goes.and_then(|goes| waiting.tasks.remove(&goes));
        drop(waiting);
        if let Some(gone) = gone {
            self.broker.metrics.handle_closed("crowded_out");
            gone.abort();
        }
    }

    /// The broker stops: those who are not known yet have nothing to finish.
    pub(crate) fn close(&self) {
        let tasks = std::mem::take(&mut lock(&self.waiting).tasks);
        for task in tasks.into_values() {
            task.abort();
        }
    }

    /// A command of this host's root or of our own user.
    pub(crate) fn handle_local(self: &Arc<Door>, stream: UnixStream) {
        let us = nix::unistd::geteuid().as_raw();
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == us => {}
            Ok(peer) => {
                warn!("user {} may not use the local socket", peer.uid());
                return;
            }
            Err(error) => {
                warn!("cannot tell who is at the local socket: {error}");
                return;
            }
        }
        let Ok(place) = Arc::clone(&self.local).try_acquire_owned() else {
            warn!("{MOST_LOCAL} commands use the local socket already");
            return;
        };
        let (broker, alive) = (Arc::clone(&self.broker), self.alive.clone());
        tokio::spawn(async move {
            let link = Link {
                peer: "the local socket".to_owned(),
                source: None,
                exporter: None,
                pass: None,
            };
            session::run(broker, stream, link).await;
            drop((place, alive));
        });
    }

    fn show_waiting(&self, waiting: &Waiting) {
        let count = i64::try_from(waiting.gate.len()).unwrap_or(i64::MAX);
        self.broker.metrics.waiting.set(count);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut waiting = lock(&self.door.waiting);
        waiting.gate.remove(self.waiter);
        waiting.tasks.remove(&self.waiter);
        self.door.show_waiting(&waiting);
    }
}

async fn serve(door: Arc<Door>, stream: TcpStream, peer: SocketAddr, pass: Pass) {
    let alive = door.alive.clone();
    let broker = Arc::clone(&door.broker);
    let Some((stream, exporter)) = shake_hands(&door, stream, peer).await else {
        broker.metrics.handle_closed("handshake");
        return;
    };
    lock(&door.waiting).gate.handle_handshake(pass.waiter);
    drop(door);
    let link = Link {
        peer: peer.to_string(),
        source: Some(Source::of(peer.ip())),
        exporter: Some(exporter),
        pass: Some(pass),
    };
    // On the heap: those who never get this far need not carry room for it.
    Box::pin(session::run(broker, stream, link)).await;
    drop(alive);
}

async fn shake_hands(
    door: &Door,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<(TlsStream<TcpStream>, tls::Exporter)> {
    match timeout(HANDSHAKE, try_shake_hands(door, stream)).await {
        Ok(Ok(shaken)) => Some(shaken),
        Ok(Err(error)) => {
            debug!("{peer}: no TLS: {error}");
            None
        }
        Err(_) => {
            debug!("{peer}: no TLS within {HANDSHAKE:?}");
            None
        }
    }
}

async fn try_shake_hands(
    door: &Door,
    stream: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, tls::Exporter)> {
    stream.set_nodelay(true)?;
    // The kernel would let each slow reader have megabytes.
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::SndBuf, &SEND_BUFFER)?;
    let stream = door.tls.accept(stream).await?;
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::other("the caller does not ask for Causeway"));
    }
    let exporter = tls::exporter(connection).map_err(io::Error::other)?;
    Ok((stream, exporter))
}
