//! Frames from the TUN on their way to a link that carries less, and what SYNs announce.

use gateway::packet::fit::{Fit, Fragments, fit};
use gateway::packet::headers::Headers;
use gateway::packet::mss;
use gateway::packet::split::{SPARE, Segments};
use gateway::packet::unreachable::{MAX_LEN, build_too_big};
use gateway::packet::vnet::VnetHeader;

/// What lies behind a packet in the buffer, to see that it comes back.
const BEHIND: [u8; SPARE] = [0xee; SPARE];

/// Two bytes of MTU, a vnet header and a packet: what leaves fits and carries the same bytes.
///
/// # Panics
/// If it does not, or if anything on the way panics.
pub fn fitted(input: &[u8]) {
    let Some((mtu, frame)) = input.split_first_chunk::<2>() else {
        return;
    };
    let Some((vnet, packet)) = frame.split_first_chunk::<{ VnetHeader::LEN }>() else {
        return;
    };
    let Some(vnet) = VnetHeader::parse(vnet) else {
        return;
    };
    let mtu = usize::from(u16::from_be_bytes(*mtu)) % 2000;
    announced(packet, mtu);
    let mut buffer = [packet, &BEHIND].concat();
    let Ok(segments) = Segments::new(vnet, &mut buffer, packet.len()) else {
        return;
    };
    if segments.largest() <= mtu {
        return;
    }
    let before = buffer[..packet.len()].to_vec();
    match fit(vnet, &mut buffer[..packet.len()], mtu) {
        Fit::Cut(header) => cut(header, &mut buffer, packet.len(), mtu),
        Fit::Apart(header) => {
            assert_eq!(&buffer[..packet.len()], before);
            apart(header, &mut buffer, packet.len(), mtu);
        }
    }
    assert_eq!(buffer[packet.len()..], BEHIND);
}

/// TCP: the same stream in segments that fit.
fn cut(header: VnetHeader, buffer: &mut [u8], length: usize, mtu: usize) {
    let stream = |packet: &[u8]| {
        let headers = Headers::parse(packet).expect("it was taken");
        let tcp = headers.tcp(packet).expect("only TCP is cut");
        packet[headers.header_length + tcp.header_length..headers.total_length].to_vec()
    };
    let whole = stream(&buffer[..length]);
    let mut segments = Segments::new(header, buffer, length).expect("our own header is taken");
    let mut sent = Vec::new();
    while let Some(segment) = segments.next_padded(mtu) {
        assert!(segment.len() <= mtu);
        sent.extend(stream(segment));
    }
    assert_eq!(sent, whole);
}

/// Each packet whole, in pieces, or refused with an error that quotes it.
fn apart(header: VnetHeader, buffer: &mut [u8], length: usize, mtu: usize) {
    let mut segments = Segments::new(header, buffer, length).expect("it was taken before");
    let mut room = vec![0; mtu];
    while let Some(packet) = segments.next_padded(0) {
        let Some(mut fragments) = Fragments::new(packet, mtu, 1) else {
            let mut answer = [0; MAX_LEN];
            let told = build_too_big(packet, mtu as u16, &mut answer);
            assert!(told.is_none_or(|length| Headers::parse(&answer[..length]).is_some()));
            continue;
        };
        let (mut handed_out, mut pieces) = (0, 0);
        while let Some(length) = fragments.next_into(&mut room) {
            let piece = Headers::parse(&room[..length]).expect("a piece is a packet");
            assert_eq!(piece.total_length, length);
            handed_out += length - piece.header_length.min(length);
            pieces += 1;
            assert!(pieces < 70_000, "it comes to an end");
        }
        let whole = Headers::parse(packet).expect("it was taken");
        assert!(handed_out <= whole.total_length);
        assert!(pieces > 0);
    }
}

fn announced(packet: &[u8], mtu: usize) {
    for partial in [false, true] {
        let mut clamped = packet.to_vec();
        mss::clamp(&mut clamped, mtu, partial);
        assert!(clamped == packet || mss::may_be_syn(packet));
        // Once is enough.
        let mut again = clamped.clone();
        mss::clamp(&mut again, mtu, partial);
        assert_eq!(again, clamped);
    }
}
