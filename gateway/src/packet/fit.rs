//! What becomes of a packet that is larger than its link carries.
//!
//! TCP is cut again into smaller segments, which no receiver can tell from the sender's own. What
//! may be fragmented is. Everything else is refused, and its sender told by ICMP.

mod fragments;
#[cfg(test)]
mod tests;

pub use fragments::Fragments;

use crate::packet::checksum;
use crate::packet::headers::{
    Headers, IPV6_HEADER, TCP_CHECKSUM, TCP_HEADER, TCP_RST, TCP_SYN, TCP_URG,
};
use crate::packet::vnet::{Gso, VnetHeader};

/// Every link of IPv6 carries this much (RFC 8200 section 5), or whoever has one that does not cuts
/// packets up to this size in pieces.
pub const IPV6_LEAST: usize = 1280;

const MD5_SIGNATURE: u8 = 19;
const AUTHENTICATION: u8 = 29;

/// How a frame that is too large for its link goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Cut under this header, all its packets fit.
    Cut(VnetHeader),
    /// Its packets are to be taken one by one under this header, each through [`Fragments`].
    Apart(VnetHeader),
}

/// For a frame that `Segments` took under `vnet` and has completed, if it is a single packet.
#[cold]
pub fn fit(vnet: VnetHeader, packet: &mut [u8], mtu: usize) -> Fit {
    let Some(headers) = Headers::parse(packet) else {
        return Fit::Apart(vnet);
    };
    let completed = VnetHeader {
        data_valid: true,
        ..VnetHeader::default()
    };
    match vnet.gso {
        Gso::Tcp4 | Gso::Tcp6 => match headers.tcp(packet) {
            Some(tcp) => match room(mtu, headers.header_length + tcp.header_length) {
                Some(gso_size) => Fit::Cut(VnetHeader { gso_size, ..vnet }),
                None => Fit::Apart(vnet),
            },
            None => Fit::Apart(vnet),
        },
        Gso::Udp => Fit::Apart(vnet),
        Gso::None => match superpacket(&headers, packet, mtu) {
            Some(vnet) => Fit::Cut(vnet),
            None => Fit::Apart(completed),
        },
    }
}

/// What is left for payload, at least something.
fn room(mtu: usize, headers: usize) -> Option<u16> {
    let room = mtu.checked_sub(headers).filter(|room| *room > 0)?;
    u16::try_from(room).ok()
}

/// Makes one TCP packet a superpacket: the header it is cut under. `None` if it must not be cut.
fn superpacket(headers: &Headers, packet: &mut [u8], mtu: usize) -> Option<VnetHeader> {
    let tcp = headers.tcp(packet)?;
    // The urgent pointer counts from the sequence number, and a SYN takes one up.
    if tcp.flags & (TCP_SYN | TCP_RST | TCP_URG) != 0 || headers.is_fragment() {
        return None;
    }
    // Among extension headers may be one that signs what follows.
    if !headers.is_v4() && headers.header_length != IPV6_HEADER {
        return None;
    }
    let (start, end) = (headers.header_length, headers.total_length);
    if is_signed(&packet[start + TCP_HEADER..start + tcp.header_length]) {
        return None;
    }
    let payload = start + tcp.header_length;
    let gso_size = room(mtu, payload)?;
    let field = start + TCP_CHECKSUM;
    let whole = u16::from_be_bytes([packet[field], packet[field + 1]]);
    packet[field..field + 2].fill(0);
    // What is missing from the whole sum is that of the pseudo-header, whatever it was made of.
    let transport = checksum::fold(checksum::sum(&packet[start..end], 0));
    let seed = checksum::fold(u64::from(!whole) + u64::from(!transport));
    packet[field..field + 2].copy_from_slice(&seed.to_be_bytes());
    Some(VnetHeader {
        needs_csum: true,
        gso: if headers.is_v4() {
            Gso::Tcp4
        } else {
            Gso::Tcp6
        },
        hdr_len: payload as u16,
        gso_size,
        csum_start: start as u16,
        csum_offset: TCP_CHECKSUM as u16,
        ..VnetHeader::default()
    })
}

/// Whether the options hold a signature over the payload (RFC 2385, RFC 5925).
fn is_signed(options: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        match kind {
            0 => return false,
            1 => at += 1,
            MD5_SIGNATURE | AUTHENTICATION => return true,
            _ => match options.get(at + 1) {
                None | Some(0 | 1) => return false,
                Some(length) => at += usize::from(*length),
            },
        }
    }
    false
}
