//! Uses of tokens as brokers list them. That one is listed is a broker's word; only its enrolment
//! proves that somebody who had the token joined with it.

use std::collections::BTreeSet;

use data_encoding::BASE64URL_NOPAD;
use proto::key::{Hash, PublicKey};
use proto::ledger::Ledger;
use proto::mesh;
use proto::message::GrantUse;

use crate::print;

/// Of what is not proven so many are named: a broker can make up any number.
const MOST_NAMED: usize = 16;

/// What brokers list, judged by this machine's ledger.
#[derive(Default)]
pub(crate) struct Judged {
    /// Who took a use of which grant.
    pub(crate) proven: BTreeSet<(Hash, PublicKey)>,
    /// Sentences about those that are listed and not proven.
    pub(crate) unproven: Vec<String>,
}

pub(crate) fn judge<'a>(uses: impl Iterator<Item = &'a GrantUse>, ledger: &Ledger) -> Judged {
    let mut judged = Judged::default();
    for taken in uses {
        match prove(taken, ledger) {
            Ok(identity) => {
                judged.proven.insert((Hash(taken.grant), identity));
            }
            Err(why) => judged.unproven.push(format!(
                "a broker lists key {} as joined with token {} and does not prove it: {why}",
                BASE64URL_NOPAD.encode(&taken.identity),
                Hash(taken.grant).short()
            )),
        }
    }
    judged
}

impl Judged {
    pub(crate) fn say_unproven(&self) {
        for why in self.unproven.iter().take(MOST_NAMED) {
            eprintln!("causeway: {why}. It is left out");
        }
        let more = self.unproven.len().saturating_sub(MOST_NAMED);
        if more > 0 {
            eprintln!(
                "causeway: {} that brokers list without proof, left out too",
                print::count(more, "more key", "more keys")
            );
        }
    }
}

/// Who took this use.
pub(crate) fn prove(taken: &GrantUse, ledger: &Ledger) -> Result<PublicKey, String> {
    let enrolment =
        mesh::check_use(&taken.enrolment, ledger).map_err(|refusal| refusal.to_string())?;
    let proof = enrolment.proof;
    let is_the_one = proof.grant.0 == taken.grant
        && enrolment.use_number == taken.use_number
        && *proof.identity.as_bytes() == taken.identity;
    if is_the_one {
        Ok(proof.identity)
    } else {
        Err("the enrolment shown for it is another one's".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proto::enrolment::JoinProof;
    use proto::entry::{Body, Broker, Entry, Grant, GrantRole, SignedEntry, StoreId, Uses};
    use proto::key::{Domain, SigningKey};

    use super::*;

    const STORE: StoreId = StoreId([1; 16]);

    fn key(number: u8) -> SigningKey {
        SigningKey::from_seed(&[number; 32])
    }

    fn authority() -> SigningKey {
        key(1)
    }

    fn join_key() -> SigningKey {
        key(2)
    }

    fn broker() -> SigningKey {
        key(3)
    }

    fn entry(after: Option<&SignedEntry>, body: Body) -> SignedEntry {
        Entry {
            number: after.map_or(0, |parent| parent.entry().number + 1),
            previous: after.map_or(Hash([0; 32]), SignedEntry::hash),
            issued: 0,
            body,
        }
        .sign(&authority())
    }

    /// One broker, and one grant for two; the hash of the grant.
    fn ledger() -> (Ledger, Hash) {
        let genesis = entry(
            None,
            Body::Genesis {
                authority: authority().public(),
                recovery: Hash::of(Domain::RecoveryKey, key(9).public().as_bytes()),
            },
        );
        let named = Broker {
            key: broker().public(),
            store: STORE,
            addresses: vec![],
        };
        let named = entry(Some(&genesis), Body::Broker(named));
        let grant = Grant {
            site: "berlin".parse().unwrap(),
            prefixes: vec![],
            service_prefixes: vec![],
            role: GrantRole::Any,
            not_before: 0,
            not_after: 1,
            uses: Uses::AtMost(2),
            join_key: join_key().public(),
            store: STORE,
        };
        let grant = entry(Some(&named), Body::Grant(grant));
        let mut ledger = Ledger::new(genesis.hash());
        let id = grant.hash();
        for entry in [genesis, named, grant] {
            ledger.insert(entry).unwrap();
        }
        (ledger, id)
    }

    fn taken(ledger: &Ledger, grant: Hash, number: u32, by: &SigningKey) -> GrantUse {
        counted_by(&broker(), &join_key(), (ledger, grant, number), by)
    }

    fn counted_by(
        broker: &SigningKey,
        join_key: &SigningKey,
        (ledger, grant, use_number): (&Ledger, Hash, u32),
        by: &SigningKey,
    ) -> GrantUse {
        let proof = JoinProof::sign(ledger.mesh(), grant, join_key, by);
        GrantUse {
            grant: grant.0,
            use_number,
            identity: *by.public().as_bytes(),
            enrolment: proof.enrol(use_number, broker).write(),
        }
    }

    #[test]
    fn a_use_counts_with_its_enrolment_and_not_by_a_brokers_word() {
        let (ledger, grant) = ledger();
        let good = taken(&ledger, grant, 0, &key(5));
        let bare = GrantUse {
            enrolment: vec![],
            ..taken(&ledger, grant, 1, &key(6))
        };
        let borrowed = GrantUse {
            identity: *key(6).public().as_bytes(),
            ..good.clone()
        };
        let renumbered = GrantUse {
            use_number: 1,
            ..good.clone()
        };
        let place = (&ledger, grant, 1);
        let without_token = counted_by(&broker(), &broker(), place, &key(6));
        let by_a_stranger = counted_by(&key(7), &join_key(), place, &key(6));
        let too_many = taken(&ledger, grant, 2, &key(6));
        let bad = [
            bare,
            borrowed,
            renumbered,
            without_token,
            by_a_stranger,
            too_many,
        ];
        let all = || [&good].into_iter().chain(&bad);
        let judged = judge(all(), &ledger);
        let only = BTreeSet::from([(grant, key(5).public())]);
        assert_eq!(judged.proven, only);
        assert_eq!(judged.unproven.len(), bad.len());
        let named = key(6).public().to_string();
        assert!(judged.unproven[0].contains(&named), "{:?}", judged.unproven);
        assert!(judged.unproven[3].contains("the token's key"));
        assert!(judged.unproven[4].contains("no broker"));
    }

    #[test]
    fn a_false_proof_beside_the_true_one_takes_nothing_away() {
        let (ledger, grant) = ledger();
        let good = taken(&ledger, grant, 0, &key(5));
        let mut bad = good.clone();
        *bad.enrolment.last_mut().unwrap() ^= 1;
        for uses in [[&good, &bad], [&bad, &good]] {
            let judged = judge(uses.into_iter(), &ledger);
            assert_eq!(judged.proven.len(), 1);
            assert_eq!(judged.unproven.len(), 1);
        }
    }
}
