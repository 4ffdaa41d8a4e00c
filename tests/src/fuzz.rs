//! The bodies of the fuzz targets, which a plain test replays over the committed corpus.

mod config;
mod fit;
mod lan;
mod trust;
mod udp;
mod wire;

use std::io::IoSlice;

use gateway::packet::coalesce::Coalescer;
use gateway::packet::headers::{Headers, TCP_CHECKSUM};
use gateway::packet::split::{SPARE, Segments, padded_length};
use gateway::packet::vnet::VnetHeader;

pub use config::config_socket;
pub use fit::fitted;
pub use lan::lan;
pub use trust::{entry, ledger, ledger_text, member, record, token};
pub use udp::udp_input;
pub use wire::{answer, call, frame_reader, hello, reflector, relay};

const MTU: usize = 1420;

/// What lies behind a packet in the buffer, to see that it comes back.
const BEHIND: [u8; SPARE] = [0xee; SPARE];

/// A frame as read from the TUN: cut, joined again, and cut once more as the far kernel would. The
/// second cut has to give back what the first gave.
///
/// # Panics
/// If it does not, or if anything on the way panics: that is what the fuzzer looks for.
pub fn tun_input(frame: &[u8]) {
    let Some((vnet, packet)) = frame.split_first_chunk::<{ VnetHeader::LEN }>() else {
        return;
    };
    let Some(vnet) = VnetHeader::parse(vnet) else {
        return;
    };
    let Some(sent) = cut(vnet, packet) else {
        return;
    };
    let mut arena = sent.concat();
    let mut coalescer = Coalescer::new();
    let mut at = 0;
    for packet in &sent {
        coalescer.push(&arena, at, packet.len());
        at += packet.len();
    }
    let mut received = Vec::new();
    coalescer.drain(&mut arena, |vnet, slices, packets| {
        received.extend(take_frame(vnet, slices, packets));
    });
    let mut sent: Vec<Vec<u8>> = sent.iter().map(|packet| comparable(packet)).collect();
    let mut received: Vec<Vec<u8>> = received.iter().map(|packet| comparable(packet)).collect();
    sent.sort();
    received.sort();
    assert_eq!(received, sent);
}

/// `None` if the frame is refused.
fn cut(vnet: VnetHeader, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut buffer = [packet, &BEHIND].concat();
    let mut segments = Segments::new(vnet, &mut buffer, packet.len()).ok()?;
    let mut out = Vec::new();
    while let Some(segment) = segments.next_padded(MTU) {
        out.push(segment.to_vec());
    }
    assert_eq!(out.len(), segments.count());
    assert_eq!(buffer[packet.len()..], BEHIND);
    Some(out)
}

/// What the kernel makes of one write.
fn take_frame(vnet: &VnetHeader, slices: &[IoSlice<'_>], packets: usize) -> Vec<Vec<u8>> {
    assert_eq!(slices.len(), 1 + packets);
    assert_eq!(*slices[0], vnet.write());
    let packet: Vec<u8> = slices[1..]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect();
    assert!(packet.len() <= 65_535 || packets == 1);
    if !vnet.needs_csum {
        return vec![packet];
    }
    let out = cut(*vnet, &packet).expect("our own frames are taken");
    assert_eq!(out.len(), packets);
    out
}

/// The packet in the one spelling that joining and cutting keep: without padding, without an
/// identification where it means nothing, with zero sums written as 0.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let Some(headers) = Headers::parse(packet) else {
        return packet.to_vec();
    };
    assert!(packet.len() <= padded_length(headers.total_length, MTU));
    let mut packet = packet[..headers.total_length].to_vec();
    let tcp = headers.tcp(&packet);
    if headers.is_v4() {
        if packet[6] & 0x40 != 0 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        zero_sum(&mut packet[10..12]);
    }
    if tcp.is_some() {
        zero_sum(&mut packet[headers.header_length + TCP_CHECKSUM..][..2]);
    }
    packet
}

fn zero_sum(field: &mut [u8]) {
    if field == [0xff, 0xff] {
        field.fill(0);
    }
}
