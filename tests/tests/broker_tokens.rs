//! Tokens that are no good: each is refused with a sentence of its own, and nothing is left behind.

#![cfg(test)]
#![forbid(unsafe_code)]

use data_encoding::BASE64URL_NOPAD;
use proto::entry::{Body, Closing, Uses};
use proto::key::PublicKey;
use sha2::{Digest as _, Sha256};
use tests::broker::cast::{Authority, Ticket, now};
use tests::broker::{Broker, Mesh, command};

const DAY: u64 = 86_400;

/// A token's bytes changed, with a checksum that fits again.
fn changed(token: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let encoded = token.strip_prefix("cwy1.").unwrap();
    let mut bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).unwrap();
    bytes.truncate(bytes.len() - 4);
    change(&mut bytes);
    let sum: [u8; 32] = Sha256::digest(&bytes).into();
    bytes.extend_from_slice(&sum[..4]);
    format!("cwy1.{}", BASE64URL_NOPAD.encode(&bytes))
}

/// What is wrong with a token, the token, and words of its sentence.
type Bad = (&'static str, String, &'static [&'static str]);

fn once(authority: &mut Authority) -> Ticket {
    authority
        .grant("paris", "10.1.0.0/16", Uses::AtMost(1))
        .unwrap()
}

/// Good tokens for what is not.
fn refused_by_the_broker(authority: &mut Authority, broker: &Broker) -> Vec<Bad> {
    let windows = [
        (now() - 2 * DAY, now() - DAY),
        (now() + DAY, now() + 2 * DAY),
    ];
    let [expired, early] = windows.map(|window| {
        authority
            .grant_between("paris", "10.1.0.0/16", Uses::AtMost(1), window)
            .unwrap()
    });
    let closed = once(authority);
    let closing = authority.sign(Body::Revocation {
        keys: Vec::new(),
        closings: vec![Closing {
            grant: closed.entry.hash(),
            stay: Vec::new(),
        }],
    });
    let entries = [&expired.entry, &early.entry, &closed.entry, &closing];
    authority.save(entries.into_iter()).unwrap();
    let token = |ticket: &Ticket| authority.token(ticket, &[broker]).unwrap();
    vec![
        ("expired", token(&expired), &["expired"]),
        ("early", token(&early), &["not valid yet"]),
        ("closed", token(&closed), &["revoked"]),
    ]
}

/// The broker never sees them.
fn refused_at_once(token: &str) -> Vec<Bad> {
    vec![
        ("cut", token[..token.len() / 2].to_owned(), &["cut off"]),
        (
            "cut by one",
            token[..token.len() - 1].to_owned(),
            &["cut off"],
        ),
        (
            // The seed is the last 32 bytes, before it stands the grant with its signature.
            "another seed",
            changed(token, |bytes| *bytes.last_mut().unwrap() ^= 1),
            &["secret", "forged"],
        ),
        (
            "another signature",
            changed(token, |bytes| {
                let at = bytes.len() - 40;
                bytes[at] ^= 1;
            }),
            &["not signed by the authority", "forged"],
        ),
        ("no token", "hello".to_owned(), &["no Causeway token"]),
        ("newer", token.replacen("cwy1.", "cwy2.", 1), &["newer"]),
    ]
}

/// The token with the key of another broker as its only pin.
fn with_pin_of(token: &str, address: &str, other: &Broker) -> String {
    changed(token, |bytes| {
        // Version, mesh, authority, one broker: its address with its length, then its key.
        let key = 1 + 32 + 32 + 2 + 1 + address.len();
        let pin: PublicKey = other.key.parse().unwrap();
        bytes[key..key + 32].copy_from_slice(pin.as_bytes());
    })
}

#[test]
fn every_bad_token_is_refused_with_its_own_sentence_and_leaves_nothing() {
    let mut mesh = Mesh::at_rest("tokens").unwrap();
    let elsewhere = Mesh::at_rest("elsewhere").unwrap();
    let mut authority = Authority::of(&mesh).unwrap();
    let mut stranger = Authority::of(&elsewhere).unwrap();
    let foreign = once(&mut stranger);
    let good = once(&mut authority);
    authority.save(std::iter::once(&good.entry)).unwrap();
    let token = authority.token(&good, &[&mesh.brokers[0]]).unwrap();
    let address = mesh.brokers[0].address.to_string();
    let mut tokens = refused_at_once(&token);
    tokens.extend(refused_by_the_broker(&mut authority, &mesh.brokers[0]));
    let foreign = stranger.token(&foreign, &[&mesh.brokers[0]]).unwrap();
    tokens.push(("another mesh", foreign, &["another mesh"]));
    let pin = with_pin_of(&token, &address, &elsewhere.brokers[0]);
    tokens.push(("another pin", pin, &["pin"]));
    mesh.brokers[0].start().unwrap();
    for (what, token, words) in tokens {
        let said = mesh.join("a", &token).unwrap();
        eprintln!("{what}: {}", said.err.trim());
        said.assert_refused(words);
        assert_eq!(said.code, Some(1), "{what}");
        assert!(!mesh.node("a").join("node").exists(), "{what}");
        assert!(!mesh.node("a").join("node.joining").exists(), "{what}");
    }
}

#[test]
fn a_prefix_of_another_site_is_refused_with_the_name_of_that_site() {
    let mesh = Mesh::new("overlap").unwrap();
    mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    for prefix in ["10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/8"] {
        let said = command::run(mesh.token_command("berlin", prefix, &[]), None).unwrap();
        said.assert_refused(&["paris", "10.1.0.0/16"]);
        assert!(said.out.is_empty(), "{}", said.out);
    }
    for prefix in ["0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/8", "169.254.0.0/16"] {
        let said = command::run(mesh.token_command("berlin", prefix, &[]), None).unwrap();
        said.assert_refused(&[prefix]);
    }
    for site in ["Berlin", "-berlin", "ber_lin", ""] {
        let said = command::run(mesh.token_command(site, "10.2.0.0/16", &[]), None).unwrap();
        said.assert_refused(&["a-z"]);
        assert_eq!(said.code, Some(2), "{site}");
    }
    // None of this has hurt.
    mesh.token("berlin", "10.2.0.0/16", &[]).unwrap();
}

#[test]
fn a_broker_of_no_use_is_named_with_its_reason_for_every_address() {
    let mut mesh = Mesh::at_rest("nobody").unwrap();
    mesh.add_address("127.0.0.1:1");
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    let said = mesh.join("a", &token).unwrap();
    said.assert_refused(&[
        "127.0.0.1:1",
        &mesh.brokers[0].address.to_string(),
        "refused",
    ]);
}
