//! Transfers whose every byte and every datagram is checked on arrival.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::Namespace;

/// No transfer of a test stands still this long, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(40);

/// A prime, so that no segment or batch size divides it: whatever is lost, doubled or swapped moves
/// the pattern.
const PERIOD: usize = 1_048_573;

/// From where to where.
#[derive(Clone, Copy)]
pub struct Flow<'a> {
    pub from: &'a Namespace,
    pub to: &'a Namespace,
    /// An address of `to`, as `from` reaches it.
    pub address: IpAddr,
}

/// How datagrams are sent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub datagrams: u64,
    pub size: usize,
    /// Between two of them; zero sends as fast as the socket takes them.
    pub interval: Duration,
}

/// What arrived of numbered datagrams.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    pub sent: u64,
    /// Their numbers, in order of arrival.
    pub numbers: Vec<u64>,
    /// Those whose content was not what was sent.
    pub damaged: u64,
}

impl Arrivals {
    pub fn lost(&self) -> u64 {
        let mut seen = self.numbers.clone();
        seen.sort_unstable();
        seen.dedup();
        self.sent - seen.len() as u64
    }

    /// Those that came after one with a higher number, or twice.
    pub fn disordered(&self) -> usize {
        self.numbers
            .windows(2)
            .filter(|pair| pair[1] <= pair[0])
            .count()
    }
}

impl Flow<'_> {
    /// The other direction, to `address`.
    pub fn reverse(&self, address: IpAddr) -> Self {
        Flow {
            from: self.to,
            to: self.from,
            address,
        }
    }

    /// Carries `bytes` over one TCP connection and compares each with what was sent.
    pub fn tcp(&self, bytes: u64) -> Result<()> {
        let listener = self
            .to
            .within(|| TcpListener::bind(SocketAddr::new(self.address, 0)))??;
        let target = listener.local_addr()?;
        let mut sender = self
            .from
            .within(|| TcpStream::connect_timeout(&target, PATIENCE))?
            .with_context(|| format!("{} cannot connect to {target}", self.from.name()))?;
        let (mut receiver, _) = listener.accept()?;
        for socket in [&sender, &receiver] {
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || write_pattern(&mut sender, bytes));
            let read = read_pattern(&mut receiver, bytes);
            // The writer of a transfer that went wrong must not wait for its whole patience.
            drop(receiver);
            let written = writing.join().expect("the writer does not panic");
            read.and(written)
        })
    }

    /// The same over several connections at once.
    pub fn tcp_parallel(&self, connections: usize, bytes: u64) -> Result<()> {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..connections)
                .map(|_| scope.spawn(|| self.tcp(bytes)))
                .collect();
            running
                .into_iter()
                .enumerate()
                .try_for_each(|(number, thread)| {
                    let outcome = thread.join().expect("a transfer does not panic");
                    outcome.with_context(|| format!("connection {number} of {connections}"))
                })
        })
    }

    /// Sends numbered datagrams and says what arrived.
    pub fn udp(&self, pace: Pace) -> Result<Arrivals> {
        ensure!(pace.size >= 8, "a datagram holds its number");
        let receiver = self
            .to
            .within(|| UdpSocket::bind(SocketAddr::new(self.address, 0)))??;
        nix::sys::socket::setsockopt(
            &receiver,
            nix::sys::socket::sockopt::RcvBufForce,
            &(8 << 20),
        )?;
        receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
        let target = receiver.local_addr()?;
        let any: IpAddr = match self.address {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        let sender = self.from.within(|| UdpSocket::bind((any, 0)))??;
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(&receiver, pace, &ended));
            let sent = send(&sender, target, pace);
            ended.store(true, Ordering::Release);
            let arrivals = receiving.join().expect("the receiver does not panic");
            sent?;
            Ok(arrivals)
        })
    }
}

/// Bytes that look random and differ at every offset of the period.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..PERIOD).map(|_| next()).collect()
    })
}

fn write_pattern(sender: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut written = 0;
    while written < bytes {
        let from = usize::try_from(written)? % PERIOD;
        let chunk = &pattern()[from..PERIOD.min(from + (128 << 10))];
        let chunk = &chunk[..chunk.len().min(usize::try_from(bytes - written)?)];
        sender
            .write_all(chunk)
            .with_context(|| format!("writing ended at byte {written} of {bytes}"))?;
        written += chunk.len() as u64;
    }
    sender
        .shutdown(std::net::Shutdown::Write)
        .context("cannot end the transfer")
}

fn read_pattern(receiver: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    let mut read = 0;
    loop {
        let length = receiver
            .read(&mut buffer)
            .with_context(|| format!("reading ended at byte {read} of {bytes}"))?;
        if length == 0 {
            ensure!(read == bytes, "the stream ended at byte {read} of {bytes}");
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let from = usize::try_from(read)? % PERIOD;
            let wanted = &pattern()[from..PERIOD.min(from + rest.len())];
            if rest[..wanted.len()] != *wanted {
                bail!("the stream differs from what was sent behind byte {read}");
            }
            read += wanted.len() as u64;
            rest = &rest[wanted.len()..];
        }
    }
}

/// A datagram holds its number and the pattern from there on.
fn fill(number: u64, datagram: &mut [u8]) {
    datagram[..8].copy_from_slice(&number.to_be_bytes());
    let from = usize::try_from(number).expect("few datagrams") % (PERIOD / 2);
    let length = datagram.len() - 8;
    datagram[8..].copy_from_slice(&pattern()[from..from + length]);
}

fn send(sender: &UdpSocket, target: SocketAddr, pace: Pace) -> Result<()> {
    let begin = Instant::now();
    let mut datagram = vec![0; pace.size];
    for number in 0..pace.datagrams {
        fill(number, &mut datagram);
        sender
            .send_to(&datagram, target)
            .with_context(|| format!("cannot send datagram {number} to {target}"))?;
        let due = pace.interval * u32::try_from(number + 1)?;
        if let Some(early) = due
            .checked_sub(begin.elapsed())
            .filter(|early| !early.is_zero())
        {
            std::thread::sleep(early);
        }
    }
    Ok(())
}

/// Until all have come, or nothing has for two seconds after the last was sent.
fn receive(receiver: &UdpSocket, pace: Pace, ended: &AtomicBool) -> Arrivals {
    let mut arrivals = Arrivals {
        sent: pace.datagrams,
        ..Arrivals::default()
    };
    let (mut buffer, mut wanted) = (vec![0; 1 << 16], vec![0; pace.size]);
    let mut last = Instant::now();
    while (arrivals.numbers.len() as u64) < pace.datagrams {
        let Ok(length) = receiver.recv(&mut buffer) else {
            if ended.load(Ordering::Acquire) && last.elapsed() > Duration::from_secs(2) {
                break;
            }
            continue;
        };
        last = Instant::now();
        let number = buffer[..8].try_into().map_or(u64::MAX, u64::from_be_bytes);
        if number >= pace.datagrams {
            arrivals.damaged += 1;
            continue;
        }
        fill(number, &mut wanted);
        if buffer[..length] != wanted {
            arrivals.damaged += 1;
        }
        arrivals.numbers.push(number);
    }
    arrivals
}
