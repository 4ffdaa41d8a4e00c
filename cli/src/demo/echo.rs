//! Pings from the kernel's own echo sockets: one round from everywhere to everywhere, and one that
//! goes on while something happens.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

const PAYLOAD: &[u8] = b"causeway demo";
/// With one answer, before another request is sent.
const PATIENCE: Duration = Duration::from_millis(200);
/// Of a running ping.
const INTERVAL: Duration = Duration::from_millis(10);

/// A socket of the calling thread's namespace. It behaves as one of UDP does: connect, send, receive.
struct Echo {
    socket: UdpSocket,
    request: u8,
}

impl Echo {
    fn to(address: IpAddr) -> io::Result<Echo> {
        let (family, protocol, request) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
        };
        let descriptor = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
        let socket = UdpSocket::from(descriptor);
        socket.connect(SocketAddr::new(address, 0))?;
        Ok(Echo { socket, request })
    }

    /// Type, code, checksum, identifier, sequence; the kernel fills in the middle two.
    fn send(&self, number: u16) -> io::Result<()> {
        let [high, low] = number.to_be_bytes();
        let mut packet = vec![self.request, 0, 0, 0, 0, 0, high, low];
        packet.extend_from_slice(PAYLOAD);
        self.socket.send(&packet).map(drop)
    }

    /// The number of an answer that came until then.
    fn receive(&self, until: Instant) -> io::Result<Option<u16>> {
        let mut answer = [0; 256];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut answer) {
                Ok(len) if len >= 8 && answer[..len].ends_with(PAYLOAD) => {
                    return Ok(Some(u16::from_be_bytes([answer[6], answer[7]])));
                }
                Ok(_) => {}
                Err(error) if is_silence(&error) => return Ok(None),
                // What routers on the way said of an earlier one.
                Err(_) => {}
            }
        }
    }
}

fn is_silence(error: &io::Error) -> bool {
    [
        io::ErrorKind::WouldBlock,
        io::ErrorKind::TimedOut,
        io::ErrorKind::Interrupted,
    ]
    .contains(&error.kind())
}

/// How long the quickest of a few took; `None` if there was no answer within `limit`.
pub(super) fn ping(to: IpAddr, limit: Duration) -> Option<Duration> {
    // The first may find no way yet, or wait for a neighbour.
    let mut best = first(to, limit)?;
    let Ok(echo) = Echo::to(to) else {
        return Some(best);
    };
    for number in 1..=2 {
        let sent = Instant::now();
        let _ = echo.send(number);
        if let Ok(Some(_)) = echo.receive(sent + PATIENCE) {
            best = best.min(sent.elapsed());
        }
    }
    Some(best)
}

/// Until there is one answer; how long that took.
pub(super) fn first(to: IpAddr, limit: Duration) -> Option<Duration> {
    let begun = Instant::now();
    let mut number = 0_u16;
    let mut echo = None;
    while begun.elapsed() < limit {
        number = number.wrapping_add(1);
        // Where there is no route yet, not even this can be had. One socket hears late answers too.
        echo = echo.or_else(|| Echo::to(to).ok());
        if let Some(echo) = &echo
            && echo.send(number).is_ok()
            && let Ok(Some(_)) = echo.receive(Instant::now() + PATIENCE)
        {
            return Some(begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// What one running ping saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) sent: usize,
    pub(super) answered: usize,
    /// The longest time during which nothing that was sent was answered.
    pub(super) gap: Duration,
}

/// A ping that goes on, as seen and ended from elsewhere.
#[derive(Debug)]
pub(super) struct Watch {
    begun: Instant,
    ended: AtomicBool,
    /// When the last answer came, in milliseconds.
    last_ms: AtomicU64,
}

impl Watch {
    pub(super) fn new() -> Watch {
        Watch {
            begun: Instant::now(),
            ended: AtomicBool::new(false),
            last_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Since the last answer.
    pub(super) fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Acquire));
        self.begun.elapsed().saturating_sub(last)
    }

    fn note(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Release);
    }
}

/// Sends a request each 10 ms until it is told to end, and waits half a second for the last answers.
pub(super) fn running(to: IpAddr, watch: &Watch) -> io::Result<Seen> {
    let echo = Echo::to(to)?;
    let mut answered: Vec<bool> = vec![];
    let mut sent: Vec<Instant> = vec![];
    let mut next = Instant::now();
    while !watch.ended.load(Ordering::Acquire) && sent.len() < usize::from(u16::MAX) {
        // A way that is gone for a moment is what is measured.
        let _ = echo.send(sent.len() as u16);
        sent.push(Instant::now());
        answered.push(false);
        next += INTERVAL;
        take(&echo, next, &mut answered, watch)?;
    }
    let last = Instant::now() + Duration::from_millis(500);
    take(&echo, last, &mut answered, watch)?;
    Ok(judge(&sent, &answered))
}

fn take(echo: &Echo, until: Instant, answered: &mut [bool], watch: &Watch) -> io::Result<()> {
    while let Some(number) = echo.receive(until)? {
        if let Some(one) = answered.get_mut(usize::from(number)) {
            *one = true;
            watch.note();
        }
    }
    Ok(())
}

fn judge(sent: &[Instant], answered: &[bool]) -> Seen {
    let mut gap = Duration::ZERO;
    let mut first_lost: Option<Instant> = None;
    for (at, is_answered) in sent.iter().zip(answered) {
        match (is_answered, first_lost) {
            (true, Some(first)) => {
                gap = gap.max(*at - first);
                first_lost = None;
            }
            (false, None) => first_lost = Some(*at),
            (true, None) | (false, Some(_)) => {}
        }
    }
    if let (Some(first), Some(last)) = (first_lost, sent.last()) {
        gap = gap.max(*last - first + INTERVAL);
    }
    Seen {
        sent: sent.len(),
        answered: answered.iter().filter(|one| **one).count(),
        gap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_lasts_from_the_first_lost_to_the_next_that_is_answered() {
        let begin = Instant::now();
        let sent: Vec<Instant> = (0..10).map(|number| begin + INTERVAL * number).collect();
        let lost = |numbers: &[usize]| -> Vec<bool> {
            (0..10).map(|number| !numbers.contains(&number)).collect()
        };
        assert_eq!(judge(&sent, &lost(&[])).gap, Duration::ZERO);
        assert_eq!(judge(&sent, &lost(&[2, 3, 4, 7])).gap, INTERVAL * 3);
        assert_eq!(judge(&sent, &lost(&[2, 8, 9])).gap, INTERVAL * 2);
        assert_eq!(judge(&sent, &lost(&[2, 8, 9])).answered, 7);
    }

    #[test]
    fn this_machine_answers_itself() {
        // Where the kernel allows such sockets at all.
        if Echo::to([127, 0, 0, 1].into()).is_ok() {
            assert!(ping([127, 0, 0, 1].into(), Duration::from_secs(5)).is_some());
        }
    }
}
