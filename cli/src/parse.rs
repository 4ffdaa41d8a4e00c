//! Values of the command line that are valid from here on.

use std::net::IpAddr;

use ip_network::IpNetwork;
use proto::entry::{GrantRole, Uses, is_broker_address};
use proto::key::PublicKey;
use proto::name::Name;
use proto::prefix;

/// A broker to name in a token: its address, and its pin where the ledger does not tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokerAddress {
    pub(crate) address: String,
    pub(crate) pin: Option<PublicKey>,
}

pub(crate) fn name(text: &str) -> Result<Name, String> {
    text.parse::<Name>().map_err(|error| {
        let fitted = Name::fit(text);
        format!("{error}; {fitted} would do")
    })
}

/// A prefix that a site can have. Host bits are pointed out rather than cut, since either half
/// may be the mistake.
pub(crate) fn cidr(text: &str) -> Result<IpNetwork, String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let wrong = "a prefix is an address and a length, like 10.1.0.0/16 or fd00:1::/48";
    let address: IpAddr = address.parse().map_err(|_| wrong.to_owned())?;
    let most: u8 = if address.is_ipv4() { 32 } else { 128 };
    let Some(length) = length else {
        return Err(format!(
            "the length is missing; for this one address: {address}/{most}"
        ));
    };
    let length: u8 = length
        .parse()
        .ok()
        .filter(|length| *length <= most)
        .ok_or_else(|| format!("the length is a number from 1 to {most}"))?;
    let found = IpNetwork::new_truncate(address, length).map_err(|_| wrong.to_owned())?;
    if found.network_address() != address {
        return Err(format!(
            "bits are set behind the length; the prefix is {found}, the address alone {address}/{most}"
        ));
    }
    prefix::check(found).map_err(|why| format!("no site can have it: {why}"))?;
    Ok(found)
}

pub(crate) fn role(text: &str) -> Result<GrantRole, String> {
    match text {
        "gateway" => Ok(GrantRole::Gateway),
        "agent" => Ok(GrantRole::Agent),
        "any" => Ok(GrantRole::Any),
        _ => Err("a role is gateway, agent or any".to_owned()),
    }
}

pub(crate) fn uses(text: &str) -> Result<Uses, String> {
    if text == "unlimited" {
        return Ok(Uses::Unlimited);
    }
    match text.parse() {
        Ok(uses) if uses > 0 => Ok(Uses::AtMost(uses)),
        Ok(_) | Err(_) => Err("uses are a number from 1 on, or the word unlimited".to_owned()),
    }
}

/// A gateway's splice, as `host:port`.
pub(crate) fn gateway(text: &str) -> Result<String, String> {
    node::contacts::gateway(text).ok_or_else(|| {
        "a gateway is named by its address in this site, like 10.1.0.1, 10.1.0.1:7802 or [fd00::1]:7802".to_owned()
    })
}

/// `host:port`
pub(crate) fn address(text: &str) -> Result<String, String> {
    if is_broker_address(text) {
        Ok(text.to_owned())
    } else {
        Err(
            "an address is host:port, like broker.example.org:7800 or [2001:db8::1]:7800"
                .to_owned(),
        )
    }
}

/// `host:port`, or `host:port=PIN`.
pub(crate) fn broker(text: &str) -> Result<BrokerAddress, String> {
    let (text, pin) = match text.split_once('=') {
        Some((text, pin)) => (text, Some(key(pin)?)),
        None => (text, None),
    };
    Ok(BrokerAddress {
        address: address(text)?,
        pin,
    })
}

pub(crate) fn key(text: &str) -> Result<PublicKey, String> {
    text.parse().map_err(|error| {
        format!("{error}; a public key has 43 characters, as `causeway broker init` prints it")
    })
}

/// The first digits of a hash or more, as lists show them.
pub(crate) fn id(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex && (4..=64).contains(&text.len()) {
        Ok(text)
    } else {
        Err(
            "an id is 4 or more hex digits, as `causeway token list` shows it; it is not the token"
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_answered_with_the_right_prefix() {
        let error = cidr("10.1.2.3/16").unwrap_err();
        assert!(
            error.contains("10.1.0.0/16") && error.contains("10.1.2.3/32"),
            "{error}"
        );
        assert_eq!(cidr("10.1.0.0/16").unwrap().to_string(), "10.1.0.0/16");
        assert_eq!(cidr("fd00:1::/48").unwrap().to_string(), "fd00:1::/48");
    }

    #[test]
    fn a_prefix_that_no_site_can_have_is_refused_with_the_reason() {
        for (text, why) in [
            ("0.0.0.0/0", "default route"),
            ("::/0", "default route"),
            ("127.0.0.0/8", "loopback"),
            ("169.254.1.0/24", "link-local"),
            ("fe80::/64", "link-local"),
            ("224.0.0.0/4", "multicast"),
            ("10.1.0.0", "10.1.0.0/32"),
            ("10.1.0.0/33", "from 1 to 32"),
            ("10.1/16", "like 10.1.0.0/16"),
            ("ten", "like 10.1.0.0/16"),
        ] {
            let error = cidr(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_that_does_not_fit_is_answered_with_one_that_does() {
        assert_eq!(name("berlin-1").unwrap().as_str(), "berlin-1");
        let error = name("Berlin_1").unwrap_err();
        assert!(error.contains("berlin-1 would do"), "{error}");
    }

    #[test]
    fn uses_are_a_number_or_unlimited() {
        assert_eq!(uses("3"), Ok(Uses::AtMost(3)));
        assert_eq!(uses("unlimited"), Ok(Uses::Unlimited));
        for text in ["0", "-1", "many", ""] {
            assert!(uses(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_broker_may_carry_its_pin() {
        let pin = proto::key::SigningKey::from_seed(&[7; 32]).public();
        let parsed = broker(&format!("[::1]:7800={pin}")).unwrap();
        assert_eq!(parsed.address, "[::1]:7800");
        assert_eq!(parsed.pin, Some(pin));
        assert_eq!(broker("b:1").unwrap().pin, None);
        for text in ["b", "b:0", "b:1=x", ":1", ""] {
            assert!(broker(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_is_not_taken_for_an_id() {
        assert_eq!(id("AB12").as_deref(), Ok("ab12"));
        for text in ["cwy1.abc", "12", "xyz1"] {
            assert!(id(text).is_err(), "{text}");
        }
    }
}
