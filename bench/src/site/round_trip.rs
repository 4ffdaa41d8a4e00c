//! Round trips of a small datagram, one at a time.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::tests::lab::Namespace;
use anyhow::{Context as _, Result, bail};

use crate::statistics::quantile;

const PORT: u16 = 7007;
const PAYLOAD: usize = 64;
/// Between an answer and the next question: both ends go to sleep, as they do in life.
const PAUSE: Duration = Duration::from_micros(500);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Round trips in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RoundTrips {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) count: usize,
    pub(crate) unanswered: usize,
}

/// Asks from `client` for `length` and has `server` answer.
pub(crate) fn measure(
    client: &Namespace,
    server: &Namespace,
    address: Ipv4Addr,
    length: Duration,
) -> Result<RoundTrips> {
    let done = AtomicBool::new(false);
    let socket = server.within(|| UdpSocket::bind((address, PORT)))?;
    let socket = socket.with_context(|| format!("cannot answer on {address}:{PORT}"))?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer(&socket, &done));
        let asked = client.within(|| ask((address, PORT).into(), length));
        done.store(true, Ordering::Relaxed);
        let answered = answering
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        answered.context("cannot answer round trips")?;
        asked?.context("cannot ask for round trips")
    })
}

fn answer(socket: &UdpSocket, done: &AtomicBool) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut buffer = [0; PAYLOAD];
    while !done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                socket.send_to(&buffer[..length], from)?;
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn ask(server: SocketAddr, length: Duration) -> Result<RoundTrips> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    let begin = Instant::now();
    let (mut times, mut unanswered, mut number) = (Vec::new(), 0, 0_u64);
    while begin.elapsed() < length {
        number += 1;
        match one(&socket, number)? {
            Some(time) => times.push(time.as_secs_f64() * 1e3),
            None => unanswered += 1,
        }
        std::thread::sleep(PAUSE);
    }
    summarize(times, unanswered)
}

/// One question; `None` if its answer does not come. Late answers to earlier ones are passed over.
fn one(socket: &UdpSocket, number: u64) -> io::Result<Option<Duration>> {
    let mut buffer = [0; PAYLOAD];
    buffer[..8].copy_from_slice(&number.to_be_bytes());
    let begin = Instant::now();
    socket.send(&buffer)?;
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) if buffer[..8] == number.to_be_bytes() => return Ok(Some(begin.elapsed())),
            Ok(_) => {}
            Err(error) if is_timeout(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn summarize(mut times: Vec<f64>, unanswered: usize) -> Result<RoundTrips> {
    times.sort_by(f64::total_cmp);
    let (Some(p50), Some(p99)) = (quantile(&times, 50), quantile(&times, 99)) else {
        bail!("none of {unanswered} questions was answered");
    };
    Ok(RoundTrips {
        p50,
        p99,
        count: times.len(),
        unanswered,
    })
}

fn is_timeout(error: &io::Error) -> bool {
    [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_summed_up_by_quantiles() {
        let trips = summarize((1..=100).map(f64::from).rev().collect(), 2).unwrap();
        assert_eq!(
            trips,
            RoundTrips {
                p50: 50.0,
                p99: 99.0,
                count: 100,
                unanswered: 2
            }
        );
        assert!(summarize(Vec::new(), 7).is_err());
    }
}
