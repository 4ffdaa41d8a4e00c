//! One TCP connection that carries as much as it can for a while.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

use super::lab::Namespace;

const LASTS: Duration = Duration::from_secs(2);
/// A connection needs a moment to find its speed.
const WARM_UP: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);
const BLOCK: usize = 256 * 1024;

pub(super) struct Transfer {
    pub(super) bytes_per_s: f64,
    /// Whom the receiver saw.
    pub(super) from: IpAddr,
}

pub(super) fn measure(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
) -> anyhow::Result<Transfer> {
    let listener = to
        .within(|| TcpListener::bind(SocketAddr::new(address, 0)))?
        .with_context(|| format!("cannot listen on {address}"))?;
    let target = listener.local_addr()?;
    let sender = from
        .within(|| TcpStream::connect_timeout(&target, PATIENCE))?
        .with_context(|| format!("cannot connect to {target}"))?;
    let (receiver, peer) = listener.accept().context("nobody connected")?;
    for socket in [&sender, &receiver] {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
    }
    let reader = std::thread::spawn(move || read(receiver));
    write(sender).context("the transfer broke")?;
    let bytes_per_s = reader
        .join()
        .unwrap_or_else(|_| Err(anyhow!("its thread ended")))
        .context("the transfer broke")?;
    Ok(Transfer {
        bytes_per_s,
        from: peer.ip(),
    })
}

fn write(mut socket: TcpStream) -> anyhow::Result<()> {
    let block = vec![0x5a; BLOCK];
    let begun = Instant::now();
    while begun.elapsed() < WARM_UP + LASTS {
        socket.write_all(&block)?;
    }
    Ok(())
}

fn read(mut socket: TcpStream) -> anyhow::Result<f64> {
    let mut buffer = vec![0; BLOCK];
    let begun = Instant::now();
    let (mut bytes, mut measured) = (0_usize, None);
    loop {
        let len = socket.read(&mut buffer)?;
        let now = Instant::now();
        if now - begun < WARM_UP {
            continue;
        }
        let since = *measured.get_or_insert(now);
        if len == 0 || now - since >= LASTS {
            let seconds = (now - since).as_secs_f64();
            // What is left is taken, so that the sender ends in good order.
            while len > 0 && socket.read(&mut buffer)? > 0 {}
            return Ok(if seconds > 0.0 {
                bytes as f64 / seconds
            } else {
                0.0
            });
        }
        bytes += len;
    }
}
