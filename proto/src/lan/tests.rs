use proptest::prelude::*;

use super::*;
use crate::key::SigningKey;

fn identity(number: u8) -> PublicKey {
    SigningKey::from_seed(&[number; 32]).public()
}

fn key(shared: u8) -> PairKey {
    PairKey::derive(&[shared; 32], &Hash([1; 32]), &identity(1), &identity(2)).unwrap()
}

fn ask() -> Ask {
    Ask {
        boot: 1,
        number: 2,
        interval: 50,
        heard: Some(Heard { boot: 3, number: 4 }),
        table: 5,
        parts: u64::MAX,
        mode: Mode::Vxlan,
        passes: Some(false),
        other_lan: Some("fd00::1".parse().unwrap()),
        shows_other: false,
    }
}

fn answer() -> Answer {
    Answer {
        boot: u64::MAX,
        number: 2,
        to: Heard { boot: 3, number: 4 },
        interval: 250,
        table: 5,
        leaving: true,
        forwards: true,
        other_lan: Some("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()),
    }
}

fn sites(count: usize) -> Sites {
    let site = |number: usize| Site {
        hash: (number as u64).to_be_bytes(),
        mtu: 1420,
        by_sibling: number % 2 == 1,
    };
    Sites {
        boot: 1,
        table: 2,
        part: 63,
        of: 64,
        sites: (0..count).map(site).collect(),
    }
}

fn all() -> Vec<Message> {
    let probe = Probe {
        nonce: 7,
        by: ProbeBy::Vxlan,
        heard: Heard { boot: 3, number: 4 },
    };
    vec![
        Message::Ask(ask()),
        Message::Ask(Ask {
            heard: None,
            passes: None,
            other_lan: None,
            mode: Mode::Undecided,
            shows_other: true,
            ..ask()
        }),
        Message::Answer(answer()),
        Message::Answer(Answer {
            leaving: false,
            forwards: false,
            other_lan: None,
            ..answer()
        }),
        Message::Sites(sites(0)),
        Message::Sites(sites(PART_SITES)),
        Message::Probe(probe),
        Message::ProbeAnswer(Probe {
            by: ProbeBy::Direct,
            ..probe
        }),
    ]
}

#[test]
fn every_message_reads_back() {
    let from = tag_of(&identity(1));
    for message in all() {
        let datagram = message.seal(from, &key(9));
        assert_eq!(sender_of(&datagram), Some(from));
        assert_eq!(Message::open(&datagram, &key(9)), Ok(message));
    }
}

#[test]
fn with_any_bit_flipped_or_any_byte_less_it_does_not_hold() {
    for message in all() {
        let datagram = message.seal([1; 8], &key(9));
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Message::open(&changed, &key(9)).is_err(), "bit {bit}");
        }
        for length in 0..datagram.len() {
            assert!(Message::open(&datagram[..length], &key(9)).is_err());
        }
        assert_eq!(Message::open(&datagram, &key(8)), Err(LanError::Mac));
    }
}

#[test]
fn no_answer_is_longer_than_a_question_and_no_part_longer_than_a_datagram() {
    let length = |message: Message| message.seal([1; 8], &key(9)).len();
    assert!(length(Message::Answer(answer())) <= length(Message::Ask(ask())));
    let bare = Ask {
        heard: None,
        other_lan: None,
        ..ask()
    };
    assert_eq!(length(Message::Ask(bare)), length(Message::Ask(ask())));
    assert!(length(Message::Sites(sites(PART_SITES))) <= MAX_DATAGRAM);
    assert!(length(Message::Sites(sites(PART_SITES + 100))) <= MAX_DATAGRAM);
    assert!(parts_of(1000) * PART_SITES >= 1000);
    assert_eq!((parts_of(0), parts_of(1_000_000)), (1, MAX_PARTS));
}

#[test]
fn only_questions_have_the_form_of_one() {
    for message in all() {
        let datagram = message.seal([1; 8], &key(9));
        let is_ask = matches!(message, Message::Ask(_));
        assert_eq!(may_be_ask(&datagram), is_ask, "{message:?}");
    }
    let mut long = Message::Ask(ask()).seal([1; 8], &key(9));
    long.resize(MAX_DATAGRAM, 0);
    assert!(!may_be_ask(&long) && !may_be_ask(&long[..ASK_LENGTH - 1]));
    assert!(may_be_ask(&long[..ASK_LENGTH + 40]), "a later version's");
}

#[test]
fn the_key_is_of_two_nodes_of_one_mesh_and_no_secret_that_everybody_has() {
    let make = |shared, mesh, one: u8, other: u8| {
        let (one, other) = (identity(one), identity(other));
        PairKey::derive(&[shared; 32], &Hash([mesh; 32]), &one, &other)
    };
    let datagram = Message::Ask(ask()).seal([0; 8], &make(9, 1, 1, 2).unwrap());
    let opens = |key: &PairKey| Message::open(&datagram, key).is_ok();
    assert!(opens(&make(9, 1, 2, 1).unwrap()), "from both sides");
    for (shared, mesh, one, other) in [(8, 1, 1, 2), (9, 2, 1, 2), (9, 1, 1, 3), (9, 1, 2, 2)] {
        assert!(!opens(&make(shared, mesh, one, other).unwrap()));
    }
    assert!(make(0, 1, 1, 2).is_none());
    assert_eq!(format!("{:?}", key(9)), "PairKey(hidden)");
}

#[test]
fn what_a_later_version_adds_at_the_end_is_passed_over() {
    let from = tag_of(&identity(1));
    for message in all() {
        if matches!(&message, Message::Sites(sites) if !sites.sites.is_empty()) {
            continue;
        }
        let mut longer = message.seal(from, &key(9));
        longer.truncate(longer.len() - MAC);
        longer.extend_from_slice(&[0xee; 20]);
        let mac = key(9).mac(&longer);
        longer.extend_from_slice(&mac);
        assert_eq!(Message::open(&longer, &key(9)), Ok(message));
    }
}

#[test]
fn probe_addresses_are_of_no_network_and_differ_by_way() {
    let all: Vec<_> = (1..60)
        .flat_map(|number| {
            [ProbeBy::Direct, ProbeBy::Vxlan].map(|by| probe_addresses(&identity(number), by))
        })
        .collect();
    for (v4, v6) in &all {
        assert!(v4.octets()[0] == 198 && v4.octets()[1] & 0xfe == 18);
        assert!(v6.segments().starts_with(&[0x2001, 2, 0]));
    }
    let apart = |at: usize| all[at].0 != all[at + 1].0 && all[at].1 != all[at + 1].1;
    assert!((0..all.len()).step_by(2).all(apart));
    let like = "fd00::1".parse().unwrap();
    let v6 = probe_address(&identity(1), ProbeBy::Direct, like);
    assert_eq!(v6, IpAddr::from(all[0].1));
}

proptest! {
    /// Whoever has the key may write anything: it is read as something bounded, or refused, and
    /// what was read is written so that it reads the same.
    #[test]
    fn no_content_under_a_true_mac_does_harm(
        kind in ASK..=PROBE_ANSWER,
        content in proptest::collection::vec(any::<u8>(), 0..MAX_DATAGRAM),
        short in proptest::collection::vec(0_u8..3, 0..120),
    ) {
        for content in [content, short] {
            let mut datagram = vec![kind, VERSION];
            datagram.extend_from_slice(&[7; 8]);
            datagram.extend_from_slice(&content);
            datagram.truncate(MAX_DATAGRAM - MAC);
            let mac = key(9).mac(&datagram);
            datagram.extend_from_slice(&mac);
            if let Ok(message) = Message::open(&datagram, &key(9)) {
                if let Message::Sites(sites) = &message {
                    prop_assert!(sites.part < sites.of && usize::from(sites.of) <= MAX_PARTS);
                    prop_assert!(sites.sites.len() <= PART_SITES);
                }
                let again = message.seal([7; 8], &key(9));
                prop_assert!(again.len() <= MAX_DATAGRAM);
                prop_assert_eq!(Message::open(&again, &key(9)), Ok(message));
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1300)) {
        let _ = sender_of(&bytes);
        prop_assert!(Message::open(&bytes, &key(9)).is_err());
    }
}
