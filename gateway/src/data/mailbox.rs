//! What others leave for a data thread: commands of control, handshakes, and batches that arrived
//! at a thread that does not own their link. Every queue is bounded; nothing here is per packet.

mod control;

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::index::thread_of;
use super::link::{Endpoint, LinkSpec, receiver_index};
use super::snapshot::LinkPlace;
use crate::io::tun::TunQueue;
use crate::io::udp::{Received, UdpSocket};
pub use control::{ControlInbox, ControlPacket, News, REFLECTED_KIND, Reflected};

/// Changes that control makes to a thread, applied in order.
pub enum Command {
    AddLink {
        slot: u32,
        spec: Box<LinkSpec>,
    },
    RemoveLink {
        slot: u32,
    },
    PrivateKey {
        slot: u32,
        key: x25519::StaticSecret,
        limiter: Arc<RateLimiter>,
    },
    PresharedKey {
        slot: u32,
        key: Option<[u8; 32]>,
    },
    Endpoint {
        slot: u32,
        remote: SocketAddr,
    },
    Keepalive {
        slot: u32,
        seconds: u16,
    },
    /// Begin a handshake: the same initiation goes to each of these.
    Initiate {
        slot: u32,
        to: Vec<SocketAddr>,
    },
    /// Seal a whole packet as it is and send it there, or to the address in use.
    SendControl {
        slot: u32,
        packet: Box<[u8]>,
        to: Option<SocketAddr>,
    },
    /// A whole packet for this host's kernel.
    ToTun(Box<[u8]>),
    /// The inner packets that a link's path carries, in a mesh.
    LinkMtu {
        slot: u32,
        mtu: u16,
    },
    /// Forget the source address: the route it was learned on is no longer the one in use.
    ForgetSource {
        slot: u32,
    },
    /// The socket to use from now on; without one the interface is down.
    Socket(Option<UdpSocket>),
    /// The firewall mark of what is sent.
    Mark(u32),
    /// The interface was made anew: its queue for this thread.
    Tun(TunQueue),
    /// Whether the kernel may choose this thread's TUN queue.
    Attach(bool),
    Stop,
}

/// A handshake message that passed control's screen, for the owner of its link.
pub struct Handshake {
    /// For an initiation: whose it is. Others name their receiver.
    pub slot: Option<u32>,
    pub from: Endpoint,
    pub len: usize,
    pub datagram: [u8; HANDSHAKE_LEN],
}

/// The longest handshake message.
pub const HANDSHAKE_LEN: usize = 148;

/// A frame read from one thread's TUN queue for another thread's link.
pub struct Frame {
    pub place: LinkPlace,
    pub len: usize,
    pub buffer: Vec<u8>,
}

impl Stray {
    /// Leaves one datagram for the thread that its index names; false if it has no room.
    pub fn pass_on(mailboxes: &[Mailbox], received: &Received, datagram: &[u8]) -> bool {
        let owner = receiver_index(datagram, 4).and_then(|index| mailboxes.get(thread_of(index)));
        let Some(owner) = owner else { return false };
        let received = Received {
            len: datagram.len(),
            segment: datagram.len(),
            ..*received
        };
        let taken = owner
            .strays
            .push(Stray {
                received,
                datagram: datagram.into(),
            })
            .is_ok();
        owner.wake();
        taken
    }
}

/// A data datagram that reached a thread which does not own its session.
pub struct Stray {
    pub received: Received,
    pub datagram: Box<[u8]>,
}

/// How many handed-over frames wait at most for one thread.
pub const FRAMES: usize = 256;
/// Buffers kept for the next ones; a burst's are given back.
const SPARE_FRAMES: usize = 64;
const STRAYS: usize = 256;
/// The screen is faster than the owner: so many may come at once before one is lost.
const HANDSHAKES: usize = 1024;
/// Packets of control to be sealed; other commands are few and must not be lost.
const CONTROL_PACKETS: usize = 4096;
const CONTROL_BYTES: usize = 4 << 20;
const _: () = assert!(
    FRAMES * super::thread::FRAME_BUFFER
        + STRAYS * (64 << 10)
        + HANDSHAKES * size_of::<Handshake>()
        + CONTROL_BYTES
        + CONTROL_PACKETS * size_of::<Command>()
        < 48 << 20,
    "the most that can wait for one thread"
);

#[derive(Default)]
struct Commands {
    list: Vec<Command>,
    packets: usize,
    packet_bytes: usize,
}

impl Commands {
    /// Whether there was room.
    fn push(&mut self, command: Command) -> bool {
        if let Command::SendControl { packet, .. } | Command::ToTun(packet) = &command {
            let bytes = self.packet_bytes + packet.len();
            if self.packets >= CONTROL_PACKETS || bytes > CONTROL_BYTES {
                return false;
            }
            self.packets += 1;
            self.packet_bytes = bytes;
        }
        self.list.push(command);
        true
    }
}

pub struct Mailbox {
    commands: Mutex<Commands>,
    commanded: AtomicBool,
    pub handshakes: ArrayQueue<Handshake>,
    pub frames: ArrayQueue<Frame>,
    /// Emptied frame buffers on their way back to whoever hands over next.
    pub spare: ArrayQueue<Vec<u8>>,
    pub strays: ArrayQueue<Stray>,
    /// Set by the owner before it sleeps, so that a wake-up costs a system call only then.
    asleep: AtomicBool,
    wake: EventFd,
}

impl Mailbox {
    pub fn new() -> std::io::Result<Mailbox> {
        Ok(Mailbox {
            commands: Mutex::default(),
            commanded: AtomicBool::new(false),
            handshakes: ArrayQueue::new(HANDSHAKES),
            frames: ArrayQueue::new(FRAMES),
            spare: ArrayQueue::new(SPARE_FRAMES),
            strays: ArrayQueue::new(STRAYS),
            asleep: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    pub fn command(&self, command: Command) {
        self.commands(&mut vec![command]);
    }

    /// Takes all of them; the owner is woken once. Returns how many packets had no room, as with an
    /// owner that does not run.
    pub fn commands(&self, commands: &mut Vec<Command>) -> u64 {
        if commands.is_empty() {
            return 0;
        }
        let mut lost = 0;
        let mut waiting = self.lock();
        for command in commands.drain(..) {
            lost += u64::from(!waiting.push(command));
        }
        drop(waiting);
        self.commanded.store(true, Ordering::Release);
        self.wake();
        lost
    }

    fn lock(&self) -> MutexGuard<'_, Commands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the owner if it sleeps; call after putting something in.
    pub fn wake(&self) {
        // Pairs with the fence of `may_sleep`: either we see it asleep or it sees what we put in.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Failing means the counter is at its limit: the owner will wake anyway.
            let _ = self.wake.write(1);
        }
    }

    /// Announces that the owner is about to sleep; false if something waits already. A `blocked`
    /// owner takes no frames.
    pub(super) fn may_sleep(&self, blocked: bool) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.is_empty(blocked) {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// The owner runs again; `readable` says that the descriptor was what woke it.
    pub(super) fn woke(&self, readable: bool) {
        self.asleep.store(false, Ordering::SeqCst);
        if readable {
            let _ = self.wake.read();
        }
    }

    fn is_empty(&self, blocked: bool) -> bool {
        !self.commanded.load(Ordering::Acquire)
            && self.handshakes.is_empty()
            && (blocked || self.frames.is_empty())
            && self.strays.is_empty()
    }

    pub(super) fn take_commands(&self) -> Vec<Command> {
        if !self.commanded.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.lock()).list
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// A handshake message as it came from the network, on its way to control's screen.
pub struct RawHandshake {
    pub from: Endpoint,
    pub len: usize,
    pub datagram: [u8; HANDSHAKE_LEN],
}

impl RawHandshake {
    /// `None` if it is longer than any handshake message.
    pub fn new(received: &Received, datagram: &[u8]) -> Option<RawHandshake> {
        let mut raw = RawHandshake {
            from: Endpoint {
                remote: received.from,
                local: received.local,
            },
            len: datagram.len(),
            datagram: [0; HANDSHAKE_LEN],
        };
        raw.datagram
            .get_mut(..datagram.len())?
            .copy_from_slice(datagram);
        Some(raw)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.datagram[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_for_a_thread_that_hangs_is_lost_at_last_and_other_commands_never() {
        for (len, room) in [(100, CONTROL_PACKETS), (9000, CONTROL_BYTES / 9000)] {
            let mailbox = Mailbox::new().unwrap();
            let packet = || Command::SendControl {
                slot: 0,
                packet: vec![0; len].into(),
                to: None,
            };
            let mut commands: Vec<Command> = (0..2 * room).map(|_| packet()).collect();
            commands.extend((0..10_000).map(|slot| Command::RemoveLink { slot }));
            assert_eq!(mailbox.commands(&mut commands), room as u64);
            assert_eq!(mailbox.take_commands().len(), room + 10_000);
            // It runs again.
            assert_eq!(mailbox.commands(&mut vec![packet()]), 0);
        }
    }
}
