//! What is a token, and what each kind of text that is none is told.

use super::*;
use crate::entry::{Body, Entry, GrantRole, StoreId, Uses};
use crate::key::Hash;

const SEED_BYTES: [u8; 32] = [0xa7; 32];

fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32])
}

fn grant_entry(join_key: PublicKey) -> Entry {
    Entry {
        number: 2,
        previous: Hash([3; 32]),
        issued: 1,
        body: Body::Grant(Grant {
            site: "paris".parse().unwrap(),
            prefixes: vec!["10.1.0.0/16".parse().unwrap()],
            service_prefixes: vec![],
            role: GrantRole::Any,
            not_before: 1,
            not_after: 2,
            uses: Uses::AtMost(1),
            join_key,
            store: StoreId([4; 16]),
        }),
    }
}

fn brokers(count: usize) -> Vec<TokenBroker> {
    (0..count)
        .map(|number| TokenBroker {
            address: format!("b{number}.example:7800"),
            key: key(9).public(),
        })
        .collect()
}

fn made(
    entry: SignedEntry,
    brokers: Vec<TokenBroker>,
    seed: [u8; 32],
) -> Result<Token, TokenError> {
    Token::new(
        Hash([5; 32]),
        key(1).public(),
        brokers,
        entry,
        Zeroizing::new(seed),
    )
}

fn token() -> Token {
    let join_key = SigningKey::from_seed(&SEED_BYTES).public();
    made(grant_entry(join_key).sign(&key(1)), brokers(2), SEED_BYTES).unwrap()
}

/// The same blob with a checksum that holds, as a forger would make it.
fn with_checksum(mut blob: Vec<u8>) -> String {
    let sum = checksum(&blob);
    blob.extend_from_slice(&sum);
    format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&blob))
}

fn blob_of(line: &str) -> Vec<u8> {
    let mut bytes = BASE64URL_NOPAD
        .decode(&line.as_bytes()[PREFIX.len()..])
        .unwrap();
    bytes.truncate(bytes.len() - CHECKSUM);
    bytes
}

#[test]
fn a_token_is_one_line_that_reads_back() {
    let line = token().encode();
    assert!(line.starts_with("cwy1."));
    assert!(!line.contains(char::is_whitespace));
    let read = Token::decode(&line).unwrap();
    assert_eq!(read.mesh, token().mesh);
    assert_eq!(read.authority, token().authority);
    assert_eq!(read.brokers, token().brokers);
    assert_eq!(read.grant_entry(), token().grant_entry());
    assert_eq!(read.join_key().public(), token().join_key().public());
    assert_eq!(read.encode(), line);
}

#[test]
fn white_space_that_a_mail_put_in_does_no_harm() {
    let line = token().encode();
    let folded: String = line
        .as_bytes()
        .chunks(60)
        .map(|part| format!("  {}\r\n", std::str::from_utf8(part).unwrap()))
        .collect();
    assert_eq!(Token::decode(&folded).unwrap().encode(), line);
}

#[test]
fn a_token_cut_anywhere_is_named_as_cut() {
    let line = token().encode();
    for length in PREFIX.len()..line.len() {
        assert_eq!(
            Token::decode(&line[..length]).unwrap_err(),
            TokenError::Damaged,
            "{length}"
        );
    }
    for length in 0..PREFIX.len() {
        assert_eq!(
            Token::decode(&line[..length]).unwrap_err(),
            TokenError::NoToken
        );
    }
}

#[test]
fn a_token_with_any_bit_flipped_is_refused() {
    let line = token().encode();
    let mut flipped = 0;
    for bit in 0..line.len() * 8 {
        let mut changed = line.as_bytes().to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        let Ok(changed) = String::from_utf8(changed) else {
            continue;
        };
        Token::decode(&changed).unwrap_err();
        flipped += 1;
    }
    assert!(flipped >= line.len() * 7);
}

/// The checksum is against damage, not against forgers: what is signed must hold without it.
#[test]
fn a_grant_or_seed_with_any_bit_flipped_is_refused_though_the_checksum_holds() {
    let whole = token();
    let blob = blob_of(&whole.encode());
    let grant = whole.grant_entry().bytes();
    let start = blob
        .windows(grant.len())
        .position(|window| window == grant)
        .unwrap();
    for bit in start * 8..blob.len() * 8 {
        let mut changed = blob.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let refused = Token::decode(&with_checksum(changed)).unwrap_err();
        assert_ne!(refused, TokenError::Damaged, "the checksum holds");
    }
    Token::decode(&with_checksum(blob)).unwrap();
}

#[test]
fn a_token_of_another_authority_is_called_forged() {
    let join_key = SigningKey::from_seed(&SEED_BYTES).public();
    let entry = grant_entry(join_key).sign(&key(2));
    assert_eq!(
        made(entry, brokers(1), SEED_BYTES).unwrap_err(),
        TokenError::Forged
    );
}

#[test]
fn a_token_with_the_secret_of_another_grant_is_called_forged() {
    let entry = grant_entry(key(8).public()).sign(&key(1));
    assert_eq!(
        made(entry, brokers(1), SEED_BYTES).unwrap_err(),
        TokenError::Seed
    );
}

#[test]
fn a_token_that_nobody_could_read_is_not_made() {
    let join_key = SigningKey::from_seed(&SEED_BYTES).public();
    let entry = grant_entry(join_key).sign(&key(1));
    for brokers in [
        brokers(0),
        brokers(MAX_BROKERS + 1),
        vec![TokenBroker {
            address: "no-port".to_owned(),
            key: key(9).public(),
        }],
    ] {
        made(entry.clone(), brokers, SEED_BYTES).unwrap_err();
    }
    made(entry, brokers(MAX_BROKERS), SEED_BYTES).unwrap();
}

#[test]
fn an_entry_that_is_no_grant_makes_no_token() {
    let mut entry = grant_entry(key(8).public());
    entry.body = Body::SiteRevoked {
        site: "paris".parse().unwrap(),
    };
    made(entry.sign(&key(1)), brokers(1), SEED_BYTES).unwrap_err();
}

#[test]
fn other_text_a_newer_token_and_a_whole_file_each_get_their_own_answer() {
    for text in ["", "ssh-ed25519 AAAA", "cwy.", "CWY1.AAAA", "cwyx.AAAA"] {
        assert_eq!(
            Token::decode(text).unwrap_err(),
            TokenError::NoToken,
            "{text}"
        );
    }
    assert_eq!(Token::decode("cwy2.AAAA").unwrap_err(), TokenError::Newer);
    let mut newer = blob_of(&token().encode());
    newer[0] = 2;
    assert_eq!(
        Token::decode(&with_checksum(newer)).unwrap_err(),
        TokenError::Newer
    );
    Token::decode(&"a".repeat(1 << 20)).unwrap_err();
    Token::decode(&format!("cwy1.{}", "A".repeat(40_000))).unwrap_err();
    // Text that is no ASCII must not be cut inside a character.
    Token::decode("cwy1.\u{fc}\u{2028}").unwrap_err();
}

#[test]
fn two_tokens_in_one_paste_are_refused() {
    let line = token().encode();
    Token::decode(&format!("{}\n{}", *line, *line)).unwrap_err();
}

#[test]
fn neither_debug_nor_an_error_shows_the_secret() {
    let token = token();
    let line = token.encode();
    let shown = format!("{token:?}");
    assert_eq!(shown, "Token for site paris");
    let half = &line[..line.len() - 10];
    let refused = Token::decode(half).unwrap_err();
    for text in [refused.to_string(), format!("{refused:?}")] {
        assert!(!text.contains(&line[10..30]), "{text}");
    }
}
