//! The three kinds of key a device is configured with. Secrets wipe themselves and never print.

use std::fmt;

use boringtun::x25519;
use zeroize::{Zeroize, ZeroizeOnDrop};

pub const KEY_LENGTH: usize = 32;

/// Who a peer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY_LENGTH]);

/// Who we are: a clamped Curve25519 scalar.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_LENGTH]);

/// A secret shared with one peer, mixed into its handshakes.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LENGTH]);

impl PublicKey {
    pub fn from_hex(text: &str) -> Option<PublicKey> {
        parse_hex(text).map(PublicKey)
    }

    /// Lower-case hexadecimal, as the configuration protocol writes it.
    pub fn to_hex(&self) -> String {
        let mut text = String::with_capacity(2 * KEY_LENGTH);
        push_hex(&mut text, &self.0);
        text
    }

    pub fn is_low_order(&self) -> bool {
        is_low_order(&self.0)
    }

    pub fn to_x25519(&self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }
}

impl PrivateKey {
    /// Clamps like the kernel, so that what is read back is what is used. All zeros mean "no key".
    pub fn new(mut bytes: [u8; KEY_LENGTH]) -> Option<PrivateKey> {
        if bytes == [0; KEY_LENGTH] {
            return None;
        }
        bytes[0] &= 0b1111_1000;
        bytes[31] &= 0b0111_1111;
        bytes[31] |= 0b0100_0000;
        let key = PrivateKey(bytes);
        bytes.zeroize();
        Some(key)
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.to_x25519()).to_bytes())
    }

    pub fn to_x25519(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(self.0)
    }

    pub fn expose(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl PresharedKey {
    /// All zeros mean "no key".
    pub fn new(bytes: [u8; KEY_LENGTH]) -> Option<PresharedKey> {
        (bytes != [0; KEY_LENGTH]).then_some(PresharedKey(bytes))
    }

    pub fn expose(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

impl From<PublicKey> for x25519::PublicKey {
    fn from(key: PublicKey) -> x25519::PublicKey {
        key.to_x25519()
    }
}

impl From<&x25519::PublicKey> for PublicKey {
    fn from(key: &x25519::PublicKey) -> PublicKey {
        PublicKey(key.to_bytes())
    }
}

/// Exactly 64 hexadecimal digits.
pub fn parse_hex(text: &str) -> Option<[u8; KEY_LENGTH]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY_LENGTH {
        return None;
    }
    let mut key = [0; KEY_LENGTH];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(key)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Appends without a temporary, so that a secret is in no second place.
pub fn push_hex(text: &mut String, key: &[u8; KEY_LENGTH]) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    for byte in key {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// The encodings, little-endian, of every point that X25519 sends to zero.
///
/// A clamped scalar is a multiple of 8, so exactly the points whose order divides 8 vanish. On the
/// curve and its twist together their u-coordinates are: 0 (order 2 on both), 1 and p-1 (order 4 on
/// one of the two), and two more (order 8 on the curve). p = 2^255-19, and encodings are not reduced
/// before use, so that of these only p (for 0) and p+1 (for 1) fit a second time below 2^255. The top
/// bit is not part of the number: X25519 clears it, and so does the comparison.
const LOW_ORDER: [[u8; KEY_LENGTH]; 7] = [
    small(0),
    small(1),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    near_p(-1),
    near_p(0),
    near_p(1),
];

const fn small(number: u8) -> [u8; KEY_LENGTH] {
    let mut bytes = [0; KEY_LENGTH];
    bytes[0] = number;
    bytes
}

/// p plus a small offset: p ends in 0xed and nothing carries.
const fn near_p(offset: i8) -> [u8; KEY_LENGTH] {
    let mut bytes = [0xff; KEY_LENGTH];
    bytes[0] = 0xed_u8.wrapping_add_signed(offset);
    bytes[31] = 0x7f;
    bytes
}

/// Whether no secret can come of this key: every exchange with it ends in zeros.
pub fn is_low_order(key: &[u8; KEY_LENGTH]) -> bool {
    let mut point = *key;
    point[31] &= 0x7f;
    LOW_ORDER.contains(&point)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(scalar: [u8; 32], point: [u8; 32]) -> [u8; 32] {
        x25519::StaticSecret::from(scalar)
            .diffie_hellman(&x25519::PublicKey::from(point))
            .to_bytes()
    }

    #[test]
    fn every_listed_point_and_its_high_bit_twin_vanishes_under_any_scalar() {
        for point in LOW_ORDER {
            for high_bit in [0, 0x80] {
                let mut encoded = point;
                encoded[31] |= high_bit;
                assert!(is_low_order(&encoded));
                for scalar in [[1; 32], [0xff; 32], [0x5a; 32]] {
                    assert_eq!(exchange(scalar, encoded), [0; 32], "{encoded:02x?}");
                }
            }
        }
    }

    #[test]
    fn neighbours_of_the_listed_points_do_not_vanish_and_are_not_listed() {
        for point in LOW_ORDER {
            let mut near = point;
            near[3] ^= 0x10;
            assert!(!is_low_order(&near));
            assert_ne!(exchange([7; 32], near), [0; 32]);
        }
        for number in 2..=255 {
            assert!(!is_low_order(&small(number)));
            assert_ne!(exchange([7; 32], small(number)), [0; 32]);
        }
    }

    #[test]
    fn every_second_encoding_below_two_to_the_255_is_covered() {
        // p+2 .. 2^255-1 are second encodings of 2 .. 18, none of which is of low order.
        for offset in 2..=18 {
            let point = near_p(offset);
            assert!(!is_low_order(&point));
            assert_ne!(exchange([7; 32], point), [0; 32]);
        }
    }

    #[test]
    fn a_private_key_is_clamped_on_the_way_in_and_zeros_mean_none() {
        assert_eq!(PrivateKey::new([0; 32]), None);
        let key = PrivateKey::new([0xff; 32]).unwrap();
        assert_eq!((key.expose()[0], key.expose()[31]), (0xf8, 0x7f));
        let key = PrivateKey::new(small(1)).unwrap();
        assert_eq!((key.expose()[0], key.expose()[31]), (0, 0x40));
        assert_eq!(PresharedKey::new([0; 32]), None);
        assert!(PresharedKey::new([1; 32]).is_some());
    }

    #[test]
    fn a_public_key_follows_from_its_private_key() {
        // RFC 7748, section 6.1: Alice's pair.
        let private =
            parse_hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a").unwrap();
        let public = PrivateKey::new(private).unwrap().public_key();
        assert_eq!(
            public.to_hex(),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
    }

    #[test]
    fn hex_of_any_case_is_read_and_anything_else_is_not() {
        let text = "00ff".repeat(16);
        assert_eq!(PublicKey::from_hex(&text).unwrap().to_hex(), text);
        assert_eq!(parse_hex(&text.to_uppercase()), parse_hex(&text));
        for bad in [
            "",
            "00",
            &text[1..],
            &format!("{text}0"),
            &text.replace('f', "g"),
        ] {
            assert_eq!(parse_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let bytes = [0x5a; 32];
        let printed = format!(
            "{:?} {:?}",
            PrivateKey::new(bytes).unwrap(),
            PresharedKey::new(bytes).unwrap()
        );
        assert_eq!(printed, "PrivateKey(hidden) PresharedKey(hidden)");
    }
}
