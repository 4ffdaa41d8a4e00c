//! Which store a broker keeps its records in. Brokers of one store say the same; what one store
//! has, another need not have.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use proto::entry::StoreId;
use proto::key::PublicKey;
use proto::ledger::Charter;
use proto::token::TokenBroker;

use crate::contacts::contacts;

const OF_BROKER: &str = "broker:";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreName {
    Known(StoreId),
    /// Of a broker that the ledger does not name yet: its own until it does.
    Of(PublicKey),
}

impl StoreName {
    pub(crate) fn of(broker: &PublicKey, charter: &Charter) -> StoreName {
        let formerly = || {
            let mut known = charter.counted_by.iter();
            known
                .find(|(key, _)| key == broker)
                .map(|(_, store)| *store)
        };
        let now = charter.broker(broker).map(|broker| broker.store);
        now.or_else(formerly)
            .map_or(StoreName::Of(*broker), StoreName::Known)
    }
}

/// Of all brokers that a node may turn to.
pub(crate) fn stores(token: &[TokenBroker], charter: &Charter) -> BTreeSet<StoreName> {
    contacts(token, charter)
        .iter()
        .map(|contact| StoreName::of(&contact.key, charter))
        .collect()
}

/// The brokers of one store that a node may turn to.
pub(crate) fn contacts_of(
    store: &StoreName,
    token: &[TokenBroker],
    charter: &Charter,
) -> Vec<TokenBroker> {
    let mut found = contacts(token, charter);
    found.retain(|contact| StoreName::of(&contact.key, charter) == *store);
    found
}

impl fmt::Display for StoreName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreName::Known(store) => store.fmt(out),
            StoreName::Of(broker) => write!(out, "{OF_BROKER}{broker}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStoreName;

impl FromStr for StoreName {
    type Err = NoStoreName;

    fn from_str(text: &str) -> Result<StoreName, NoStoreName> {
        if let Some(broker) = text.strip_prefix(OF_BROKER) {
            return broker.parse().map(StoreName::Of).map_err(|_| NoStoreName);
        }
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| NoStoreName)?;
        let store = bytes.try_into().map_err(|_| NoStoreName)?;
        Ok(StoreName::Known(StoreId(store)))
    }
}

#[cfg(test)]
mod tests {
    use proto::entry::{Body, Broker};
    use proto::key::SigningKey;
    use proto::ledger::Ledger;

    use super::*;

    const STORE: StoreId = StoreId([5; 16]);

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn at(seed: u8) -> TokenBroker {
        TokenBroker {
            address: format!("{seed}.example:7800"),
            key: key(seed).public(),
        }
    }

    fn sign(ledger: &mut Ledger, body: Body) {
        let entry = ledger.next(0, body).unwrap().sign(&key(1));
        ledger.insert(entry).unwrap();
    }

    fn add(ledger: &mut Ledger, seed: u8, store: StoreId) {
        let TokenBroker { address, key } = at(seed);
        let addresses = vec![address];
        let broker = Broker {
            key,
            store,
            addresses,
        };
        sign(ledger, Body::Broker(broker));
    }

    fn found(ledger: &Ledger) -> Vec<StoreName> {
        let token = [at(2), at(3)];
        stores(&token, ledger.charter()).into_iter().collect()
    }

    #[test]
    fn brokers_are_of_their_own_store_until_the_ledger_says_which_they_share() {
        let genesis = Ledger::genesis(0, key(1).public(), &key(9).public()).sign(&key(1));
        let mut ledger = Ledger::new(genesis.hash());
        ledger.insert(genesis).unwrap();
        let mut own = [key(2), key(3)].map(|key| StoreName::Of(key.public()));
        own.sort();
        assert_eq!(found(&ledger), own);
        add(&mut ledger, 2, STORE);
        let second = StoreName::Of(key(3).public());
        assert_eq!(found(&ledger), [StoreName::Known(STORE), second]);
        add(&mut ledger, 3, STORE);
        assert_eq!(found(&ledger), [StoreName::Known(STORE)]);
        let token = [at(2), at(3)];
        let of = contacts_of(&StoreName::Known(STORE), &token, ledger.charter());
        assert_eq!(of, token);
        add(&mut ledger, 4, StoreId([6; 16]));
        assert_eq!(found(&ledger).len(), 2);
        for seed in [2, 3] {
            let key = key(seed).public();
            sign(&mut ledger, Body::BrokerRemoved { key });
        }
        assert_eq!(found(&ledger), [StoreName::Known(StoreId([6; 16]))]);
    }
}
