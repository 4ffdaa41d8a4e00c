//! Keys, signatures and hashes. Every signature names what it is for, so that none can be shown
//! for something else.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use ed25519_dalek::Signer;
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// An Ed25519 public key: an authority, a broker, a join key or a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// An Ed25519 private key. Wiped when dropped; never cloned, never printed.
pub struct SigningKey(ed25519_dalek::SigningKey);

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

/// SHA-256 under a domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

/// The mesh is the hash of its ledger's entry 0.
pub type MeshId = Hash;

/// A node's X25519 key as it stands in its record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireguardKey([u8; 32]);

/// What a signature or a hash is for. The text goes before what is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A ledger entry, by the authority; its hash too.
    Entry,
    /// A change of authority, by the recovery key.
    Recovery,
    /// The hash of a recovery key.
    RecoveryKey,
    /// {mesh, grant, identity} by the one-time join key.
    Join,
    /// The same by the identity.
    Consent,
    /// {mesh, grant, use, identity} by the store's broker.
    Enrolment,
    /// A node's record, by its identity.
    Record,
    /// The TLS exporter of one connection, by whoever authenticates on it.
    Session,
    /// The hash of a whole blob, to remember that it was verified.
    Verified,
    /// {prover's, asker's WireGuard key, nonce} inside a tunnel, by the prover's identity.
    Tunnel,
    /// The hash of an identity that gives its address inside tunnels.
    ControlAddress,
    /// The hash of a site's name.
    SiteTag,
    /// The hash over {identity, sequence} of all records.
    Records,
    /// The hash over a pair of nodes and a broker that says where the two meet.
    Meeting,
    /// The hash of an identity that stands for it in what agents and gateways say.
    LanTag,
    /// The hash of a gateway's identity that gives the addresses of its probes.
    LanProbe,
    /// The hash of an identity that gives its addresses on the VXLAN interface.
    Vxlan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    #[error("a key is 32 bytes in base64")]
    Form,
    #[error("this key is no point of the curve in its one form, or one of its few weak points")]
    Weak,
}

/// A signature that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the signature does not hold")]
pub struct BadSignature;

impl Domain {
    const fn text(self) -> &'static str {
        match self {
            Domain::Entry => "causeway 1 ledger entry",
            Domain::Recovery => "causeway 1 recovery",
            Domain::RecoveryKey => "causeway 1 recovery key",
            Domain::Join => "causeway 1 join",
            Domain::Consent => "causeway 1 consent",
            Domain::Enrolment => "causeway 1 enrolment",
            Domain::Record => "causeway 1 record",
            Domain::Session => "causeway 1 session",
            Domain::Verified => "causeway 1 verified",
            Domain::Tunnel => "causeway 1 tunnel",
            Domain::ControlAddress => "causeway 1 control address",
            Domain::SiteTag => "causeway 1 site tag",
            Domain::Records => "causeway 1 records",
            Domain::Meeting => "causeway 1 meeting",
            Domain::LanTag => "causeway 1 lan tag",
            Domain::LanProbe => "causeway 1 lan probe",
            Domain::Vxlan => "causeway 1 vxlan",
        }
    }

    /// The text ends with a zero byte, so that no text and message read as another pair.
    fn before(self, message: &[u8]) -> Vec<u8> {
        let text = self.text().as_bytes();
        let mut bytes = Vec::with_capacity(text.len() + 1 + message.len());
        bytes.extend_from_slice(text);
        bytes.push(0);
        bytes.extend_from_slice(message);
        bytes
    }
}

impl PublicKey {
    /// Refuses what is no point of the curve, a second form of one, and the points of low order,
    /// for which signatures prove nothing.
    pub fn new(bytes: [u8; 32]) -> Result<PublicKey, KeyError> {
        if !is_below_prime(&bytes) {
            return Err(KeyError::Weak);
        }
        match ed25519_dalek::VerifyingKey::from_bytes(&bytes) {
            Ok(key) if !key.is_weak() => Ok(PublicKey(bytes)),
            Ok(_) | Err(_) => Err(KeyError::Weak),
        }
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Enough to tell keys apart in a log.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }

    pub fn verify(
        &self,
        domain: Domain,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), BadSignature> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&domain.before(message), &signature)
            .map_err(|_| BadSignature)
    }
}

impl SigningKey {
    pub fn from_seed(seed: &[u8; 32]) -> SigningKey {
        SigningKey(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// For the file it is kept in, and nothing else.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        Signature(self.0.sign(&domain.before(message)).to_bytes())
    }
}

impl Hash {
    pub fn of(domain: Domain, message: &[u8]) -> Hash {
        Hash(Sha256::digest(domain.before(message)).into())
    }

    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

/// Whether the number in the low 255 bits is below 2^255 - 19: only then is it the one form of
/// its point.
fn is_below_prime(bytes: &[u8; 32]) -> bool {
    let [first, middle @ .., last] = bytes;
    *first < 0xed || middle.iter().any(|byte| *byte != 0xff) || last & 0x7f != 0x7f
}

/// The points of order 1, 2, 4 and 8: a key exchange with any of them has a result that everybody
/// knows.
const LOW_ORDER: [[u8; 32]; 5] = {
    let mut minus_one = [0xff; 32];
    minus_one[0] = 0xec;
    minus_one[31] = 0x7f;
    let mut one = [0; 32];
    one[0] = 1;
    [
        [0; 32],
        one,
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f,
            0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16,
            0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83,
            0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd,
            0xd0, 0x9f, 0x11, 0x57,
        ],
        minus_one,
    ]
};

impl WireguardKey {
    /// Refuses keys of low order, and every second form of a key: X25519 would take it, and a copy
    /// of another's key would not look like one. What `wg` makes is always the first form.
    pub fn new(bytes: [u8; 32]) -> Result<WireguardKey, KeyError> {
        if bytes[31] & 0x80 != 0 || !is_below_prime(&bytes) || LOW_ORDER.contains(&bytes) {
            return Err(KeyError::Weak);
        }
        Ok(WireguardKey(bytes))
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let bytes = BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map_err(|_| KeyError::Form)?;
        PublicKey::new(bytes.try_into().map_err(|_| KeyError::Form)?)
    }
}

impl FromStr for Hash {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Hash, KeyError> {
        let bytes = HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_| KeyError::Form)?;
        Ok(Hash(bytes.try_into().map_err(|_| KeyError::Form)?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.short())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Signature")
    }
}

/// As `wg` prints it.
impl fmt::Display for WireguardKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for WireguardKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DOMAINS: [Domain; 17] = [
        Domain::Entry,
        Domain::Recovery,
        Domain::RecoveryKey,
        Domain::Join,
        Domain::Consent,
        Domain::Enrolment,
        Domain::Record,
        Domain::Session,
        Domain::Verified,
        Domain::Tunnel,
        Domain::ControlAddress,
        Domain::SiteTag,
        Domain::Records,
        Domain::Meeting,
        Domain::LanTag,
        Domain::LanProbe,
        Domain::Vxlan,
    ];

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    #[test]
    fn a_signature_holds_for_one_key_one_domain_and_one_message() {
        let signature = key(1).sign(Domain::Entry, b"message");
        assert_eq!(
            key(1)
                .public()
                .verify(Domain::Entry, b"message", &signature),
            Ok(())
        );
        assert!(
            key(2)
                .public()
                .verify(Domain::Entry, b"message", &signature)
                .is_err()
        );
        assert!(
            key(1)
                .public()
                .verify(Domain::Entry, b"messagf", &signature)
                .is_err()
        );
        for other in DOMAINS
            .into_iter()
            .filter(|domain| *domain != Domain::Entry)
        {
            assert!(
                key(1)
                    .public()
                    .verify(other, b"message", &signature)
                    .is_err()
            );
        }
    }

    #[test]
    fn no_domain_begins_another() {
        for one in DOMAINS {
            assert!(!one.text().contains('\0'));
            for other in DOMAINS.into_iter().filter(|other| *other != one) {
                assert!(!other.before(b"").starts_with(&one.before(b"")));
                assert_ne!(Hash::of(one, b"x"), Hash::of(other, b"x"));
            }
        }
    }

    #[test]
    fn a_signature_with_the_group_order_added_is_refused() {
        // The order of the base point, little-endian.
        let order: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut signature = key(1).sign(Domain::Record, b"message");
        let mut carry = 0_u16;
        for (byte, add) in signature.0[32..].iter_mut().zip(order) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = carry.to_le_bytes()[0];
            carry >>= 8;
        }
        assert_eq!(
            key(1)
                .public()
                .verify(Domain::Record, b"message", &signature),
            Err(BadSignature)
        );
    }

    #[test]
    fn weak_points_and_second_forms_are_no_keys() {
        let mut weak: Vec<[u8; 32]> = vec![[0; 32]];
        let mut one = [0; 32];
        one[0] = 1;
        weak.push(one);
        // p - 1, p, p + 1 and the point after, each with either top bit.
        for low in [0xec, 0xed, 0xee, 0xf1] {
            let mut near = [0xff; 32];
            near[0] = low;
            weak.push(near);
            near[31] = 0x7f;
            weak.push(near);
        }
        for bytes in weak {
            assert_eq!(PublicKey::new(bytes), Err(KeyError::Weak), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_wireguard_key_has_one_form_and_is_not_of_low_order() {
        let good = [9; 32];
        assert!(WireguardKey::new(good).is_ok());
        let mut with_top_bit = good;
        with_top_bit[31] |= 0x80;
        assert_eq!(WireguardKey::new(with_top_bit), Err(KeyError::Weak));
        for low in LOW_ORDER {
            assert_eq!(WireguardKey::new(low), Err(KeyError::Weak));
        }
        for low in 0xed..=0xff {
            let mut above = [0xff; 32];
            above[0] = low;
            above[31] = 0x7f;
            assert_eq!(WireguardKey::new(above), Err(KeyError::Weak));
        }
    }

    #[test]
    fn keys_and_hashes_read_only_the_form_they_are_printed_in() {
        let key = key(1).public();
        let text = key.to_string();
        assert_eq!(text.parse(), Ok(key));
        for bad in [
            format!("{text}="),
            format!(" {text}"),
            text[1..].to_owned(),
            String::new(),
            format!("{text}{text}"),
        ] {
            assert_eq!(bad.parse::<PublicKey>(), Err(KeyError::Form), "{bad}");
        }
        let hash = Hash::of(Domain::Entry, b"x");
        let text = hash.to_string();
        assert_eq!(text.parse(), Ok(hash));
        assert_eq!(text.to_uppercase().parse::<Hash>(), Err(KeyError::Form));
        assert_eq!(text[2..].parse::<Hash>(), Err(KeyError::Form));
        assert_eq!(hash.short(), text[..12]);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_of_signature_or_message_is_refused(
            message in proptest::collection::vec(any::<u8>(), 1..40),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut signed = message.clone();
            signed.extend(key(1).sign(Domain::Record, &message).0);
            let bit = bit.index(signed.len() * 8);
            signed[bit / 8] ^= 1 << (bit % 8);
            let (message, signature) = signed.split_at(message.len());
            let signature = Signature(signature.try_into().unwrap());
            prop_assert!(key(1).public().verify(Domain::Record, message, &signature).is_err());
        }

        #[test]
        fn no_bytes_make_a_key_panic(bytes in any::<[u8; 32]>(), signature in any::<[u8; 32]>()) {
            let _ = WireguardKey::new(bytes);
            if let Ok(key) = PublicKey::new(bytes) {
                let mut both = [0; 64];
                both[..32].copy_from_slice(&signature);
                prop_assert!(key.verify(Domain::Record, b"x", &Signature(both)).is_err());
            }
        }
    }
}
