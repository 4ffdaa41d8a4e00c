//! One broker's turn in a join: reach it, prove the token, fetch and check the ledger.

use proto::enrolment::{Enrolment, JoinProof};
use proto::entry::SignedEntry;
use proto::key::{PublicKey, SigningKey};
use proto::ledger::{Ledger, Standing};
use proto::message::Refusal;
use proto::token::{Token, TokenBroker};

use super::{JoinError, Step, Tried};
use crate::cache::Line;
use crate::contacts::without_removed;
use crate::refusal;
use crate::session::{Failure, Session, Ways, Why};

pub(super) enum Outcome {
    Taken(Box<Taken>),
    /// The store that counts is with these.
    Elsewhere(Vec<TokenBroker>),
    Failed(Tried),
}

/// All that the mesh gave, checked.
pub(super) struct Taken {
    pub(super) enrolment: Enrolment,
    pub(super) brokers: Vec<TokenBroker>,
    pub(super) cache: Vec<u8>,
}

pub(super) struct Hop<'a> {
    pub(super) token: &'a Token,
    pub(super) identity: &'a SigningKey,
    pub(super) may_be_used: &'a mut bool,
    pub(super) tell: &'a mut (dyn FnMut(Step) + Send),
}

/// Connects; the broker has proven that it holds the pinned key.
pub(super) async fn reach(
    broker: &TokenBroker,
    token: &Token,
    ways: &Ways,
    tell: &mut (dyn FnMut(Step) + Send),
) -> Result<Session, Tried> {
    let (session, _) = Session::connect_by(&broker.address, broker.key, token.mesh, ways)
        .await
        .map_err(|failure| tried(&failure))?;
    tell(Step::Reached {
        address: session.way(),
        key: broker.key,
    });
    Ok(session)
}

impl Hop<'_> {
    pub(super) async fn enrol(mut self, mut session: Session) -> Result<Outcome, JoinError> {
        let grant = self.token.grant_entry();
        let join_key = self.token.join_key();
        let proof = JoinProof::sign(self.token.mesh, grant.hash(), &join_key, self.identity);
        let asked = session
            .enrol(grant.bytes(), &proof, &join_key, self.identity)
            .await;
        let enrolment = match asked {
            Ok(enrolment) => enrolment,
            Err(failure) => return self.not_enrolled(failure),
        };
        *self.may_be_used = true;
        let address = session.address().to_owned();
        Ok(match self.check(&proof, &enrolment, session).await {
            Ok(taken) => Outcome::Taken(Box::new(taken)),
            Err(why) => Outcome::Failed(failed(address, why)),
        })
    }

    fn not_enrolled(&mut self, failure: Failure) -> Result<Outcome, JoinError> {
        let Failure { address, why } = failure;
        let Why::Refused(refusal) = why else {
            // The request was sent: nobody here knows what became of it.
            *self.may_be_used = true;
            return Ok(Outcome::Failed(tried(&Failure { address, why })));
        };
        if let Refusal::WrongStore { brokers } = &refusal
            && !brokers.is_empty()
        {
            let brokers = named(brokers);
            let to = brokers.iter().map(|to| to.address.clone()).collect();
            (self.tell)(Step::SentOn { address, to });
            return Ok(Outcome::Elsewhere(brokers));
        }
        if !refusal::is_passing(&refusal) {
            return Err(JoinError::Refused { address, refusal });
        }
        // A store that failed may have counted before it did.
        *self.may_be_used |= matches!(refusal, Refusal::StoreDown { .. });
        let why = refusal::sentence(&refusal, crate::now());
        Ok(Outcome::Failed(failed(address, why)))
    }

    async fn check(
        &mut self,
        proof: &JoinProof,
        enrolment: &[u8],
        mut session: Session,
    ) -> Result<Taken, String> {
        let enrolment = Enrolment::read(enrolment).map_err(|error| error.to_string())?;
        if enrolment.proof != *proof {
            return Err("it answered with an enrolment that was not asked for".to_owned());
        }
        let terms = self.token.grant();
        enrolment.verify(terms).map_err(|error| error.to_string())?;
        (self.tell)(Step::Proven {
            site: terms.site.clone(),
            use_number: enrolment.use_number,
        });
        let fetched = session
            .fetch_ledger(&[])
            .await
            .map_err(|failure| failure.why.to_string())?;
        let ledger = self.check_ledger(&fetched.entries)?;
        self.check_standing(&ledger, &enrolment)?;
        (self.tell)(Step::LedgerChecked {
            entries: ledger.len(),
        });
        session.close().await;
        Ok(Taken {
            brokers: without_removed(&self.token.brokers, ledger.charter()),
            cache: cache(&ledger),
            enrolment,
        })
    }

    /// It must begin with the entry that the mesh is named for, have had the token's authority,
    /// and contain the grant.
    fn check_ledger(&self, entries: &[Vec<u8>]) -> Result<Ledger, String> {
        let mut ledger = Ledger::new(self.token.mesh);
        for bytes in entries {
            let entry = SignedEntry::read(bytes)
                .map_err(|error| format!("its ledger cannot be read: {error}"))?;
            ledger.insert(entry).map_err(|error| error.to_string())?;
        }
        let charter = ledger.charter();
        if !charter.authorities.contains(&self.token.authority) {
            return Err("its ledger never had the authority that the token names".to_owned());
        }
        if charter.grant(&self.token.grant_entry().hash()).is_none() {
            return Err("its ledger does not contain the token's grant: it is older than the token; hand it the ledger with `causeway ledger push`".to_owned());
        }
        Ok(ledger)
    }

    fn check_standing(&self, ledger: &Ledger, enrolment: &Enrolment) -> Result<(), String> {
        let charter = ledger.charter();
        let grant = self.token.grant_entry().hash();
        let store = self.token.grant().store;
        if !charter.may_count(&enrolment.broker, &store) {
            return Err(format!(
                "the enrolment was counted by {}, which the ledger does not name for the token's store",
                enrolment.broker
            ));
        }
        match charter.standing(&grant, &enrolment.proof.identity) {
            Standing::Good => Ok(()),
            Standing::NoGrant => Err("its ledger does not contain the token's grant".to_owned()),
            Standing::GrantClosed => Err("the ledger has closed the token's grant; make another token".to_owned()),
            Standing::SiteRevoked => Err("the ledger has revoked the token's site".to_owned()),
            Standing::Revoked => Err("the ledger has revoked this identity".to_owned()),
            Standing::Quarantined => Err("the token's grant is quarantined until the ledger's fork is settled (`causeway ledger settle`)".to_owned()),
        }
    }
}

/// What a broker names is asked under the key it names; that this is a broker of the mesh is
/// checked with the ledger before anything is stored.
fn named(brokers: &[(String, [u8; 32])]) -> Vec<TokenBroker> {
    let valid = brokers.iter().filter_map(|(address, key)| {
        let key = PublicKey::new(*key).ok()?;
        proto::entry::is_broker_address(address).then(|| TokenBroker {
            address: address.clone(),
            key,
        })
    });
    valid.take(proto::token::MAX_BROKERS).collect()
}

fn cache(ledger: &Ledger) -> Vec<u8> {
    let lines: Vec<String> = ledger
        .entries()
        .map(|entry| Line::Entry(entry.bytes().to_vec()).to_string())
        .collect();
    crate::journal::file_of(&lines)
}

fn tried(failure: &Failure) -> Tried {
    Tried {
        turned_away: failure.why.is_hung_up(),
        ..failed(failure.address.clone(), failure.why.to_string())
    }
}

fn failed(address: String, why: String) -> Tried {
    Tried {
        address,
        why,
        turned_away: false,
    }
}
