//! What a node does once it has joined, and tokens that were tampered with.

use std::fs;
use std::path::Path;

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use node::session::Session;
use node::state::StateDir;
use proto::entry::Role;
use proto::key::SigningKey;
use proto::message::{Refusal, Request};
use proto::record::{Capabilities, Member, NodeState, Presence, Record};
use proto::token::{PREFIX, Token, TokenBroker};
use sha2::{Digest, Sha256};

/// Publishes a record of the node in this directory, as its gateway or agent would.
pub(crate) fn publish(state: &Path, role: Role) -> Result<(), String> {
    let node = StateDir::open(state).unwrap().joined().unwrap();
    let membership = &node.membership;
    let broker = &membership.brokers[0];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let connect = Session::connect(&broker.address, broker.key, membership.mesh);
        let (mut session, _) = connect.await.map_err(|failure| failure.to_string())?;
        session
            .authenticate_node(&node.identity, membership.enrolment())
            .await
            .map_err(|failure| failure.to_string())?;
        let mut sequence = 1;
        loop {
            let record = record(&node, role, sequence);
            let member = Member {
                enrolment: membership.enrolment().to_vec(),
                record: record.sign(&node.identity).bytes().to_vec(),
            };
            let request = Request::Publish {
                member: member.write(),
            };
            match session.call(request).await {
                Ok(_) => return Ok(()),
                Err(failure) => match failure.refusal() {
                    Some(Refusal::OldSequence { latest }) => sequence = latest + 1,
                    Some(_) | None => return Err(failure.to_string()),
                },
            }
        }
    })
}

fn record(node: &node::state::LocalNode, role: Role, sequence: u64) -> Record {
    Record {
        mesh: node.membership.mesh,
        site: node.membership.site().clone(),
        node: node.membership.node.clone(),
        role,
        identity: node.identity_key(),
        sequence,
        issued: 0,
        state: NodeState::Present(Presence {
            wireguard: node.wireguard.public(),
            next_wireguard: None,
            candidates: vec!["192.0.2.1:51820".parse().unwrap()],
            lan_address: None,
            region: String::new(),
            zone: String::new(),
            capabilities: Capabilities::default(),
        }),
    }
}

/// The same token at another broker.
pub(crate) fn with_broker(token: &str, address: &str, key: &str) -> String {
    let token = Token::decode(token).unwrap();
    let brokers = vec![TokenBroker {
        address: address.to_owned(),
        key: key.parse().unwrap(),
    }];
    let seed = token.join_key().seed();
    let grant = token.grant_entry().clone();
    let token = Token::new(token.mesh, token.authority, brokers, grant, seed).unwrap();
    token.encode().to_string()
}

/// The same token for a mesh that is not the broker's.
pub(crate) fn with_other_mesh(token: &str) -> String {
    changed(token, |blob| blob[1] ^= 1)
}

/// A token whose grant nobody signed.
pub(crate) fn forged(token: &str) -> String {
    changed(token, |blob| {
        // The last byte of the grant's signature stands before the seed.
        let at = blob.len() - 33;
        blob[at] ^= 1;
    })
}

/// With a checksum that fits again.
fn changed(token: &str, change: impl FnOnce(&mut [u8])) -> String {
    let encoded = token.trim().strip_prefix(PREFIX).unwrap();
    let mut bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).unwrap();
    bytes.truncate(bytes.len() - 4);
    change(&mut bytes);
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum[..4]);
    format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
}

/// All secrets of these directories and this token, in every form one might print them.
pub(crate) fn secrets(token: &str, broker: &Path, node: &Path) -> Vec<String> {
    let mut found = vec![token.trim().to_owned()];
    let mut add = |seed: &[u8]| {
        found.extend([
            BASE64.encode(seed),
            BASE64URL_NOPAD.encode(seed),
            HEXLOWER.encode(seed),
        ]);
    };
    let join_key: SigningKey = Token::decode(token).unwrap().join_key();
    add(&*join_key.seed());
    for path in [
        broker.join("authority/authority.key"),
        broker.join("broker/broker.key"),
        node.join("node/identity.key"),
        node.join("node/wireguard.key"),
    ] {
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().last().unwrap().trim();
        let seed = BASE64URL_NOPAD
            .decode(line.as_bytes())
            .or_else(|_| BASE64.decode(line.as_bytes()))
            .unwrap();
        assert_eq!(seed.len(), 32);
        add(&seed);
    }
    found
}

/// A directory with its modes.
pub(crate) fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status();
    assert!(done.unwrap().success());
}
