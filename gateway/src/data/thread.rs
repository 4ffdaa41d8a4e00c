//! The loop of one data thread.

mod commands;
mod fitted;
mod mesh;
mod outward;
mod probes;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use nix::sys::epoll::EpollTimeout;

use super::index::{IndexTable, TunnelIndex, thread_of};
use super::inward::Inward;
use super::link::{Endpoint, Link, OVERHEAD, Way, Work, handshake_receiver, receiver_index};
use super::link_local;
use super::mailbox::{ControlInbox, Handshake, Mailbox, RawHandshake, Stray};
use super::outbox::Outbox;
use super::snapshot::{LinkPlace, Snapshot};
use super::waiter::{Ready, Waiter};
use crate::drops::{DropReason, Drops};
use crate::io::boottime;
use crate::io::tun::TunQueue;
use crate::io::udp::{Inbox, Received, UdpSocket};
use crate::packet::split::SPARE;
use crate::packet::vnet::VnetHeader;
use fitted::Fitter;
use probes::Pace;

/// A vnet header, the largest packet, and room for padding behind it.
pub const FRAME_BUFFER: usize = VnetHeader::LEN + 65_536 + SPARE;
/// Receive slots; each holds what the kernel merged.
const SLOTS: usize = 8;
const SLOT: usize = 64 << 10;
/// What is taken from others in one turn: a full ring must not keep us from the rest.
const FRAMES_A_TURN: usize = 16;
const STRAYS_A_TURN: usize = 64;
const HANDSHAKES_A_TURN: usize = 4;
/// How often we look once more, giving way to others each time, before we sleep.
const IDLE_TURNS: u32 = 16;
/// Nothing is known, so both are looked at.
const BOTH: Ready = Ready {
    mailbox: false,
    socket: true,
    tun: true,
    tun_failed: false,
};
const TICK: Duration = Duration::from_millis(250);
/// ICMP errors for packets without a peer: this many a second, so that a scan is no amplifier.
const ERRORS_PER_SECOND: u32 = 100;

/// What all data threads of a device share.
#[derive(Clone)]
pub struct Shared {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub mailboxes: Arc<[Mailbox]>,
    pub control: Arc<ControlInbox>,
}

/// What the offload probes and the operator left on.
#[derive(Clone, Copy, Debug)]
pub struct Offloads {
    pub tcp: bool,
    pub udp: bool,
    pub segment: bool,
}

pub struct DataThread {
    id: usize,
    shared: Shared,
    snapshot: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    tun: TunQueue,
    attached: bool,
    socket: Option<UdpSocket>,
    links: Vec<Option<Box<Link>>>,
    table: IndexTable,
    waiter: Waiter,
    outbox: Outbox,
    /// Away while its slots are worked on.
    inbox: Option<Inbox>,
    inward: Inward,
    frame: Vec<u8>,
    drops: Arc<Drops>,
    now: Duration,
    next_tick: Duration,
    errors_since: Duration,
    errors_left: u32,
    fitter: Fitter,
    probes: Pace,
    stopping: bool,
}

impl DataThread {
    pub fn new(
        id: usize,
        tun: TunQueue,
        shared: Shared,
        offloads: Offloads,
        drops: Arc<Drops>,
    ) -> std::io::Result<DataThread> {
        let waiter = Waiter::new(shared.mailboxes[id].fd())?;
        Ok(DataThread {
            id,
            snapshot: Cache::new(shared.snapshot.clone()),
            shared,
            tun,
            attached: true,
            socket: None,
            links: Vec::new(),
            table: IndexTable::new(id),
            waiter,
            outbox: Outbox::new(offloads.segment),
            inbox: Some(Inbox::new(SLOTS, SLOT)),
            inward: Inward::new(offloads.tcp, offloads.udp),
            frame: vec![0; FRAME_BUFFER],
            drops,
            now: boottime(),
            next_tick: Duration::ZERO,
            errors_since: Duration::ZERO,
            errors_left: ERRORS_PER_SECOND,
            fitter: Fitter::default(),
            probes: Pace::default(),
            stopping: false,
        })
    }

    /// Moves packets until told to stop.
    pub fn run(mut self) {
        let mut ready = BOTH;
        let (mut slept, mut idle) = (false, 0);
        loop {
            self.now = boottime();
            self.outbox.begin(self.now);
            self.inward.forget_checked();
            self.obey();
            if self.stopping {
                return self.flush();
            }
            let handed_over = self.take_handed_over();
            let received = ready.socket && self.receive();
            let read = ready.tun && self.read_tun(slept);
            self.flush();
            if self.now >= self.next_tick {
                self.tick();
            }
            slept = false;
            if handed_over || received || read {
                idle = 0;
            } else if idle < IDLE_TURNS {
                // Whoever feeds us may be about to: cheaper than to sleep and be woken.
                idle += 1;
                std::thread::yield_now();
            } else {
                ready = self.sleep();
                // Woken for a control packet only, as a thousand idle links do all the time, it
                // sleeps again at once.
                (slept, idle) = (true, IDLE_TURNS);
                continue;
            }
            ready = BOTH;
        }
    }

    fn work(&mut self) -> (&mut [Option<Box<Link>>], Work<'_>) {
        let work = Work {
            outbox: &mut self.outbox,
            socket: self.socket.as_ref(),
            table: &mut self.table,
            drops: &self.drops,
            control: &self.shared.control,
            now: self.now,
            mtu: self.snapshot.load().mtu,
        };
        (&mut self.links, work)
    }

    // ---- time -------------------------------------------------------------------------------

    fn tick(&mut self) {
        self.next_tick = Duration::MAX;
        if self.socket.is_none() {
            return;
        }
        let now = self.now;
        let (links, mut work) = self.work();
        let mut awake = false;
        for link in links.iter_mut().flatten().filter(|link| link.is_awake(now)) {
            link.tick(&mut work);
            awake = true;
        }
        if awake {
            self.next_tick = now + TICK;
        }
        self.flush();
    }

    fn sleep(&mut self) -> Ready {
        let blocked = self.outbox.is_full();
        if !self.mailbox().may_sleep(blocked) {
            return BOTH;
        }
        let timeout = match self.next_tick {
            Duration::MAX => EpollTimeout::NONE,
            at => EpollTimeout::try_from(at.saturating_sub(self.now) + Duration::from_millis(1))
                .unwrap_or(EpollTimeout::MAX),
        };
        let watched = self
            .waiter
            .watch_tun(self.tun.as_fd(), self.attached && !blocked);
        let watched = watched.and(match &self.socket {
            Some(socket) => self.waiter.watch_socket(socket.as_fd(), blocked),
            None => Ok(()),
        });
        if let Err(error) = watched {
            tracing::error!(%error, "cannot wait for packets");
        }
        let ready = self.waiter.wait(timeout);
        self.mailbox().woke(ready.mailbox);
        if ready.tun_failed {
            // The interface is gone; control hears of it from netlink and ends us.
            self.attached = false;
        }
        ready
    }

    fn flush(&mut self) {
        self.outbox
            .flush(self.socket.as_ref(), self.now, &self.drops);
        while let Some(remote) = self.outbox.stale_sources.pop() {
            for link in self
                .links
                .iter_mut()
                .flatten()
                .filter(|link| link.remote() == Some(remote))
            {
                link.forget_source();
            }
        }
    }

    // ---- in ---------------------------------------------------------------------------------

    /// What other threads read that is ours. Before our own queue: a flow that moves to it must
    /// not overtake itself. Whether packets were among it.
    fn take_handed_over(&mut self) -> bool {
        let mut any = false;
        for _ in 0..FRAMES_A_TURN {
            if self.outbox.is_full() {
                break;
            }
            let Some(mut frame) = self.mailbox().frames.pop() else {
                break;
            };
            self.transmit(frame.place.slot, &mut frame.buffer, frame.len);
            let _ = self.mailbox().spare.push(frame.buffer);
            any = true;
        }
        for _ in 0..STRAYS_A_TURN {
            let Some(stray) = self.mailbox().strays.pop() else {
                break;
            };
            self.open_run(&stray.received, &stray.datagram);
        }
        for _ in 0..HANDSHAKES_A_TURN {
            let Some(handshake) = self.mailbox().handshakes.pop() else {
                break;
            };
            self.handshake(&handshake);
        }
        self.deliver() || any
    }

    fn mailbox(&self) -> &Mailbox {
        &self.shared.mailboxes[self.id]
    }

    fn handshake(&mut self, handshake: &Handshake) {
        let datagram = &handshake.datagram[..handshake.len];
        let slot = handshake.slot.or_else(|| {
            self.table
                .find(TunnelIndex::of(handshake_receiver(datagram)?))
        });
        match slot {
            Some(slot) => self.with_link(slot, |link, work| {
                link.handshake(datagram, &handshake.from, work)
            }),
            None => self.drops.count(DropReason::UnknownIndex),
        }
    }

    /// Whether there were packets to deliver: control's are not for us.
    fn receive(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        let Some(mut inbox) = self.inbox.take() else {
            return false;
        };
        let count = inbox.receive(socket).unwrap_or_else(|error| {
            // An ICMP error of an earlier send may be reported here; the next call goes on.
            tracing::debug!(%error, "receive failed");
            0
        });
        if count > 0 {
            // All of these arrived by now, whatever held us up since the loop began.
            self.now = boottime();
        }
        for index in 0..count {
            match inbox.get(index) {
                Some((received, datagrams)) => self.open_run(&received, datagrams),
                None => self.drops.count(DropReason::Malformed),
            }
        }
        self.inbox = Some(inbox);
        self.deliver()
    }

    /// Datagrams of one size that arrived together from one remote.
    fn open_run(&mut self, received: &Received, datagrams: &[u8]) {
        let from = Endpoint {
            remote: received.from,
            local: received.local,
        };
        let mut run: Option<(u32, u64)> = None;
        for datagram in datagrams.chunks(received.segment.max(1)) {
            let Some(slot) = self.slot_of(received, datagram) else {
                continue;
            };
            if run.is_some_and(|(last, _)| last != slot) {
                self.note_received(run.take());
            }
            match self.open(slot, datagram, &from, received.ecn) {
                Ok(()) => run.get_or_insert((slot, 0)).1 += datagram.len() as u64,
                Err(reason) => self.refused(slot, reason),
            }
        }
        self.note_received(run);
    }

    fn note_received(&mut self, run: Option<(u32, u64)>) {
        if let Some((slot, bytes)) = run
            && let Some(Some(link)) = self.links.get_mut(slot as usize)
        {
            link.received(bytes, self.now);
        }
    }

    /// The link of a data datagram; anything else goes where it belongs or is counted.
    fn slot_of(&self, received: &Received, datagram: &[u8]) -> Option<u32> {
        let kind = receiver_index(datagram, 0);
        let receiver = receiver_index(datagram, 4).filter(|_| datagram.len() >= OVERHEAD);
        let (Some(4), Some(receiver)) = (kind, receiver) else {
            self.not_data(received, kind, datagram);
            return None;
        };
        if let Some(slot) = self.table.find(TunnelIndex::of(receiver)) {
            return Some(slot);
        }
        if thread_of(receiver) == self.id || thread_of(receiver) >= self.shared.mailboxes.len() {
            self.drops.count(DropReason::UnknownIndex);
        } else if !Stray::pass_on(&self.shared.mailboxes, received, datagram) {
            self.drops.count(DropReason::RingFull);
        }
        None
    }

    fn not_data(&self, received: &Received, kind: Option<u32>, datagram: &[u8]) {
        if !matches!(kind, Some(1..=3)) {
            if !self.shared.control.push_reflected(received.from, datagram) {
                self.drops.count(DropReason::Malformed);
            }
            return;
        }
        match RawHandshake::new(received, datagram) {
            None => self.drops.count(DropReason::Malformed),
            Some(raw) => {
                if !self.shared.control.push(raw) {
                    self.drops.count(DropReason::HandshakeQueueFull);
                }
            }
        }
    }

    /// Opens one datagram and queues what was inside.
    fn open(
        &mut self,
        slot: u32,
        datagram: &[u8],
        from: &Endpoint,
        outer_ecn: u8,
    ) -> Result<(), DropReason> {
        if self.inward.room(datagram.len()).is_none() {
            self.deliver();
        }
        let snapshot = self.snapshot.load();
        let mut work = Work {
            outbox: &mut self.outbox,
            socket: self.socket.as_ref(),
            table: &mut self.table,
            drops: &self.drops,
            control: &self.shared.control,
            now: self.now,
            mtu: snapshot.mtu,
        };
        let link = self
            .links
            .get_mut(slot as usize)
            .and_then(Option::as_mut)
            .ok_or(DropReason::UnknownIndex)?;
        let room = self
            .inward
            .room(datagram.len())
            .ok_or(DropReason::Malformed)?;
        link.tick_before(Way::In, &mut work);
        let len = link.open(datagram, from, room, &mut work)?;
        if len == 0 {
            return Ok(());
        }
        let place = LinkPlace {
            thread: self.id as u32,
            slot,
        };
        if snapshot.is_mesh() {
            if link_local::is_control(self.inward.opened(len)) {
                if !link.may_reach_control(self.now) {
                    return Err(DropReason::ControlLimited);
                }
                return self.give_to_control(place, from, len);
            }
            if let Some(mtu) = link.limit() {
                self.inward.clamp_syn(len, mtu);
            }
        }
        self.inward.deliver(len, outer_ecn, place, snapshot)
    }
}
