//! Numbered datagrams of many flows, so that every gateway of a site gets some of them: what was
//! lost, how long each flow stood still, and from whom it came.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::lab::Namespace;

/// With so many flows over two gateways, one of them is left out once in 2^31 runs.
const FLOWS: usize = 32;
/// Between two datagrams of one flow.
const INTERVAL: Duration = Duration::from_millis(20);
/// What is under way when the sender stops.
const DRAIN: Duration = Duration::from_millis(500);

/// A measurement that runs until it is finished.
pub struct Meter {
    ended: Arc<AtomicBool>,
    sender: Option<JoinHandle<Vec<u64>>>,
    receiver: Option<JoinHandle<Vec<Arrival>>>,
}

struct Arrival {
    flow: usize,
    number: u64,
    at: Instant,
    from: IpAddr,
}

/// What a measurement showed.
#[derive(Clone)]
pub struct Report {
    pub sent: u64,
    pub lost: u64,
    /// Received more than once.
    pub doubled: u64,
    /// The longest time any one flow received nothing, less the time between two datagrams.
    pub gap: Duration,
    /// Flows that stood still for more than a tenth of a second.
    pub disturbed: usize,
    pub sources: BTreeSet<IpAddr>,
    /// When the first and the last of those that are lost were sent, after the start.
    pub lost_from_to: Option<(Duration, Duration)>,
    /// When datagrams came, in order.
    times: Vec<Instant>,
}

/// Without the times, which are many.
impl std::fmt::Debug for Report {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Report")
            .field("sent", &self.sent)
            .field("lost", &self.lost)
            .field("doubled", &self.doubled)
            .field("gap", &self.gap)
            .field("disturbed", &self.disturbed)
            .field("sources", &self.sources)
            .field("lost_from_to", &self.lost_from_to)
            .finish_non_exhaustive()
    }
}

impl Report {
    /// How long after `start` the first datagram came.
    pub fn first_after(&self, start: Instant) -> Option<Duration> {
        let at = self.times.iter().find(|at| **at >= start)?;
        Some(*at - start)
    }

    pub fn last(&self) -> Option<Instant> {
        self.times.last().copied()
    }
}

impl Meter {
    pub fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<Meter> {
        let receiver = to.within(|| UdpSocket::bind(SocketAddr::new(address, 0)))??;
        setsockopt(&receiver, RcvBufForce, &(8 << 20))?;
        receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
        let target = receiver.local_addr()?;
        let any: SocketAddr = if address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let sockets: std::io::Result<Vec<UdpSocket>> =
            from.within(|| (0..FLOWS).map(|_| UdpSocket::bind(any)).collect())?;
        let sockets = sockets.context("cannot open the meter's sockets")?;
        let ended = Arc::new(AtomicBool::new(false));
        let sender = std::thread::spawn({
            let ended = Arc::clone(&ended);
            move || send(&sockets, target, &ended)
        });
        let receiver = std::thread::spawn({
            let ended = Arc::clone(&ended);
            move || receive(&receiver, &ended)
        });
        Ok(Meter {
            ended,
            sender: Some(sender),
            receiver: Some(receiver),
        })
    }

    pub fn finish(mut self) -> Report {
        self.ended.store(true, Ordering::Relaxed);
        let sent = self.sender.take().map(|thread| thread.join());
        let arrivals = self.receiver.take().map(|thread| thread.join());
        let sent = sent
            .and_then(Result::ok)
            .expect("the sender does not panic");
        let arrivals = arrivals
            .and_then(Result::ok)
            .expect("the receiver does not panic");
        report(&sent, &arrivals)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn send(sockets: &[UdpSocket], target: SocketAddr, ended: &AtomicBool) -> Vec<u64> {
    let mut sent = vec![0_u64; sockets.len()];
    let mut due = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        for (flow, socket) in sockets.iter().enumerate() {
            let mut datagram = [0; 64];
            datagram[..8].copy_from_slice(&(flow as u64).to_be_bytes());
            datagram[8..16].copy_from_slice(&sent[flow].to_be_bytes());
            // An error that an earlier one left behind costs one number, which then counts as lost.
            let _ = socket.send_to(&datagram, target);
            sent[flow] += 1;
            // One after the other: a burst of all would measure queues.
            due += INTERVAL / sockets.len() as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    sent
}

fn receive(socket: &UdpSocket, ended: &AtomicBool) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    let mut until = None;
    let mut datagram = [0; 128];
    loop {
        if ended.load(Ordering::Relaxed) {
            let until = *until.get_or_insert_with(|| Instant::now() + DRAIN);
            if Instant::now() > until {
                return arrivals;
            }
        }
        let Ok((64, from)) = socket.recv_from(&mut datagram) else {
            continue;
        };
        let word =
            |at: usize| u64::from_be_bytes(std::array::from_fn(|index| datagram[at + index]));
        arrivals.push(Arrival {
            flow: word(0) as usize,
            number: word(8),
            at: Instant::now(),
            from: from.ip(),
        });
    }
}

fn report(sent: &[u64], arrivals: &[Arrival]) -> Report {
    let mut report = Report {
        sent: sent.iter().sum(),
        lost: 0,
        doubled: 0,
        gap: Duration::ZERO,
        disturbed: 0,
        sources: arrivals.iter().map(|arrival| arrival.from).collect(),
        lost_from_to: None,
        times: arrivals.iter().map(|arrival| arrival.at).collect(),
    };
    for (flow, sent) in sent.iter().enumerate() {
        let of_flow: Vec<&Arrival> = arrivals.iter().filter(|one| one.flow == flow).collect();
        let numbers: BTreeSet<u64> = of_flow.iter().map(|one| one.number).collect();
        report.lost += sent - numbers.len() as u64;
        for number in (0..*sent).filter(|number| !numbers.contains(number)) {
            let at = INTERVAL * u32::try_from(number).unwrap_or(u32::MAX);
            let (from, to) = report.lost_from_to.unwrap_or((at, at));
            report.lost_from_to = Some((from.min(at), to.max(at)));
        }
        report.doubled += (of_flow.len() - numbers.len()) as u64;
        let pauses = of_flow.windows(2).map(|pair| pair[1].at - pair[0].at);
        // A flow whose end is missing stands still until the last datagram was due.
        let missing = sent - numbers.last().map_or(0, |last| last + 1);
        let end = INTERVAL * u32::try_from(missing).unwrap_or(u32::MAX);
        let longest = pauses.chain([end]).max().unwrap_or_default();
        let gap = longest.saturating_sub(INTERVAL);
        report.gap = report.gap.max(gap);
        report.disturbed += usize::from(gap > Duration::from_millis(100));
    }
    report
}
