//! The way to one broker's relay: by UDP while that works, else over the connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::relay::{HEAD, Key, OVERHEAD, Queue, TO_RELAY, seal};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Outlet {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    bound: Option<Bound>,
    queue: Queue,
    /// Something was sent since the last look.
    used: bool,
}

/// An address of ours that the relay has confirmed.
#[derive(Clone)]
pub(super) struct Bound {
    pub(super) socket: Arc<UdpSocket>,
    pub(super) session: u64,
    pub(super) key: Key,
}

impl Outlet {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_bound(&self, bound: Option<Bound>) {
        self.lock().bound = bound;
    }

    pub(super) fn take_used(&self) -> bool {
        std::mem::take(&mut self.lock().used)
    }

    /// The payload lies between the room for head and MAC. What cannot go at once is dropped or
    /// drops what is older, as the network would.
    pub(super) fn send(&self, channel: u32, datagram: &mut [u8]) {
        let mut state = self.lock();
        state.used = true;
        if let Some(bound) = state.bound.clone() {
            drop(state);
            if seal(datagram, TO_RELAY, (bound.session, channel), &bound.key) {
                let _sent = bound.socket.try_send(datagram);
            }
            return;
        }
        let payload = &datagram[HEAD..datagram.len() - (OVERHEAD - HEAD)];
        let _gone = state.queue.push(channel, payload.to_vec());
        drop(state);
        self.wake.notify_one();
    }

    /// What is to go over the connection. Loses nothing when it is dropped while it waits.
    pub(super) async fn next(&self) -> (u32, Vec<u8>) {
        loop {
            if let Some(next) = self.lock().queue.pop() {
                return next;
            }
            self.wake.notified().await;
        }
    }
}
