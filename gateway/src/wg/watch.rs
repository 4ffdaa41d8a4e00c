//! What the kernel tells of the interface, also after it was moved to another network namespace,
//! and whether routes changed where the outer sockets are.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{WgError, failed};
use crate::io::netlink::{KernelEvent, Monitor};
use crate::io::tun::Tun;

pub(super) struct Watch {
    /// Where we were started: the outer sockets stay there.
    home: Monitor,
    /// Where the interface is, once it was moved.
    away: Option<Monitor>,
    tun: OwnedFd,
    name: String,
    index: u32,
    pub(super) routes_changed: bool,
    pub(super) routes_checked: Duration,
}

#[derive(Default)]
pub(super) struct Heard {
    /// Up, and its MTU.
    pub(super) link: Option<(bool, Option<u32>)>,
    pub(super) gone: bool,
    moved: bool,
    routes: bool,
    overrun: bool,
}

impl Watch {
    pub(super) fn new(tun: &Tun) -> Result<Watch, WgError> {
        let what = "listen to the kernel's link and route changes";
        let home = Monitor::new().map_err(failed(what))?;
        home.request_link(tun.index).map_err(failed(what))?;
        Ok(Watch {
            home,
            away: None,
            tun: tun.queues[0].handle().map_err(failed(what))?,
            name: tun.name.clone(),
            index: tun.index,
            routes_changed: false,
            routes_checked: Duration::ZERO,
        })
    }

    pub(super) fn monitors(&self) -> impl Iterator<Item = &Monitor> {
        std::iter::once(&self.home).chain(&self.away)
    }

    /// Everything told since the last call.
    pub(super) fn hear(&mut self) -> io::Result<Heard> {
        let mut heard = Heard::default();
        // Once it is away, what home tells of links concerns others that have its old index.
        let at_home = self.away.is_none().then_some(self.index);
        self.home.read(|event| heard.note(at_home, event))?;
        self.routes_changed |= heard.routes;
        if let Some(away) = &mut self.away {
            away.read(|event| heard.note(Some(self.index), event))?;
        }
        if heard.moved {
            self.follow();
        } else if heard.overrun {
            self.look_again(&mut heard)?;
        }
        Ok(heard)
    }

    /// The interface left the namespace that we watch.
    fn follow(&mut self) {
        let found = Monitor::beside(self.tun.as_fd()).and_then(|monitor| {
            self.index = monitor.index_of(self.tun.as_fd())?;
            monitor.request_link(self.index)?;
            Ok(monitor)
        });
        match found {
            Ok(monitor) => {
                tracing::info!(
                    interface = self.name,
                    "followed into another network namespace"
                );
                self.away = Some(monitor);
            }
            Err(error) => tracing::error!(
                interface = self.name,
                %error,
                "moved to another network namespace that cannot be watched: up, down and MTU are no longer noticed; \
                 run as root, or start in that namespace"
            ),
        }
    }

    /// Something was not heard: perhaps the end.
    fn look_again(&self, heard: &mut Heard) -> io::Result<()> {
        let monitor = self.away.as_ref().unwrap_or(&self.home);
        monitor.request_link(self.index)?;
        heard.gone |= !monitor.has(self.index);
        Ok(())
    }
}

impl Heard {
    fn note(&mut self, ours: Option<u32>, event: KernelEvent) {
        match event {
            KernelEvent::Link { index, up, mtu } if ours == Some(index) => {
                self.link = Some((up, mtu))
            }
            KernelEvent::LinkGone { index } if ours == Some(index) => self.gone = true,
            KernelEvent::LinkMoved { index } if ours == Some(index) => self.moved = true,
            KernelEvent::Link { .. }
            | KernelEvent::LinkGone { .. }
            | KernelEvent::LinkMoved { .. } => {}
            KernelEvent::Routes => self.routes = true,
            KernelEvent::Overrun => (self.routes, self.overrun) = (true, true),
        }
    }
}
