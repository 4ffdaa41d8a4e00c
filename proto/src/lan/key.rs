//! The key that an agent and a gateway have in common, and nobody else.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::MAC;
use crate::key::{MeshId, PublicKey};

const DOMAIN: &[u8] = b"causeway lan hello v1";

/// Keys the MAC of what two nodes of a site send each other. Wiped when dropped; never printed.
#[derive(Clone)]
pub struct PairKey(Zeroizing<[u8; 32]>);

impl PairKey {
    /// From the X25519 secret that both WireGuard keys give. `None` if it is all zeros: the other's
    /// key is one with which everybody gets that.
    pub fn derive(
        shared: &[u8; 32],
        mesh: &MeshId,
        one: &PublicKey,
        other: &PublicKey,
    ) -> Option<PairKey> {
        if *shared == [0; 32] {
            return None;
        }
        let (first, second) = if one <= other {
            (one, other)
        } else {
            (other, one)
        };
        let extracted: Zeroizing<[u8; 32]> = Zeroizing::new(
            hmac(DOMAIN)
                .chain_update(shared)
                .finalize()
                .into_bytes()
                .into(),
        );
        let key = hmac(&*extracted)
            .chain_update(mesh.0)
            .chain_update(first.as_bytes())
            .chain_update(second.as_bytes());
        Some(PairKey(Zeroizing::new(key.finalize().into_bytes().into())))
    }

    pub(super) fn mac(&self, content: &[u8]) -> [u8; MAC] {
        let whole = hmac(&*self.0).chain_update(content).finalize().into_bytes();
        std::array::from_fn(|at| whole[at])
    }

    /// In constant time.
    pub(super) fn holds(&self, content: &[u8], mac: &[u8]) -> bool {
        mac.len() == MAC
            && hmac(&*self.0)
                .chain_update(content)
                .verify_truncated_left(mac)
                .is_ok()
    }
}

impl fmt::Debug for PairKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PairKey(hidden)")
    }
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes any length")
}
