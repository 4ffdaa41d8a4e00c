//! From an address to a session: resolve, connect, TLS with the pin, hello.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::frame::FrameReader;
use proto::hello::{ALPN, EXPORTER, Hello, SPOKEN, Welcome};
use proto::key::{Hash, MeshId, PublicKey};
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Failure, READ_SIZE, STEP_DEADLINE, Session, Stream, Why};
use crate::mark;
use crate::tls::{self, Shown};

/// What a broker without a ledger shows as its mesh.
const NO_MESH: MeshId = Hash([0; 32]);

impl Session {
    /// `address` is `host:port`. Its addresses are tried in turn; the broker must show `pin`, and
    /// serve `mesh` or no mesh yet.
    pub async fn connect(
        address: &str,
        pin: PublicKey,
        mesh: MeshId,
    ) -> Result<(Session, Welcome), Failure> {
        Session::connect_marked(address, pin, mesh, None).await
    }

    /// The same with a mark on the connection's packets, for the host's rules to tell them by.
    pub async fn connect_marked(
        address: &str,
        pin: PublicKey,
        mesh: MeshId,
        mark: Option<u32>,
    ) -> Result<(Session, Welcome), Failure> {
        let connected = async {
            let (stream, reached) = dial(address, mark).await?;
            let (stream, exporter) = handshake(stream, reached[0].ip(), pin).await?;
            let mut session = greet(address, Box::new(stream), Some(exporter), mesh).await?;
            session.reached = reached;
            Ok(session)
        };
        named(address, connected.await)
    }

    /// Over a connection that leads to the broker, whoever passes it on.
    pub(super) async fn over(
        stream: TcpStream,
        address: &str,
        pin: PublicKey,
        mesh: MeshId,
    ) -> Result<Session, Why> {
        let (stream, exporter) = handshake(stream, Ipv4Addr::UNSPECIFIED.into(), pin).await?;
        greet(address, Box::new(stream), Some(exporter), mesh).await
    }

    /// Over a broker's `broker.sock`, where the kernel says who calls.
    pub async fn connect_local(path: &Path, mesh: MeshId) -> Result<(Session, Welcome), Failure> {
        let address = path.display().to_string();
        let connected = async {
            let stream = match timeout(STEP_DEADLINE, UnixStream::connect(path)).await {
                Ok(stream) => stream.map_err(connect_error)?,
                Err(_) => return Err(Why::ConnectTimeout(STEP_DEADLINE)),
            };
            greet(&address, Box::new(stream), None, mesh).await
        };
        named(&address, connected.await)
    }
}

fn named(address: &str, session: Result<Session, Why>) -> Result<(Session, Welcome), Failure> {
    match session {
        Ok(session) => {
            let welcome = session.welcome;
            Ok((session, welcome))
        }
        Err(why) => Err(Failure {
            address: address.to_owned(),
            why,
        }),
    }
}

/// Opens a connection to `host:port`, its addresses in turn; they come along, the one that was
/// taken first.
pub async fn dial(address: &str, mark: Option<u32>) -> Result<(TcpStream, Vec<SocketAddr>), Why> {
    let resolved = match timeout(STEP_DEADLINE, lookup_host(address)).await {
        Ok(resolved) => resolved.map_err(Why::Resolve)?,
        Err(_) => return Err(Why::Resolve(io::ErrorKind::TimedOut.into())),
    };
    let mut reached: Vec<SocketAddr> = resolved.collect();
    let mut last = Why::NoAddress;
    for at in 0..reached.len() {
        match tcp_stream(reached[at], mark).await {
            Ok(stream) => {
                reached[..=at].rotate_right(1);
                return Ok((stream, reached));
            }
            Err(why) => last = why,
        }
    }
    Err(last)
}

async fn tcp_stream(target: SocketAddr, mark: Option<u32>) -> Result<TcpStream, Why> {
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    mark::set(&socket, mark)?;
    match timeout(STEP_DEADLINE, socket.connect(target)).await {
        Ok(stream) => {
            let stream = stream.map_err(connect_error)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        }
        Err(_) => Err(Why::ConnectTimeout(STEP_DEADLINE)),
    }
}

async fn handshake(
    stream: TcpStream,
    named: IpAddr,
    pin: PublicKey,
) -> Result<(TlsStream<TcpStream>, [u8; 32]), Why> {
    let shown = Arc::new(Shown::default());
    let config = tls::client(pin, shown.clone()).map_err(Why::Tls)?;
    // Who is there the pin says; TLS wants a name.
    let name = ServerName::IpAddress(named.into());
    let connect = TlsConnector::from(config).connect(name, stream);
    let stream = match timeout(STEP_DEADLINE, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(match shown.key() {
                Some(shown) => Why::Pin { pin, shown },
                None => tls_error(error),
            });
        }
        Err(_) => return Err(slow("the TLS handshake")),
    };
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(Why::NotCauseway(
            "it speaks TLS, but not our protocol".to_owned(),
        ));
    }
    let exporter = connection
        .export_keying_material([0; 32], EXPORTER, None)
        .map_err(Why::Tls)?;
    Ok((stream, exporter))
}

async fn greet(
    address: &str,
    stream: Box<dyn Stream>,
    exporter: Option<[u8; 32]>,
    mesh: MeshId,
) -> Result<Session, Why> {
    let mut session = Session {
        address: address.to_owned(),
        stream,
        frames: FrameReader::new(),
        buffer: Box::new([0; READ_SIZE]),
        exporter,
        number: 0,
        reached: Vec::new(),
        through: None,
        early: std::collections::VecDeque::new(),
        welcome: Welcome {
            versions: SPOKEN,
            mesh,
            now: 0,
        },
    };
    let hello = Hello {
        versions: SPOKEN,
        mesh,
    };
    session.write(&hello.write()).await?;
    let content = match timeout(STEP_DEADLINE, session.read()).await {
        Ok(content) => content?,
        Err(_) => return Err(slow("its hello")),
    };
    session.welcome = Welcome::read(&content)?;
    SPOKEN.agree(session.welcome.versions)?;
    if session.welcome.mesh != mesh && session.welcome.mesh != NO_MESH {
        return Err(Why::OtherMesh(session.welcome.mesh));
    }
    Ok(session)
}

fn slow(what: &'static str) -> Why {
    let within: Duration = STEP_DEADLINE;
    Why::Slow { what, within }
}

fn connect_error(error: io::Error) -> Why {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        Why::ConnectionRefused
    } else {
        Why::Connect(error)
    }
}

/// An answer that is TLS's own complaint means something else listens there; all else is the
/// connection.
fn tls_error(error: io::Error) -> Why {
    let complaint = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .map(ToString::to_string);
    match complaint {
        Some(complaint) => Why::NotCauseway(complaint),
        None if error.kind() == io::ErrorKind::UnexpectedEof => Why::Closed,
        None => Why::Broken(error),
    }
}
