//! Messages as bytes: whole, cut, too long, from a later version, and lying.

use super::*;
use crate::codec::{CodecError, decode, encode};
use crate::frame::MAX_FRAME;

fn calls() -> Vec<Call> {
    let requests = vec![
        Request::Enrol(Enrol {
            grant: vec![1; 300],
            proof: vec![2; 225],
            join_session: [3; 64],
            identity_session: [4; 64],
        }),
        Request::Authenticate(Authenticate {
            who: Who::Node {
                identity: [5; 32],
                enrolment: vec![6; 325],
            },
            session: [7; 64],
        }),
        Request::Authenticate(Authenticate {
            who: Who::Authority { key: [5; 32] },
            session: [7; 64],
        }),
        Request::Publish {
            member: vec![8; 600],
        },
        Request::Watch {
            resume: Some(Position {
                epoch: [9; 16],
                revision: 1 << 40,
            }),
            heads: vec![[1; 32], [2; 32]],
        },
        Request::Ledger { heads: vec![] },
        Request::PutLedger {
            entries: vec![vec![1; 200], vec![]],
        },
        Request::Reflect,
        Request::ListNodes {
            after: Some([1; 32]),
        },
        Request::ListUses {
            after: Some(([1; 32], 9)),
        },
        Request::Ping,
        Request::Relay {
            peers: vec![(1, [1; 32]), (300, [2; 32])],
        },
        Request::Carry {
            channel: 300,
            datagram: vec![4; 1420],
        },
    ];
    requests
        .into_iter()
        .zip(0..)
        .map(|(request, number)| Call { number, request })
        .collect()
}

#[test]
fn every_call_reads_back_and_none_does_when_cut_or_followed_by_more() {
    for call in calls() {
        let bytes = encode(&call).unwrap();
        assert_eq!(decode(&bytes), Ok(call));
        for length in 0..bytes.len() {
            decode::<Call>(&bytes[..length]).unwrap_err();
        }
        let more = [bytes.as_slice(), &[0]].concat();
        assert_eq!(decode::<Call>(&more), Err(CodecError::Long));
    }
}

/// What a broker of this version is asked by one that speaks the next and did not ask first.
#[test]
fn a_request_that_is_not_known_is_refused_and_not_taken_for_another() {
    let bytes = encode(&Call {
        number: 1,
        request: Request::Carry {
            channel: 0,
            datagram: vec![],
        },
    })
    .unwrap();
    let (number, last) = (bytes[0], bytes[1]);
    assert_eq!(bytes.len(), 4);
    for later in last + 1..=u8::MAX {
        let unknown = [&[number, later][..], &[0; 40]].concat();
        assert!(decode::<Call>(&unknown).is_err(), "{later}");
        assert!(decode::<Call>(&unknown[..2]).is_err(), "{later}");
    }
}

#[test]
fn a_refusal_that_is_not_known_is_refused() {
    let bytes = encode(&Refusal::NoRelay).unwrap();
    assert_eq!(decode::<Refusal>(&bytes), Ok(Refusal::NoRelay));
    assert_eq!(
        decode::<Refusal>(&[bytes[0] + 1]),
        Err(CodecError::Unreadable)
    );
}

#[test]
fn a_length_that_lies_allocates_nothing_like_it() {
    // Number 1, PutLedger, a list of 2^60 entries.
    for many in [u64::MAX, 1 << 60, 1 << 30, 1 << 24] {
        let mut lie = vec![1, 5, 253];
        lie.extend_from_slice(&many.to_le_bytes());
        lie.extend_from_slice(&[0; 64]);
        assert_eq!(decode::<Call>(&lie), Err(CodecError::Unreadable));
    }
}

#[test]
fn what_fits_a_frame_is_readable_and_what_does_not_is_not_written() {
    let entries = vec![vec![7; 1000]; MAX_FRAME / 1003];
    let full = Request::PutLedger { entries };
    let call = Call {
        number: 1,
        request: full,
    };
    let bytes = encode(&call).unwrap();
    assert!(bytes.len() > MAX_FRAME - 4096);
    assert_eq!(decode(&bytes), Ok(call));
    assert_eq!(
        encode(&Request::Publish {
            member: vec![0; MAX_FRAME]
        }),
        Err(CodecError::TooLarge)
    );
}

/// The smallest elements need the most memory for their bytes.
#[test]
fn the_smallest_elements_that_a_broker_sends_fill_a_frame_and_are_read() {
    let heads = vec![[1; 32]; (MAX_FRAME - 16) / 32];
    let call = Call {
        number: 1,
        request: Request::Ledger { heads },
    };
    let bytes = encode(&call).unwrap();
    assert_eq!(decode(&bytes), Ok(call));
    let uses = vec![
        GrantUse {
            grant: [1; 32],
            use_number: 3,
            identity: [2; 32],
            enrolment: vec![],
        };
        (MAX_FRAME - 16) / 66
    ];
    let reply = Reply::Uses(uses);
    assert_eq!(decode(&encode(&reply).unwrap()), Ok(reply));
    // A signed entry has 100 bytes and more.
    let entries = vec![vec![9; 100]; (MAX_FRAME - 64) / 101];
    let reply = Reply::Ledger {
        entries,
        heads: vec![],
        more: false,
    };
    assert_eq!(decode(&encode(&reply).unwrap()), Ok(reply));
}

#[test]
fn the_key_of_a_relay_session_is_not_shown() {
    let reply = Reply::Relay(Relay {
        session: 1,
        key: [0xab; 32],
        port: 7800,
    });
    let shown = format!("{reply:?} {reply:#?}");
    assert!(!shown.contains("171"), "{shown}");
    assert!(shown.contains("7800"));
}

#[test]
fn the_key_of_a_reflector_session_is_not_shown() {
    let answer = Answer::Reply {
        number: 1,
        reply: Reply::Reflector(Reflector {
            session: 1,
            key: [0xab; 32],
            port: 7800,
        }),
    };
    let shown = format!("{answer:?} {answer:#?}");
    assert!(!shown.contains("171"), "{shown}");
    assert!(shown.contains("7800"));
}
