//! One packet in pieces: IPv4 as any router does it (RFC 791 3.2), and IPv6 up to 1280 bytes for
//! links that carry less. Those pieces look as if the sender had made them, and its peer joins them.

use super::IPV6_LEAST;
use crate::packet::checksum;
use crate::packet::headers::{FRAGMENT, HOP_BY_HOP, Headers, IPV4_HEADER, IPV6_HEADER, ROUTING};

const DONT_FRAGMENT: u16 = 0x4000;
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Offsets count in units of this.
const UNIT: usize = 8;
const FRAGMENT_HEADER: usize = 8;
/// What the pieces of a packet may amount to.
const MOST: usize = 65_535;
/// Options with this bit go into every fragment.
const COPIED: u8 = 0x80;

/// The pieces of one packet, written one after another.
#[derive(Debug)]
pub struct Fragments<'a> {
    packet: &'a [u8],
    mtu: usize,
    kind: Kind,
    /// Of what is cut, how much was handed out.
    done: usize,
}

#[derive(Debug)]
enum Kind {
    /// It fits as it is.
    Whole,
    V4 {
        /// Where the payload begins.
        header: usize,
        /// Of the packet itself, which may be a fragment.
        offset: usize,
        more: bool,
    },
    V6(V6),
}

#[derive(Debug)]
struct V6 {
    /// What every fragment begins with, and in it the byte that names the next header.
    common: usize,
    names_next: usize,
    next: u8,
    /// Where what is cut begins.
    payload: usize,
    identification: u32,
    offset: usize,
    more: bool,
}

impl<'a> Fragments<'a> {
    /// `None` if the packet may not go in pieces. `identification` is for IPv6 packets that have none.
    pub fn new(packet: &'a [u8], mtu: usize, identification: u32) -> Option<Fragments<'a>> {
        let headers = Headers::parse(packet)?;
        let packet = &packet[..headers.total_length];
        let kind = if packet.len() <= mtu {
            Kind::Whole
        } else if headers.is_v4() {
            v4(packet, mtu)?
        } else {
            Kind::V6(v6(packet, mtu, identification)?)
        };
        Some(Fragments {
            packet,
            mtu,
            kind,
            done: 0,
        })
    }

    /// Writes the next piece to the front of `room`, which has at least `mtu` bytes, and returns its
    /// length; `None` after the last.
    pub fn next_into(&mut self, room: &mut [u8]) -> Option<usize> {
        match &self.kind {
            Kind::Whole => {
                let rest = self
                    .packet
                    .get(self.done..)
                    .filter(|rest| !rest.is_empty())?;
                room.get_mut(..rest.len())?.copy_from_slice(rest);
                self.done = self.packet.len();
                Some(rest.len())
            }
            Kind::V4 {
                header,
                offset,
                more,
            } => {
                let (payload, is_first) = (&self.packet[*header..], self.done == 0);
                if self.done == payload.len() {
                    return None;
                }
                let own = if is_first {
                    write_whole_header(&self.packet[..*header], room)?
                } else {
                    write_copied_header(&self.packet[..*header], room)?
                };
                let taken = take(payload.len() - self.done, self.mtu - own);
                let is_last = self.done + taken == payload.len();
                room.get_mut(own..own + taken)?
                    .copy_from_slice(&payload[self.done..self.done + taken]);
                finish_v4(room, own, taken, offset + self.done, *more || !is_last);
                self.done += taken;
                Some(own + taken)
            }
            Kind::V6(v6) => {
                let length = v6.write(self.packet, self.done, self.mtu, room)?;
                self.done += length - v6.common - FRAGMENT_HEADER;
                Some(length)
            }
        }
    }
}

/// Of `rest` bytes as many as fit into `room`, in whole units unless they are the last.
fn take(rest: usize, room: usize) -> usize {
    if rest <= room {
        rest
    } else {
        room - room % UNIT
    }
}

fn v4(packet: &[u8], mtu: usize) -> Option<Kind> {
    let header = usize::from(packet[0] & 0x0f) * 4;
    let field = u16::from_be_bytes([packet[6], packet[7]]);
    if field & DONT_FRAGMENT != 0 || mtu < header + UNIT {
        return None;
    }
    let offset = usize::from(field & OFFSET) * UNIT;
    (offset + packet.len() - header <= MOST).then_some(Kind::V4 {
        header,
        offset,
        more: field & MORE != 0,
    })
}

fn write_whole_header(header: &[u8], room: &mut [u8]) -> Option<usize> {
    room.get_mut(..header.len())?.copy_from_slice(header);
    Some(header.len())
}

/// The header of a later fragment: of the options only those that are to be copied.
fn write_copied_header(header: &[u8], room: &mut [u8]) -> Option<usize> {
    room.get_mut(..header.len())?.fill(0);
    room[..IPV4_HEADER].copy_from_slice(&header[..IPV4_HEADER]);
    let (mut from, mut to) = (IPV4_HEADER, IPV4_HEADER);
    while let Some(&kind) = header.get(from) {
        let length = match kind {
            0 => break,
            1 => 1,
            _ => match header.get(from + 1) {
                None | Some(0 | 1) => break,
                Some(length) => usize::from(*length),
            },
        };
        let Some(option) = header.get(from..from + length) else {
            break;
        };
        if kind & COPIED != 0 {
            room[to..to + length].copy_from_slice(option);
            to += length;
        }
        from += length;
    }
    let length = to.next_multiple_of(4);
    room[0] = 0x40 | (length / 4) as u8;
    Some(length)
}

fn finish_v4(room: &mut [u8], header: usize, payload: usize, offset: usize, more: bool) {
    let kept = u16::from_be_bytes([room[6], room[7]]) & !(MORE | OFFSET);
    let more = if more { MORE } else { 0 };
    let field = kept | more | (offset / UNIT) as u16;
    room[2..4].copy_from_slice(&((header + payload) as u16).to_be_bytes());
    room[6..8].copy_from_slice(&field.to_be_bytes());
    room[10..12].fill(0);
    let sum = checksum::complement(checksum::sum(&room[..header], 0));
    room[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Only where the link carries less than any may, and only what any carries.
fn v6(packet: &[u8], mtu: usize, identification: u32) -> Option<V6> {
    if packet.len() > IPV6_LEAST {
        return None;
    }
    let mut found = V6 {
        common: IPV6_HEADER,
        names_next: 6,
        next: packet[6],
        payload: IPV6_HEADER,
        identification,
        offset: 0,
        more: false,
    };
    // Headers that routers look at stand in every fragment.
    while matches!(found.next, HOP_BY_HOP | ROUTING) {
        let [next, units] = *packet.get(found.common..)?.first_chunk()?;
        found.names_next = found.common;
        found.common += UNIT + usize::from(units) * UNIT;
        found.next = next;
    }
    found.payload = found.common;
    if found.next == FRAGMENT {
        // Cut once more, it stays part of the packet that its sender cut.
        let [next, _, b2, b3, id @ ..] = *packet.get(found.common..)?.first_chunk::<8>()?;
        let field = u16::from_be_bytes([b2, b3]);
        found.next = next;
        found.payload += FRAGMENT_HEADER;
        found.identification = u32::from_be_bytes(id);
        (found.offset, found.more) = (usize::from(field & !7), field & 1 != 0);
    }
    let rest = packet.len().checked_sub(found.payload)?;
    let fits = rest > 0 && mtu >= found.common + FRAGMENT_HEADER + UNIT;
    (fits && found.offset + rest <= MOST).then_some(found)
}

impl V6 {
    fn write(&self, packet: &[u8], done: usize, mtu: usize, room: &mut [u8]) -> Option<usize> {
        let rest = packet.get(self.payload + done..)?;
        if rest.is_empty() {
            return None;
        }
        let own = self.common + FRAGMENT_HEADER;
        let taken = take(rest.len(), mtu - own);
        let length = own + taken;
        let out = room.get_mut(..length)?;
        out[..self.common].copy_from_slice(&packet[..self.common]);
        out[self.names_next] = FRAGMENT;
        out[4..6].copy_from_slice(&((length - IPV6_HEADER) as u16).to_be_bytes());
        let more = u16::from(self.more || taken < rest.len());
        let field = (self.offset + done) as u16 | more;
        out[self.common..self.common + 2].copy_from_slice(&[self.next, 0]);
        out[self.common + 2..self.common + 4].copy_from_slice(&field.to_be_bytes());
        out[self.common + 4..own].copy_from_slice(&self.identification.to_be_bytes());
        out[own..].copy_from_slice(&rest[..taken]);
        Some(length)
    }
}
