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

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn identity(number: u8) -> SigningKey {
        SigningKey::from_seed(&[number; 32])
    }

    fn wireguard(number: u8) -> WireguardKey {
        WireguardKey::new([number; 32]).unwrap()
    }

    /// What node 1 holds of node 2, and the reverse.
    fn both() -> (Proof, Proof) {
        (
            Proof::new(identity(2).public(), wireguard(12), wireguard(11)),
            Proof::new(identity(1).public(), wireguard(11), wireguard(12)),
        )
    }

    fn nonce(asked: Option<Control>) -> [u8; 32] {
        let Some(Control::Prove { nonce }) = asked else {
            panic!("{asked:?}");
        };
        nonce
    }

    fn signature(proof: Option<Control>) -> [u8; 64] {
        let Some(Control::Proof { signature, .. }) = proof else {
            panic!("{proof:?}");
        };
        signature
    }

    #[test]
    fn it_asks_until_it_is_answered_and_never_again() {
        let (mut one, mut two) = both();
        let mut dice = Dice::new(1);
        assert_eq!(one.poll_prove(at(0), &mut dice), None, "no session yet");
        one.handle_session(at(0));
        let first = nonce(one.poll_prove(at(0), &mut dice));
        assert_eq!(one.poll_prove(at(199), &mut dice), None);
        assert_eq!(nonce(one.poll_prove(at(200), &mut dice)), first);
        let signed = signature(two.handle_prove(&first, &identity(2), at(210)));
        let checked = one.handle_proof(&first, &signed, at(220));
        assert_eq!(checked, Checked::Holds);
        assert!(one.is_proven());
        one.handle_session(at(5000));
        assert_eq!(one.poll_prove(at(6000), &mut dice), None);
        assert_eq!(one.poll_timeout(), None);
    }

    #[test]
    fn only_the_answer_to_its_own_question_counts() {
        let (mut one, mut two) = both();
        let mut dice = Dice::new(1);
        one.handle_session(at(0));
        let asked = nonce(one.poll_prove(at(0), &mut dice));
        let other = signature(two.handle_prove(&[7; 32], &identity(2), at(0)));
        let checked = one.handle_proof(&[7; 32], &other, at(1));
        assert_eq!(checked, Checked::NotAsked);
        let checked = one.handle_proof(&asked, &other, at(1));
        assert_eq!(checked, Checked::DoesNotHold);
        assert!(!one.is_proven());
        // It asks again after a while, with another nonce.
        assert_eq!(one.poll_prove(at(4000), &mut dice), None);
        assert_ne!(nonce(one.poll_prove(at(5001), &mut dice)), asked);
    }

    #[test]
    fn a_record_with_anothers_key_is_not_proven_by_that_other() {
        // Node 3 claims the key of node 2, whose tunnel it is.
        let mut one = Proof::new(identity(3).public(), wireguard(12), wireguard(11));
        let (_, mut two) = both();
        let mut dice = Dice::new(1);
        one.handle_session(at(0));
        let asked = nonce(one.poll_prove(at(0), &mut dice));
        let signed = signature(two.handle_prove(&asked, &identity(2), at(10)));
        let checked = one.handle_proof(&asked, &signed, at(20));
        assert_eq!(checked, Checked::DoesNotHold);
    }

    #[test]
    fn who_asks_for_signatures_in_a_hurry_waits() {
        let (_, mut two) = both();
        let key = identity(2);
        assert!(two.handle_prove(&[1; 32], &key, at(0)).is_some());
        assert!(two.handle_prove(&[2; 32], &key, at(10)).is_none());
        // The same question again costs nothing.
        assert!(two.handle_prove(&[1; 32], &key, at(10)).is_some());
        assert!(two.handle_prove(&[2; 32], &key, at(30)).is_some());
    }
}
