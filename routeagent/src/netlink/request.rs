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
        let done = self.request(message, NLM_F_ACK | flags, |_, _| {});
        done.map_err(|error| Refused {
            what: what(),
            error,
        })
    }

    /// Hands the type and the body of each to `each`.
    pub(super) fn dump(
        &self,
        what: &str,
        message: Message,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refused> {
        let done = self.request(message, NLM_F_DUMP, each);
        done.map_err(|error| Refused {
            what: what.to_owned(),
            error,
        })
    }

    fn request(
        &self,
        message: Message,
        flags: u16,
        each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        ask(&self.socket, &message.finish(NLM_F_REQUEST | flags), each)
    }
}

/// Hands the type and the body of each answer to `each`.
pub(super) fn ask(
    socket: &Socket,
    request: &[u8],
    mut each: impl FnMut(u16, &[u8]),
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
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        for (kind, body) in messages(&buffer) {
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return status(body),
                _ => each(kind, body),
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

/// Type and body of each message.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::try_from(number(bytes, 0)?).ok()?;
        let kind = short(bytes, 4)?;
        let body = bytes.get(HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
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

    fn finish(mut self, flags: u16) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        header.message_type = self.kind;
        header.flags = flags;
        header.sequence_number = 1;
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
        let bytes = message.finish(5);
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
        let bytes = Message::new(24, &[2, 0, 0, 0]).number(6, 7).finish(5);
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0);
            let _ = attributes(&bytes[..end]).count();
        }
    }
}
