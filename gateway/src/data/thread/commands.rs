//! What control tells a data thread to change.

use std::os::fd::AsFd;
use std::time::Duration;

use super::{DataThread, TICK};
use crate::data::link::{Link, LinkSpec, Work};
use crate::data::mailbox::Command;
use crate::io::tun::TunQueue;
use crate::io::udp::UdpSocket;

impl DataThread {
    pub(super) fn obey(&mut self) {
        for command in self.mailbox().take_commands() {
            self.apply(command);
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::AddLink { slot, spec } => self.add_link(slot, *spec),
            Command::RemoveLink { slot } => {
                if let Some(link) = self.links.get_mut(slot as usize).and_then(Option::take) {
                    link.remove(&mut self.table, &self.drops);
                }
            }
            Command::PrivateKey { slot, key, limiter } => {
                self.with_link(slot, |link, work| link.set_private_key(key, limiter, work));
            }
            Command::PresharedKey { slot, key } => {
                self.with_link(slot, |link, work| link.set_preshared_key(key, work))
            }
            Command::Endpoint { slot, remote } => {
                self.with_link(slot, |link, _| link.set_remote(remote))
            }
            Command::Keepalive { slot, seconds } => {
                self.with_link(slot, |link, work| link.set_keepalive(seconds, work))
            }
            Command::Initiate { slot, to } => {
                self.with_link(slot, |link, work| link.initiate_at(&to, work))
            }
            Command::SendControl { slot, packet, to } => {
                self.with_link(slot, |link, work| link.send_control(&packet, to, work))
            }
            Command::ToTun(packet) => self.write_tun(&packet),
            Command::LinkMtu { slot, mtu } => self.with_link(slot, |link, _| link.set_mtu(mtu)),
            Command::ForgetSource { slot } => self.with_link(slot, |link, _| link.forget_source()),
            Command::Socket(socket) => self.set_socket(socket),
            Command::Mark(fwmark) => {
                if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.set_mark(fwmark))
                {
                    tracing::error!(%error, fwmark, "the firewall mark cannot be set");
                }
            }
            Command::Tun(queue) => self.set_tun(queue),
            Command::Attach(attached) => match self.tun.set_attached(attached) {
                Ok(()) => self.attached = attached,
                Err(error) => tracing::warn!(%error, attached, "TUN queue cannot be switched"),
            },
            Command::Stop => self.stopping = true,
        }
    }

    pub(super) fn with_link(&mut self, slot: u32, act: impl FnOnce(&mut Link, &mut Work<'_>)) {
        let (links, mut work) = self.work();
        if let Some(Some(link)) = links.get_mut(slot as usize) {
            act(link, &mut work);
        }
        self.next_tick = self.next_tick.min(self.now + TICK);
    }

    fn add_link(&mut self, slot: u32, spec: LinkSpec) {
        let Some(mut link) = Link::new(spec, slot, &mut self.table, self.now) else {
            tracing::error!(
                "this thread has no receiver index left: the peer stays without a link"
            );
            return;
        };
        let (_, mut work) = self.work();
        if work.socket.is_some() {
            link.start(&mut work);
        }
        let slot = slot as usize;
        if self.links.len() <= slot {
            self.links.resize_with(slot + 1, || None);
        }
        self.links[slot] = Some(Box::new(link));
        self.next_tick = Duration::ZERO;
    }

    fn set_tun(&mut self, queue: TunQueue) {
        self.waiter.forget_tun(self.tun.as_fd());
        self.tun = queue;
        self.attached = true;
    }

    fn set_socket(&mut self, socket: Option<UdpSocket>) {
        self.flush();
        let was_up = self.socket.is_some();
        let is_up = socket.is_some();
        if let Some(old) = &self.socket {
            self.waiter.forget_socket(old.as_fd());
        }
        self.socket = socket;
        let (links, mut work) = self.work();
        for link in links.iter_mut().flatten() {
            match (was_up, is_up) {
                (false, true) => link.start(&mut work),
                (true, false) => link.reset(&mut work),
                // A new port: the sessions stay, their sources may not.
                _ => link.forget_source(),
            }
        }
        self.next_tick = Duration::ZERO;
    }
}
