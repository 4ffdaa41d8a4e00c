//! The process behind `causeway wg`: one interface, configured over the usual WireGuard socket.
//!
//! This is its event loop: configuration, handshakes that arrive, what the kernel tells of the
//! interface, signals. The packets themselves never come here; `data` moves them.

pub mod background;
pub mod device;
mod peers;
pub mod protocol;
pub mod socket;
mod watch;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::data::index::MAX_THREADS;
use crate::data::mailbox::{Command, ControlInbox, Mailbox};
use crate::data::snapshot::Snapshot;
use crate::data::thread::{DataThread, Offloads, Shared};
use crate::drops::{DropReason, Drops};
pub use crate::io::Offload;
use crate::io::boottime;
use crate::io::netlink::RouteQuery;
use crate::io::tun::{Tun, TunError};
use crate::io::udp::{SocketError as UdpError, SocketGroup};
use crate::screen::Screen;
use device::{Change, ConfigError, Device, SetRequest, changes};
use peers::Peers;
use protocol::Request;
use socket::{ConfigServer, ConfigSocket, SocketError, SocketEvent};
use watch::Watch;

/// More data threads than this gain nothing unless asked for.
const DEFAULT_THREADS: usize = 8;
const DEFAULT_MTU: usize = 1420;
/// How often a port that could not be opened when the interface came up is tried again: our own
/// threads may still be closing it.
const REOPEN: Duration = Duration::from_millis(20);
/// From which try on that is worth a word.
const REOPEN_TOLD: u32 = 50;
/// Routes can change by the hundred; whether they matter to us is asked at most this often.
const ROUTES_CHECK: Duration = Duration::from_millis(500);

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The interface.
    pub name: String,
    /// Data threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Not to be used even where the kernel has them.
    pub without: Vec<Offload>,
}

#[derive(Debug, thiserror::Error)]
pub enum WgError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> WgError {
    move |error| WgError::System(what, error)
}

fn failed_errno(what: &'static str) -> impl FnOnce(nix::Error) -> WgError {
    move |errno| WgError::System(what, errno.into())
}

/// Serves the interface until a signal or the interface's end; `ready` is called once it can be configured.
pub fn run(options: Options, ready: impl FnOnce()) -> Result<(), WgError> {
    let signals = block_signals()?;
    // The socket first: a live one means that the interface is another process's.
    let socket = ConfigSocket::bind(Path::new(socket::DIRECTORY), &options.name)?;
    let inbox = Arc::new(ControlInbox::new().map_err(failed("make an event counter"))?);
    let wanted = options.threads.unwrap_or_else(|| {
        std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(DEFAULT_THREADS)
    });
    let tun = Tun::create(
        &options.name,
        wanted.clamp(1, MAX_THREADS),
        &options.without,
    )?;
    let watch = Watch::new(&tun)?;
    let mut control = Control::start(options, tun, inbox.clone())?;
    let (events, incoming) = mpsc::channel();
    let waker = inbox.clone();
    let server = socket.serve(events, move || waker.wake())?;
    tracing::info!(interface = control.options.name, socket = %server.path().display(), "ready");
    ready();
    let ended = control.serve(&signals, watch, &incoming);
    control.stop(server);
    ended
}

/// Signals are read from a descriptor; blocked before any thread starts, so that all inherit it.
fn block_signals() -> Result<SignalFd, WgError> {
    let wanted: SigSet = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGUSR1,
    ]
    .into_iter()
    .collect();
    wanted
        .thread_block()
        .map_err(failed_errno("block signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&wanted, flags).map_err(failed_errno("receive signals"))
}

struct Control {
    options: Options,
    device: Device,
    shared: Shared,
    threads: Vec<JoinHandle<()>>,
    peers: Peers,
    screen: Screen,
    /// The port that is open; what the data threads hold belongs to it.
    port: Option<u16>,
    reopens: u32,
    up: bool,
    mtu: usize,
    /// One per thread, and control's own last.
    drops: Vec<Arc<Drops>>,
}

impl Control {
    fn start(options: Options, tun: Tun, inbox: Arc<ControlInbox>) -> Result<Control, WgError> {
        let count = tun.queues.len();
        let mailboxes: io::Result<Vec<Mailbox>> = (0..count).map(|_| Mailbox::new()).collect();
        let empty = Snapshot::new(std::iter::empty(), Vec::new(), DEFAULT_MTU, None);
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(empty)),
            mailboxes: mailboxes.map_err(failed("make event counters"))?.into(),
            control: inbox,
        };
        let offloads = Offloads {
            tcp: !options.without.contains(&Offload::Tso),
            // A kernel that hands us no UDP superpackets takes none either.
            udp: tun.uso,
            segment: !options.without.contains(&Offload::UdpSegment),
        };
        let drops: Vec<Arc<Drops>> = (0..=count).map(|_| Arc::default()).collect();
        let mut threads = Vec::new();
        for (id, queue) in tun.queues.into_iter().enumerate() {
            let data = DataThread::new(id, queue, shared.clone(), offloads, drops[id].clone())
                .map_err(failed("prepare a data thread"))?;
            let name = format!("data-{id}");
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(move || data.run());
            threads.push(thread.map_err(failed("start a data thread"))?);
        }
        let mut control = Control {
            peers: Peers::new(count),
            screen: Screen::new(drops[count].clone()),
            options,
            device: Device::default(),
            shared,
            threads,
            port: None,
            reopens: 0,
            up: false,
            mtu: DEFAULT_MTU,
            drops,
        };
        control.publish();
        Ok(control)
    }

    fn stop(self, server: ConfigServer) {
        drop(server);
        for mailbox in self.shared.mailboxes.iter() {
            mailbox.command(Command::Stop);
        }
        for thread in self.threads {
            // A data thread that panicked has said so itself.
            let _ = thread.join();
        }
        tracing::info!(interface = self.options.name, "ended");
    }

    fn serve(
        &mut self,
        signals: &SignalFd,
        mut watch: Watch,
        incoming: &mpsc::Receiver<SocketEvent>,
    ) -> Result<(), WgError> {
        loop {
            self.wait(signals, &watch)?;
            while let Ok(Some(signal)) = signals.read_signal() {
                match Signal::try_from(signal.ssi_signo as i32) {
                    Ok(Signal::SIGUSR1) => self.log_drops(),
                    _ => return Ok(()),
                }
            }
            if !self.hear_kernel(&mut watch)? {
                tracing::info!(interface = self.options.name, "the interface was deleted");
                return Ok(());
            }
            while let Ok(event) = incoming.try_recv() {
                match event {
                    SocketEvent::Call(call) => {
                        let answer = self.answer(&call.request);
                        call.answer(answer);
                    }
                    SocketEvent::Gone => {
                        tracing::info!(
                            interface = self.options.name,
                            "the configuration socket was removed"
                        );
                        return Ok(());
                    }
                }
            }
            if self.up && self.port.is_none() {
                self.open_port_again();
            }
            let peers = &self.peers;
            self.screen.work(&self.shared, |key| peers.linked(key));
        }
    }

    /// Sleeps until something happens or is due.
    fn wait(&self, signals: &SignalFd, watch: &Watch) -> Result<(), WgError> {
        let inbox = &self.shared.control;
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(inbox.fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            watch
                .monitors()
                .map(|monitor| PollFd::new(monitor.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(
            self.screen
                .socket()
                .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
        );
        let timeout = if self.screen.is_busy() {
            PollTimeout::ZERO
        } else if self.up && self.port.is_none() {
            PollTimeout::try_from(REOPEN).unwrap_or(PollTimeout::MAX)
        } else if watch.routes_changed {
            PollTimeout::try_from(ROUTES_CHECK).unwrap_or(PollTimeout::MAX)
        } else {
            PollTimeout::NONE
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(WgError::System("wait for events", errno.into())),
        }
        if fds[1].any() == Some(true) {
            inbox.woke();
        }
        Ok(())
    }

    // ---- configuration ----------------------------------------------------------------------

    fn answer(&mut self, request: &Request) -> zeroize::Zeroizing<String> {
        match request {
            Request::Get => {
                let port = self.port.unwrap_or(self.device.listen_port);
                protocol::print_get(&self.device, port, |key| self.peers.stats(key))
            }
            Request::Drops => protocol::print_drops(|reason| self.count(reason)),
            Request::Set(request) => {
                let refused = self.set(request).err();
                if let Some(error) = &refused {
                    tracing::warn!(
                        interface = self.options.name,
                        errno = error.errno,
                        "configuration refused: {error}"
                    );
                }
                protocol::print_set(refused.as_ref())
            }
        }
    }

    fn count(&self, reason: DropReason) -> u64 {
        self.drops.iter().map(|drops| drops.get(reason)).sum()
    }

    fn log_drops(&self) {
        for reason in DropReason::ALL {
            let packets = self.count(*reason);
            if packets > 0 {
                tracing::info!(
                    interface = self.options.name,
                    reason = reason.label(),
                    packets,
                    "dropped"
                );
            }
        }
    }

    /// What can fail is done first; then every difference is applied, and nothing else.
    fn set(&mut self, request: &SetRequest) -> Result<(), ConfigError> {
        let next = self.device.apply(request)?;
        let differences = changes(&self.device, &next);
        let port_changes =
            differences.contains(&Change::ListenPort) && Some(next.listen_port) != self.port;
        let group = if port_changes {
            self.try_port(&next)?
        } else {
            None
        };
        self.device = next;
        if let Some(group) = group.filter(|_| self.up) {
            self.use_sockets(Some(group));
        } else if differences.contains(&Change::Fwmark) {
            let fwmark = self.device.fwmark;
            self.screen.set_mark(fwmark);
            self.shared
                .mailboxes
                .iter()
                .for_each(|mailbox| mailbox.command(Command::Mark(fwmark)));
        }
        for difference in &differences {
            self.peers
                .apply(difference, &self.device, &self.shared, &mut self.screen);
        }
        if !differences.is_empty() {
            self.publish();
        }
        Ok(())
    }

    /// Opens the wanted port, also while the interface is down, so that a port someone else holds is
    /// an error where it is asked for.
    fn try_port(&self, wanted: &Device) -> Result<Option<SocketGroup>, ConfigError> {
        match self.bind(wanted) {
            Ok(group) => Ok(Some(group)),
            Err(error) => {
                let errno = error.error.raw_os_error().unwrap_or(libc::EIO);
                Err(ConfigError::new(errno, error.to_string()))
            }
        }
    }

    fn bind(&self, wanted: &Device) -> Result<SocketGroup, UdpError> {
        let threads = self.shared.mailboxes.len();
        SocketGroup::bind(
            wanted.listen_port,
            threads,
            wanted.fwmark,
            &self.options.without,
        )
    }

    fn open_port_again(&mut self) {
        // A port chosen for us stays ours over down and up.
        match self.bind(&self.device) {
            Ok(group) => self.use_sockets(Some(group)),
            Err(error) => {
                self.reopens += 1;
                if self.reopens == REOPEN_TOLD {
                    tracing::error!(
                        interface = self.options.name,
                        "{error}; it is tried until it can be had"
                    );
                }
            }
        }
    }

    fn use_sockets(&mut self, group: Option<SocketGroup>) {
        let count = self.shared.mailboxes.len();
        let Some(group) = group else {
            self.port = None;
            self.screen.set_socket(None);
            return self
                .shared
                .mailboxes
                .iter()
                .for_each(|mailbox| mailbox.command(Command::Socket(None)));
        };
        if !group.steered && count > 1 {
            tracing::warn!(
                "the kernel does not steer datagrams: threads pass them on, which is slower"
            );
        }
        self.reopens = 0;
        self.port = Some(group.port);
        self.device.listen_port = group.port;
        self.screen.set_socket(Some(group.control));
        for (mailbox, socket) in self.shared.mailboxes.iter().zip(group.data) {
            mailbox.command(Command::Socket(Some(socket)));
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.shared.snapshot.store(Arc::new(self.peers.snapshot(
            &self.device,
            self.mtu,
            self.port,
        )));
        self.peers.attach_queues(&self.shared);
    }

    // ---- kernel -----------------------------------------------------------------------------

    /// False once the interface is gone.
    fn hear_kernel(&mut self, watch: &mut Watch) -> Result<bool, WgError> {
        let heard = watch
            .hear()
            .map_err(failed("hear of link and route changes"))?;
        if let Some((up, mtu)) = heard.link {
            self.link_is(up, mtu);
        }
        let now = boottime();
        if watch.routes_changed && now.saturating_sub(watch.routes_checked) >= ROUTES_CHECK {
            (watch.routes_changed, watch.routes_checked) = (false, now);
            let query = RouteQuery::new(self.device.fwmark).map_err(failed("ask for routes"))?;
            self.peers.check_sources(&self.shared, |remote, local| {
                query
                    .interface(remote, local.address)
                    .is_ok_and(|now| now == Some(local.interface))
            });
        }
        Ok(!heard.gone)
    }

    fn link_is(&mut self, up: bool, mtu: Option<u32>) {
        let mtu = mtu.map_or(self.mtu, |mtu| mtu as usize);
        if mtu != self.mtu {
            self.mtu = mtu;
            self.publish();
        }
        if up == self.up {
            return;
        }
        self.up = up;
        if up {
            self.open_port_again();
        } else {
            self.use_sockets(None);
        }
    }
}
