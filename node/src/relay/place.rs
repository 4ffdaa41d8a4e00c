//! One broker as a meeting place: a connection of its own while somebody is wanted, which asks for
//! all who are, and carries what UDP does not.

use std::sync::Arc;

use proto::key::PublicKey;
use proto::message::{Answer, Refusal, Reply, Request};
use proto::relay::Key;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};

use super::Options;
use super::hub::Lines;
use super::outlet::Outlet;
use super::udp::{self, Ticket};
use crate::back_off::BackOff;
use crate::login::log_in;
use crate::session::{Failure, Receiving, Sending, Session, Why};

/// Between two signs of life of ours.
const PING: Duration = Duration::from_secs(3);
/// A broker that has said nothing for so long is left.
const SILENT: Duration = Duration::from_secs(10);
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// A broker without a relay may be started with one, or be upgraded.
const NO_RELAY: Duration = Duration::from_secs(60);
/// A broker that had no room for a pair may have it by then.
const ASK_AGAIN: Duration = Duration::from_secs(60);

pub(super) type Wanted = Arc<Vec<(u32, [u8; 32])>>;

pub(super) struct Place {
    pub(super) broker: PublicKey,
    pub(super) options: Arc<Options>,
    pub(super) lines: Arc<Lines>,
    pub(super) outlet: Arc<Outlet>,
    pub(super) wanted: watch::Receiver<Wanted>,
    pub(super) news: mpsc::Sender<(PublicKey, News)>,
    pub(super) seed: u64,
}

pub(super) enum News {
    /// The channels whose other side is here as well.
    Open(Vec<u32>),
    Lost(String),
}

impl Place {
    /// Until the hub is no longer interested.
    pub(super) async fn run(mut self) {
        let mut back_off = BackOff::new(BACK_OFF.0, BACK_OFF.1, self.seed);
        while self
            .wanted
            .wait_for(|wanted| !wanted.is_empty())
            .await
            .is_ok()
        {
            let failure = match self.connect().await {
                Ok((session, ticket)) => {
                    back_off.handle_success();
                    match self.serve(session, &ticket).await {
                        Some(failure) => failure,
                        // Nobody is wanted any more.
                        None => continue,
                    }
                }
                Err(failure) => failure,
            };
            let has_none = matches!(failure.why, Why::OldRelay)
                || failure.refusal() == Some(&Refusal::NoRelay);
            tracing::debug!("relay: {failure}");
            let lost = News::Lost(failure.to_string());
            if self.news.send((self.broker, lost)).await.is_err() {
                return;
            }
            sleep(if has_none {
                NO_RELAY
            } else {
                back_off.handle_failure()
            })
            .await;
        }
    }

    async fn connect(&mut self) -> Result<(Session, Ticket), Failure> {
        let addresses: Vec<String> = {
            let view = self.options.view.borrow();
            let contacts = view.contacts.iter();
            let own = contacts.filter(|contact| contact.key == self.broker);
            own.map(|contact| contact.address.clone()).collect()
        };
        let mut last = Failure {
            address: self.broker.to_string(),
            why: Why::NoAddress,
        };
        for address in addresses {
            match self.try_address(&address).await {
                Ok(connected) => return Ok(connected),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn try_address(&mut self, address: &str) -> Result<(Session, Ticket), Failure> {
        let (local, mark) = (&self.options.local, self.options.fwmark);
        let mesh = local.membership.mesh;
        let connected = Session::connect_marked(address, self.broker, mesh, mark).await;
        let (mut session, _) = connected?;
        let failed = |why| Failure {
            address: address.to_owned(),
            why,
        };
        if !session.knows_relay() {
            return Err(failed(Why::OldRelay));
        }
        let knowledge = self.options.view.borrow().knowledge.clone();
        log_in(&mut session, local, &knowledge.entries).await?;
        let peers = self.wanted.borrow_and_update().to_vec();
        let Reply::Relay(relay) = session.call(Request::Relay { peers }).await? else {
            return Err(failed(Why::OutOfOrder));
        };
        let at = session.addresses_at(relay.port);
        let ticket = Ticket {
            session: relay.session,
            key: Key::new(&relay.key),
            relay: *at.first().ok_or_else(|| failed(Why::NoAddress))?,
            fwmark: mark,
        };
        Ok((session, ticket))
    }

    /// `None` once nobody is wanted.
    async fn serve(&mut self, session: Session, ticket: &Ticket) -> Option<Failure> {
        let address = session.address().to_owned();
        let (receiving, sending) = session.into_halves();
        let (news, lines, broker) = (self.news.clone(), Arc::clone(&self.lines), self.broker);
        let outlet = Arc::clone(&self.outlet);
        // Side by side: one that waits to write must go on reading, or two could wait for each
        // other.
        let why = tokio::select! {
            why = receive(receiving, &lines, |channels| {
                let news = news.clone();
                async move { drop(news.send((broker, News::Open(channels))).await) }
            }) => Some(why),
            why = send(sending, &mut self.wanted, &outlet) => why,
            () = udp::run(ticket, &outlet, &lines) => None,
        };
        outlet.set_bound(None);
        why.map(|why| Failure { address, why })
    }
}

async fn receive<F: Future<Output = ()>>(
    mut receiving: Receiving,
    lines: &Lines,
    tell: impl Fn(Vec<u32>) -> F,
) -> Why {
    loop {
        match timeout(SILENT, receiving.next()).await {
            Err(_) => return Why::Silent(SILENT),
            Ok(Err(why)) => return why,
            Ok(Ok(Answer::Carried { channel, datagram })) => lines.deliver(channel, &datagram),
            Ok(Ok(Answer::Open { channels })) => tell(channels).await,
            Ok(Ok(Answer::Reply { reply, .. })) => match reply {
                Reply::Pong | Reply::Relay(_) => {}
                Reply::Refused(refusal) => return Why::Refused(refusal),
                Reply::Enrolled { .. }
                | Reply::Authenticated { .. }
                | Reply::Published { .. }
                | Reply::Watching
                | Reply::Ledger { .. }
                | Reply::LedgerTaken { .. }
                | Reply::Reflector(_)
                | Reply::Nodes(_)
                | Reply::Uses(_) => return Why::OutOfOrder,
            },
            Ok(Ok(Answer::Push(_))) => return Why::OutOfOrder,
        }
    }
}

/// What the writer does next.
enum Next {
    Carry(u32, Vec<u8>),
    Ask,
    Ping,
}

/// `None` once nobody is wanted.
async fn send(
    mut sending: Sending,
    wanted: &mut watch::Receiver<Wanted>,
    outlet: &Outlet,
) -> Option<Why> {
    let mut ping_at = Instant::now() + PING;
    let mut ask_at = Instant::now() + ASK_AGAIN;
    loop {
        let next = tokio::select! {
            changed = wanted.changed() => {
                changed.ok()?;
                Next::Ask
            }
            () = sleep_until(ping_at) => Next::Ping,
            () = sleep_until(ask_at) => Next::Ask,
            (channel, datagram) = outlet.next() => Next::Carry(channel, datagram),
        };
        let request = match next {
            Next::Carry(channel, datagram) => Request::Carry { channel, datagram },
            Next::Ping => {
                ping_at = Instant::now() + PING;
                Request::Ping
            }
            Next::Ask => {
                ask_at = Instant::now() + ASK_AGAIN;
                let peers = wanted.borrow_and_update().to_vec();
                if peers.is_empty() {
                    return None;
                }
                Request::Relay { peers }
            }
        };
        if let Err(why) = sending.send(request).await {
            return Some(why);
        }
    }
}
