//! Callers that mean harm, with no more than they can come by.

use std::time::{Duration, Instant};

use proto::entry::{Body, SignedEntry};
use proto::key::SigningKey;
use proto::ledger::{Ledger, recovery_hash};
use proto::message::{Refusal, Reply, Request};

use crate::cast::{Actor, Authority, Host, Terms, random};

/// A mesh of the stranger's own that ends with somebody else's key as its authority: anybody can
/// sign that, since a change of authority needs nothing of the next one but its public key.
fn mesh_that_adopts(authority: &Authority) -> Vec<SignedEntry> {
    let own = SigningKey::from_seed(&random());
    let recovery = SigningKey::from_seed(&random());
    let genesis = Ledger::genesis(1, own.public(), &recovery.public()).sign(&own);
    let mut ledger = Ledger::new(genesis.hash());
    ledger.insert(genesis.clone()).unwrap();
    let adopts = Body::Authority {
        recovery: recovery.public(),
        authority: authority.key.public(),
        next_recovery: recovery_hash(&recovery.public()),
    };
    let adopts = ledger.next(2, adopts).unwrap().sign(&recovery);
    vec![genesis, adopts]
}

#[tokio::test]
async fn nobody_can_give_a_waiting_broker_a_mesh_that_only_names_its_authority() {
    let mut authority = Authority::new();
    let host = Host::start_waiting(&authority);
    authority.name_broker(host.pin, "192.0.2.1:7800");
    let stranger = SigningKey::from_seed(&random());
    let mut client = host.connect().await;
    client.authenticate_authority(&stranger).await.unwrap();
    let refusal = client.put(&mesh_that_adopts(&authority)).await;
    assert!(matches!(refusal, Err(Refusal::BadLedger { .. })));
    // And it still takes its own.
    host.push(&authority).await;
    assert_eq!(host.connect().await.welcome.mesh, host.mesh);
}

#[tokio::test]
async fn a_stranger_cannot_stay_by_pinging() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let mut client = host.connect().await;
    let refusal = client.call(Request::Ping).await;
    assert_eq!(refusal, Err(Refusal::NotAllowed));
    client.wait_until_cut().await;
}

#[tokio::test]
async fn a_replaced_authority_that_is_still_connected_sees_nothing_more() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let mut former = host.connect().await;
    former.authenticate_authority(&authority.key).await.unwrap();
    let listed = former.call(Request::ListNodes { after: None }).await;
    assert_eq!(listed, Ok(Reply::Nodes(Vec::new())));
    let next = SigningKey::from_seed(&random());
    let entry = authority
        .next(Body::Authority {
            recovery: authority.recovery.public(),
            authority: next.public(),
            next_recovery: recovery_hash(&next.public()),
        })
        .sign(&authority.recovery);
    let mut client = host.connect().await;
    client.authenticate_authority(&next).await.unwrap();
    client.put(std::slice::from_ref(&entry)).await.unwrap();
    let refusal = former.call(Request::ListUses { after: None }).await;
    assert_eq!(refusal, Err(Refusal::NotAllowed));
    former.wait_until_cut().await;
}

/// Of what a stranger sends without a token, only what the authority signed is worth a copy of
/// the ledger; the answer is the same either way, so this is about the answer.
#[tokio::test]
async fn a_grant_that_somebody_made_up_behind_a_known_entry_is_unknown() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let mut forger = Authority {
        key: SigningKey::from_seed(&random()),
        recovery: SigningKey::from_seed(&random()),
        entries: authority.entries.clone(),
    };
    let ticket = forger.grant(Terms::site("berlin"));
    let mut client = host.connect().await;
    let identity = SigningKey::from_seed(&random());
    let refusal = client.enrol(&ticket, &identity).await;
    assert_eq!(refusal, Err(Refusal::GrantUnknown));
    assert_eq!(host.metric("ledger_entries").await, 2);
}

#[tokio::test]
async fn a_join_proof_seen_on_one_connection_is_worth_nothing_on_another() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let identity = SigningKey::from_seed(&random());
    let seen = host.connect().await.proof(&ticket, &identity);
    let mut client = host.connect().await;
    let refusal = client.call(Request::Enrol(seen)).await;
    assert_eq!(refusal, Err(Refusal::BadProof));
    // The use is still there.
    let joined = Actor::join(&host, &ticket, "gate");
    tokio::time::timeout(Duration::from_secs(10), joined)
        .await
        .unwrap();
}

/// What a stolen authority can do until it is replaced: the broker must still be able to take and
/// to spread the entry that replaces it.
#[tokio::test]
async fn a_fork_of_many_branches_leaves_the_broker_able_to_speak() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let mut client = host.connect().await;
    client.authenticate_authority(&authority.key).await.unwrap();
    let branches: Vec<SignedEntry> = (0..2200)
        .map(|issued| {
            let mut entry = authority.next(Body::SiteRevoked {
                site: "nowhere".parse().unwrap(),
            });
            entry.issued = issued;
            entry.sign(&authority.key)
        })
        .collect();
    for some in branches.chunks(400) {
        client.put(some).await.unwrap();
    }
    let mut entries = 0;
    let mut heads: Vec<[u8; 32]> = Vec::new();
    let begun = Instant::now();
    loop {
        let asked = heads.clone();
        let reply = client.call(Request::Ledger { heads: asked }).await;
        let Ok(Reply::Ledger {
            entries: some,
            more,
            ..
        }) = reply
        else {
            panic!("{reply:?}");
        };
        entries += some.len();
        let hashes = some
            .iter()
            .map(|bytes| SignedEntry::read(bytes).unwrap().hash().0);
        heads.extend(hashes);
        if entries >= 2202 && !more {
            break;
        }
        if !more {
            // What was taken is durable; a broker with little time shows it later.
            assert!(begun.elapsed() < Duration::from_secs(120), "{entries}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert_eq!(entries, 2202);
}
