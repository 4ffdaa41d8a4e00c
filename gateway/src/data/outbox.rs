//! Datagrams on their way out: sealed straight into one dense arena, so that runs of equal size
//! for one remote leave in one send that the kernel cuts up (`UDP_SEGMENT`).
//!
//! Order: datagrams leave in the order in which they were committed, whatever has to be retried.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::link::Endpoint;
use crate::drops::{DropReason, Drops};
use crate::io::boottime;
use crate::io::udp::{Mark, Message, Sender, Sent, UdpSocket};

/// Holds a few sends of the largest size.
const ARENA: usize = 256 << 10;
/// The largest UDP payload that IPv4 carries, and so the largest send.
const SEND_LIMIT: usize = 65_507;
/// Datagrams per send: the kernel's limit is 128 since 6.9 and 64 before, counting one for itself.
const SEGMENTS_NEW: usize = 127;
const SEGMENTS_OLD: usize = 63;
/// How long what a path did not take whole is sent piece by piece, and for how many remotes.
const PIECEMEAL: Duration = Duration::from_secs(10);
const PIECEMEAL_REMOTES: usize = 16;
/// What was sealed longer ago than this is not sent: a process that was stopped meanwhile may have
/// used a key that is too old by now.
const MOST_AGE: Duration = Duration::from_secs(1);

/// What the socket refused, so that the next send avoids it.
#[derive(Clone, Copy, Debug)]
struct Piecemeal {
    remote: SocketAddr,
    /// From this size on.
    segment: usize,
    until: Duration,
}

/// One datagram as it would leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub to: Endpoint,
    pub ecn: u8,
    pub bytes: Vec<u8>,
}

pub struct Outbox {
    arena: Vec<u8>,
    /// Bytes of the arena in use.
    used: usize,
    messages: Vec<Message>,
    /// Messages before this one are gone.
    sent: usize,
    sender: Sender,
    /// Datagrams per send; 1 once the kernel refused to cut.
    segments: usize,
    /// The last message may not be extended.
    closed: bool,
    piecemeal: Vec<Piecemeal>,
    /// Where probes of sizes begin in the arena: to be refused for its size is one's answer.
    probes: Vec<usize>,
    /// The socket took no more; nothing new is read from the TUN until it does.
    full: bool,
    /// The time by which the first of what waits was sealed, where there is a clock.
    since: Option<Duration>,
    /// Remotes whose cached source address the kernel refused.
    pub stale_sources: Vec<SocketAddr>,
}

impl Outbox {
    pub fn new(segment: bool) -> Outbox {
        Outbox {
            arena: vec![0; ARENA],
            used: 0,
            messages: Vec::with_capacity(256),
            sent: 0,
            sender: Sender::default(),
            segments: if segment { SEGMENTS_NEW } else { 1 },
            closed: true,
            piecemeal: Vec::new(),
            probes: Vec::new(),
            full: false,
            since: None,
            stale_sources: Vec::new(),
        }
    }

    /// What is sealed from here on is sealed by this reading of the clock.
    pub fn begin(&mut self, now: Duration) {
        if self.used == 0 {
            self.since = Some(now);
        }
    }

    /// Room for one datagram of at most `len` bytes, to be followed by [`Outbox::commit`] or by nothing.
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.arena.get_mut(self.used..)?.get_mut(..len)
    }

    /// Takes the first `len` bytes of the last reservation as a datagram for `to`.
    pub fn commit(&mut self, to: &Endpoint, mark: Mark, len: usize) {
        let at = self.used;
        self.used += len;
        if !self.closed
            && let Some(last) = self.messages.last_mut()
            && last.to == to.remote
            && last.mark == mark
            && len <= last.segment
            && last.local == to.local
            && last.len + len <= SEND_LIMIT
            && last.len / last.segment < self.segments
        {
            last.len += len;
            self.closed = len < last.segment;
            return;
        }
        self.messages.push(Message {
            to: to.remote,
            local: to.local,
            mark,
            at,
            len,
            segment: len,
        });
        self.closed = self.segments == 1;
    }

    /// What was committed last, by itself, may be larger than its path takes: that loses nothing.
    pub fn note_probe(&mut self) {
        self.probes.extend(self.messages.last().map(|last| last.at));
    }

    /// What comes next shares no send with what is there.
    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.used
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&mut self, socket: Option<&UdpSocket>, now: Duration, drops: &Drops) {
        let Some(socket) = socket else {
            drops.add(DropReason::InterfaceDown, self.waiting_datagrams());
            self.clear();
            return;
        };
        if self.used > 0 && self.has_aged() {
            drops.add(DropReason::Stale, self.waiting_datagrams());
            return self.clear();
        }
        self.full = false;
        while let Some(first) = self.messages.get(self.sent).copied() {
            let pieces = self.pieces_at_once(&first, now);
            if count(&first) > pieces {
                self.cut_up(pieces);
            }
            match self
                .sender
                .send(socket, &self.arena, &self.messages[self.sent..])
            {
                Ok(Sent::Some(count)) => self.sent += count,
                Ok(Sent::Full) => {
                    self.full = true;
                    return;
                }
                Err(error) => self.refused(&error, now, drops),
            }
        }
        self.clear();
    }

    /// Asks the clock, as nothing tells how long ago the caller did.
    fn has_aged(&self) -> bool {
        self.since
            .is_some_and(|since| boottime().saturating_sub(since) > MOST_AGE)
    }

    fn waiting_datagrams(&self) -> u64 {
        let waiting = &self.messages[self.sent..];
        waiting.iter().map(|message| count(message) as u64).sum()
    }

    /// Takes out what waits, for those who stand in for the network: tests and fuzz targets.
    pub fn take(&mut self) -> Vec<Datagram> {
        let mut taken = Vec::new();
        for message in &self.messages[self.sent..] {
            let to = Endpoint {
                remote: message.to,
                local: message.local,
            };
            let sealed = &self.arena[message.at..message.at + message.len];
            taken.extend(sealed.chunks(message.segment).map(|bytes| Datagram {
                to,
                ecn: message.mark.ecn,
                bytes: bytes.to_vec(),
            }));
        }
        self.clear();
        taken
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.probes.clear();
        (self.used, self.sent, self.closed, self.full) = (0, 0, true, false);
    }

    /// Makes room by sending; waits a moment for a full socket rather than lose what was read.
    pub fn make_room(&mut self, socket: Option<&UdpSocket>, now: Duration, drops: &Drops) {
        self.flush(socket, now, drops);
        if self.full
            && let Some(socket) = socket
        {
            let mut wait = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut wait, PollTimeout::from(20_u8));
            self.flush(Some(socket), now, drops);
        }
        if self.full {
            drops.add(DropReason::SendFull, self.waiting_datagrams());
            self.clear();
        }
    }

    /// How many datagrams of this message may leave in one send.
    fn pieces_at_once(&self, message: &Message, now: Duration) -> usize {
        let piecemeal = self.piecemeal.iter().any(|seen| {
            seen.remote == message.to && message.segment >= seen.segment && now < seen.until
        });
        if piecemeal { 1 } else { self.segments }
    }

    /// Replaces the first waiting message by messages of so many datagrams each.
    fn cut_up(&mut self, pieces: usize) {
        let whole = self.messages[self.sent];
        let (end, size) = (whole.at + whole.len, whole.segment * pieces);
        let cut = (whole.at..end).step_by(size).map(|at| {
            let len = size.min(end - at);
            Message {
                at,
                len,
                segment: whole.segment.min(len),
                ..whole
            }
        });
        self.messages.splice(self.sent..=self.sent, cut);
    }

    /// For a while datagrams of this size go to this remote one by one.
    fn send_piecemeal(&mut self, remote: SocketAddr, segment: usize, now: Duration) {
        self.piecemeal
            .retain(|seen| now < seen.until && seen.remote != remote);
        if self.piecemeal.len() == PIECEMEAL_REMOTES {
            self.piecemeal.remove(0);
        }
        self.piecemeal.push(Piecemeal {
            remote,
            segment,
            until: now + PIECEMEAL,
        });
    }

    /// What an error on the first waiting message means for it and for those to come.
    fn refused(&mut self, error: &io::Error, now: Duration, drops: &Drops) {
        let message = self.messages[self.sent];
        let cut = count(&message) > 1;
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // Concerns this size on this path, not the offload.
            Some(libc::EMSGSIZE) if cut => self.send_piecemeal(message.to, message.segment, now),
            Some(libc::EMSGSIZE) if self.probes.contains(&message.at) => self.sent += 1,
            Some(
                libc::EINVAL
                | libc::EADDRNOTAVAIL
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENODEV,
            ) if message.local.is_some() => {
                self.stale_sources.push(message.to);
                self.messages[self.sent].local = None;
            }
            Some(libc::EINVAL) if count(&message) > SEGMENTS_OLD => self.segments = SEGMENTS_OLD,
            // This route's device cannot (EIO), or the datagrams are too big for it, as kernels
            // before 6.14 say it (EINVAL).
            Some(libc::EINVAL | libc::EIO | libc::EOPNOTSUPP) if cut => {
                tracing::info!(%error, remote = %message.to, "the kernel refuses UDP_SEGMENT here: datagrams go one by one for a while");
                self.send_piecemeal(message.to, 0, now);
            }
            _ => {
                tracing::debug!(%error, remote = %message.to, "send failed");
                drops.add(DropReason::SendFailed, count(&message) as u64);
                self.sent += 1;
            }
        }
    }
}

/// How many datagrams a message is cut into.
fn count(message: &Message) -> usize {
    message.len.div_ceil(message.segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint {
            remote: ([127, 0, 0, 1], port).into(),
            local: None,
        }
    }

    fn put(outbox: &mut Outbox, port: u16, ecn: u8, len: usize) {
        outbox.reserve(len).unwrap().fill(port as u8);
        outbox.commit(&endpoint(port), Mark { ecn, hops: 0 }, len);
    }

    fn shape(outbox: &Outbox) -> Vec<(u16, usize, usize)> {
        outbox
            .messages
            .iter()
            .map(|m| (m.to.port(), m.segment, m.len))
            .collect()
    }

    #[test]
    fn equal_datagrams_share_a_send_and_a_shorter_one_ends_it() {
        let mut outbox = Outbox::new(true);
        for len in [100, 100, 40, 100, 100] {
            put(&mut outbox, 1, 0, len);
        }
        assert_eq!(shape(&outbox), [(1, 100, 240), (1, 100, 200)]);
    }

    #[test]
    fn a_longer_datagram_another_remote_or_another_mark_begins_a_new_send() {
        let mut outbox = Outbox::new(true);
        put(&mut outbox, 1, 0, 100);
        put(&mut outbox, 1, 0, 101);
        put(&mut outbox, 2, 0, 101);
        put(&mut outbox, 2, 1, 101);
        assert_eq!(
            shape(&outbox),
            [(1, 100, 100), (1, 101, 101), (2, 101, 101), (2, 101, 101)]
        );
    }

    #[test]
    fn a_send_stays_below_the_limits_of_the_kernel() {
        let mut outbox = Outbox::new(true);
        for _ in 0..50 {
            put(&mut outbox, 1, 0, 1452);
        }
        for _ in 0..300 {
            put(&mut outbox, 2, 0, 96);
        }
        for message in &outbox.messages {
            assert!(
                message.len <= SEND_LIMIT && message.len.div_ceil(message.segment) <= SEGMENTS_NEW
            );
        }
        assert_eq!(outbox.messages[0].len, 45 * 1452);
    }

    #[test]
    fn without_the_offload_every_datagram_is_a_send() {
        let mut outbox = Outbox::new(false);
        put(&mut outbox, 1, 0, 100);
        put(&mut outbox, 1, 0, 100);
        assert_eq!(shape(&outbox), [(1, 100, 100), (1, 100, 100)]);
    }

    #[test]
    fn an_oversized_send_is_remembered_for_its_remote_only() {
        let mut outbox = Outbox::new(true);
        put(&mut outbox, 1, 0, 1452);
        put(&mut outbox, 1, 0, 1452);
        let now = Duration::from_secs(5);
        outbox.refused(
            &io::Error::from_raw_os_error(libc::EMSGSIZE),
            now,
            &Drops::default(),
        );
        let message = outbox.messages[0];
        assert_eq!(outbox.pieces_at_once(&message, now), 1);
        let other = Message {
            to: endpoint(2).remote,
            ..message
        };
        assert_eq!(outbox.pieces_at_once(&other, now), SEGMENTS_NEW);
        assert_eq!(
            outbox.pieces_at_once(&message, now + PIECEMEAL),
            SEGMENTS_NEW
        );
    }

    #[test]
    fn a_probe_that_is_too_large_for_the_interface_is_no_drop() {
        let (mut outbox, drops) = (Outbox::new(true), Drops::default());
        put(&mut outbox, 1, 0, 1452);
        outbox.close();
        put(&mut outbox, 1, 0, 9000);
        outbox.note_probe();
        let refuse = |outbox: &mut Outbox, errno| {
            let refusal = io::Error::from_raw_os_error(errno);
            outbox.refused(&refusal, Duration::ZERO, &drops);
        };
        refuse(&mut outbox, libc::EMSGSIZE);
        assert_eq!(drops.get(DropReason::SendFailed), 1, "that was data");
        refuse(&mut outbox, libc::EMSGSIZE);
        assert_eq!(drops.get(DropReason::SendFailed), 1);
        assert_eq!(outbox.sent, 2);
        outbox.clear();
        put(&mut outbox, 1, 0, 9000);
        refuse(&mut outbox, libc::EMSGSIZE);
        assert_eq!(drops.get(DropReason::SendFailed), 2, "another one");
    }

    #[test]
    fn a_message_is_cut_up_without_losing_a_byte() {
        let mut outbox = Outbox::new(true);
        for len in [100, 100, 100, 40] {
            put(&mut outbox, 1, 0, len);
        }
        put(&mut outbox, 2, 0, 70);
        outbox.cut_up(2);
        assert_eq!(shape(&outbox), [(1, 100, 200), (1, 100, 140), (2, 70, 70)]);
        outbox.cut_up(1);
        assert_eq!(
            shape(&outbox),
            [(1, 100, 100), (1, 100, 100), (1, 100, 140), (2, 70, 70)]
        );
        let places: Vec<_> = outbox.messages.iter().map(|m| m.at).collect();
        assert_eq!(places, [0, 100, 200, 340]);
    }

    #[test]
    fn what_an_old_kernel_refuses_is_made_smaller_first_and_only_then_single() {
        let mut outbox = Outbox::new(true);
        for _ in 0..100 {
            put(&mut outbox, 1, 0, 96);
        }
        let refusal = io::Error::from_raw_os_error(libc::EINVAL);
        let now = Duration::from_secs(5);
        outbox.refused(&refusal, now, &Drops::default());
        assert_eq!(
            outbox.pieces_at_once(&outbox.messages[0], now),
            SEGMENTS_OLD
        );
        outbox.cut_up(SEGMENTS_OLD);
        outbox.refused(&refusal, now, &Drops::default());
        assert_eq!(outbox.pieces_at_once(&outbox.messages[0], now), 1);
    }

    #[test]
    fn without_a_socket_every_datagram_is_counted() {
        let mut outbox = Outbox::new(true);
        let drops = Drops::default();
        for len in [100, 100, 40, 60] {
            put(&mut outbox, 1, 0, len);
        }
        outbox.flush(None, Duration::ZERO, &drops);
        assert_eq!(drops.get(DropReason::InterfaceDown), 4);
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn what_was_sealed_before_a_pause_is_dropped_and_what_comes_after_is_sent() {
        let (mut outbox, drops) = (Outbox::new(true), Drops::default());
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = receiver.local_addr().unwrap().port();
        let socket = UdpSocket::unbound().unwrap();
        let now = boottime();
        outbox.begin(now - Duration::from_secs(2));
        put(&mut outbox, port, 0, 100);
        put(&mut outbox, port, 0, 100);
        // What waits already does not get younger.
        outbox.begin(now);
        outbox.flush(Some(&socket), now, &drops);
        assert_eq!(drops.get(DropReason::Stale), 2);
        outbox.begin(now);
        put(&mut outbox, port, 0, 70);
        outbox.flush(Some(&socket), now, &drops);
        assert_eq!(drops.get(DropReason::Stale), 2);
        assert_eq!(receiver.recv(&mut [0; 200]).unwrap(), 70);
    }

    #[test]
    fn a_full_room_is_told_not_overrun() {
        let mut outbox = Outbox::new(true);
        while outbox.reserve(60_000).is_some() {
            outbox.commit(&endpoint(1), Mark::default(), 60_000);
        }
        assert!(outbox.waiting() <= ARENA);
    }
}
