//! Cuts a frame from the TUN into the packets that go into the tunnel, in place.
//!
//! Each segment's header is written just before its payload, over bytes that were handed out
//! already; payload is never moved. Checksums that the kernel left undone are completed here.
//! The vnet header says what is to be done, and nothing in it is believed unchecked.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::drops::DropReason;
use crate::packet::checksum;
use crate::packet::headers::{
    Headers, IPV6_HEADER, PROTOCOL_TCP, PROTOCOL_UDP, TCP_CHECKSUM, TCP_CWR, TCP_FIN, TCP_HEADER,
    TCP_PSH, UDP_CHECKSUM, UDP_HEADER,
};
use crate::packet::vnet::{Gso, VnetHeader};

/// WireGuard hides lengths by padding to a multiple of this.
const PADDING: usize = 16;

/// Bytes that must be free behind the packet, for the padding of the last segment.
pub const SPARE: usize = 16;

/// What one packet of `length` bytes is padded to: a multiple of 16, but not above `mtu` (0: none).
/// A packet above it, of a TUN whose MTU just shrank, is padded by its part above a multiple of it.
#[inline]
pub fn padded_length(length: usize, mtu: usize) -> usize {
    let unit = if mtu != 0 && length > mtu {
        length % mtu
    } else {
        length
    };
    let padded = unit.next_multiple_of(PADDING);
    let padded = if mtu == 0 { padded } else { padded.min(mtu) };
    length - unit + padded
}

/// The packets of one frame, handed out one by one.
#[derive(Debug)]
pub struct Segments<'a> {
    buffer: &'a mut [u8],
    headers: Headers,
    cut: Option<Cut>,
    handed_out: usize,
    count: usize,
    /// What the padding of the last segment overwrote, and where.
    borrowed: Option<(usize, [u8; SPARE])>,
}

/// How a superpacket is cut. The sums leave out the fields that differ between segments.
#[derive(Debug)]
struct Cut {
    /// Bytes of payload in every segment but the last.
    size: usize,
    /// Where the transport header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    /// IPv4 only: the header's sum and its first identification.
    ipv4: Option<(u64, u16)>,
    /// TCP only: the first sequence number, and the flags of the whole.
    tcp: Option<(u32, u8)>,
    /// Of the pseudo-header and the transport header.
    sum: u64,
}

impl<'a> Segments<'a> {
    /// `buffer[..length]` is the packet behind the vnet header, with at least `SPARE` bytes free behind it.
    pub fn new(
        vnet: VnetHeader,
        buffer: &'a mut [u8],
        length: usize,
    ) -> Result<Segments<'a>, DropReason> {
        if length
            .checked_add(SPARE)
            .is_none_or(|needed| needed > buffer.len())
        {
            return Err(DropReason::TunMalformed);
        }
        let headers = Headers::parse(&buffer[..length]).ok_or(DropReason::TunMalformed)?;
        let packet = &mut buffer[..headers.total_length];
        let mut cut = None;
        match (vnet.gso, vnet.needs_csum) {
            (Gso::None, true) => complete_checksum(&vnet, &headers, packet)?,
            (Gso::None, false) if vnet.data_valid => {}
            (Gso::None, false) => verify_checksum(&headers, packet)?,
            (Gso::Tcp4 | Gso::Tcp6 | Gso::Udp, _) => {
                cut = Some(Cut::new(&vnet, &headers, packet).ok_or(DropReason::VnetHeader)?);
            }
        }
        let count = cut
            .as_ref()
            .map_or(1, |cut| cut.count(headers.total_length));
        Ok(Segments {
            buffer,
            headers,
            cut,
            handed_out: 0,
            count,
            borrowed: None,
        })
    }

    /// The next packet with its padding.
    #[inline]
    pub fn next_padded(&mut self, mtu: usize) -> Option<&[u8]> {
        if let Some((at, bytes)) = self.borrowed.take() {
            self.buffer[at..at + SPARE].copy_from_slice(&bytes);
        }
        if self.handed_out == self.count {
            return None;
        }
        let (at, length) = match &self.cut {
            None => (0, self.headers.total_length),
            Some(cut) => cut.write_segment(self.buffer, self.handed_out, self.headers.total_length),
        };
        self.handed_out += 1;
        let end = at + length;
        let padded_end = at + padded_length(length, mtu);
        if padded_end > end {
            if let Some(bytes) = self.buffer[end..].first_chunk::<SPARE>() {
                self.borrowed = Some((end, *bytes));
            }
            self.buffer[end..padded_end].fill(0);
        }
        Some(&self.buffer[at..padded_end])
    }

    pub fn destination(&self) -> IpAddr {
        self.headers.destination
    }

    pub fn source(&self) -> IpAddr {
        self.headers.source
    }

    pub fn ecn(&self) -> u8 {
        self.headers.ecn()
    }

    /// Bytes of the largest packet, without padding.
    #[inline]
    pub fn largest(&self) -> usize {
        let total = self.headers.total_length;
        match &self.cut {
            None => total,
            Some(cut) => total.min(cut.payload + cut.size),
        }
    }

    /// How many packets the frame holds, handed out or not.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Sums from `csum_start` to the end, the seed in the field included, and stores the result there.
fn complete_checksum(
    vnet: &VnetHeader,
    headers: &Headers,
    packet: &mut [u8],
) -> Result<(), DropReason> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    // The field may lie in an inner header (VXLAN), but never in the IP header itself.
    if start < headers.header_length || field + 2 > packet.len() {
        return Err(DropReason::VnetHeader);
    }
    let sum = checksum::sum(&packet[start..], 0);
    let is_udp = usize::from(vnet.csum_offset) == UDP_CHECKSUM;
    let result = if is_udp {
        checksum::complement_udp(sum)
    } else {
        checksum::complement(sum)
    };
    packet[field..field + 2].copy_from_slice(&result.to_be_bytes());
    Ok(())
}

/// Nobody vouched for this packet, and inside the tunnel nobody will look before its last hop.
fn verify_checksum(headers: &Headers, packet: &[u8]) -> Result<(), DropReason> {
    if headers.is_fragment() || headers.rerouted {
        return Ok(());
    }
    let length = match headers.protocol {
        PROTOCOL_TCP if headers.transport_length() < TCP_HEADER => {
            return Err(DropReason::TunMalformed);
        }
        PROTOCOL_TCP => headers.transport_length(),
        PROTOCOL_UDP => match headers.udp(packet) {
            None => return Err(DropReason::TunMalformed),
            Some(udp) if udp.checksum == 0 => return Ok(()),
            Some(udp) => udp.length,
        },
        _ => return Ok(()),
    };
    let pseudo_header =
        checksum::pseudo_header(headers.addresses(packet), headers.protocol, length);
    let transport = &packet[headers.header_length..headers.header_length + length];
    if checksum::verify(transport, pseudo_header) {
        Ok(())
    } else {
        Err(DropReason::TunChecksum)
    }
}

impl Cut {
    /// `None` if the vnet header contradicts the packet.
    fn new(vnet: &VnetHeader, headers: &Headers, packet: &[u8]) -> Option<Cut> {
        let (field, tcp, transport_header) = match vnet.gso {
            Gso::Tcp4 | Gso::Tcp6 if headers.is_v4() == (vnet.gso == Gso::Tcp4) => {
                let tcp = headers.tcp(packet)?;
                (
                    TCP_CHECKSUM,
                    Some((tcp.sequence, tcp.flags)),
                    tcp.header_length,
                )
            }
            Gso::Udp if headers.udp(packet)?.length == headers.transport_length() => {
                (UDP_CHECKSUM, None, UDP_HEADER)
            }
            Gso::Tcp4 | Gso::Tcp6 | Gso::Udp | Gso::None => return None,
        };
        let transport = headers.header_length;
        // The kernel always leaves the checksum of a superpacket to whoever cuts it. The transport
        // header must be the outermost one: tunnelled superpackets were never asked for.
        let well_placed =
            usize::from(vnet.csum_start) == transport && usize::from(vnet.csum_offset) == field;
        if !vnet.needs_csum || !well_placed || vnet.gso_size == 0 || headers.is_fragment() {
            return None;
        }
        let payload = transport + transport_header;
        let identification = u16::from_be_bytes([packet[4], packet[5]]);
        Some(Cut {
            size: usize::from(vnet.gso_size),
            transport,
            payload,
            ipv4: headers
                .is_v4()
                .then(|| (ipv4_sum(&packet[..transport]), identification)),
            tcp,
            sum: seed(&packet[transport + field..], headers.transport_length())
                + transport_sum(&packet[transport..payload], tcp.is_some()),
        })
    }

    fn count(&self, total_length: usize) -> usize {
        (total_length - self.payload).div_ceil(self.size).max(1)
    }

    /// Completes segment `index`; returns where it lies and how long it is.
    #[inline]
    fn write_segment(
        &self,
        buffer: &mut [u8],
        index: usize,
        total_length: usize,
    ) -> (usize, usize) {
        let at = index * self.size;
        let length = (total_length - at).min(self.payload + self.size);
        if index > 0 {
            // The header before is still whole: padding only ever touches the payload behind it.
            let before = at - self.size;
            buffer.copy_within(before..before + self.payload, at);
        }
        let segment = &mut buffer[at..at + length];
        match self.ipv4 {
            Some((sum, first)) => write_ipv4(segment, sum, first.wrapping_add(index as u16)),
            None => put(segment, 4, (length - IPV6_HEADER) as u16),
        }
        let sum = checksum::sum(&segment[self.payload..], self.sum);
        let transport = &mut segment[self.transport..];
        match self.tcp {
            Some((first, flags)) => {
                let sequence = first.wrapping_add(at as u32);
                let is_last = at + length == total_length;
                write_tcp(
                    transport,
                    sum,
                    sequence,
                    segment_flags(flags, index == 0, is_last),
                );
            }
            None => write_udp(transport, sum),
        }
        (at, length)
    }
}

/// FIN and PSH belong to the last byte, the congestion window's reduction to the first segment.
fn segment_flags(flags: u8, is_first: bool, is_last: bool) -> u8 {
    let not_here = if is_first { 0 } else { TCP_CWR } | if is_last { 0 } else { TCP_FIN | TCP_PSH };
    flags & !not_here
}

#[inline]
fn write_ipv4(segment: &mut [u8], sum: u64, identification: u16) {
    let length = segment.len() as u16;
    put(segment, 2, length);
    put(segment, 4, identification);
    put(
        segment,
        10,
        checksum::complement(sum + u64::from(length) + u64::from(identification)),
    );
}

#[inline]
fn write_tcp(transport: &mut [u8], sum: u64, sequence: u32, flags: u8) {
    transport[4..8].copy_from_slice(&sequence.to_be_bytes());
    transport[13] = flags;
    let sum = sum + transport.len() as u64 + u64::from(sequence) + u64::from(flags);
    put(transport, TCP_CHECKSUM, checksum::complement(sum));
}

#[inline]
fn write_udp(transport: &mut [u8], sum: u64) {
    let length = transport.len() as u16;
    put(transport, 4, length);
    // The length counts twice: in the header and in the pseudo-header.
    put(
        transport,
        UDP_CHECKSUM,
        checksum::complement_udp(sum + 2 * u64::from(length)),
    );
}

#[inline]
fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The pseudo-header's sum as the kernel left it in the checksum field, less the length in it.
/// It is taken from there, not from the addresses, as behind a routing header they are not what it covers.
fn seed(field: &[u8], transport_length: usize) -> u64 {
    checksum::sum(&field[..2], u64::from(!(transport_length as u16)))
}

/// Without total length, identification and checksum.
fn ipv4_sum(header: &[u8]) -> u64 {
    [&header[..2], &header[6..10], &header[12..]]
        .iter()
        .fold(0, |total, bytes| checksum::sum(bytes, total))
}

/// Without checksum, and for TCP without sequence and flags, for UDP without the length.
fn transport_sum(header: &[u8], is_tcp: bool) -> u64 {
    if !is_tcp {
        return checksum::sum(&header[..4], 0);
    }
    let constant = [&header[..4], &header[8..13], &header[14..16], &header[18..]];
    constant
        .iter()
        .fold(0, |total, bytes| checksum::sum(bytes, total))
}
