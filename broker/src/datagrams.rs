//! The broker's UDP port: every datagram goes by its first byte to the reflector or to the relay.

mod socket;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::relay::{BIND, MAX_DATAGRAM, TO_RELAY};
use tokio::net::UdpSocket;
use tracing::{debug, warn};

use crate::metrics::Metrics;
use crate::reflector::Askers;
use crate::relay::Relay;

pub(crate) use socket::{AskedSocket, Way};

/// Who serves what comes.
pub(crate) struct Serving {
    pub(crate) askers: Arc<Askers>,
    /// `None` with `--no-relay`.
    pub(crate) relay: Option<Arc<Relay>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Serves until it is dropped. An error of one datagram is no reason to end.
pub(crate) async fn serve(socket: UdpSocket, serving: Serving) {
    let socket = match AskedSocket::new(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => {
            return warn!(
                "there is no reflector, and no relay by UDP: cannot set its socket up: {error}"
            );
        }
    };
    if let Some(relay) = &serving.relay {
        relay.handle_socket(Arc::clone(&socket));
    }
    // One byte more than is served, so that what is longer is seen to be.
    let mut datagram = [0; MAX_DATAGRAM + 1];
    loop {
        match socket.receive(&mut datagram).await {
            Ok((length, way)) => serving.handle(&mut datagram[..length], &way, &socket),
            Err(error) => pause_after(&error).await,
        }
    }
}

impl Serving {
    fn handle(&self, datagram: &mut [u8], way: &Way, socket: &AskedSocket) {
        match (datagram.first(), &self.relay) {
            (Some(&BIND), Some(relay)) => relay.handle_bind(datagram, way, socket),
            (Some(&TO_RELAY), Some(relay)) => relay.handle_datagram(datagram, way.from, socket),
            (Some(_) | None, _) => match self.askers.answer(datagram, way.from, Instant::now()) {
                Some(answer) => self.answer(&answer, way, socket),
                None => drop(self.metrics.not_reflected.inc()),
            },
        }
    }

    fn answer(&self, answer: &[u8], way: &Way, socket: &AskedSocket) {
        match socket.try_answer(answer, way) {
            Ok(()) => drop(self.metrics.reflected.inc()),
            Err(error) => {
                self.metrics.not_reflected.inc();
                debug!("reflector: cannot answer {}: {error}", way.from);
            }
        }
    }
}

async fn pause_after(error: &io::Error) {
    // Word of an earlier datagram that could not be delivered.
    if error.kind() != io::ErrorKind::ConnectionRefused {
        warn!("UDP: cannot receive: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
