//! UDP to one broker's relay: finds out whether it works, and keeps it confirmed while it does.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use proto::relay::{self, BOUND, Bind, FROM_RELAY, Key, MAX_DATAGRAM};
use tokio::net::UdpSocket;
use tokio::time::{Duration, Instant, sleep_until};

use super::hub::Lines;
use super::outlet::{Bound, Outlet};
use super::pause_after;
use crate::mark;

/// Until an answer has come, and for how many tries in a row none may.
const AGAIN: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;
/// While it works: in use a new address of ours is to be known soon.
const CONFIRM_USED: Duration = Duration::from_secs(2);
const CONFIRM: Duration = Duration::from_secs(5);
/// While it does not.
const RETRY: Duration = Duration::from_secs(10);

/// What the broker gave over TLS, and where it serves.
pub(super) struct Ticket {
    pub(super) session: u64,
    pub(super) key: Key,
    pub(super) relay: SocketAddr,
    pub(super) fwmark: Option<u32>,
}

struct Binding<'a> {
    ticket: &'a Ticket,
    outlet: &'a Outlet,
    socket: Arc<UdpSocket>,
    /// Of the question that waits for its answer.
    nonce: u64,
    /// Of the relay, for the address that we have.
    challenge: u64,
    unanswered: u32,
    due: Instant,
}

/// Until it is dropped.
pub(super) async fn run(ticket: &Ticket, outlet: &Outlet, lines: &Lines) {
    loop {
        match open(ticket).await {
            Ok(socket) => {
                let mut binding = Binding::new(ticket, outlet, Arc::new(socket));
                let error = binding.run(lines).await;
                outlet.set_bound(None);
                tracing::debug!("relay {}: {error}", ticket.relay);
            }
            Err(error) => tracing::debug!("relay {}: no socket: {error}", ticket.relay),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Connected, so that the kernel lets only the relay in.
async fn open(ticket: &Ticket) -> io::Result<UdpSocket> {
    let own: SocketAddr = match ticket.relay {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own).await?;
    mark::set(&socket, ticket.fwmark)?;
    socket.connect(ticket.relay).await?;
    Ok(socket)
}

impl<'a> Binding<'a> {
    fn new(ticket: &'a Ticket, outlet: &'a Outlet, socket: Arc<UdpSocket>) -> Binding<'a> {
        Binding {
            ticket,
            outlet,
            socket,
            nonce: 0,
            challenge: 0,
            unanswered: 0,
            due: Instant::now(),
        }
    }

    async fn run(&mut self, lines: &Lines) -> getrandom::Error {
        let mut datagram = [0; MAX_DATAGRAM + 1];
        let socket = Arc::clone(&self.socket);
        loop {
            tokio::select! {
                got = socket.recv(&mut datagram) => match got {
                    Ok(length) => self.handle_datagram(&datagram[..length], lines),
                    // Word that nobody listens there, or that a firewall refuses.
                    Err(error) => pause_after(&error).await,
                },
                () = sleep_until(self.due) => match getrandom::u64() {
                    Ok(nonce) => self.handle_timeout(nonce),
                    Err(error) => return error,
                },
            }
        }
    }

    fn handle_datagram(&mut self, datagram: &[u8], lines: &Lines) {
        if datagram.first() == Some(&BOUND) {
            return self.handle_bound(datagram);
        }
        if let Ok(carried) = relay::open(datagram, FROM_RELAY, &self.ticket.key)
            && carried.session == self.ticket.session
        {
            lines.deliver(carried.channel, carried.payload);
        }
    }

    fn handle_bound(&mut self, datagram: &[u8]) {
        let Ok(answer) = relay::read_bound(datagram, &self.ticket.key) else {
            return;
        };
        if answer.nonce != self.nonce || answer.session != self.ticket.session {
            return;
        }
        self.unanswered = 0;
        if answer.challenge != 0 {
            // Another address than before, or the first: nothing is taken from it until echoed.
            self.challenge = answer.challenge;
            self.ask();
            return;
        }
        self.outlet.set_bound(Some(Bound {
            socket: Arc::clone(&self.socket),
            session: self.ticket.session,
            key: self.ticket.key.clone(),
        }));
        self.due = Instant::now() + CONFIRM_USED;
    }

    fn handle_timeout(&mut self, nonce: u64) {
        let was_answered = self.unanswered == 0;
        if was_answered && self.challenge != 0 && !self.outlet.take_used() && self.nonce != 0 {
            // Not in use: every other look will do.
            self.due = Instant::now() + (CONFIRM - CONFIRM_USED);
            self.nonce = 0;
            return;
        }
        if self.unanswered >= TRIES {
            self.outlet.set_bound(None);
        }
        self.nonce = nonce.max(1);
        self.ask();
    }

    fn ask(&mut self) {
        let bind = Bind {
            session: self.ticket.session,
            nonce: self.nonce,
            echo: self.challenge,
        };
        let datagram = relay::bind(bind, &self.ticket.key);
        let _sent = self.socket.try_send(&datagram);
        self.unanswered = self.unanswered.saturating_add(1);
        let wait = if self.unanswered > TRIES {
            RETRY
        } else {
            AGAIN
        };
        self.due = Instant::now() + wait;
    }
}
