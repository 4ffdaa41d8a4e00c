//! The sockets of a broker: TCP and UDP on one port, HTTP, and one for commands on this host.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpSocket, UdpSocket, UnixListener, UnixStream};
use tracing::warn;

use super::{Error, Options, Serving, TcpListener, failed};

const SOCKET: &str = "broker.sock";
/// A port that is free for TCP may be taken for UDP.
const TRIES: usize = 16;
/// All sites may come back at once; the kernel has a lower limit of its own.
const BACKLOG: u32 = 4096;

pub(super) struct Sockets {
    pub(super) tcp: TcpListener,
    udp: Option<UdpSocket>,
    pub(super) http: Option<TcpListener>,
    pub(super) local: Local,
    pub(super) serving: Serving,
}

/// The Unix socket; its name goes when it is dropped.
pub(super) struct Local {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Sockets {
    pub(super) async fn bind(options: &Options) -> Result<Sockets, Error> {
        let local = Local::bind(&options.runtime_directory).await?;
        let (tcp, udp) = bind_both(options.listen).await?;
        let http = match options.http {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(failed("listen for HTTP on", address))?,
            ),
            None => None,
        };
        let serving = Serving {
            listen: tcp
                .local_addr()
                .map_err(failed("tell the port of", options.listen))?,
            http: http.as_ref().and_then(|http| http.local_addr().ok()),
            socket: local.path.clone(),
        };
        Ok(Sockets {
            tcp,
            udp: Some(udp),
            http,
            local,
            serving,
        })
    }

    pub(super) fn take_udp(&mut self) -> Option<UdpSocket> {
        self.udp.take()
    }
}

/// Where the kernel has no IPv6, the default address means all of IPv4.
async fn bind_both(wanted: SocketAddr) -> Result<(TcpListener, UdpSocket), Error> {
    match bind_pair(wanted).await {
        Err(error)
            if wanted.is_ipv6()
                && wanted.ip().is_unspecified()
                && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) =>
        {
            warn!("this host has no IPv6: listening on IPv4 only");
            let wanted = SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted.port()));
            bind_pair(wanted).await.map_err(failed("listen on", wanted))
        }
        other => other.map_err(failed("listen on", wanted)),
    }
}

async fn bind_pair(wanted: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = TRIES;
    loop {
        let tcp = listen(wanted)?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((tcp, udp)),
            Err(error) if wanted.port() != 0 || tries == 0 => return Err(error),
            Err(_) => tries -= 1,
        }
    }
}

fn listen(wanted: SocketAddr) -> io::Result<TcpListener> {
    let socket = match wanted {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(wanted)?;
    socket.listen(BACKLOG)
}

pub(super) fn make_runtime_directory(path: &Path) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make", parent.display()))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("make", path.display())(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Local {
    async fn bind(directory: &Path) -> Result<Local, Error> {
        let path = directory.join(SOCKET);
        // One that answers has an owner; any other was left by a crash.
        if UnixStream::connect(&path).await.is_ok() {
            return Err(Error::Running(path));
        }
        let staged = directory.join("broker.sock.new");
        for stale in [&path, &staged] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", stale.display())(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        // Nobody else can connect before its mode says so: it gets its name last.
        let listener = UnixListener::bind(&staged).map_err(failed("make", staged.display()))?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&staged, &path))
            .map_err(failed("name", path.display()))?;
        Ok(Local { listener, path })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // Left behind, it is removed at the next start.
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn the_default_address_serves_ipv4_too_and_udp_on_the_same_port() {
        let (tcp, udp) = bind_both("[::]:0".parse().unwrap()).await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert_eq!(udp.local_addr().unwrap().port(), port);
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        let caller = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        caller.send_to(&[1], ("127.0.0.1", port)).await.unwrap();
        let mut byte = [0];
        udp.recv_from(&mut byte).await.unwrap();
        assert_eq!(byte, [1]);
    }
}
