//! The interface as the kernel has it: made again when it was deleted, put up when it is down; and
//! whether routes have changed where the outer sockets are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::{Control, PlaneError, PlaneEvent, failed};
use crate::data::mailbox::Command;
use crate::io::boottime;
use crate::io::netlink::{KernelEvent, Monitor, RouteQuery};
use crate::io::tun::{Tun, TunLock};

/// Routes can change by the hundred; whether they matter to us is asked at most this often.
const ROUTES_CHECK: Duration = Duration::from_millis(500);
/// A deleted interface that cannot be made is tried again so often.
const MAKE_AGAIN: Duration = Duration::from_millis(200);

pub(super) struct Kernel {
    monitor: Monitor,
    lock: TunLock,
    index: u32,
    fwmark: u32,
    routes_changed: bool,
    routes_checked: Duration,
    is_gone: bool,
    tried: Duration,
    /// Why it cannot be made, once that was told.
    told: Option<String>,
}

impl Kernel {
    pub(super) fn new(tun: &Tun, lock: TunLock, fwmark: u32) -> Result<Kernel, PlaneError> {
        let monitor = Monitor::new().map_err(failed("listen to the kernel's changes"))?;
        Ok(Kernel {
            monitor,
            index: tun.index,
            lock,
            fwmark,
            routes_changed: false,
            routes_checked: Duration::ZERO,
            is_gone: false,
            tried: Duration::ZERO,
            told: None,
        })
    }

    /// How long until something is to be done.
    pub(super) fn due(&self) -> Option<Duration> {
        let now = boottime();
        let again = self.is_gone.then(|| self.tried + MAKE_AGAIN);
        let check = self
            .routes_changed
            .then(|| self.routes_checked + ROUTES_CHECK);
        let at = again.into_iter().chain(check).min()?;
        Some(at.saturating_sub(now))
    }

    /// Whether the interface is there and down.
    fn hear(&mut self) -> io::Result<bool> {
        let (index, mut is_down, mut overrun) = (self.index, false, false);
        let (is_gone, routes_changed) = (&mut self.is_gone, &mut self.routes_changed);
        self.monitor.read(|event| match event {
            KernelEvent::Link { index: of, up, .. } if of == index => is_down = !up,
            KernelEvent::LinkGone { index: of } | KernelEvent::LinkMoved { index: of }
                if of == index =>
            {
                *is_gone = true;
            }
            KernelEvent::Link { .. }
            | KernelEvent::LinkGone { .. }
            | KernelEvent::LinkMoved { .. } => {}
            KernelEvent::Routes => *routes_changed = true,
            KernelEvent::Overrun => (*routes_changed, overrun) = (true, true),
        })?;
        if overrun {
            self.is_gone |= !self.monitor.has(index);
            self.monitor.request_link(index)?;
        }
        Ok(is_down && !self.is_gone)
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

impl Control {
    pub(super) fn look_after_kernel(&mut self) {
        match self.kernel.hear() {
            Ok(false) => {}
            Ok(true) => self.put_up(),
            Err(error) => tracing::warn!(%error, "what the kernel tells cannot be read"),
        }
        let now = boottime();
        if self.kernel.is_gone && now.saturating_sub(self.kernel.tried) >= MAKE_AGAIN {
            self.kernel.tried = now;
            self.make_again();
        }
        let since = now.saturating_sub(self.kernel.routes_checked);
        if self.kernel.routes_changed && since >= ROUTES_CHECK {
            (self.kernel.routes_changed, self.kernel.routes_checked) = (false, now);
            self.check_routes();
        }
    }

    fn put_up(&self) {
        let name = &self.settings.tun;
        match crate::io::tun::put_up(name) {
            Ok(()) => tracing::warn!(interface = name, "was down and is up again"),
            // Deleted: that is told as well.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => {
                tracing::error!(interface = name, %error, "is down and cannot be put up");
            }
        }
    }

    /// The data threads wait in vain on the queues of the old interface until they get new ones.
    fn make_again(&mut self) {
        let name = self.settings.tun.clone();
        let queues = self.shared.mailboxes.len();
        let made = Tun::take_over_under(self.kernel.lock.clone(), queues, &self.settings.without);
        let tun = match made {
            Ok(tun) if tun.queues.len() == queues => tun,
            Ok(_) => return,
            Err(error) => {
                let why = error.to_string();
                if self.kernel.told.as_ref() != Some(&why) {
                    tracing::error!(interface = name, "was deleted and cannot be made: {why}");
                    self.outgoing
                        .push(vec![PlaneEvent::Interface(Err(why.clone()))]);
                    self.kernel.told = Some(why);
                }
                return;
            }
        };
        (self.kernel.index, self.kernel.is_gone, self.kernel.told) = (tun.index, false, None);
        for (mailbox, queue) in self.shared.mailboxes.iter().zip(tun.queues) {
            mailbox.command(Command::Tun(queue));
        }
        self.links.queues_are_new();
        self.links.attach_queues(&self.shared);
        tracing::warn!(interface = name, "was deleted and is made again");
        self.outgoing.push(vec![PlaneEvent::Interface(Ok(()))]);
    }

    fn check_routes(&self) {
        self.outgoing.push(vec![PlaneEvent::Addresses]);
        let query = match RouteQuery::new(self.kernel.fwmark) {
            Ok(query) => query,
            Err(error) => return tracing::warn!(%error, "routes cannot be asked for"),
        };
        self.links.check_sources(&self.shared, |remote, local| {
            query
                .interface(remote, local.address)
                .is_ok_and(|now| now == Some(local.interface))
        });
    }
}
