//! Requests whose every byte is made here: for what the libraries lack, and where thousands are read
//! or written.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkHeader,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::Refused;

pub(super) const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// The kernel fills at most half of it in one answer.
const ANSWER: usize = 1 << 16;
/// Of attributes that hold attributes.
const NESTED: u16 = 1 << 15;
/// Of the type of an attribute, without flags.
const TYPE: u16 = 0x3fff;
/// Something changed while it was told.
pub(super) const INTERRUPTED: u16 = 0x10;
/// So often is asked what changes meanwhile.
pub(super) const TRIES: usize = 5;
/// Sent at once; as many refusals fit the receive buffer of a host that nobody tuned.
const AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 1 << 16;

/// Speaks with rtnetlink. The kernel has answered when a request returns, so nothing waits.
pub(crate) struct Requests {
    socket: Socket,
}

impl Requests {
    pub(crate) fn new() -> io::Result<Requests> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Without it filters of a dump are not obeyed.
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_rx_buf_sz(1_i32 << 20)?;
        Ok(Requests { socket })
    }

    pub(super) fn change(
        &self,
        what: impl FnOnce() -> String,
        message: Message,
        flags: u16,
    ) -> Result<(), Refused> {
        let request = message.finish(NLM_F_REQUEST | NLM_F_ACK | flags, 1);
        let done = converse(&self.socket, &request, |head, body| match head.kind {
            NLMSG_DONE | NLMSG_ERROR => status(body).map(|()| true),
            _ => Ok(false),
        });
        done.map_err(|error| Refused {
            what: what(),
            error,
        })
    }

    /// Makes these changes in their order, hundreds with each system call; told is which of them were
    /// refused.
    pub(super) fn change_all(
        &self,
        changes: impl IntoIterator<Item = (Message, u16)>,
    ) -> io::Result<Vec<(usize, io::Error)>> {
        let mut refused = vec![];
        let (mut bytes, mut begin, mut count) = (vec![], 0, 0);
        let mut changes = changes.into_iter().peekable();
        while let Some((message, flags)) = changes.next() {
            count += 1;
            let is_full = count == AT_ONCE || bytes.len() >= BYTES_AT_ONCE;
            let is_last = is_full || changes.peek().is_none();
            // The answer to the last is the end; of the others only refusals are told.
            let ack = if is_last { NLM_F_ACK } else { 0 };
            bytes.extend(message.finish(NLM_F_REQUEST | ack | flags, count as u32));
            if is_last {
                let part = self.part(&bytes, count as u32)?.into_iter();
                refused.extend(part.map(|(at, error)| (begin + at as usize - 1, error)));
                begin += count;
                (bytes, count) = (vec![], 0);
            }
        }
        Ok(refused)
    }

    /// Which of the messages, counted from one, were refused.
    fn part(&self, bytes: &[u8], last: u32) -> io::Result<Vec<(u32, io::Error)>> {
        let mut refused = vec![];
        converse(&self.socket, bytes, |head, body| {
            if head.kind != NLMSG_ERROR || !(1..=last).contains(&head.sequence) {
                return Ok(false);
            }
            let error = status(body).err();
            refused.extend(error.map(|error| (head.sequence, error)));
            Ok(head.sequence == last)
        })?;
        Ok(refused)
    }

    /// Hands the type and the body of each to `each`, which puts together what is returned.
    pub(super) fn dump<T: Default>(
        &self,
        what: &str,
        message: Message,
        each: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, Refused> {
        let request = message.finish(NLM_F_REQUEST | NLM_F_DUMP, 1);
        dump(&self.socket, &request, each).map_err(|error| Refused {
            what: what.to_owned(),
            error,
        })
    }
}

/// What changes while it is told is asked again, from the beginning; at last what was told is taken,
/// and what changed is told of as an event.
pub(super) fn dump<T: Default>(
    socket: &Socket,
    request: &[u8],
    mut each: impl FnMut(&mut T, u16, &[u8]),
) -> io::Result<T> {
    let mut left = TRIES;
    loop {
        let (mut all, mut is_one_state) = (T::default(), true);
        converse(socket, request, |head, body| {
            is_one_state &= head.flags & INTERRUPTED == 0;
            match head.kind {
                NLMSG_DONE | NLMSG_ERROR => return status(body).map(|()| true),
                _ => each(&mut all, head.kind, body),
            }
            Ok(false)
        })?;
        left -= 1;
        if is_one_state || left == 0 {
            return Ok(all);
        }
    }
}

/// Hands each answer to `is_end`.
fn converse(
    socket: &Socket,
    request: &[u8],
    mut is_end: impl FnMut(Head, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(ANSWER);
    // Answers to an earlier request that ended in an error.
    while socket.recv(&mut buffer, 0).is_ok() {
        buffer.clear();
    }
    socket.send(request, 0)?;
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other("the kernel's answer has no end"));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        for (head, body) in answers(&buffer) {
            if is_end(head, body)? {
                return Ok(());
            }
        }
    }
}

/// Both end messages begin with a number: 0 or a negative error.
fn status(body: &[u8]) -> io::Result<()> {
    match number(body, 0).map(u32::cast_signed) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Ok(()),
    }
}

/// What is said of a message before it.
struct Head {
    kind: u16,
    flags: u16,
    /// Of the request that it answers.
    sequence: u32,
}

/// Type and body of each message.
pub(super) fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    answers(bytes).map(|(head, body)| (head.kind, body))
}

fn answers(mut bytes: &[u8]) -> impl Iterator<Item = (Head, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::try_from(number(bytes, 0)?).ok()?;
        let head = Head {
            kind: short(bytes, 4)?,
            flags: short(bytes, 6)?,
            sequence: number(bytes, 8)?,
        };
        let body = bytes.get(HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((head, body))
    })
}

/// Type and value of each attribute.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(short(bytes, 0)?);
        let kind = short(bytes, 2)? & TYPE;
        let value = bytes.get(ATTRIBUTE..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

pub(super) fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

pub(super) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// One that is being written.
pub(super) struct Message {
    kind: u16,
    bytes: Vec<u8>,
}

impl Message {
    /// `fixed` is what comes before the attributes.
    pub(super) fn new(kind: u16, fixed: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(fixed);
        Message { kind, bytes }
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Message {
        self.put(kind, value);
        self
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Message {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(super) fn short(self, kind: u16, value: u16) -> Message {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// In the order of the network.
    pub(super) fn port(self, kind: u16, value: u16) -> Message {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn byte(self, kind: u16, value: u8) -> Message {
        self.bytes(kind, &[value])
    }

    pub(super) fn text(mut self, kind: u16, value: &str) -> Message {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
        self
    }

    pub(super) fn address(self, kind: u16, address: IpAddr) -> Message {
        match address {
            IpAddr::V4(v4) => self.bytes(kind, &v4.octets()),
            IpAddr::V6(v6) => self.bytes(kind, &v6.octets()),
        }
    }

    /// An attribute that holds what `inside` writes.
    pub(super) fn nest(mut self, kind: u16, inside: impl FnOnce(Message) -> Message) -> Message {
        let begin = self.bytes.len();
        self.bytes.extend([0; ATTRIBUTE]);
        let mut all = inside(self);
        let len = u16::try_from(all.bytes.len() - begin).unwrap_or(u16::MAX);
        let head = [len.to_ne_bytes(), (kind | NESTED).to_ne_bytes()].concat();
        all.bytes[begin..begin + ATTRIBUTE].copy_from_slice(&head);
        all
    }

    /// One of many next hops, with what `inside` writes of it.
    pub(super) fn hop(
        mut self,
        flags: u8,
        index: u32,
        inside: impl FnOnce(Message) -> Message,
    ) -> Message {
        let begin = self.bytes.len();
        self.bytes.extend([0, 0, flags, 0]);
        self.bytes.extend(index.to_ne_bytes());
        let mut all = inside(self);
        let len = u16::try_from(all.bytes.len() - begin).unwrap_or(u16::MAX);
        all.bytes[begin..begin + 2].copy_from_slice(&len.to_ne_bytes());
        all
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        header.message_type = self.kind;
        header.flags = flags;
        header.sequence_number = sequence;
        let mut bytes = [0; HEADER];
        netlink_packet_core::Emitable::emit(&header, &mut bytes);
        self.bytes[..HEADER].copy_from_slice(&bytes);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let message = Message::new(24, &[2, 0, 0, 0])
            .number(6, 7)
            .text(3, "lan")
            .nest(18, |message| message.byte(1, 9).short(2, 10));
        let bytes = message.finish(5, 1);
        let all: Vec<(u16, &[u8])> = messages(&bytes).collect();
        let [(24, body)] = all[..] else {
            panic!("{all:?}");
        };
        let found: Vec<(u16, &[u8])> = attributes(&body[4..]).collect();
        assert_eq!(found[0], (6, &7_u32.to_ne_bytes()[..]));
        assert_eq!(text(found[1].1), "lan");
        let inside: Vec<(u16, &[u8])> = attributes(found[2].1).collect();
        assert_eq!(found[2].0, 18);
        assert_eq!(inside, [(1, &[9][..]), (2, &10_u16.to_ne_bytes()[..])]);
    }

    #[test]
    fn nothing_of_what_is_cut_off_is_read() {
        let bytes = Message::new(24, &[2, 0, 0, 0]).number(6, 7).finish(5, 1);
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0);
            let _ = attributes(&bytes[..end]).count();
        }
    }
}
