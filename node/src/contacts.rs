//! Which brokers a node may turn to: those of its token and those of the ledger, never one that
//! the ledger has removed.

use proto::key::PublicKey;
use proto::ledger::Charter;
use proto::token::TokenBroker;

/// The ledger's come with every address they have; a token may know one more.
pub(crate) fn contacts(token: &[TokenBroker], charter: &Charter) -> Vec<TokenBroker> {
    let mut contacts = without_removed(token, charter);
    for broker in &charter.brokers {
        for address in &broker.addresses {
            let contact = TokenBroker {
                address: address.clone(),
                key: broker.key,
            };
            if !contacts.contains(&contact) {
                contacts.push(contact);
            }
        }
    }
    contacts
}

pub(crate) fn without_removed(brokers: &[TokenBroker], charter: &Charter) -> Vec<TokenBroker> {
    let stays = |broker: &&TokenBroker| !is_removed(&broker.key, charter);
    brokers.iter().filter(stays).cloned().collect()
}

fn is_removed(key: &PublicKey, charter: &Charter) -> bool {
    let was_one = charter.counted_by.iter().any(|(known, _)| known == key);
    // While a fork quarantines everything, what is not in force is not removed either.
    was_one && charter.fork.is_none() && charter.broker(key).is_none()
}
