//! Where a data thread sleeps: on its mailbox, its socket and its TUN queue, each registered once.

use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

const MAILBOX: u64 = 0;
const SOCKET: u64 = 1;
const TUN: u64 = 2;

/// What to look at after a sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) mailbox: bool,
    pub(super) socket: bool,
    pub(super) tun: bool,
    /// The interface is gone, or the queue was taken out of it.
    pub(super) tun_failed: bool,
}

pub(super) struct Waiter {
    epoll: Epoll,
    /// Whether the TUN queue is registered.
    tun: bool,
    /// Whether a socket is registered, and if so whether also for room to send.
    socket: Option<bool>,
}

impl Waiter {
    pub(super) fn new(mailbox: BorrowedFd<'_>) -> io::Result<Waiter> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(mailbox, EpollEvent::new(EpollFlags::EPOLLIN, MAILBOX))?;
        Ok(Waiter {
            epoll,
            tun: false,
            socket: None,
        })
    }

    pub(super) fn watch_tun(&mut self, tun: BorrowedFd<'_>, wanted: bool) -> io::Result<()> {
        if wanted != self.tun {
            match wanted {
                true => self
                    .epoll
                    .add(tun, EpollEvent::new(EpollFlags::EPOLLIN, TUN))?,
                false => self.epoll.delete(tun)?,
            }
            self.tun = wanted;
        }
        Ok(())
    }

    /// To be called before a watched queue is closed.
    pub(super) fn forget_tun(&mut self, tun: BorrowedFd<'_>) {
        if std::mem::take(&mut self.tun) {
            // It is closed next, which takes it out as well.
            let _ = self.epoll.delete(tun);
        }
    }

    pub(super) fn watch_socket(
        &mut self,
        socket: BorrowedFd<'_>,
        writable: bool,
    ) -> io::Result<()> {
        if self.socket != Some(writable) {
            let room = if writable {
                EpollFlags::EPOLLOUT
            } else {
                EpollFlags::empty()
            };
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | room, SOCKET);
            match self.socket {
                None => self.epoll.add(socket, event)?,
                Some(_) => self.epoll.modify(socket, &mut event)?,
            }
            self.socket = Some(writable);
        }
        Ok(())
    }

    /// To be called before a watched socket is closed.
    pub(super) fn forget_socket(&mut self, socket: BorrowedFd<'_>) {
        if self.socket.take().is_some() {
            // It is closed next, which takes it out as well.
            let _ = self.epoll.delete(socket);
        }
    }

    /// Sleeps until something happens or the time is over.
    pub(super) fn wait(&self, timeout: EpollTimeout) -> Ready {
        let mut events = [EpollEvent::empty(); 3];
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        let mut ready = Ready::default();
        for event in &events[..count] {
            let readable = event.events().contains(EpollFlags::EPOLLIN);
            match event.data() {
                MAILBOX => ready.mailbox = true,
                SOCKET => ready.socket = true,
                _ => (ready.tun, ready.tun_failed) = (readable, !readable),
            }
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn pipe() -> (io::PipeReader, PipeWriter) {
        io::pipe().unwrap()
    }

    fn now(waiter: &Waiter) -> Ready {
        waiter.wait(EpollTimeout::ZERO)
    }

    #[test]
    fn what_happened_is_told_by_its_place() {
        let ((mailbox, mut to_mailbox), (socket, mut to_socket), (tun, to_tun)) =
            (pipe(), pipe(), pipe());
        let mut waiter = Waiter::new(mailbox.as_fd()).unwrap();
        waiter.watch_socket(socket.as_fd(), false).unwrap();
        waiter.watch_tun(tun.as_fd(), true).unwrap();
        assert_eq!(now(&waiter), Ready::default());
        to_mailbox.write_all(b"x").unwrap();
        to_socket.write_all(b"x").unwrap();
        assert_eq!(
            now(&waiter),
            Ready {
                mailbox: true,
                socket: true,
                ..Ready::default()
            }
        );
        drop(to_tun);
        assert!(
            now(&waiter).tun_failed,
            "a hang-up without anything to read"
        );
    }

    #[test]
    fn what_is_watched_no_longer_is_not_told() {
        let ((mailbox, _to_mailbox), (socket, mut to_socket), (tun, mut to_tun)) =
            (pipe(), pipe(), pipe());
        let mut waiter = Waiter::new(mailbox.as_fd()).unwrap();
        waiter.watch_socket(socket.as_fd(), false).unwrap();
        waiter.watch_socket(socket.as_fd(), true).unwrap();
        waiter.watch_tun(tun.as_fd(), true).unwrap();
        to_socket.write_all(b"x").unwrap();
        to_tun.write_all(b"x").unwrap();
        waiter.watch_tun(tun.as_fd(), false).unwrap();
        assert_eq!(
            now(&waiter),
            Ready {
                socket: true,
                ..Ready::default()
            }
        );
        waiter.forget_socket(socket.as_fd());
        assert_eq!(now(&waiter), Ready::default());
    }
}
