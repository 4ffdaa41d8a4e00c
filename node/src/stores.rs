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
