//! A large download over HTTP, its checksum compared, while routes, rules and firewalls are flushed
//! on the machines that carry it.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use tests::dice::Dice;
use tests::lab::{Namespace, skip, wait_for};
use tests::mesh::{Mesh, PATIENCE, Plan};

/// Sent at least, whatever the rate.
const LARGE: u64 = 32 << 20;
const CHUNK: usize = 256 << 10;
/// Further apart than repairs are rationed.
const REST: Duration = Duration::from_millis(1200);
/// A download that stands still for so long has broken.
const STANDSTILL: Duration = Duration::from_secs(10);

/// One by one: `ip route flush` does not get routes deleted that name a group.
const ROUTES: &str = "for f in -4 -6; do for t in 7100 7101; do \
    for p in $(ip $f route show table $t | grep / | cut -d ' ' -f 1); do \
    ip $f route del $p table $t; done; done; done";
/// What befalls the machines on the way, gateways and those with agents, in turn.
const DAMAGE: [&str; 8] = [
    ROUTES,
    "nft flush ruleset",
    "ip route flush proto 199; ip -6 route flush proto 199",
    "ip nexthop flush proto 199",
    "ip rule del priority 100; ip rule del priority 99",
    "ip rule del priority 100 & nft flush ruleset; wait",
    "ip nexthop flush proto 199 & nft flush ruleset; wait",
    ROUTES,
];

/// Serves one download, which ends once that is asked for; its checksum follows it.
struct Server {
    address: SocketAddr,
    enough: Arc<AtomicBool>,
    thread: JoinHandle<Result<IpAddr>>,
}

impl Server {
    fn start(on: &Namespace, address: IpAddr, dice: Dice) -> Result<Server> {
        let listener = on.within(|| TcpListener::bind((address, 0)))??;
        let enough = Arc::<AtomicBool>::default();
        let flag = Arc::clone(&enough);
        Ok(Server {
            address: listener.local_addr()?,
            enough,
            thread: std::thread::spawn(move || serve(&listener, dice, &flag)),
        })
    }

    /// Who downloaded.
    fn finish(self) -> Result<IpAddr> {
        self.thread.join().expect("the server does not panic")
    }
}

fn serve(listener: &TcpListener, mut dice: Dice, enough: &AtomicBool) -> Result<IpAddr> {
    let (mut socket, client) = listener.accept()?;
    socket.set_write_timeout(Some(STANDSTILL))?;
    let mut request = BufReader::new(socket.try_clone()?).lines();
    while request
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    socket
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Checksum\r\n\r\n")?;
    let (mut sent, mut sum) = (0, Sha256::new());
    let mut chunk = vec![0; CHUNK];
    while sent < LARGE || !enough.load(Ordering::Relaxed) {
        for word in chunk.chunks_mut(4) {
            word.copy_from_slice(&(dice.below(1 << 32) as u32).to_be_bytes());
        }
        sum.update(&chunk);
        write!(socket, "{CHUNK:x}\r\n")?;
        socket.write_all(&chunk)?;
        socket.write_all(b"\r\n")?;
        sent += CHUNK as u64;
    }
    let sum = HEXLOWER.encode(&sum.finalize());
    write!(socket, "0\r\nChecksum: {sum}\r\n\r\n")?;
    Ok(client.ip())
}

/// Downloads; the checksum of what came was the one that was told.
struct Download {
    received: Arc<AtomicU64>,
    thread: JoinHandle<Result<Duration>>,
}

impl Download {
    fn start(on: &Namespace, from: SocketAddr) -> Result<Download> {
        let connect = || TcpStream::connect_timeout(&from, STANDSTILL);
        let socket = on.within(connect)?.context("cannot connect")?;
        socket.set_read_timeout(Some(STANDSTILL))?;
        let received = Arc::<AtomicU64>::default();
        let count = Arc::clone(&received);
        Ok(Download {
            received,
            thread: std::thread::spawn(move || download(socket, &count)),
        })
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn wait_for_more(&self) -> Result<()> {
        let before = self.received();
        wait_for("more of the download", PATIENCE, || {
            self.received() > before
        })
    }

    /// The longest time it waited for the next piece.
    fn finish(self) -> Result<Duration> {
        self.thread.join().expect("the client does not panic")
    }
}

fn download(mut socket: TcpStream, count: &AtomicU64) -> Result<Duration> {
    socket.write_all(b"GET /large HTTP/1.1\r\nHost: site\r\n\r\n")?;
    let mut reader = BufReader::new(socket);
    let mut line = || -> Result<String> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    ensure!(line()? == "HTTP/1.1 200 OK");
    while !line()?.is_empty() {}
    let mut sum = Sha256::new();
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let mut piece = vec![0; 1 << 16];
    loop {
        let mut head = String::new();
        reader.read_line(&mut head)?;
        let mut left = usize::from_str_radix(head.trim_end(), 16).context("no chunk")?;
        if left == 0 {
            break;
        }
        while left > 0 {
            let room = left.min(piece.len());
            let length = reader.read(&mut piece[..room])?;
            ensure!(length > 0, "the download ended early");
            sum.update(&piece[..length]);
            longest = longest.max(last.elapsed());
            last = Instant::now();
            count.fetch_add(length as u64, Ordering::Relaxed);
            left -= length;
        }
        reader.read_line(&mut head)?;
    }
    let mut told = String::new();
    reader.read_line(&mut told)?;
    let found = HEXLOWER.encode(&sum.finalize());
    ensure!(
        told.trim_end() == format!("Checksum: {found}"),
        "{told} is not {found}"
    );
    Ok(longest)
}

#[test]
fn a_download_arrives_whole_though_routes_are_flushed_under_it() {
    if skip("a_download", &["nft"]) {
        return;
    }
    let mesh = Mesh::up("http", &[Plan::ONE.agents(1); 2]).unwrap();
    let [to, from] = [&mesh.sites[0], &mesh.sites[1]];
    let dice = Dice::new("a_download");
    let server = Server::start(&from.worker, from.worker_address(), dice).unwrap();
    let download = Download::start(&to.worker, server.address).unwrap();
    let [near, far] = [to, from].map(|site| &site.gateways[0].namespace);
    let carriers = [&to.worker, far, &from.worker, near];
    for (number, damage) in DAMAGE.iter().enumerate() {
        download.wait_for_more().unwrap();
        carriers[number % carriers.len()]
            .sh(&format!("({damage}) 2>/dev/null; true"))
            .unwrap();
        std::thread::sleep(REST);
    }
    download.wait_for_more().unwrap();
    server.enough.store(true, Ordering::Relaxed);
    let received = download.received();
    let longest = download.finish().expect("it arrives whole");
    let client = server.finish().expect("it is sent whole");
    println!("{received} bytes under damage, the longest wait {longest:?}");
    assert_eq!(client, to.worker_address());
    mesh.watch.assert_clean();
}
