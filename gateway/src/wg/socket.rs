//! The configuration socket: a file only root may open, and one short-lived thread per connection.
//!
//! Requests go to the control loop over a channel and their answers come back; nothing is decided here.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen,
    socket, sockopt,
};
use zeroize::{Zeroize, Zeroizing};

use crate::wg::device::ConfigError;
use crate::wg::protocol::{self, Request, RequestReader};

/// Where `wg` looks.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// Without a byte for this long, a connection is closed.
const IDLE: Duration = Duration::from_secs(5);
/// From a request's first byte to its last.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// From handing a request to the control loop to its answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// More connections than this wait in the socket's own queue.
const MAX_CONNECTIONS: usize = 16;
/// How soon a deleted socket file is noticed.
const WATCH: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 64 << 10;
const BACKLOG: i32 = 128;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "{path} is in use: another process serves this interface; stop it first, or choose another name"
    )]
    Live { path: PathBuf },
    #[error("{path} is there but is not a socket; remove it")]
    NotASocket { path: PathBuf },
    #[error("no interface is served at {path}; start it with `causeway wg`, or check the name")]
    NotServed { path: PathBuf },
    #[error(
        "cannot {action} {path}: {error}; check that you are root and that the directory can be written"
    )]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}

/// One request on its way to the control loop.
#[derive(Debug)]
pub struct ConfigCall {
    pub request: Request,
    answer: SyncSender<Zeroizing<String>>,
}

/// What the socket tells the control loop.
#[derive(Debug)]
pub enum SocketEvent {
    Call(ConfigCall),
    /// The socket file was deleted or replaced: the usual way to ask a user-space WireGuard to end.
    Gone,
}

/// A bound and listening socket, whose file goes when this does.
#[derive(Debug)]
pub struct ConfigSocket {
    /// Goes first: a name whose socket listens no more would be deleted by the next `wg`, perhaps when
    /// it is a successor's already.
    file: SocketFile,
    listener: UnixListener,
}

/// The running listener. Dropping it stops the listener and removes the file.
#[derive(Debug)]
pub struct ConfigServer {
    /// Closing this end wakes and ends the listener.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: a successor may have put its own in the same place.
    identity: (u64, u64),
}

impl ConfigCall {
    /// For who calls without a socket, as tests do.
    pub fn new(request: Request, answer: SyncSender<Zeroizing<String>>) -> ConfigCall {
        ConfigCall { request, answer }
    }

    pub fn answer(self, text: Zeroizing<String>) {
        // Whoever asked may have gone; that is theirs to know.
        let _ = self.answer.send(text);
    }
}

impl ConfigSocket {
    /// Makes the directory if it is missing, replaces a socket nobody answers on, refuses one that is
    /// served.
    pub fn bind(directory: &Path, name: &str) -> Result<ConfigSocket, SocketError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| SocketError::Io {
                action,
                path,
                error,
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make the directory", directory))?;
        let path = socket_path(directory, name);
        make_room(&path)?;
        // `wg` deletes a socket that refuses its call, so ours has this name only once it listens.
        let aside = directory.join(format!(".{name}.{}", std::process::id()));
        let bound =
            listen_privately(&aside).map_err(|errno| failed("bind", &path)(errno.into()))?;
        let named = fs::hard_link(&aside, &path);
        let _ = fs::remove_file(&aside);
        named.map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                return SocketError::Live { path: path.clone() };
            }
            failed("bind", &path)(error)
        })?;
        let file = SocketFile::at(path.clone()).map_err(failed("read back", &path))?;
        Ok(ConfigSocket {
            file,
            listener: UnixListener::from(bound),
        })
    }

    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Answers from now on. `wake` is called after every event sent, since a control loop that polls
    /// cannot wait for a channel.
    pub fn serve(
        self,
        events: mpsc::Sender<SocketEvent>,
        wake: impl Fn() + Send + Clone + 'static,
    ) -> Result<ConfigServer, SocketError> {
        let path = self.file.path.clone();
        let failed = |error| SocketError::Io {
            action: "serve",
            path: path.clone(),
            error,
        };
        self.listener.set_nonblocking(true).map_err(failed)?;
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let send = move |event| {
            let sent = events.send(event).is_ok();
            wake();
            sent
        };
        let thread = thread::Builder::new()
            .name("config".to_owned())
            .spawn(move || self.listen(&stopped, send))
            .map_err(failed)?;
        Ok(ConfigServer {
            stop: Some(stop.into()),
            thread: Some(thread),
            path,
        })
    }

    fn listen(
        self,
        stopped: &UnixStream,
        send: impl Fn(SocketEvent) -> bool + Send + Clone + 'static,
    ) {
        let connections = Arc::new(AtomicUsize::new(0));
        while !is_stopped(stopped, &self.listener, &connections) {
            if !self.file.is_ours() {
                tracing::info!(path = %self.file.path.display(), "the socket file is gone, and so the interface goes");
                send(SocketEvent::Gone);
                return;
            }
            if connections.load(Ordering::Acquire) >= MAX_CONNECTIONS {
                continue;
            }
            match self.listener.accept() {
                Ok((stream, _)) => start_connection(stream, &connections, send.clone()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a configuration connection; trying again");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

impl ConfigServer {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ConfigServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A listener that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

impl SocketFile {
    fn at(path: PathBuf) -> io::Result<SocketFile> {
        let found = fs::symlink_metadata(&path)?;
        Ok(SocketFile {
            path,
            identity: (found.dev(), found.ino()),
        })
    }

    fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours() {
            // The next start replaces what stays behind.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Sends one request to a running process and reads its whole answer.
pub fn ask(directory: &Path, name: &str, request: &str) -> Result<String, SocketError> {
    let path = socket_path(directory, name);
    let failed = |error| SocketError::Io {
        action: "ask",
        path: path.clone(),
        error,
    };
    let gone = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if gone.contains(&error.kind()) => return Err(SocketError::NotServed { path }),
        Err(error) => return Err(failed(error)),
    };
    stream.set_read_timeout(Some(ANSWER_TIME)).map_err(failed)?;
    stream.write_all(request.as_bytes()).map_err(failed)?;
    // The answer ends where the connection does, once nothing more can be asked.
    stream.shutdown(std::net::Shutdown::Write).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    Ok(answer)
}

fn socket_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

fn make_room(path: &Path) -> Result<(), SocketError> {
    let failed = |action, error: io::Error| SocketError::Io {
        action,
        path: path.to_owned(),
        error,
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    match probe(path) {
        Err(Errno::ECONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing the socket of a process that is gone");
            match fs::remove_file(path) {
                // `wg` may have done the same meanwhile.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failed("remove the stale socket", error))
                }
                Ok(()) | Err(_) => Ok(()),
            }
        }
        Err(Errno::ENOENT) => Ok(()),
        // EAGAIN: someone listens, and has more callers than it can take.
        Ok(()) | Err(Errno::EAGAIN) => Err(SocketError::Live {
            path: path.to_owned(),
        }),
        Err(errno) => Err(failed("connect to", errno.into())),
    }
}

/// Whether someone listens. Never waits, however full the listener's queue is.
fn probe(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let prober = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(prober.as_raw_fd(), &UnixAddr::new(path)?)
}

/// Until `listen`, every connect is refused: nobody comes in before the mode is narrowed. No umask,
/// which is the whole process's.
fn listen_privately(path: &Path) -> nix::Result<OwnedFd> {
    let bound = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Left behind by a process that had our number and was killed in the middle of this.
    let _ = fs::remove_file(path);
    bind(bound.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    listen(&bound, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN))?;
    Ok(bound)
}

/// Waits for a caller, for a moment, or for the end.
fn is_stopped(stopped: &UnixStream, listener: &UnixListener, connections: &AtomicUsize) -> bool {
    let full = connections.load(Ordering::Acquire) >= MAX_CONNECTIONS;
    // A listener that may not accept would be ready at once, again and again.
    let (wanted, wait) = match full {
        true => (PollFlags::empty(), Duration::from_millis(50)),
        false => (PollFlags::POLLIN, WATCH),
    };
    let mut fds = [
        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        PollFd::new(listener.as_fd(), wanted),
    ];
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, wait) {
        Ok(_) | Err(Errno::EINTR) => fds[0].any().unwrap_or(false),
        Err(errno) => {
            tracing::error!(%errno, "cannot wait for configuration connections; the socket closes, start again");
            true
        }
    }
}

fn start_connection(
    stream: UnixStream,
    connections: &Arc<AtomicUsize>,
    send: impl Fn(SocketEvent) -> bool + Send + 'static,
) {
    connections.fetch_add(1, Ordering::AcqRel);
    let place = Place(Arc::clone(connections));
    let started = thread::Builder::new()
        .name("config-call".to_owned())
        .spawn(move || {
            let _place = place;
            if let Err(error) = serve_connection(&stream, &send) {
                tracing::debug!(%error, "configuration connection ended early");
            }
        });
    if let Err(error) = started {
        tracing::warn!(%error, "cannot start a thread for a configuration connection; it is closed, try again");
    }
}

/// One of the connections at once; also given back when its thread could not start.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve_connection(
    mut stream: &UnixStream,
    send: &impl Fn(SocketEvent) -> bool,
) -> io::Result<()> {
    // Accepted sockets do not inherit O_NONBLOCK on Linux; said anyway, for the deadlines need it so.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    if !is_trusted(stream)? {
        tracing::warn!("refused a configuration connection of another user");
        return Ok(());
    }
    let mut reader = RequestReader::new(scope_index);
    let mut buffer = Zeroizing::new(vec![0; READ_BYTES]);
    let mut began = Instant::now();
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return handle_end(stream, &mut reader);
        }
        if reader.is_idle() {
            began = Instant::now();
        }
        let done = handle_bytes(stream, &mut reader, &buffer[..read], send);
        buffer[..read].zeroize();
        done?;
        if !reader.is_idle() && began.elapsed() > REQUEST_TIME {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a request took too long to arrive",
            ));
        }
    }
}

fn handle_bytes(
    mut stream: &UnixStream,
    reader: &mut RequestReader,
    mut bytes: &[u8],
    send: &impl Fn(SocketEvent) -> bool,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let (taken, request) = reader.handle_bytes(bytes);
        bytes = &bytes[taken..];
        let Some(request) = request else { continue };
        let answer = match request {
            Ok(request) => call(request, send)?,
            Err(error) => refuse(&error),
        };
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn handle_end(mut stream: &UnixStream, reader: &mut RequestReader) -> io::Result<()> {
    match reader.handle_end() {
        Ok(()) => Ok(()),
        Err(error) => stream.write_all(refuse(&error).as_bytes()),
    }
}

fn refuse(error: &ConfigError) -> Zeroizing<String> {
    tracing::warn!(errno = error.errno, "configuration refused: {error}");
    protocol::print_set(Some(error))
}

fn call(request: Request, send: &impl Fn(SocketEvent) -> bool) -> io::Result<Zeroizing<String>> {
    let (answer, answered) = mpsc::sync_channel(1);
    if !send(SocketEvent::Call(ConfigCall { request, answer })) {
        return Err(io::Error::new(
            io::ErrorKind::BrokenPipe,
            "the process is ending",
        ));
    }
    answered
        .recv_timeout(ANSWER_TIME)
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the control loop did not answer"))
}

/// The file's mode says the same; this holds also where a socket was handed on.
fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let caller = getsockopt(stream, sockopt::PeerCredentials)?.uid();
    Ok(may_configure(caller, nix::unistd::geteuid().as_raw()))
}

fn may_configure(caller: u32, own: u32) -> bool {
    caller == 0 || caller == own
}

fn scope_index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

#[cfg(test)]
mod tests;
