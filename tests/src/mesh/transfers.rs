//! TCP connections that must survive what is done to the gateways between their ends: each carries
//! a known pattern at a modest rate, and says how long it ever stood still.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::lab::Namespace;

/// Over two gateways, all take the same one once in 128 runs.
const CONNECTIONS: usize = 8;
const BLOCK: usize = 4096;
const INTERVAL: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Transfers {
    ended: Arc<AtomicBool>,
    running: Vec<Connection>,
}

struct Connection {
    writer: JoinHandle<Result<u64>>,
    reader: JoinHandle<Result<Read>>,
}

struct Read {
    bytes: u64,
    stall: Duration,
    from: IpAddr,
}

/// What all connections together showed.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub bytes: u64,
    /// The longest time any connection delivered nothing.
    pub stall: Duration,
    pub sources: Vec<IpAddr>,
}

impl Transfers {
    pub fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<Transfers> {
        let listener = to.within(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
        let target = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let mut running = Vec::new();
        for _ in 0..CONNECTIONS {
            let sender = from
                .within(|| TcpStream::connect_timeout(&target, PATIENCE))?
                .with_context(|| format!("cannot connect to {target}"))?;
            let (receiver, peer) = listener.accept()?;
            for socket in [&sender, &receiver] {
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.set_write_timeout(Some(PATIENCE))?;
            }
            let flag = Arc::clone(&ended);
            running.push(Connection {
                writer: std::thread::spawn(move || write(sender, &flag)),
                reader: std::thread::spawn(move || read(receiver, peer.ip())),
            });
        }
        Ok(Transfers { ended, running })
    }

    /// Ends the connections in good order; an error if one broke or a byte was wrong.
    pub fn finish(self) -> Result<Transfer> {
        self.ended.store(true, Ordering::Relaxed);
        let mut all = Transfer {
            bytes: 0,
            stall: Duration::ZERO,
            sources: Vec::new(),
        };
        for Connection { writer, reader } in self.running {
            let written = writer.join().expect("the writer does not panic")?;
            let read = reader.join().expect("the reader does not panic")?;
            ensure!(
                written == read.bytes,
                "{written} bytes were sent and {} arrived",
                read.bytes
            );
            all.bytes += read.bytes;
            all.stall = all.stall.max(read.stall);
            all.sources.push(read.from);
        }
        Ok(all)
    }
}

fn write(mut socket: TcpStream, ended: &AtomicBool) -> Result<u64> {
    let mut sent = 0;
    while !ended.load(Ordering::Relaxed) {
        let block: Vec<u8> = (0..BLOCK as u64).map(|at| pattern(sent + at)).collect();
        socket.write_all(&block).context("a transfer broke")?;
        sent += BLOCK as u64;
        std::thread::sleep(INTERVAL);
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    Ok(sent)
}

fn read(mut socket: TcpStream, from: IpAddr) -> Result<Read> {
    let mut read = Read {
        bytes: 0,
        stall: Duration::ZERO,
        from,
    };
    let mut last = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = socket.read(&mut buffer).context("a transfer broke")?;
        if count == 0 {
            return Ok(read);
        }
        read.stall = read.stall.max(last.elapsed());
        last = Instant::now();
        for (at, byte) in buffer[..count].iter().enumerate() {
            let at = read.bytes + at as u64;
            ensure!(*byte == pattern(at), "byte {at} of a transfer is wrong");
        }
        read.bytes += count as u64;
    }
}

/// A prime period, so that whatever is lost, doubled or swapped moves the pattern.
fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}
