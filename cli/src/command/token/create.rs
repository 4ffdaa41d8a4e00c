//! `causeway token create`: the token on standard output, what it means on standard error.

use anyhow::{Context, bail};
use ip_network::IpNetwork;
use proto::entry::{Body, Broker, Grant, GrantRole, StoreId, Uses};
use proto::key::{PublicKey, SigningKey};
use proto::ledger::Charter;
use proto::name::Name;
use proto::token::{MAX_BROKERS, Token, TokenBroker};
use serde::Serialize;
use zeroize::Zeroizing;

use super::allowed;
use crate::authority;
use crate::command::broker::no_address;
use crate::command::{Output, Signing, Usage};
use crate::parse::{self, BrokerAddress};
use crate::print;
use crate::signing::Desk;
use crate::time;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    signing: Signing,
    /// The site to join; made with its first token.
    #[arg(long, value_name = "NAME", env = "CAUSEWAY_SITE", value_parser = parse::name)]
    site: Name,
    /// Prefixes of the site; may be left out once it has some.
    #[arg(long, value_name = "PREFIX", env = "CAUSEWAY_CIDR", value_parser = parse::cidr, value_delimiter = ',')]
    cidr: Vec<IpNetwork>,
    /// Prefixes of services, whose replies must return through the node that translated.
    #[arg(long, value_name = "PREFIX", env = "CAUSEWAY_SERVICE_CIDR", value_parser = parse::cidr, value_delimiter = ',')]
    service_cidr: Vec<IpNetwork>,
    /// Where brokers are reached, H:P or H:P=PIN; as the ledger says if not given.
    #[arg(long, value_name = "H:P", env = "CAUSEWAY_BROKER", value_parser = parse::broker, value_delimiter = ',')]
    broker: Vec<BrokerAddress>,
    /// What the machines do: gateway, agent or any.
    #[arg(long, env = "CAUSEWAY_ROLE", value_parser = parse::role, default_value = "any")]
    role: GrantRole,
    /// How long machines may join: 30m, 1h, 7d.
    #[arg(long, value_name = "TIME", env = "CAUSEWAY_TTL", value_parser = time::parse_duration, default_value = "1h")]
    ttl: u64,
    /// How many machines may join, or unlimited.
    #[arg(long, value_name = "N", env = "CAUSEWAY_USES", value_parser = parse::uses, default_value = "1")]
    uses: Uses,
    /// The time before which nobody may join; --ttl counts from then.
    #[arg(long, value_name = "TIME", env = "CAUSEWAY_STARTS_IN", value_parser = time::parse_duration)]
    starts_in: Option<u64>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Created<'a> {
    token: &'a str,
    id: String,
    site: String,
    prefixes: Vec<String>,
    service_prefixes: Vec<String>,
    role: String,
    uses: Option<u32>,
    /// `None` from the start.
    not_before: Option<String>,
    expires: String,
    brokers: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut desk = Desk::open(&arguments.signing)?;
    let brokers = token_brokers(&desk.charter().brokers, &arguments.broker)?;
    let now = time::now();
    let seed = authority::new_seed()?;
    let join_key = SigningKey::from_seed(&seed);
    let grant = grant(
        arguments,
        desk.charter(),
        (now, &brokers, join_key.public()),
    )?;
    let entry = desk
        .sign(Body::Grant(grant))
        .with_context(|| format!("no token for site {} was made", arguments.site))?;
    let id = entry.hash().short();
    let (mesh, authority) = (desk.ledger().mesh(), desk.authority().key().public());
    let token = Token::new(mesh, authority, brokers.named, entry, seed)?;
    // First, so that whoever reads the token from a pipe finds the brokers told.
    desk.hand_over();
    print_token(&token, arguments.output).with_context(|| {
        format!("token {id} was signed and nobody has it; close it with `causeway token revoke {id} --with-nodes`")
    })?;
    eprint!("{}", explain(&token, now));
    Ok(())
}

fn print_token(token: &Token, output: Output) -> anyhow::Result<()> {
    let text = token.encode();
    if output.json {
        print::json(&created(token, &text))
    } else {
        print::data(&Zeroizing::new(format!("{}\n", *text)))
    }
}

/// Brokers of a token, and the store that counts its uses.
struct Chosen {
    named: Vec<TokenBroker>,
    store: StoreId,
}

/// Those that were asked for, else all that the ledger gives an address, those of the first one's
/// store before the others.
fn token_brokers(known: &[Broker], asked: &[BrokerAddress]) -> anyhow::Result<Chosen> {
    if known.is_empty() {
        bail!("the ledger names no broker; add one with `causeway broker add`");
    }
    if asked.len() > MAX_BROKERS {
        bail!(Usage(format!(
            "a token holds at most {MAX_BROKERS} brokers, {} were given",
            asked.len()
        )));
    }
    let mut found: Vec<(TokenBroker, &Broker)> = Vec::new();
    for BrokerAddress { address, pin } in asked {
        let broker = find_broker(known, address, *pin)?;
        found.push((token_broker(address, broker), broker));
    }
    if asked.is_empty() {
        for broker in known {
            let places = broker.addresses.iter();
            found.extend(places.map(|address| (token_broker(address, broker), broker)));
        }
    }
    let Some((_, first)) = found.first() else {
        let missing = known.iter().map(|broker| no_address(&broker.key));
        bail!(Usage(format!(
            "{}. For this token alone, --broker HOST:PORT does",
            missing.collect::<Vec<_>>().join("; ")
        )));
    };
    let store = first.store;
    found.sort_by_key(|(_, broker)| broker.store != store);
    found.truncate(MAX_BROKERS);
    Ok(Chosen {
        named: found.into_iter().map(|(named, _)| named).collect(),
        store,
    })
}

fn token_broker(address: &str, broker: &Broker) -> TokenBroker {
    TokenBroker {
        address: address.to_owned(),
        key: broker.key,
    }
}

/// By pin, by an address the ledger has, or because there is only one.
fn find_broker<'a>(
    known: &'a [Broker],
    address: &str,
    pin: Option<PublicKey>,
) -> anyhow::Result<&'a Broker> {
    if let Some(pin) = pin {
        return known.iter().find(|broker| broker.key == pin).with_context(|| {
            format!("the ledger has no broker with the key {pin}; `causeway broker list` shows its brokers, `causeway broker add` adds one")
        });
    }
    let has_address = |broker: &&Broker| broker.addresses.iter().any(|other| other == address);
    match (known.iter().find(has_address), known) {
        (Some(broker), _) => Ok(broker),
        (None, [only]) => Ok(only),
        (None, _) => bail!(Usage(format!(
            "the ledger has several brokers and none at {address}: say which one it is, with --broker {address}=PIN; `causeway broker list` shows the pins"
        ))),
    }
}

fn grant(
    arguments: &Arguments,
    charter: &Charter,
    (now, brokers, join_key): (u64, &Chosen, PublicKey),
) -> anyhow::Result<Grant> {
    let site = &arguments.site;
    let asked = arguments.cidr.len() + arguments.service_cidr.len();
    if asked == 0 && charter.prefixes_of(site).next().is_none() {
        bail!(Usage(format!(
            "site {site} has no prefix yet; give what it holds with --cidr, like --cidr 10.1.0.0/16"
        )));
    }
    let not_before = arguments.starts_in.map_or(0, |wait| now + wait);
    Ok(Grant {
        site: site.clone(),
        prefixes: arguments.cidr.clone(),
        service_prefixes: arguments.service_cidr.clone(),
        role: arguments.role,
        not_before,
        not_after: not_before.max(now) + arguments.ttl,
        uses: arguments.uses,
        join_key,
        store: brokers.store,
    })
}

fn created<'a>(token: &Token, text: &'a str) -> Created<'a> {
    let grant = token.grant();
    Created {
        token: text,
        id: token.grant_entry().hash().short(),
        site: grant.site.to_string(),
        prefixes: grant.prefixes.iter().map(ToString::to_string).collect(),
        service_prefixes: grant
            .service_prefixes
            .iter()
            .map(ToString::to_string)
            .collect(),
        role: grant.role.to_string(),
        uses: allowed(grant.uses),
        not_before: (grant.not_before > 0).then(|| time::rfc3339(grant.not_before)),
        expires: time::rfc3339(grant.not_after),
        brokers: token
            .brokers
            .iter()
            .map(|broker| broker.address.clone())
            .collect(),
    }
}

/// What the token does, for whoever made it, and what to do with it.
fn explain(token: &Token, now: u64) -> String {
    let grant = token.grant();
    let id = token.grant_entry().hash().short();
    let mut lines = vec![format!(
        "Token {id} lets {} join site {}.",
        who(grant),
        grant.site
    )];
    if !grant.prefixes.is_empty() {
        lines.push(format!(
            "  prefixes          {}",
            print::list(&grant.prefixes)
        ));
    }
    if !grant.service_prefixes.is_empty() {
        lines.push(format!(
            "  service prefixes  {}",
            print::list(&grant.service_prefixes)
        ));
    }
    if grant.not_before > now {
        lines.push(format!(
            "  valid from        {} ({})",
            time::utc(grant.not_before),
            time::relative(grant.not_before, now)
        ));
    }
    lines.push(format!(
        "  expires           {} ({})",
        time::utc(grant.not_after),
        time::relative(grant.not_after, now)
    ));
    let places: Vec<&String> = token.brokers.iter().map(|broker| &broker.address).collect();
    lines.push(format!("  brokers           {}", print::list(&places)));
    match grant.uses {
        Uses::AtMost(1) => {
            lines.push("It works once, and is a secret until then.".to_owned());
        }
        Uses::AtMost(_) | Uses::Unlimited => lines.push(format!(
            "Whoever has it can add machines to site {} until it {}: keep it like a password. Close it with: causeway token revoke {id}",
            grant.site,
            if grant.uses == Uses::Unlimited { "expires" } else { "expires or its uses are taken" }
        )),
    }
    lines.push("Next, put it into a file on the joining machine (mode 600, never on a command line), and run there:".to_owned());
    lines.push("  sudo causeway join --state-dir /var/lib/causeway --token-file FILE".to_owned());
    lines.push("or run it there without --token-file and paste the token when asked.".to_owned());
    lines.join("\n") + "\n"
}

fn who(grant: &Grant) -> String {
    let role = match grant.role {
        GrantRole::Gateway => "gateway",
        GrantRole::Agent => "route agent",
        GrantRole::Any => "machine (gateway or agent)",
    };
    match grant.uses {
        Uses::AtMost(1) => format!("one {role}"),
        Uses::AtMost(uses) => format!("up to {uses} machines (role {})", grant.role),
        Uses::Unlimited => format!("any number of machines (role {})", grant.role),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_found_by_pin_by_address_and_when_it_is_the_only_one() {
        let broker = |seed: u8, address: &str| Broker {
            key: SigningKey::from_seed(&[seed; 32]).public(),
            store: StoreId([seed; 16]),
            addresses: vec![address.to_owned()],
        };
        let two = [broker(1, "a:1"), broker(2, "b:1")];
        assert_eq!(find_broker(&two, "b:1", None).unwrap(), &two[1]);
        assert_eq!(find_broker(&two, "c:1", Some(two[0].key)).unwrap(), &two[0]);
        let error = find_broker(&two, "c:1", None).unwrap_err().to_string();
        assert!(error.contains("--broker c:1=PIN"), "{error}");
        assert_eq!(find_broker(&two[..1], "c:1", None).unwrap(), &two[0]);
    }

    #[test]
    fn a_token_goes_first_to_the_brokers_whose_store_counts_it() {
        let broker = |seed: u8, store: u8, address: &str| Broker {
            key: SigningKey::from_seed(&[seed; 32]).public(),
            store: StoreId([store; 16]),
            addresses: vec![address.to_owned()],
        };
        let known = [
            broker(1, 1, "a:1"),
            broker(2, 2, "b:1"),
            broker(3, 1, "c:1"),
        ];
        let chosen = token_brokers(&known, &[]).unwrap();
        let places: Vec<&str> = chosen
            .named
            .iter()
            .map(|broker| broker.address.as_str())
            .collect();
        assert_eq!(places, ["a:1", "c:1", "b:1"]);
        assert_eq!(chosen.store, StoreId([1; 16]));
    }
}
