//! TCP 7802 on this node's addresses in its site: nodes that have no way to a broker have one
//! through here. Only brokers of the mesh are connected to, whatever is asked for; what passes is
//! TLS between the two ends.

mod dials;
mod seats;
mod source;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ip_network::IpNetwork;
use node::follow::View;
use node::status::Problem;
use proto::ledger::Standing;
use proto::splice::{self, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::io::boottime;
use crate::roster;
use dials::Dials;
use seats::{Number, Seats};
use source::Source;

/// For the call, once a connection is open.
const CALL_WITHIN: Duration = Duration::from_secs(5);
/// For a broker to be reached, over all of its addresses.
const DIAL_WITHIN: Duration = Duration::from_secs(10);
/// A conversation is never silent for so long: both ends ask for signs of life every few seconds.
const IDLE: Duration = Duration::from_secs(60);
const BUFFER: usize = 8 << 10;
/// An address may be about to come, and a port about to become free.
const TRY_AGAIN: Duration = Duration::from_millis(500);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What network an address is of is asked no more often: a host may have thousands of interfaces.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Ends with all its connections when dropped.
pub(super) struct Splice {
    lan: watch::Sender<Vec<IpAddr>>,
    refused: Arc<Refused>,
    _task: Ended,
}

/// Why an address has no listener.
type Refused = Mutex<BTreeMap<IpAddr, String>>;

/// What every connection needs.
struct Service {
    view: watch::Receiver<Arc<View>>,
    mark: u32,
    seats: Mutex<Seats<AbortHandle>>,
    dials: Mutex<Dials>,
}

impl Splice {
    pub(super) fn start(view: watch::Receiver<Arc<View>>, mark: u32) -> Splice {
        let (lan, addresses) = watch::channel(Vec::new());
        let refused = Arc::<Refused>::default();
        let service = Arc::new(Service {
            view,
            mark,
            seats: Mutex::default(),
            dials: Mutex::default(),
        });
        let serving = listen_on_all(addresses, service.clone(), refused.clone());
        // Both end together.
        let task =
            tokio::spawn(async { tokio::join!(serving, end_when_put_out(service)) }).abort_handle();
        Splice {
            lan,
            refused,
            _task: Ended(task),
        }
    }

    /// This node's addresses in its site, as they are now.
    pub(super) fn handle_lan(&self, lan: &[IpAddr]) {
        self.lan.send_if_modified(|known| {
            let is_new = known != lan;
            if is_new {
                *known = lan.to_vec();
            }
            is_new
        });
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let refused = told(&self.refused);
        let all = refused.iter().map(|(address, why)| Problem::new(
            format!("nodes of this site cannot reach brokers through this gateway: TCP {} of {address}: {why}", splice::PORT),
            format!("see what has the port (`ss -ltnp sport = {}`); it is tried again all the time", splice::PORT),
        ));
        all.collect()
    }
}

/// One listener for each address, made and ended as addresses come and go.
async fn listen_on_all(
    mut lan: watch::Receiver<Vec<IpAddr>>,
    service: Arc<Service>,
    refused: Arc<Refused>,
) {
    let mut listening: BTreeMap<IpAddr, Ended> = BTreeMap::new();
    loop {
        let wanted = lan.borrow_and_update().clone();
        listening.retain(|address, _| wanted.contains(address));
        let known = |address: &IpAddr| wanted.contains(address);
        told(&refused).retain(|address, _| known(address));
        for address in wanted {
            listening.entry(address).or_insert_with(|| {
                let serving = listen(address, service.clone(), refused.clone());
                Ended(tokio::spawn(serving).abort_handle())
            });
        }
        if lan.changed().await.is_err() {
            return;
        }
    }
}

/// A gateway that is put out of the mesh passes on nothing more, not even what has begun.
async fn end_when_put_out(service: Arc<Service>) {
    let mut view = service.view.clone();
    loop {
        if !may_serve(view.borrow_and_update().standing) {
            service.seats().clear().for_each(|goes| goes.abort());
        }
        if view.changed().await.is_err() {
            return;
        }
    }
}

const fn may_serve(standing: Standing) -> bool {
    matches!(standing, Standing::Good | Standing::Quarantined)
}

/// Ends a task with its owner.
struct Ended(AbortHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn listen(address: IpAddr, service: Arc<Service>, refused: Arc<Refused>) {
    let listener = loop {
        match TcpListener::bind(SocketAddr::new(address, splice::PORT)).await {
            Ok(listener) => break listener,
            Err(error) => note(&refused, address, &error),
        }
        sleep(TRY_AGAIN).await;
    };
    told(&refused).remove(&address);
    let mut near = Near::of(address);
    loop {
        match listener.accept().await {
            Ok((stream, from)) => take(&service, stream, from.ip().to_canonical(), &mut near),
            Err(error) => {
                // A shortage of descriptors passes; until then this must not be a busy loop.
                tracing::debug!("splice: cannot take a connection: {error}");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Once in the log, however often it is tried.
fn note(refused: &Refused, address: IpAddr, error: &io::Error) {
    if told(refused).insert(address, error.to_string()).is_none() {
        tracing::warn!(%address, port = splice::PORT, %error, "no way to brokers for nodes of this site");
    }
}

fn told(refused: &Refused) -> MutexGuard<'_, BTreeMap<IpAddr, String>> {
    refused.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(service: &Arc<Service>, stream: TcpStream, from: IpAddr, near: &mut Near) {
    // Until it is known by its seat: what it rests on may be taken away meanwhile.
    let mut seats = service.seats();
    let now = boottime();
    let taken = service.judge(from, near, now).and_then(|source| {
        let taken = seats.take(source, now);
        let (number, goes) = taken.map_err(|seats::Full| Verdict::Full)?;
        Ok((source, number, goes))
    });
    let (source, number, goes) = match taken {
        Ok(taken) => taken,
        Err(verdict) => return refuse(stream, verdict),
    };
    if let Some(goes) = goes {
        goes.abort();
    }
    let serving = service.clone();
    let task = tokio::spawn(async move {
        let _seat = Seat {
            service: serving.clone(),
            number,
        };
        if let Err(why) = serving.serve(stream, source).await {
            tracing::debug!(%from, "splice: {why}");
        }
    });
    seats.fill(number, task.abort_handle());
}

/// A caller that does not read it waits for nothing else here: the socket's buffer takes one byte.
fn refuse(stream: TcpStream, verdict: Verdict) {
    let _told = stream.try_write(&[verdict.byte()]);
}

/// Given back when the connection ends, however it does.
struct Seat {
    service: Arc<Service>,
    number: Number,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.service.seats().leave(self.number);
    }
}

impl Service {
    fn seats(&self) -> MutexGuard<'_, Seats<AbortHandle>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before anything is read: whether a caller from there has a say here at all, and as whom.
    fn judge(&self, from: IpAddr, near: &mut Near, now: Duration) -> Result<Source, Verdict> {
        let view = self.view.borrow();
        if !may_serve(view.standing) {
            return Err(Verdict::PutOut);
        }
        if !roster::is_own(&view, from) && !near.contains(from, now) {
            return Err(Verdict::Stranger);
        }
        let is_known = || {
            let mut peers = view.peers.values();
            peers.any(|peer| peer.lan_address == Some(from) && peer.node.record.site == view.site)
        };
        Ok(Source::of(from, from.is_ipv6() && is_known()))
    }

    async fn serve(&self, mut caller: TcpStream, source: Source) -> Result<(), String> {
        let mut call = [0; splice::CALL];
        match timeout(CALL_WITHIN, caller.read_exact(&mut call)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("no call: {error}")),
            Err(_) => return Err("no call in time".to_owned()),
        }
        let broker = match self.connect(&call, source).await {
            Ok(broker) => broker,
            Err(verdict) => {
                refuse(caller, verdict);
                return Err(verdict.sentence().to_owned());
            }
        };
        let answer = caller.write_all(&[Verdict::Connected.byte()]).await;
        answer.map_err(|error| error.to_string())?;
        // Frames are small and somebody waits for each.
        let _faster = caller.set_nodelay(true);
        carry_both(caller, broker)
            .await
            .map_err(|error| error.to_string())
    }

    fn may_dial(&self, source: Source) -> bool {
        let dials = self.dials.lock();
        let mut dials = dials.unwrap_or_else(PoisonError::into_inner);
        dials.take(source, boottime())
    }

    /// To the broker with that key, at an address that this node knows of itself.
    async fn connect(
        &self,
        call: &[u8; splice::CALL],
        source: Source,
    ) -> Result<TcpStream, Verdict> {
        let key = splice::read_call(call).ok_or(Verdict::Malformed)?;
        let addresses: Vec<String> = {
            let view = self.view.borrow();
            let named = view.contacts.iter();
            let named = named.filter(|contact| *contact.key.as_bytes() == key);
            named.map(|contact| contact.address.clone()).collect()
        };
        if addresses.is_empty() {
            return Err(Verdict::UnknownBroker);
        }
        if !self.may_dial(source) {
            return Err(Verdict::Full);
        }
        let dialling = async {
            for address in addresses {
                match node::session::dial(&address, Some(self.mark)).await {
                    Ok((stream, _)) => return Some(stream),
                    Err(why) => tracing::debug!("splice: broker {address}: {why}"),
                }
            }
            None
        };
        let dialled = timeout(DIAL_WITHIN, dialling).await;
        dialled.ok().flatten().ok_or(Verdict::Unreachable)
    }
}

/// The network around one of this node's addresses.
struct Near {
    at: IpAddr,
    segment: Option<IpNetwork>,
    looked: Duration,
}

impl Near {
    fn of(at: IpAddr) -> Near {
        Near {
            at,
            segment: segment_of(at),
            looked: boottime(),
        }
    }

    fn contains(&mut self, address: IpAddr, now: Duration) -> bool {
        if now.saturating_sub(self.looked) >= LOOK_AGAIN {
            (self.segment, self.looked) = (segment_of(self.at), now);
        }
        self.segment
            .is_some_and(|segment| segment.contains(address))
    }
}

/// The network that `at` is an address of.
fn segment_of(at: IpAddr) -> Option<IpNetwork> {
    let mut all = nix::ifaddrs::getifaddrs().ok()?;
    all.find_map(|one| {
        let (address, mask) = (ip_of(one.address?)?, ip_of(one.netmask?)?);
        let length = match mask {
            IpAddr::V4(mask) => mask.to_bits().leading_ones(),
            IpAddr::V6(mask) => mask.to_bits().leading_ones(),
        };
        let length = u8::try_from(length).ok()?;
        (address == at).then(|| IpNetwork::new_truncate(address, length).ok())?
    })
}

fn ip_of(address: nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

/// Until both ends are done, one of them fails, or both keep silent.
async fn carry_both(mut caller: TcpStream, mut broker: TcpStream) -> io::Result<()> {
    let heard = AtomicU64::new(millis());
    let (caller_reads, caller_writes) = caller.split();
    let (broker_reads, broker_writes) = broker.split();
    tokio::try_join!(
        carry(caller_reads, broker_writes, &heard),
        carry(broker_reads, caller_writes, &heard),
    )?;
    Ok(())
}

fn millis() -> u64 {
    u64::try_from(boottime().as_millis()).unwrap_or(u64::MAX)
}

/// `heard` is when either side was last heard.
async fn carry(
    mut from: tcp::ReadHalf<'_>,
    mut to: tcp::WriteHalf<'_>,
    heard: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = match timeout(IDLE, from.read(&mut buffer)).await {
            Ok(len) => len?,
            Err(_) => {
                let silent = millis().saturating_sub(heard.load(Ordering::Relaxed));
                if Duration::from_millis(silent) >= IDLE {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                continue;
            }
        };
        if len == 0 {
            return to.shutdown().await;
        }
        heard.store(millis(), Ordering::Relaxed);
        let written = timeout(IDLE, to.write_all(&buffer[..len])).await;
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    }
}

#[cfg(test)]
mod tests {
    use proto::key::{Hash, SigningKey};
    use proto::ledger::{PrefixState, SitePrefix};
    use proto::token::TokenBroker;

    use super::*;

    fn view(broker: SocketAddr) -> View {
        let key = SigningKey::from_seed(&[7; 32]).public();
        let prefix = SitePrefix {
            prefix: "127.0.0.0/8".parse().unwrap(),
            site: "here".parse().unwrap(),
            service: false,
            number: 1,
            state: PrefixState::Owned,
        };
        View {
            mesh: Hash([0; 32]),
            site: "here".parse().unwrap(),
            node: "gate".parse().unwrap(),
            identity: key,
            standing: Standing::Good,
            peers: BTreeMap::new(),
            prefixes: Arc::new(vec![prefix]),
            cut_off: Arc::default(),
            contacts: Arc::new(vec![TokenBroker {
                address: broker.to_string(),
                key,
            }]),
            brokers: Arc::default(),
            heads: Arc::default(),
            knowledge: Arc::default(),
            problems: Vec::new(),
            broker: node::follow::BrokerState::Cached {
                reasons: Vec::new(),
            },
            stores: Vec::new(),
            last_sync: None,
            refused: node::follow::Refused::default(),
        }
    }

    #[tokio::test]
    async fn a_gateway_that_is_revoked_ends_what_passes_through_it() {
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (views, known) = watch::channel(Arc::new(view(broker.local_addr().unwrap())));
        let splice = Splice::start(known, 0);
        // Of this test alone.
        let gateway: IpAddr = "127.78.2.83".parse().unwrap();
        splice.handle_lan(&[gateway]);
        let mut caller = loop {
            match TcpStream::connect((gateway, splice::PORT)).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let key = views.borrow().identity;
        caller.write_all(&splice::call(&key)).await.unwrap();
        let (_broker, _) = broker.accept().await.unwrap();
        assert_eq!(caller.read_u8().await.unwrap(), Verdict::Connected.byte());
        views.send_modify(|view| Arc::make_mut(view).standing = Standing::Revoked);
        let ended = timeout(IDLE / 2, caller.read_u8()).await;
        assert!(ended.expect("it is held on").is_err());
        let mut next = TcpStream::connect((gateway, splice::PORT)).await.unwrap();
        assert_eq!(next.read_u8().await.unwrap(), Verdict::PutOut.byte());
    }
}
