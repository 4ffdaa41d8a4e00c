//! Forwards datagrams it cannot read between gateways whose paths fail: only for pairs that both
//! asked for it over TLS, with a MAC on each datagram, to an address that has echoed a challenge,
//! and never more bytes than came. Where UDP does not reach a gateway, over its connection.

mod shares;
mod switch;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use proto::key::{Hash, PublicKey};
use proto::message::{self, Answer};
use proto::relay::{HEAD, Key, OVERHEAD, Queue};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::broker::lock;
use crate::datagrams::{AskedSocket, Way};
use crate::metrics::RelayMetrics;
use switch::{Dropped, Forward, New, Switch};

pub(crate) use switch::MAX_PEERS;

pub(crate) struct Relay {
    state: Mutex<State>,
    metrics: RelayMetrics,
}

struct State {
    switch: Switch<Way>,
    outboxes: HashMap<u64, Arc<Outbox>>,
    /// What came over a connection for a bound address leaves by this.
    socket: Option<Arc<AskedSocket>>,
}

/// What waits for one session's connection. It never grows: a connection that is too slow loses
/// the oldest.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    open: Option<Vec<u32>>,
    queue: Queue,
}

/// One session at the relay; ends when dropped.
pub(crate) struct Seat {
    relay: Arc<Relay>,
    number: u64,
    key: Zeroizing<[u8; 32]>,
    pub(crate) outbox: Arc<Outbox>,
}

impl Outbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to send. Loses nothing when dropped.
    pub(crate) async fn next(&self) -> Answer {
        loop {
            if let Some(answer) = self.pop() {
                return answer;
            }
            self.wake.notified().await;
        }
    }

    pub(crate) fn pop(&self) -> Option<Answer> {
        let mut waiting = self.lock();
        if let Some(channels) = waiting.open.take() {
            return Some(Answer::Open { channels });
        }
        let (channel, datagram) = waiting.queue.pop()?;
        Some(Answer::Carried { channel, datagram })
    }

    fn tell(&self, open: Vec<u32>) {
        self.lock().open = Some(open);
        self.wake.notify_one();
    }

    /// How many had to go for it.
    fn push(&self, channel: u32, datagram: Vec<u8>) -> usize {
        let gone = self.lock().queue.push(channel, datagram);
        self.wake.notify_one();
        gone
    }
}

impl Relay {
    pub(crate) fn new(metrics: RelayMetrics) -> Result<Relay, getrandom::Error> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret)?;
        Ok(Relay {
            state: Mutex::new(State {
                switch: Switch::new(&secret, Instant::now()),
                outboxes: HashMap::new(),
                socket: None,
            }),
            metrics,
        })
    }

    pub(crate) fn handle_socket(&self, socket: Arc<AskedSocket>) {
        lock(&self.state).socket = Some(socket);
    }

    pub(crate) fn seat(
        self: &Arc<Relay>,
        identity: PublicKey,
        grant: Hash,
    ) -> Result<Seat, getrandom::Error> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key)?;
        let number = getrandom::u64()?;
        let outbox = Arc::new(Outbox::default());
        let mut state = lock(&self.state);
        state.outboxes.insert(number, Arc::clone(&outbox));
        let told = state.switch.handle_session(New {
            number,
            key: Key::new(&key),
            identity,
            grant,
        });
        self.tell(&state, &told);
        Ok(Seat {
            relay: Arc::clone(self),
            number,
            key,
            outbox,
        })
    }

    /// Ends relaying for those for whom this holds, at once.
    pub(crate) fn cut_off(&self, out: impl Fn(&PublicKey, &Hash) -> bool) {
        let mut state = lock(&self.state);
        let told = state.switch.cut_off(out);
        self.tell(&state, &told);
    }

    fn tell(&self, state: &State, told: &[u64]) {
        for number in told {
            if let Some(outbox) = state.outboxes.get(number) {
                outbox.tell(state.switch.open_channels(*number));
            }
        }
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.sessions.set(count(state.switch.sessions()));
        self.metrics.pairs.set(count(state.switch.pairs()));
    }

    /// A gateway says where it is; the answer goes back there.
    pub(crate) fn handle_bind(&self, datagram: &[u8], way: &Way, socket: &AskedSocket) {
        let from = (way.from, *way);
        let answer = lock(&self.state)
            .switch
            .handle_bind(datagram, from, Instant::now());
        match answer {
            // Lost, it is asked for again.
            Ok(answer) => drop(socket.try_answer(&answer, way)),
            Err(dropped) => self.note_dropped(dropped),
        }
    }

    pub(crate) fn handle_datagram(
        &self,
        datagram: &mut [u8],
        from: SocketAddr,
        socket: &AskedSocket,
    ) {
        let mut state = lock(&self.state);
        let passed = state.switch.handle_datagram(datagram, from, Instant::now());
        let bytes = datagram.len().saturating_sub(OVERHEAD);
        match passed {
            Ok(Forward::Udp(way)) => {
                drop(state);
                self.send(datagram, &way, socket, bytes);
            }
            Ok(Forward::Tls { session, channel }) => {
                let payload = datagram[HEAD..HEAD + bytes].to_vec();
                self.carry(&state, (session, channel), payload);
            }
            Err(dropped) => self.note_dropped(dropped),
        }
    }

    fn send(&self, datagram: &[u8], way: &Way, socket: &AskedSocket, bytes: usize) {
        match socket.try_answer(datagram, way) {
            Ok(()) => self.metrics.handle_relayed("udp", bytes),
            Err(_) => self.note_dropped(Dropped::Socket),
        }
    }

    fn carry(&self, state: &State, (session, channel): (u64, u32), payload: Vec<u8>) {
        let Some(outbox) = state.outboxes.get(&session) else {
            return self.note_dropped(Dropped::Session);
        };
        let bytes = payload.len();
        for _ in 0..outbox.push(channel, payload) {
            self.note_dropped(Dropped::Queue);
        }
        self.metrics.handle_relayed("tls", bytes);
    }

    fn note_dropped(&self, dropped: Dropped) {
        self.metrics.handle_dropped(dropped.label());
    }
}

impl Seat {
    pub(crate) fn message(&self, port: u16) -> message::Relay {
        message::Relay {
            session: self.number,
            key: *self.key,
            port,
        }
    }

    pub(crate) fn handle_wanted(&self, wanted: &[(u32, PublicKey)]) {
        let mut state = lock(&self.relay.state);
        let told = state.switch.handle_wanted(self.number, wanted);
        self.relay.tell(&state, &told);
    }

    /// A datagram that came over the connection.
    pub(crate) fn handle_carried(&self, channel: u32, payload: &[u8]) {
        let relay = &self.relay;
        let mut state = lock(&relay.state);
        let from = (self.number, channel);
        let passed = state.switch.handle_carried(from, payload, Instant::now());
        match passed {
            Ok((Forward::Udp(way), datagram)) => {
                let socket = state.socket.clone();
                drop(state);
                match socket {
                    Some(socket) => relay.send(&datagram, &way, &socket, payload.len()),
                    None => relay.note_dropped(Dropped::Socket),
                }
            }
            Ok((Forward::Tls { session, channel }, payload)) => {
                relay.carry(&state, (session, channel), payload);
            }
            Err(dropped) => relay.note_dropped(dropped),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = lock(&self.relay.state);
        state.outboxes.remove(&self.number);
        let told = state.switch.handle_left(self.number);
        self.relay.tell(&state, &told);
    }
}
