//! The thread between the packet path and the daemon's decisions: it owns the TUN, the sockets, the
//! handshake screen and the data threads, gives each link its place, and publishes snapshots.
//!
//! It decides nothing about links. Nothing here is per packet of a site's traffic; what it passes
//! on are control packets and news of sessions.

mod command;
mod kernel;
mod links;
mod outgoing;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use boringtun::x25519;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proto::name::Name;

use crate::data::index::MAX_THREADS;
use crate::data::mailbox::{self, ControlInbox, Mailbox};
use crate::data::snapshot::{Mesh, Snapshot};
use crate::data::thread::{DataThread, Offloads, Shared};
use crate::drops::{DropReason, Drops};
use crate::io::tun::{Tun, TunError, TunLock};
use crate::io::udp::{PathMtu, SocketError, SocketGroup};
use crate::io::{Offload, boottime};
use crate::screen::Screen;
use crate::table::Table;
pub use command::{Command, NewLink};
use kernel::Kernel;
use links::PlacedLinks;
use outgoing::Outgoing;
pub use outgoing::PlaneEvent;

/// Commands that wait. The plane never waits for the daemon, so that whoever finds this full waits
/// for a moment only.
const MAX_COMMANDS: usize = 8 << 10;
/// From so many links on, hellos are looked for at intervals: there is always one about to come, and
/// to be woken for each would cost more than what is to be done.
pub const MANY: usize = 64;
pub const GRID: Duration = Duration::from_millis(20);
/// More data threads than this gain nothing unless asked for.
const DEFAULT_THREADS: usize = 8;

pub struct Settings {
    pub tun: String,
    pub listen: SocketAddr,
    /// Of outer datagrams.
    pub fwmark: u32,
    /// Data threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Not to be used even where the kernel has them.
    pub without: Vec<Offload>,
    pub wireguard: x25519::StaticSecret,
    pub site: Name,
}

#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> PlaneError {
    move |error| PlaneError::System(what, error)
}

/// Takes whole packets for this host's kernel.
pub struct Injector {
    commands: SyncSender<Command>,
    inbox: Arc<ControlInbox>,
}

impl Injector {
    /// It may be lost as any packet may.
    pub fn send(&self, packet: Vec<u8>) {
        let packet = packet.into();
        let command = Command::ToTun { thread: 0, packet };
        if self.commands.try_send(command).is_ok() {
            self.inbox.wake();
        }
    }
}

/// The daemon's end.
pub struct Plane {
    commands: SyncSender<Command>,
    inbox: Arc<ControlInbox>,
    outgoing: Arc<Outgoing>,
    drops: Vec<Arc<Drops>>,
    thread: JoinHandle<()>,
    pub port: u16,
}

impl Plane {
    /// Makes interface, sockets and threads; nothing is linked yet.
    pub fn start(settings: Settings) -> Result<Plane, PlaneError> {
        let outgoing = Arc::new(Outgoing::default());
        let (commands, waiting) = sync_channel(MAX_COMMANDS);
        let control = Control::start(settings, waiting, outgoing.clone())?;
        let (inbox, drops) = (control.shared.control.clone(), control.drops.clone());
        let port = control.port;
        let thread = std::thread::Builder::new()
            .name("plane".to_owned())
            .spawn(move || control.serve())
            .map_err(failed("start a thread"))?;
        Ok(Plane {
            commands,
            inbox,
            outgoing,
            drops,
            thread,
            port,
        })
    }

    /// For a thread that puts packets into the TUN by itself.
    pub fn injector(&self) -> Injector {
        Injector {
            commands: self.commands.clone(),
            inbox: self.inbox.clone(),
        }
    }

    /// What must not be lost.
    pub fn command(&self, command: Command) {
        // It fails only if the plane has ended, which `events` tells.
        let _ended = self.commands.send(command);
        self.inbox.wake();
    }

    /// What may be lost as a datagram may.
    pub fn transmit(&self, commands: impl IntoIterator<Item = Command>) {
        let mut any = false;
        for command in commands {
            match self.commands.try_send(command) {
                Ok(()) => any = true,
                Err(TrySendError::Full(_)) => self.own_drops().count(DropReason::RingFull),
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
        if any {
            self.inbox.wake();
        }
    }

    /// Waits for what has happened since the last call; an empty list means that the plane ended.
    pub async fn events(&self) -> Vec<PlaneEvent> {
        self.outgoing.take().await
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.iter().map(|drops| drops.get(reason)).sum()
    }

    /// Moves no more packets; the interface stays if it is persistent.
    pub fn stop(self) {
        self.command(Command::Stop);
        // A thread that panicked has said so itself.
        let _ended = self.thread.join();
    }

    fn own_drops(&self) -> &Drops {
        &self.drops[self.drops.len() - 1]
    }
}

struct Control {
    settings: Settings,
    shared: Shared,
    threads: Vec<JoinHandle<()>>,
    links: PlacedLinks,
    table: Arc<Table>,
    screen: Screen,
    kernel: Kernel,
    port: u16,
    waiting: Receiver<Command>,
    /// For each data thread, while commands are obeyed.
    told: Vec<Vec<mailbox::Command>>,
    outgoing: Arc<Outgoing>,
    /// One per thread, and the plane's own last.
    drops: Vec<Arc<Drops>>,
    stopping: bool,
}

/// Ends the daemon with the plane, whatever ended that.
struct Ended(Arc<Outgoing>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Control {
    fn start(
        settings: Settings,
        waiting: Receiver<Command>,
        outgoing: Arc<Outgoing>,
    ) -> Result<Control, PlaneError> {
        let wanted = settings.threads.unwrap_or_else(|| {
            std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(DEFAULT_THREADS)
        });
        SocketGroup::check(settings.listen, PathMtu::Probe)?;
        let lock = TunLock::take(&settings.tun)?;
        let tun = Tun::take_over_under(
            lock.clone(),
            wanted.clamp(1, MAX_THREADS),
            &settings.without,
        )?;
        let count = tun.queues.len();
        let kernel = Kernel::new(&tun, lock, settings.fwmark)?;
        let group = SocketGroup::bind_to(
            settings.listen,
            count,
            settings.fwmark,
            PathMtu::Probe,
            &settings.without,
        )?;
        let mailboxes: io::Result<Vec<Mailbox>> = (0..count).map(|_| Mailbox::new()).collect();
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::mesh(Mesh::default()))),
            mailboxes: mailboxes.map_err(failed("make event counters"))?.into(),
            control: Arc::new(ControlInbox::for_mesh().map_err(failed("make an event counter"))?),
        };
        let drops: Vec<Arc<Drops>> = (0..=count).map(|_| Arc::default()).collect();
        let threads = start_threads(&settings, tun, &shared, &drops)?;
        let mut screen = Screen::new(drops[count].clone());
        screen.set_key(Some(settings.wireguard.clone()));
        let mut control = Control {
            links: PlacedLinks::new(count),
            table: Arc::default(),
            screen,
            kernel,
            port: group.port,
            settings,
            shared,
            threads,
            waiting,
            told: (0..count).map(|_| Vec::new()).collect(),
            outgoing,
            drops,
            stopping: false,
        };
        control.use_sockets(group);
        control.publish();
        Ok(control)
    }

    fn use_sockets(&mut self, group: SocketGroup) {
        if !group.steered && self.threads.len() > 1 {
            tracing::warn!(
                "the kernel does not steer datagrams: threads pass them on, which is slower"
            );
        }
        self.screen.set_socket(Some(group.control));
        for (mailbox, socket) in self.shared.mailboxes.iter().zip(group.data) {
            mailbox.command(mailbox::Command::Socket(Some(socket)));
        }
    }

    fn serve(mut self) {
        let ended = Ended(self.outgoing.clone());
        while !self.stopping {
            if let Err(error) = self.wait() {
                tracing::error!(%error, "cannot wait for events");
                break;
            }
            self.obey();
            if self.links.take_turns(&self.shared, boottime()) {
                self.publish();
            }
            self.look_after_kernel();
            let links = &self.links;
            self.screen
                .work(&self.shared, |key| links.place_of_key(key));
            self.pass_on();
        }
        for mailbox in self.shared.mailboxes.iter() {
            mailbox.command(mailbox::Command::Stop);
        }
        for thread in self.threads.drain(..) {
            // A data thread that panicked has said so itself.
            let _ended = thread.join();
        }
        drop(ended);
    }

    /// Sleeps until something happens or is due.
    fn wait(&self) -> io::Result<()> {
        let inbox = &self.shared.control;
        let mut fds = vec![
            PollFd::new(inbox.fd(), PollFlags::POLLIN),
            PollFd::new(self.kernel.as_fd(), PollFlags::POLLIN),
        ];
        let socket = self.screen.socket();
        fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        let timeout = if self.screen.is_busy() {
            PollTimeout::ZERO
        } else {
            let turn = self.links.due();
            let turn = turn.map(|at| at.saturating_sub(boottime()));
            let look = inbox.is_looked_at().then_some(GRID);
            let dues = self.kernel.due().into_iter().chain(turn);
            match dues.chain(look).min() {
                Some(wait) => PollTimeout::try_from(wait + Duration::from_millis(1))
                    .unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            }
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if fds[0].any() == Some(true) {
            inbox.woke();
        }
        Ok(())
    }

    fn publish(&mut self) {
        if self.links.len() >= MANY {
            self.shared.control.look_from_now_on();
        }
        let snapshot = self.links.snapshot(&self.table, &self.settings.site);
        self.shared.snapshot.store(Arc::new(snapshot));
        self.links.attach_queues(&self.shared);
    }

    /// What data threads and the screen left for the daemon.
    fn pass_on(&mut self) {
        let inbox = &self.shared.control;
        let mut events = Vec::new();
        while let Some(packet) = inbox.pop_packet() {
            if let Some(from) = self.links.at(packet.place) {
                events.push(PlaneEvent::Control {
                    from,
                    source: packet.from.remote,
                    packet: packet.packet,
                });
            }
        }
        while let Some(news) = inbox.pop_news() {
            events.extend(self.links.handle_news(&news, boottime()));
        }
        while let Some(reflected) = inbox.pop_reflected() {
            events.push(PlaneEvent::Reflected {
                from: reflected.from,
                datagram: reflected.datagram,
            });
        }
        while let Some(probe) = inbox.pop_probe() {
            events.push(PlaneEvent::LanProbe {
                thread: probe.thread,
                packet: probe.packet,
            });
        }
        let lost = self.outgoing.push(events);
        self.drops[self.drops.len() - 1].add(DropReason::RingFull, lost);
    }
}

fn start_threads(
    settings: &Settings,
    tun: Tun,
    shared: &Shared,
    drops: &[Arc<Drops>],
) -> Result<Vec<JoinHandle<()>>, PlaneError> {
    let offloads = Offloads {
        tcp: !settings.without.contains(&Offload::Tso),
        // A kernel that hands us no UDP superpackets takes none either.
        udp: tun.uso,
        segment: !settings.without.contains(&Offload::UdpSegment),
    };
    let mut threads = Vec::new();
    for (id, queue) in tun.queues.into_iter().enumerate() {
        let data = DataThread::new(id, queue, shared.clone(), offloads, drops[id].clone())
            .map_err(failed("prepare a data thread"))?;
        let thread = std::thread::Builder::new()
            .name(format!("data-{id}"))
            .spawn(move || data.run());
        threads.push(thread.map_err(failed("start a data thread"))?);
    }
    Ok(threads)
}
