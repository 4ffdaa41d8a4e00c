//! The steps, each with what it needs prepared and one turn of it.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use gateway::data::snapshot::{LinkPlace, Owner, OwnerId, Snapshot};
use gateway::packet::checksum;
use gateway::packet::coalesce::Coalescer;
use gateway::packet::split::{SPARE, Segments};
use gateway::packet::vnet::{Gso, VnetHeader};
use ip_network::{IpNetwork, Ipv4Network};

const MTU: usize = 1420;
const HEADERS: usize = 40;
const SEGMENT: usize = MTU - HEADERS;
/// The most whole segments that an IPv4 superpacket holds.
const SEGMENTS: usize = (65_535 - HEADERS) / SEGMENT;
const SUPERPACKET: usize = HEADERS + SEGMENTS * SEGMENT;
/// Packets of one turn of the steps that take one at a time.
const BATCH: usize = 64;
/// Room for an opened or sealed packet.
const SLOT: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Split,
    Seal,
    SealOpen,
    Coalesce,
    LookUp,
    Checksum,
}

pub(super) const STEPS: [Step; 6] = [
    Step::Split,
    Step::Seal,
    Step::SealOpen,
    Step::Coalesce,
    Step::LookUp,
    Step::Checksum,
];

/// One turn; returns how many packets it took.
pub(super) type Turn = Box<dyn FnMut() -> usize>;

impl Step {
    pub(super) fn name(self) -> &'static str {
        match self {
            Step::Split => "split",
            Step::Seal => "seal",
            Step::SealOpen => "seal-open",
            Step::Coalesce => "coalesce",
            Step::LookUp => "look-up",
            Step::Checksum => "checksum",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Step::Split => "split a TCP superpacket",
            Step::Seal => "seal 1420 bytes",
            Step::SealOpen => "seal and open 1420 bytes",
            Step::Coalesce => "coalesce TCP of one flow",
            Step::LookUp => "look-up among 10,000 prefixes",
            Step::Checksum => "checksum 1400 bytes",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Step, String> {
        let known = STEPS.into_iter().find(|step| step.name() == name);
        known.ok_or_else(|| format!("no step {name}"))
    }

    pub(super) fn prepare(self) -> Result<Turn> {
        match self {
            Step::Split => Ok(split()),
            Step::Seal => seal(),
            Step::SealOpen => seal_open(),
            Step::Coalesce => coalesce(),
            Step::LookUp => Ok(look_up()),
            Step::Checksum => Ok(checksum()),
        }
    }
}

/// A superpacket as the kernel hands it over: the sum is left to be finished.
fn superpacket() -> (VnetHeader, Vec<u8>) {
    let vnet = VnetHeader {
        needs_csum: true,
        gso: Gso::Tcp4,
        hdr_len: 40,
        gso_size: u16::try_from(SEGMENT).unwrap_or(u16::MAX),
        csum_start: 20,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    let mut packet = vec![0; SUPERPACKET + SPARE];
    for (number, byte) in packet.iter_mut().enumerate() {
        *byte = u8::try_from(number % 251).unwrap_or(0);
    }
    let length = u16::try_from(SUPERPACKET).unwrap_or(u16::MAX).to_be_bytes();
    packet[..HEADERS].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length);
    packet[6] = 0x40; // don't fragment
    packet[8..10].copy_from_slice(&[64, 6]); // hops, TCP
    packet[12..16].copy_from_slice(&[10, 1, 0, 2]);
    packet[16..20].copy_from_slice(&[10, 2, 0, 2]);
    packet[20..24].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51]); // ports
    packet[32..34].copy_from_slice(&[0x50, 0x10]); // header length, ACK
    packet[34] = 1; // window
    let ip_sum = checksum::complement(checksum::sum(&packet[..20], 0));
    packet[10..12].copy_from_slice(&ip_sum.to_be_bytes());
    let pseudo_header = checksum::pseudo_header(&packet[12..20], 6, SUPERPACKET - 20);
    let seed = checksum::fold(pseudo_header);
    packet[36..38].copy_from_slice(&seed.to_be_bytes());
    (vnet, packet)
}

fn split() -> Turn {
    let (vnet, mut packet) = superpacket();
    let mut headers = [0; HEADERS];
    headers.copy_from_slice(&packet[..HEADERS]);
    Box::new(move || {
        // Cutting writes headers over payload, which does not matter; only the first must be whole.
        packet[..HEADERS].copy_from_slice(&headers);
        let mut count = 0;
        if let Ok(mut segments) = Segments::new(vnet, black_box(&mut packet), SUPERPACKET) {
            while let Some(segment) = segments.next_padded(MTU) {
                black_box(segment);
                count += 1;
            }
        }
        count
    })
}

fn coalesce() -> Result<Turn> {
    let (vnet, mut packet) = superpacket();
    let mut arena = vec![0; SEGMENTS * SLOT];
    let mut segments = Segments::new(vnet, &mut packet, SUPERPACKET)
        .map_err(|reason| anyhow::anyhow!("the superpacket is refused: {reason:?}"))?;
    let mut number = 0;
    while let Some(segment) = segments.next_padded(MTU) {
        arena[number * SLOT..][..segment.len()].copy_from_slice(segment);
        number += 1;
    }
    let head = arena[..HEADERS].to_vec();
    let mut coalescer = Coalescer::new();
    let mut turn = move || {
        arena[..HEADERS].copy_from_slice(&head);
        for number in 0..SEGMENTS {
            coalescer.push(black_box(&arena), number * SLOT, MTU);
        }
        let mut frames = 0;
        coalescer.drain(&mut arena, |_, slices, _| {
            black_box(slices);
            frames += 1;
        });
        (frames, SEGMENTS)
    };
    let (frames, _) = turn();
    if number != SEGMENTS || frames != 1 {
        bail!("{number} segments became {frames} frames instead of one");
    }
    Ok(Box::new(move || turn().1))
}

fn look_up() -> Turn {
    let address = |number: u32| Ipv4Addr::from_bits(0x0a80_0000 + number * 17);
    let prefixes = (0..10_000).filter_map(|number| {
        let network = Ipv4Network::new(address(number), 32).ok()?;
        Some((IpNetwork::V4(network), OwnerId(number % 1000)))
    });
    let place = LinkPlace { thread: 0, slot: 0 };
    let owners = vec![Owner::peer(place); 1000];
    let snapshot = Snapshot::new(prefixes, owners, MTU, None);
    let mut next = 0;
    Box::new(move || {
        for _ in 0..BATCH {
            // A stride that is coprime to the number of prefixes visits them all.
            next = (next + 7919) % 10_000;
            let found = snapshot.link_for(black_box(IpAddr::V4(address(next))), &[]);
            let _ = black_box(found);
        }
        BATCH
    })
}

fn checksum() -> Turn {
    let packet = vec![0xa5; 1400];
    Box::new(move || {
        for _ in 0..BATCH {
            black_box(checksum::sum(black_box(&packet), 0));
        }
        BATCH
    })
}

fn seal() -> Result<Turn> {
    let (mut sender, _) = session()?;
    let (packet, mut slot) = (vec![0xa5; MTU], vec![0; SLOT]);
    Ok(Box::new(move || {
        for _ in 0..BATCH {
            black_box(is_sent(&sender.encapsulate(black_box(&packet), &mut slot)));
        }
        BATCH
    }))
}

fn seal_open() -> Result<Turn> {
    let (mut sender, mut receiver) = session()?;
    let (mut sealed, mut opened) = (vec![0; SLOT], vec![0; SLOT]);
    let packet = superpacket_segment()?;
    Ok(Box::new(move || {
        let mut count = 0;
        for _ in 0..BATCH {
            let TunnResult::WriteToNetwork(datagram) = sender.encapsulate(&packet, &mut sealed)
            else {
                continue;
            };
            let datagram = black_box(&*datagram);
            let result = receiver.decapsulate(None, datagram, &mut opened);
            count += usize::from(matches!(result, TunnResult::WriteToTunnelV4(..)));
        }
        count
    }))
}

/// Opening looks at the packet, so it must be a real one.
fn superpacket_segment() -> Result<Vec<u8>> {
    let (vnet, mut packet) = superpacket();
    let segments = Segments::new(vnet, &mut packet, SUPERPACKET);
    let segment = segments
        .ok()
        .and_then(|mut segments| segments.next_padded(MTU).map(<[u8]>::to_vec));
    segment.context("the superpacket has no first segment")
}

/// Two ends that have shaken hands.
fn session() -> Result<(Tunn, Tunn)> {
    let (near, far) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
    let (near_public, far_public) = (PublicKey::from(&near), PublicKey::from(&far));
    let mut sender = Tunn::new(near, far_public, None, None, 1, None);
    let mut receiver = Tunn::new(far, near_public, None, None, 2, None);
    let (mut one, mut other) = ([0; 256], [0; 256]);
    let TunnResult::WriteToNetwork(initiation) =
        sender.format_handshake_initiation(&mut one, false)
    else {
        bail!("no initiation");
    };
    let TunnResult::WriteToNetwork(response) = receiver.decapsulate(None, initiation, &mut other)
    else {
        bail!("no response");
    };
    let TunnResult::WriteToNetwork(keepalive) = sender.decapsulate(None, response, &mut one) else {
        bail!("no keepalive");
    };
    receiver.decapsulate(None, keepalive, &mut other);
    if !is_sent(&sender.encapsulate(&[0; 64], &mut [0; 256])) {
        bail!("no session came about");
    }
    Ok((sender, receiver))
}

fn is_sent(result: &TunnResult<'_>) -> bool {
    matches!(result, TunnResult::WriteToNetwork(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_does_its_work() {
        for step in STEPS {
            let mut turn = step.prepare().unwrap();
            let expected = match step {
                Step::Split | Step::Coalesce => SEGMENTS,
                Step::Seal | Step::SealOpen | Step::LookUp | Step::Checksum => BATCH,
            };
            assert_eq!([turn(), turn()], [expected; 2], "{}", step.name());
        }
    }

    #[test]
    fn every_step_is_known_by_its_name() {
        for step in STEPS {
            assert_eq!(Step::parse(step.name()), Ok(step));
        }
        assert!(Step::parse("encrypt").is_err());
    }
}
