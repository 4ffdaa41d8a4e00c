//! The signature that ties a tunnel to a node: asked for until it comes, once per process.

use std::time::Duration;

use proto::control::{Control, check_proof, prove};
use proto::key::{Domain, Hash, PublicKey, Signature, SigningKey, WireguardKey};

use super::dice::Dice;

const AGAIN: Duration = Duration::from_millis(200);
/// After one that did not hold.
const AFTER_BAD: Duration = Duration::from_secs(5);
/// Signatures cost; who asks faster waits.
const SIGN_APART: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Holds,
    DoesNotHold,
    /// To a question that we have not asked, or no longer ask.
    NotAsked,
}

pub(crate) struct Proof {
    remote: PublicKey,
    remote_key: WireguardKey,
    local_key: WireguardKey,
    is_proven: bool,
    asked: Option<[u8; 32]>,
    next: Option<Duration>,
    signed: Option<(Duration, [u8; 32], Signature)>,
}

impl Proof {
    pub(crate) fn new(
        remote: PublicKey,
        remote_key: WireguardKey,
        local_key: WireguardKey,
    ) -> Proof {
        Proof {
            remote,
            remote_key,
            local_key,
            is_proven: false,
            asked: None,
            next: None,
            signed: None,
        }
    }

    pub(crate) const fn is_proven(&self) -> bool {
        self.is_proven
    }

    pub(crate) const fn handle_session(&mut self, now: Duration) {
        if !self.is_proven {
            self.next = Some(now);
        }
    }

    /// Asked to prove that this tunnel is ours.
    pub(crate) fn handle_prove(
        &mut self,
        nonce: &[u8; 32],
        key: &SigningKey,
        now: Duration,
    ) -> Option<Control> {
        let signature = match &self.signed {
            Some((_, signed, signature)) if signed == nonce => *signature,
            Some((at, ..)) if now < *at + SIGN_APART => return None,
            Some(_) | None => prove(key, &self.local_key, &self.remote_key, nonce),
        };
        self.signed = Some((now, *nonce, signature));
        Some(Control::Proof {
            nonce: *nonce,
            signature: signature.0,
        })
    }

    pub(crate) fn handle_proof(
        &mut self,
        nonce: &[u8; 32],
        signature: &[u8; 64],
        now: Duration,
    ) -> Checked {
        if self.is_proven || self.asked.as_ref() != Some(nonce) {
            return Checked::NotAsked;
        }
        self.asked = None;
        let signature = Signature(*signature);
        let (prover, asker) = (&self.remote_key, &self.local_key);
        self.is_proven = check_proof(&self.remote, prover, asker, nonce, &signature);
        if self.is_proven {
            self.next = None;
            Checked::Holds
        } else {
            self.next = Some(now + AFTER_BAD);
            Checked::DoesNotHold
        }
    }

    pub(crate) fn poll_prove(&mut self, now: Duration, dice: &mut Dice) -> Option<Control> {
        if self.next.is_none_or(|next| now < next) {
            return None;
        }
        self.next = Some(now + AGAIN);
        let nonce = *self.asked.get_or_insert_with(|| {
            // Hashed, so that who sees one cannot tell what the dice give next.
            Hash::of(Domain::Tunnel, &dice.next().to_be_bytes()).0
        });
        Some(Control::Prove { nonce })
    }

    pub(crate) const fn poll_timeout(&self) -> Option<Duration> {
        self.next
    }
}
