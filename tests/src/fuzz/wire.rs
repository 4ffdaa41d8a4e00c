//! What a broker and its callers send each other: frames, hellos, messages, datagrams of reflector
//! and relay.

use proto::codec::{decode, encode};
use proto::frame::{FrameReader, frame};
use proto::hello::{Hello, Welcome};
use proto::message::{Answer, Call};
use proto::reflect::{self, LENGTH, Question};
use proto::relay::{self, Bind, Bound, FROM_RELAY, MAX_DATAGRAM, OVERHEAD, TO_RELAY};

const KEY: reflect::SessionKey = [0xa5; 32];
const ASKED: Question = Question {
    session: 0x0102_0304_0506_0708,
    nonce: 0x1112_1314_1516_1718,
};

/// A stream of frames, the first byte telling in which pieces it arrives.
///
/// # Panics
/// If the frames depend on the pieces, or are not those that make up the stream.
pub fn frame_reader(input: &[u8]) {
    let Some((piece, stream)) = input.split_first() else {
        return;
    };
    let (whole, waiting) = frames(stream, stream.len().max(1));
    let (pieces, _) = frames(stream, usize::from(*piece).max(1));
    assert_eq!(whole, pieces);
    let mut again: Vec<u8> = Vec::new();
    for content in &whole {
        again.extend(frame(content).expect("it came out of a frame"));
    }
    assert!(stream.starts_with(&again));
    if let Some(waiting) = waiting {
        assert_eq!(again.len() + waiting, stream.len());
    }
}

/// The frames, and how much is left if all were well.
fn frames(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<usize>) {
    let mut reader = FrameReader::new();
    let mut found = Vec::new();
    for bytes in stream.chunks(piece) {
        reader.handle_bytes(bytes);
        loop {
            match reader.poll_frame() {
                Ok(Some(content)) => found.push(content),
                Ok(None) => break,
                Err(_) => return (found, None),
            }
        }
    }
    (found, Some(reader.waiting()))
}

/// The first frame of either side.
///
/// # Panics
/// If what is read is not what the bytes begin with.
pub fn hello(bytes: &[u8]) {
    if let Ok(hello) = Hello::read(bytes) {
        assert!(bytes.starts_with(&hello.write()));
        assert!(hello.versions.least <= hello.versions.most);
    }
    if let Ok(welcome) = Welcome::read(bytes) {
        assert!(bytes.starts_with(&welcome.write()));
    }
}

/// What a broker is asked.
///
/// # Panics
/// If a call that was read is not written so that it reads the same.
pub fn call(bytes: &[u8]) {
    if let Ok(call) = decode::<Call>(bytes) {
        let again = encode(&call).expect("it fitted a frame");
        assert!(again.len() <= bytes.len());
        assert_eq!(decode(&again), Ok(call));
    }
}

/// What a broker answers or pushes.
///
/// # Panics
/// As [`call`], and if showing it shows a reflector's key.
pub fn answer(bytes: &[u8]) {
    if let Ok(answer) = decode::<Answer>(bytes) {
        let again = encode(&answer).expect("it fitted a frame");
        assert!(again.len() <= bytes.len());
        assert_eq!(decode(&again), Ok(answer));
    }
}

/// A datagram of the reflector, and what true ones become when this is laid over them.
///
/// # Panics
/// If one that differs from the true ones is taken for true.
pub fn reflector(bytes: &[u8]) {
    let seen_as = "[2001:db8::7]:51820".parse().expect("an address");
    let asked = reflect::question(ASKED, &KEY);
    let answered = reflect::answer(ASKED, seen_as, &KEY);
    if bytes != asked {
        reflect::read_question(bytes, &KEY).expect_err("made without the key");
    }
    if bytes != answered {
        reflect::read_answer(bytes, &KEY).expect_err("made without the key");
    }
    let _ = reflect::session_of(bytes);
    let mask: [u8; LENGTH] = std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0));
    let changed = mask != [0; LENGTH];
    let laid_over = |mut datagram: [u8; LENGTH]| {
        for (byte, change) in datagram.iter_mut().zip(mask) {
            *byte ^= change;
        }
        datagram
    };
    let asked = reflect::read_question(&laid_over(asked), &KEY);
    assert_eq!(asked.is_err(), changed);
    let answered = reflect::read_answer(&laid_over(answered), &KEY);
    assert_eq!(answered.is_err(), changed);
}

/// A datagram of the relay, and what true ones become when this is laid over them. As a payload it
/// comes out as it went in, however often it is passed on.
///
/// # Panics
/// If one that differs from the true ones is taken for true, or a payload is changed.
pub fn relay(bytes: &[u8]) {
    let key = relay::Key::new(&KEY);
    let (session, nonce) = (ASKED.session, ASKED.nonce);
    let bind = Bind {
        session,
        nonce,
        echo: 7,
    };
    let bound = Bound {
        session,
        nonce,
        challenge: 7,
    };
    let carried = relay::wrap(b"a datagram", TO_RELAY, (session, 9), &key).expect("it fits");
    let truths = [
        relay::bind(bind, &key).to_vec(),
        relay::bound(bound, &key).to_vec(),
        carried,
    ];
    assert!(truths.iter().any(|truth| truth == bytes) || !is_of_relay(bytes, &key));
    for truth in &truths {
        let laid_over: Vec<u8> = truth
            .iter()
            .enumerate()
            .map(|(at, byte)| byte ^ bytes.get(at).copied().unwrap_or(0))
            .collect();
        assert_eq!(is_of_relay(&laid_over, &key), laid_over == *truth);
    }
    pass_on(bytes, &key);
}

fn is_of_relay(datagram: &[u8], key: &relay::Key) -> bool {
    let _ = (relay::session_of(datagram), relay::channel_of(datagram));
    relay::read_bind(datagram, key).is_ok()
        || relay::read_bound(datagram, key).is_ok()
        || relay::open(datagram, TO_RELAY, key).is_ok()
        || relay::open(datagram, FROM_RELAY, key).is_ok()
}

fn pass_on(payload: &[u8], key: &relay::Key) {
    let other = relay::Key::new(&[0x5a; 32]);
    let fits = !payload.is_empty() && payload.len() + OVERHEAD <= MAX_DATAGRAM;
    let Some(mut datagram) = relay::wrap(payload, TO_RELAY, (1, 2), key) else {
        return assert!(!fits);
    };
    assert!(fits && relay::open(&datagram, TO_RELAY, key).is_ok());
    assert!(relay::seal(&mut datagram, FROM_RELAY, (3, 4), &other));
    let got = relay::open(&datagram, FROM_RELAY, &other).expect("just sealed");
    assert_eq!((got.session, got.channel, got.payload), (3, 4, payload));
}
