//! What asks a daemon to end.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT.
pub struct Signals(Signal, Signal);

impl Signals {
    pub fn new() -> io::Result<Signals> {
        Ok(Signals(
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ))
    }

    pub async fn next(&mut self) {
        poll_fn(|context| {
            if self.0.poll_recv(context).is_ready() || self.1.poll_recv(context).is_ready() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}
