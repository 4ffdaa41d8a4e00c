//! What passes the screen, what has to show a cookie, and what is refused.

use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit as _, Update};
use blake2::{Blake2s256, Blake2sMac};
use boringtun::noise::Tunn;
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead as _, Payload};

use super::*;

fn nobody(_: &PublicKey) -> Option<LinkPlace> {
    None
}
use crate::data::mailbox::{ControlInbox, Mailbox};
use crate::data::snapshot::Snapshot;

const NOW: Duration = Duration::from_secs(1000);
const PLACE: LinkPlace = LinkPlace {
    thread: 3,
    slot: 99,
};
const PASSED: Verdict = Verdict::Passed {
    slot: Some(99),
    thread: 3,
};

fn secret(number: u8) -> x25519::StaticSecret {
    [number; 32].into()
}

fn public(number: u8) -> x25519::PublicKey {
    x25519::PublicKey::from(&secret(number))
}

/// The device has key 2 and one peer with a link: 1.
fn screen() -> Screen {
    let mut screen = Screen::new(Arc::default());
    screen.set_key(Some(secret(2)));
    screen
}

fn under_load() -> Screen {
    Screen {
        load_until: NOW + LOAD_LASTS,
        ..screen()
    }
}

fn linked(key: &PublicKey) -> Option<LinkPlace> {
    (*key == PublicKey(public(1).to_bytes())).then_some(PLACE)
}

fn from(host: u8, port: u16, message: &[u8]) -> RawHandshake {
    let received = Received {
        from: ([192, 0, 2, host], port).into(),
        local: None,
        ecn: 0,
        len: message.len(),
        segment: message.len(),
    };
    RawHandshake::new(&received, message).unwrap()
}

fn judge(screen: &mut Screen, message: &[u8]) -> Verdict {
    screen.judge(&from(1, 1000, message), NOW, linked)
}

fn tunn(own: u8, peer: u8) -> Tunn {
    Tunn::new(secret(own), public(peer), None, None, 5, None)
}

fn initiation(tunn: &mut Tunn) -> Vec<u8> {
    let mut room = [0; 148];
    let TunnResult::WriteToNetwork(message) = tunn.format_handshake_initiation(&mut room, true)
    else {
        panic!("no initiation");
    };
    message.to_vec()
}

/// What a peer of ours answers to our initiation.
fn response() -> Vec<u8> {
    let asked = initiation(&mut tunn(2, 1));
    let mut room = [0; 148];
    let mut peer = tunn(1, 2);
    let TunnResult::WriteToNetwork(message) = peer.decapsulate(None, &asked, &mut room) else {
        panic!("no response");
    };
    message.to_vec()
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    parts
        .iter()
        .for_each(|part| Digest::update(&mut hash, part));
    hash.finalize().into()
}

/// Writes the first code that makes a message one for `to`, and none of a cookie.
fn sign(message: &mut [u8], to: &x25519::PublicKey) {
    let end = message.len() - 32;
    let key = hash(&[b"mac1----", to.as_bytes()]);
    let mut mac = Blake2sMac::<U16>::new_from_slice(&key).unwrap();
    mac.update(&message[..end]);
    message[end..end + 16].copy_from_slice(&mac.finalize_fixed());
    message[end + 16..].fill(0);
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |byte: u8| {
        let mut pad = [byte; 64];
        pad.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
        pad
    };
    let inner_pad = pad(0x36);
    let inner = [&[&inner_pad[..]], parts].concat();
    hash(&[&pad(0x5c), &hash(&inner)])
}

/// An initiation with this ephemeral key, made as if the exchange with it gave zeros: valid up to
/// the sender's key, which anyone can so pretend to have, if low-order keys are let through.
fn forged(ephemeral: [u8; 32]) -> Vec<u8> {
    let (to, pretended) = (public(2), public(1));
    let chain = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
    let named = hash(&[&chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]);
    let transcript = hash(&[&hash(&[&named, to.as_bytes()]), &ephemeral]);
    let chain = hmac(&hmac(&chain, &[&ephemeral]), &[&[1]]);
    let exchanged = hmac(&chain, &[&[0; 32]]);
    let key = hmac(&exchanged, &[&hmac(&exchanged, &[&[1]]), &[2]]);
    let sealed = ChaCha20Poly1305::new(&key.into())
        .encrypt(
            &[0; 12].into(),
            Payload {
                msg: pretended.as_bytes(),
                aad: &transcript,
            },
        )
        .unwrap();
    let mut message = [&[1, 0, 0, 0, 5, 0, 0, 0], &ephemeral[..], &sealed, &[0; 60]].concat();
    sign(&mut message, &to);
    message
}

/// Zero, one, and the two encodings of each above 2^255-19 and with the unused bit.
fn low_orders() -> Vec<[u8; 32]> {
    let mut points = Vec::new();
    for first in [0, 1] {
        let mut small = [0; 32];
        small[0] = first;
        let mut second = [0xff; 32];
        (second[0], second[31]) = (0xed + first, 0x7f);
        points.extend([small, second]);
    }
    let high = points.clone().into_iter().map(|mut point| {
        point[31] |= 0x80;
        point
    });
    points.extend(high.collect::<Vec<_>>());
    points
}

// ---- without load -----------------------------------------------------------------------------

#[test]
fn a_peers_initiation_goes_to_its_link_and_any_response_to_the_thread_in_its_index() {
    let mut screen = screen();
    assert_eq!(judge(&mut screen, &initiation(&mut tunn(1, 2))), PASSED);
    let mut response = response();
    response[8..12].copy_from_slice(&0x0000_0700_u32.to_le_bytes());
    sign(&mut response, &public(2));
    let thread_seven = Verdict::Passed {
        slot: None,
        thread: 7,
    };
    assert_eq!(judge(&mut screen, &response), thread_seven);
    let mut cookie = [0; 64];
    (cookie[0], cookie[5]) = (3, 7);
    assert_eq!(judge(&mut screen, &cookie), thread_seven);
}

#[test]
fn a_message_changed_anywhere_before_its_first_code_is_refused() {
    let mut screen = screen();
    for message in [initiation(&mut tunn(1, 2)), response()] {
        for at in 0..message.len() - 16 {
            let mut changed = message.clone();
            changed[at] ^= 0x20;
            let reason = if at < 4 {
                DropReason::Malformed
            } else {
                DropReason::HandshakeMac
            };
            assert_eq!(
                judge(&mut screen, &changed),
                Verdict::Refused(reason),
                "{at}"
            );
        }
    }
}

#[test]
fn a_message_for_another_key_or_of_another_length_is_refused() {
    let mut screen = screen();
    let elsewhere = initiation(&mut tunn(1, 3));
    let refused = Verdict::Refused(DropReason::HandshakeMac);
    assert_eq!(judge(&mut screen, &elsewhere), refused);
    let whole = initiation(&mut tunn(1, 2));
    for len in 0..whole.len() {
        let refused = Verdict::Refused(DropReason::Malformed);
        assert_eq!(judge(&mut screen, &whole[..len]), refused, "{len}");
    }
    let mut data = vec![0; 100];
    data[0] = 4;
    let refused = Verdict::Refused(DropReason::Malformed);
    assert_eq!(judge(&mut screen, &data), refused);
}

#[test]
fn a_stranger_and_a_device_without_key_are_refused_as_unknown() {
    let unknown = Verdict::Refused(DropReason::HandshakeUnknownPeer);
    let mut screen = screen();
    assert_eq!(judge(&mut screen, &initiation(&mut tunn(3, 2))), unknown);
    screen.set_key(None);
    assert_eq!(judge(&mut screen, &initiation(&mut tunn(1, 2))), unknown);
}

#[test]
fn under_a_new_key_only_messages_for_it_pass() {
    let mut screen = screen();
    screen.set_key(Some(secret(4)));
    let refused = Verdict::Refused(DropReason::HandshakeMac);
    assert_eq!(judge(&mut screen, &initiation(&mut tunn(1, 2))), refused);
    assert_eq!(judge(&mut screen, &initiation(&mut tunn(1, 4))), PASSED);
}

#[test]
fn an_ephemeral_key_of_low_order_is_refused_whatever_else_holds() {
    let mut screen = screen();
    let refused = Verdict::Refused(DropReason::HandshakeRejected);
    for ephemeral in low_orders() {
        assert_eq!(judge(&mut screen, &forged(ephemeral)), refused);
        let mut response = response();
        response[12..44].copy_from_slice(&ephemeral);
        sign(&mut response, &public(2));
        assert_eq!(judge(&mut screen, &response), refused);
    }
}

#[test]
fn without_load_no_source_is_limited() {
    let mut screen = screen();
    let message = initiation(&mut tunn(1, 2));
    for _ in 0..100 {
        assert_eq!(judge(&mut screen, &message), PASSED);
    }
}

// ---- under load -------------------------------------------------------------------------------

fn cookie_for(screen: &mut Screen, peer: &mut Tunn) -> Vec<u8> {
    let verdict = judge(screen, &initiation(peer));
    let Verdict::Demanded(cookie) = verdict else {
        panic!("{verdict:?}");
    };
    let mut room = [0; 148];
    assert!(matches!(
        peer.decapsulate(None, &cookie, &mut room),
        TunnResult::Done
    ));
    initiation(peer)
}

#[test]
fn under_load_the_sender_has_to_show_a_cookie_and_only_under_load() {
    let mut screen = under_load();
    let mut peer = tunn(1, 2);
    let with_cookie = cookie_for(&mut screen, &mut peer);
    assert_eq!(judge(&mut screen, &with_cookie), PASSED);
    let without = initiation(&mut tunn(1, 2));
    let later = screen.judge(&from(1, 1000, &without), NOW + LOAD_LASTS, linked);
    assert_eq!(later, PASSED);
    assert!(matches!(
        judge(&mut screen, &response()),
        Verdict::Demanded(_)
    ));
}

#[test]
fn a_cookie_is_good_for_the_address_and_port_that_it_was_sent_to() {
    let mut screen = under_load();
    let mut peer = tunn(1, 2);
    let with_cookie = cookie_for(&mut screen, &mut peer);
    for (host, port) in [(1, 1001), (2, 1000)] {
        let verdict = screen.judge(&from(host, port, &with_cookie), NOW, linked);
        assert!(matches!(verdict, Verdict::Demanded(_)), "{verdict:?}");
    }
    let changed = {
        let mut changed = with_cookie.clone();
        changed[140] ^= 1;
        changed
    };
    assert!(matches!(judge(&mut screen, &changed), Verdict::Demanded(_)));
    assert_eq!(judge(&mut screen, &with_cookie), PASSED);
}

#[test]
fn under_load_a_wrong_first_code_earns_no_cookie() {
    let mut message = initiation(&mut tunn(1, 2));
    message[120] ^= 1;
    let refused = Verdict::Refused(DropReason::HandshakeMac);
    assert_eq!(judge(&mut under_load(), &message), refused);
}

#[test]
fn under_load_a_source_is_limited_even_with_its_cookie() {
    let mut screen = under_load();
    let with_cookie = cookie_for(&mut screen, &mut tunn(1, 2));
    for _ in 0..5 {
        assert_eq!(judge(&mut screen, &with_cookie), PASSED);
    }
    let limited = Verdict::Refused(DropReason::HandshakeLimited);
    assert_eq!(judge(&mut screen, &with_cookie), limited);
}

// ---- the queue --------------------------------------------------------------------------------

fn shared() -> Shared {
    let nothing = Snapshot::new(std::iter::empty(), Vec::new(), 1420, None);
    Shared {
        snapshot: Arc::new(arc_swap::ArcSwap::from_pointee(nothing)),
        mailboxes: vec![Mailbox::new().unwrap()].into(),
        control: Arc::new(ControlInbox::new().unwrap()),
    }
}

#[test]
fn a_long_queue_is_load_and_is_worked_off_in_turns() {
    let (mut screen, shared) = (screen(), shared());
    let message = initiation(&mut tunn(1, 2));
    for waiting in [LOAD - 1, LOAD] {
        screen.waiting.clear();
        for _ in 0..waiting {
            enqueue(&mut screen.waiting, from(1, 1000, &message), &screen.drops);
        }
        let cookies = screen.drops.get(DropReason::HandshakeCookie);
        screen.work(&shared, nobody);
        let demanded = screen.drops.get(DropReason::HandshakeCookie) - cookies;
        assert_eq!(demanded, if waiting < LOAD { 0 } else { TURN as u64 });
        assert_eq!(screen.waiting.len(), waiting - TURN);
        assert!(screen.is_busy());
    }
}

#[test]
fn a_full_queue_drops_the_newest_and_counts_it() {
    let mut screen = screen();
    for _ in 0..WAITING + 3 {
        enqueue(&mut screen.waiting, from(1, 1000, &[3]), &screen.drops);
    }
    assert_eq!(screen.waiting.len(), WAITING);
    assert_eq!(screen.drops.get(DropReason::HandshakeQueueFull), 3);
}

#[test]
fn a_passed_message_lies_in_its_threads_mailbox_and_a_full_one_is_counted() {
    let (mut screen, shared) = (screen(), shared());
    let mut response = response();
    response[8..12].copy_from_slice(&0x0000_1000_u32.to_le_bytes());
    sign(&mut response, &public(2));
    let raw = from(1, 1000, &response);
    let room = shared.mailboxes[0].handshakes.capacity();
    for _ in 0..room {
        assert_eq!(screen.screen(&raw, NOW, &shared, nobody), Ok(()));
    }
    let full = screen.screen(&raw, NOW, &shared, nobody);
    assert_eq!(full, Err(DropReason::HandshakeQueueFull));
    let passed = shared.mailboxes[0].handshakes.pop().unwrap();
    assert_eq!(passed.slot, None);
    assert_eq!(passed.datagram[..passed.len], response[..]);
    response[8..12].copy_from_slice(&0x0000_0100_u32.to_le_bytes());
    sign(&mut response, &public(2));
    let raw = from(1, 1000, &response);
    let unknown = screen.screen(&raw, NOW, &shared, nobody);
    assert_eq!(unknown, Err(DropReason::UnknownIndex));
}
