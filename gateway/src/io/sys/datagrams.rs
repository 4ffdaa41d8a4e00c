//! Batched UDP: `recvmmsg`, `sendmmsg`, and the control messages that go with them.
#![expect(unsafe_code, reason = "part of the one place that talks to libc")]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{check, decode_address, encode_address};

/// Room for the control messages of one datagram: packet info, traffic class, segment size.
const CONTROL: usize = 128;

/// Aligned as the kernel's cmsghdr wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// What one receive slot holds: one datagram, or several of equal size (the last may be shorter).
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub from: SocketAddr,
    /// The local address it was sent to, where the kernel told.
    pub local: Option<Local>,
    pub ecn: u8,
    pub len: usize,
    /// Size of each datagram in the slot; `len` if there is one.
    pub segment: usize,
}

/// A local address as used for one remote: replies leave from the address that was addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    pub address: IpAddr,
    pub interface: u32,
}

/// Buffers and headers for `recvmmsg`.
pub(crate) struct ReceiveBatch {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    addresses: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    storage: Vec<u8>,
    slot: usize,
}

// SAFETY: the raw pointers in `headers` and `vectors` are rewritten before every call and point
// into the other vectors of the same value, which move with it.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    pub(crate) fn new(slots: usize, slot: usize) -> ReceiveBatch {
        ReceiveBatch {
            // SAFETY: mmsghdr is plain old data for which all-zero is a valid value.
            headers: vec![unsafe { mem::zeroed() }; slots],
            vectors: vec![
                libc::iovec {
                    iov_base: std::ptr::null_mut(),
                    iov_len: 0
                };
                slots
            ],
            // SAFETY: sockaddr_storage is plain old data for which all-zero is a valid value.
            addresses: vec![unsafe { mem::zeroed() }; slots],
            controls: vec![Control([0; CONTROL]); slots],
            storage: vec![0; slots * slot],
            slot,
        }
    }

    pub(crate) fn slots(&self) -> usize {
        self.headers.len()
    }

    /// Takes what waits on the socket, without blocking.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        for index in 0..self.headers.len() {
            self.vectors[index] = libc::iovec {
                iov_base: self.storage[index * self.slot..].as_mut_ptr().cast(),
                iov_len: self.slot,
            };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            header.msg_flags = 0;
        }
        let count = self.headers.len() as libc::c_uint;
        // SAFETY: every header points to a name, one vector and a control buffer of the stated
        // sizes, all owned by `self` and untouched until the call returns.
        let received = check(unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        })?;
        Ok(received as usize)
    }

    /// What slot `index` received and its bytes; `None` if it was cut off or has no sender.
    pub(crate) fn get(&self, index: usize) -> Option<(Received, &[u8])> {
        let header = &self.headers[index];
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let len = header.msg_len as usize;
        let mut received = Received {
            from: decode_address(&self.addresses[index])?,
            local: None,
            ecn: 0,
            len,
            segment: len,
        };
        let used = header.msg_hdr.msg_controllen;
        for (level, kind, data) in ControlMessages(&self.controls[index].0[..used.min(CONTROL)]) {
            read_control(&mut received, level, kind, data);
        }
        let start = index * self.slot;
        Some((received, &self.storage[start..start + len]))
    }
}

/// Control messages as (level, type, data).
struct ControlMessages<'a>(&'a [u8]);

impl<'a> Iterator for ControlMessages<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        const WORD: usize = size_of::<usize>();
        let header = self.0.get(..HEADER)?;
        let len = usize::from_ne_bytes(header[..WORD].try_into().ok()?);
        let level = i32::from_ne_bytes(header[WORD..WORD + 4].try_into().ok()?);
        let kind = i32::from_ne_bytes(header[WORD + 4..WORD + 8].try_into().ok()?);
        let data = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(WORD)..).unwrap_or_default();
        Some((level, kind, data))
    }
}

fn read_control(received: &mut Received, level: i32, kind: i32, data: &[u8]) {
    match (level, kind) {
        (libc::SOL_UDP, libc::UDP_GRO) => {
            if let Some(size) = data.first_chunk::<4>() {
                let size = u32::from_ne_bytes(*size) as usize;
                if size > 0 && size < received.len {
                    received.segment = size;
                }
            }
        }
        (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
            received.ecn = data.first().copied().unwrap_or(0) & 3;
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            if let (Some(address), Some(interface)) = (data.first_chunk::<16>(), data.get(16..20)) {
                let ip = Ipv6Addr::from(*address);
                received.local = Some(Local {
                    address: ip.to_canonical(),
                    interface: interface.try_into().map_or(0, u32::from_ne_bytes),
                });
            }
        }
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // struct in_pktinfo: interface, local address, address in the header
            if let (Some(interface), Some(address)) = (data.first_chunk::<4>(), data.get(4..8)) {
                let octets: [u8; 4] = address.try_into().unwrap_or_default();
                received.local = Some(Local {
                    address: IpAddr::from(octets),
                    interface: u32::from_ne_bytes(*interface),
                });
            }
        }
        _ => {}
    }
}

// ---- batched send ---------------------------------------------------------------------------

/// What an outer IP header carries on behalf of the packet inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub ecn: u8,
    /// Hop limit; 0 leaves it to the system.
    pub hops: u8,
}

/// One send: `len` bytes at `at` of the arena, cut into datagrams of `segment` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub to: SocketAddr,
    pub local: Option<Local>,
    pub mark: Mark,
    pub at: usize,
    pub len: usize,
    pub segment: usize,
}

/// How many messages one `sendmmsg` takes.
pub(crate) const SEND_BATCH: usize = 32;

/// Headers for `sendmmsg`.
pub(crate) struct SendBatch {
    headers: [libc::mmsghdr; SEND_BATCH],
    vectors: [libc::iovec; SEND_BATCH],
    addresses: [libc::sockaddr_storage; SEND_BATCH],
    controls: [Control; SEND_BATCH],
}

// SAFETY: the raw pointers inside are rewritten before every call and never read between calls.
unsafe impl Send for SendBatch {}

impl SendBatch {
    pub(crate) fn new() -> Box<SendBatch> {
        // SAFETY: every field is plain old data for which all-zero is a valid value.
        Box::new(unsafe { MaybeUninit::zeroed().assume_init() })
    }

    /// Sends up to [`SEND_BATCH`] messages out of `arena`; returns how many the kernel took.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        dual: bool,
        arena: &[u8],
        messages: &[Message],
    ) -> io::Result<usize> {
        let count = messages.len().min(SEND_BATCH);
        for (index, message) in messages[..count].iter().enumerate() {
            let bytes = &arena[message.at..message.at + message.len];
            self.vectors[index] = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            let name_len = encode_address(message.to, dual, &mut self.addresses[index]);
            let control_len = write_controls(message, dual, &mut self.controls[index].0);
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_namelen = name_len;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = control_len as _;
        }
        // SAFETY: the first `count` headers point to names, vectors and control buffers of the
        // stated sizes; the vectors point into `arena`, which the kernel only reads.
        let sent = check(unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT as _,
            )
        })?;
        Ok(sent as usize)
    }
}

fn write_controls(message: &Message, dual: bool, buffer: &mut [u8; CONTROL]) -> usize {
    let mut at = 0;
    let v4 = message.to.is_ipv4();
    if message.segment < message.len {
        let size = message.segment as u16;
        at = put_control(
            buffer,
            at,
            (libc::SOL_UDP, libc::UDP_SEGMENT),
            &size.to_ne_bytes(),
        );
    }
    if message.mark.hops != 0 {
        let kind = if v4 {
            (libc::IPPROTO_IP, libc::IP_TTL)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)
        };
        at = put_control(
            buffer,
            at,
            kind,
            &i32::from(message.mark.hops).to_ne_bytes(),
        );
    }
    if message.mark.ecn != 0 {
        let kind = if v4 {
            (libc::IPPROTO_IP, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
        };
        at = put_control(buffer, at, kind, &i32::from(message.mark.ecn).to_ne_bytes());
    }
    match message.local.map(|local| (local.address, local.interface)) {
        Some((IpAddr::V4(address), _)) if v4 && !dual => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&address.octets());
            at = put_control(buffer, at, (libc::IPPROTO_IP, libc::IP_PKTINFO), &info);
        }
        Some((address, interface)) if address.is_ipv4() == v4 && dual => {
            let (ip, scope) = match address {
                IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 0),
                // Only a link-local source needs its interface: others must follow the routes.
                IpAddr::V6(v6) if v6.is_unicast_link_local() => (v6, interface),
                IpAddr::V6(v6) => (v6, 0),
            };
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            info[16..].copy_from_slice(&scope.to_ne_bytes());
            at = put_control(buffer, at, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), &info);
        }
        _ => {}
    }
    at
}

fn put_control(buffer: &mut [u8; CONTROL], at: usize, kind: (i32, i32), data: &[u8]) -> usize {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const WORD: usize = size_of::<usize>();
    let len = HEADER + data.len();
    buffer[at..at + WORD].copy_from_slice(&len.to_ne_bytes());
    buffer[at + WORD..at + WORD + 4].copy_from_slice(&kind.0.to_ne_bytes());
    buffer[at + WORD + 4..at + HEADER].copy_from_slice(&kind.1.to_ne_bytes());
    buffer[at + HEADER..at + len].copy_from_slice(data);
    at + len.next_multiple_of(WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_written_are_read_back() {
        let message = Message {
            to: "192.0.2.1:9".parse().unwrap(),
            local: Some(Local {
                address: "192.0.2.7".parse().unwrap(),
                interface: 3,
            }),
            mark: Mark { ecn: 2, hops: 9 },
            at: 0,
            len: 3000,
            segment: 1452,
        };
        let mut buffer = [0xff; CONTROL];
        let used = write_controls(&message, true, &mut buffer);
        let kinds: Vec<_> = ControlMessages(&buffer[..used])
            .map(|(l, k, d)| (l, k, d.len()))
            .collect();
        assert_eq!(
            kinds,
            [
                (libc::SOL_UDP, libc::UDP_SEGMENT, 2),
                (libc::IPPROTO_IP, libc::IP_TTL, 4),
                (libc::IPPROTO_IP, libc::IP_TOS, 4),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 20)
            ]
        );
        let mut received = Received {
            from: message.to,
            local: None,
            ecn: 0,
            len: 3000,
            segment: 3000,
        };
        for (level, kind, data) in ControlMessages(&buffer[..used]) {
            read_control(&mut received, level, kind, data);
        }
        assert_eq!(
            (received.ecn, received.local.map(|l| l.address)),
            (2, message.local.map(|l| l.address))
        );
    }

    #[test]
    fn a_control_message_with_a_lying_length_ends_the_walk() {
        let mut buffer = [0; CONTROL];
        put_control(&mut buffer, 0, (1, 2), &[1, 2, 3, 4]);
        for len in [0_usize, 5, 200, usize::MAX - 3] {
            buffer[..8].copy_from_slice(&len.to_ne_bytes());
            assert!(ControlMessages(&buffer).count() <= 1);
        }
    }
}
