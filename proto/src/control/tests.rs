use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;

/// A number in braces stands for its byte, repeated.
const GOLDEN: [&str; 18] = [
    "00fd0807060504030201fb2c01fbe80301090afc7011010001",
    "01fd0807060504030201",
    "02fd0807060504030201",
    "0305fb7805",
    "04050120010db8000000000000000000000001fb6cca",
    "05{6}",
    "06{6}{7}",
    "07{8}fd0807060504030201",
    "0801",
    "0901",
    "0a0003fdffffffffffffffff020405",
    "0b0100c0000201fb6cca",
    "0c01{9}{10}",
    "0d01{9}010b0c00ff",
    "0e0d0102020e0f",
    "0f02",
    "1002",
    "11",
];

fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32])
}

#[test]
fn a_message_comes_out_as_it_went_in_at_any_size() {
    let (from, to) = (key(1).public(), key(2).public());
    let said = Control::Probe(Probe {
        nonce: u64::MAX,
        size: 1400,
    });
    for size in [0, 60, 61, 1280, 1400, 9000] {
        let packet = packet(&said, &from, &to, size);
        assert!(packet.len() >= size);
        assert_eq!(read(&packet, &from, &to), Ok(said.clone()));
    }
}

#[test]
fn nobody_speaks_in_anothers_name() {
    let (from, to, other) = (key(1).public(), key(2).public(), key(3).public());
    let packet = packet(&Control::Question { id: 7 }, &from, &to, 0);
    assert_eq!(read(&packet, &other, &to), Err(ControlError::Packet));
    assert_eq!(read(&packet, &from, &other), Err(ControlError::Packet));
}

#[test]
fn what_is_cut_short_or_of_another_version_is_refused() {
    let (from, to) = (key(1).public(), key(2).public());
    let whole = packet(&Control::Pong { id: 7 }, &from, &to, 0);
    for length in 0..whole.len() {
        assert!(read(&whole[..length], &from, &to).is_err(), "{length}");
    }
    let mut other = whole;
    other[48] = 2;
    assert_eq!(read(&other, &from, &to), Err(ControlError::Version));
}

#[test]
fn the_checksum_holds() {
    let (from, to) = (key(1).public(), key(2).public());
    let packet = packet(&Control::Ping { id: 0x0102_0304 }, &from, &to, 77);
    let pseudo = u32::from(NEXT_HEADER_UDP) + (packet.len() - IPV6) as u32;
    let sum = packet[8..].chunks(2).fold(pseudo, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
    });
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
}

#[test]
fn a_proof_holds_for_its_tunnel_and_its_nonce_only() {
    let signer = key(1);
    let (own, peer) = ([9; 32], [8; 32]).into_keys();
    let signature = prove(&signer, &own, &peer, &[1; 32]);
    let holds =
        |prover, asker, nonce| check_proof(&signer.public(), prover, asker, nonce, &signature);
    assert!(holds(&own, &peer, &[1; 32]));
    assert!(!holds(&peer, &own, &[1; 32]), "shown back to who made it");
    assert!(!holds(&own, &peer, &[2; 32]));
    assert!(!check_proof(
        &key(2).public(),
        &own,
        &peer,
        &[1; 32],
        &signature
    ));
}

#[test]
fn only_hellos_and_digests_may_wait() {
    let (from, to) = (key(1).public(), key(2).public());
    for message in every_message() {
        let may = matches!(message, Control::Hello(_) | Control::Digest(_));
        assert_eq!(
            may_wait(&packet(&message, &from, &to, 0)),
            may,
            "{message:?}"
        );
    }
    assert!(!may_wait(&[0; 51]));
}

/// One of each, in the order of their numbers on the wire.
fn every_message() -> Vec<Control> {
    let boot = 0x0102_0304_0506_0708;
    let seen_as = "[2001:db8::1]:51820".parse().unwrap();
    vec![
        Control::Hello(Hello {
            boot,
            number: 300,
            interval: 1000,
            heard: Some(Heard {
                boot: 9,
                number: 10,
                age: 70_000,
            }),
            carries: true,
        }),
        Control::Goodbye { boot },
        Control::GoodbyeHeard { boot },
        Control::Probe(Probe {
            nonce: 5,
            size: 1400,
        }),
        Control::Echo(Echo { nonce: 5, seen_as }),
        Control::Prove { nonce: [6; 32] },
        Control::Proof {
            nonce: [6; 32],
            signature: [7; 64],
        },
        Control::Word(Word {
            accused: [8; 32],
            boot,
        }),
        Control::Question { id: 1 },
        Control::Answer { id: 1 },
        Control::Lost(Lost {
            all: false,
            span: (3, u64::MAX),
            sites: vec![4, 5],
        }),
        Control::Candidates {
            addresses: vec!["192.0.2.1:51820".parse().unwrap()],
        },
        Control::Digest(Digest {
            heads: vec![[9; 32]],
            records: [10; 32],
        }),
        Control::Want(Want {
            heads: vec![[9; 32]],
            have: vec![(11, 12)],
            span: (0, 255),
        }),
        Control::Part(Part {
            id: 13,
            index: 1,
            count: 2,
            bytes: vec![14, 15],
        }),
        Control::Ping { id: 2 },
        Control::Pong { id: 2 },
        Control::TwoOfOneKey,
    ]
}

/// What gateways of other versions read: a change here is a change of the protocol.
#[test]
fn messages_are_these_bytes() {
    let messages: Vec<String> = every_message()
        .iter()
        .map(|message| HEXLOWER.encode(&codec::encode(message).unwrap()))
        .collect();
    let repeated = |byte: &str, count| byte.repeat(count);
    let golden = GOLDEN.map(|line| {
        line.replace("{6}", &repeated("06", 32))
            .replace("{7}", &repeated("07", 64))
            .replace("{8}", &repeated("08", 32))
            .replace("{9}", &repeated("09", 32))
            .replace("{10}", &repeated("0a", 32))
    });
    assert_eq!(messages, golden);
}

#[test]
fn every_message_comes_out_as_it_went_in() {
    let (from, to) = (key(1).public(), key(2).public());
    for message in every_message() {
        let packet = packet(&message, &from, &to, 0);
        assert_eq!(read(&packet, &from, &to), Ok(message));
    }
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let (from, to) = (key(1).public(), key(2).public());
        let _ = read(&bytes, &from, &to);
        // Behind a whole head, so that they are looked at.
        let mut packet = packet(&Control::Ping { id: 1 }, &from, &to, 51 + bytes.len());
        packet[51..51 + bytes.len()].copy_from_slice(&bytes);
        let length = u16::try_from(bytes.len()).unwrap();
        packet[49..51].copy_from_slice(&length.to_be_bytes());
        let _ = read(&packet, &from, &to);
    }

    #[test]
    fn a_damaged_message_is_read_as_one_or_refused(
        which in 0..17_usize,
        at in 40..200_usize,
        byte in any::<u8>(),
    ) {
        let (from, to) = (key(1).public(), key(2).public());
        let mut packet = packet(&every_message()[which], &from, &to, 0);
        let at = at % packet.len();
        packet[at] = byte;
        if let Ok(message) = read(&packet, &from, &to) {
            let again = super::packet(&message, &from, &to, 0);
            prop_assert_eq!(read(&again, &from, &to), Ok(message));
        }
    }
}

trait IntoKeys {
    fn into_keys(self) -> (WireguardKey, WireguardKey);
}

impl IntoKeys for ([u8; 32], [u8; 32]) {
    fn into_keys(self) -> (WireguardKey, WireguardKey) {
        (
            WireguardKey::new(self.0).unwrap(),
            WireguardKey::new(self.1).unwrap(),
        )
    }
}
