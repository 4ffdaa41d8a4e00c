//! Which brokers a node may turn to: those of its token and those of the ledger, never one that
//! the ledger has removed. And through which gateways of its site, where it has no way of its own.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proto::entry::is_broker_address;
use proto::key::PublicKey;
use proto::ledger::Charter;
use proto::splice;
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

/// A gateway as a person names it, as `host:port`; `None` if it is no address.
pub fn gateway(text: &str) -> Option<String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => text.parse::<IpAddr>().ok(),
    };
    if let Some(address) = address {
        return Some(at(address));
    }
    let named = if is_broker_address(text) {
        text.to_owned()
    } else {
        format!("{text}:{}", splice::PORT)
    };
    is_broker_address(&named).then_some(named)
}

/// Where a gateway with this address in its site is called.
pub(crate) fn at(address: IpAddr) -> String {
    SocketAddr::new(address, splice::PORT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_named_with_its_port_or_without() {
        for (text, address) in [
            ("10.1.0.1", "10.1.0.1:7802"),
            ("10.1.0.1:4000", "10.1.0.1:4000"),
            ("fd00::1", "[fd00::1]:7802"),
            ("[fd00::1]", "[fd00::1]:7802"),
            ("[fd00::1]:4000", "[fd00::1]:4000"),
            ("gate.example", "gate.example:7802"),
            ("gate.example:4000", "gate.example:4000"),
        ] {
            assert_eq!(gateway(text).as_deref(), Some(address), "{text}");
        }
        for text in ["", ":7802", "gate:", "gate:0", "a b", "[10.1.0.1]", "[::1"] {
            assert_eq!(gateway(text), None, "{text}");
        }
    }
}
