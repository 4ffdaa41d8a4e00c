//! What the ledger says takes effect at once, whoever brings it.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use proto::entry::Body;
use proto::key::SigningKey;
use proto::ledger::recovery_hash;
use proto::message::{Refusal, Reply, Request};
use proto::reflect;

use crate::cast::{Actor, Authority, Host, Terms, random};
use crate::client::Client;

#[tokio::test]
async fn a_revoked_node_is_cut_off_at_once_and_its_reflector_with_it() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let (actor, mut client) = Actor::join(&host, &ticket, "gate").await;
    client.watch(None, Vec::new()).await;
    let Ok(Reply::Reflector(given)) = client.call(Request::Reflect).await else {
        panic!("no reflector");
    };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let ask = || {
        let question = reflect::Question {
            session: given.session,
            nonce: 5,
        };
        let question = reflect::question(question, &given.key);
        socket
            .send_to(&question, (host.serving.listen.ip(), given.port))
            .unwrap();
        let mut answer = [0; 128];
        socket
            .recv(&mut answer)
            .map(|length| answer[..length].to_vec())
    };
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let seen = reflect::read_answer(&ask().unwrap(), &given.key).unwrap();
    assert_eq!(seen.seen_as, socket.local_addr().unwrap());

    authority.revoke(actor.identity.public());
    host.push(&authority).await;
    client.wait_until_cut().await;
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(ask().is_err());
    let mut client = host.connect().await;
    let refusal = client.authenticate(&actor.identity, &actor.enrolment).await;
    assert_eq!(refusal, Err(Refusal::Revoked));
}

#[tokio::test]
async fn only_the_authority_in_force_may_act_as_it() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let stranger = SigningKey::from_seed(&random());
    let mut client = host.connect().await;
    // It may bring what would make it known, and see nothing.
    client.authenticate_authority(&stranger).await.unwrap();
    let refusal = client.call(Request::Ledger { heads: Vec::new() }).await;
    assert_eq!(refusal, Err(Refusal::NotAllowed));
    let mut client = host.connect().await;
    client.authenticate_authority(&authority.key).await.unwrap();
    let member = Vec::new();
    let refusal = client.call(Request::Publish { member }).await;
    assert_eq!(refusal, Err(Refusal::NotAllowed));
}

#[tokio::test]
async fn an_authority_that_a_recovery_put_in_force_brings_the_word_of_it_itself() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let next = SigningKey::from_seed(&random());
    let next_recovery = SigningKey::from_seed(&random()).public();
    let entry = authority
        .next(Body::Authority {
            recovery: authority.recovery.public(),
            authority: next.public(),
            next_recovery: recovery_hash(&next_recovery),
        })
        .sign(&authority.recovery);
    let mut client = host.connect().await;
    client.authenticate_authority(&next).await.unwrap();
    client.put(std::slice::from_ref(&entry)).await.unwrap();
    let reply = client.call(Request::Ledger { heads: Vec::new() }).await;
    let Ok(Reply::Ledger { heads, more, .. }) = reply else {
        panic!("{reply:?}");
    };
    assert_eq!((heads, more), (vec![entry.hash().0], false));
    let mut former = host.connect().await;
    let refusal = former.authenticate_authority(&authority.key).await;
    assert_eq!(refusal, Err(Refusal::NotAllowed));
}

#[tokio::test]
async fn a_broker_that_lags_takes_the_ledger_from_the_node_it_does_not_know() {
    let mut authority = Authority::new();
    let mut ahead = Host::start(&mut authority);
    let mut behind = Host::start(&mut authority);
    ahead.push(&authority).await;
    let ticket = authority.grant(Terms::site("berlin"));
    ahead.push(&authority).await;
    let (actor, _) = Actor::join(&ahead, &ticket, "gate").await;
    let mut client = behind.connect().await;
    let refusal = client.authenticate(&actor.identity, &actor.enrolment).await;
    assert_eq!(refusal, Err(Refusal::GrantUnknown));
    client.put(&authority.entries).await.unwrap();
    client
        .authenticate(&actor.identity, &actor.enrolment)
        .await
        .unwrap();
    ahead.stop().unwrap();
    behind.stop().unwrap();
}

#[tokio::test]
async fn forged_and_orphaned_entries_are_refused_and_change_nothing() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let mut client = host.connect().await;
    client.authenticate_authority(&authority.key).await.unwrap();
    let forger = SigningKey::from_seed(&random());
    let node = SigningKey::from_seed(&random()).public();
    let body = Body::Revocation {
        keys: vec![node],
        closings: Vec::new(),
    };
    let forged = authority.next(body).sign(&forger);
    let refusal = client.put(&[forged]).await;
    assert!(matches!(refusal, Err(Refusal::BadLedger { .. })));
    authority.revoke(node);
    let orphan = authority.revoke(node);
    let refusal = client.put(&[orphan]).await;
    assert!(matches!(refusal, Err(Refusal::BadLedger { .. })));
    assert_eq!(host.metric("ledger_entries").await, 2);
}

#[tokio::test]
async fn a_waiting_broker_takes_its_ledger_from_its_authority_only() {
    let mut authority = Authority::new();
    let mut host = Host::start_waiting(&authority);
    authority.name_broker(host.pin, "192.0.2.1:7800");
    let mut client = host.connect().await;
    assert_eq!(client.welcome.mesh.0, [0; 32]);

    let mut other = Authority::new();
    other.name_broker(host.pin, "192.0.2.1:7800");
    client.authenticate_authority(&other.key).await.unwrap();
    let refusal = client.put(&other.entries).await;
    assert!(matches!(refusal, Err(Refusal::BadLedger { .. })));

    host.push(&authority).await;
    assert_eq!(host.connect().await.welcome.mesh, host.mesh);
    host.restart();
    assert_eq!(host.connect().await.welcome.mesh, host.mesh);
    let ticket = authority.grant(Terms::site("berlin"));
    Actor::join(&host, &ticket, "gate").await;
}

#[tokio::test]
async fn commands_on_the_host_need_no_key() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let socket = std::fs::metadata(&host.serving.socket).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let mut local = Client::connect_local(&host.serving.socket, host.mesh).await;
    let ticket = authority.grant(Terms::site("berlin"));
    local
        .put(std::slice::from_ref(&ticket.entry))
        .await
        .unwrap();
    let heads = Vec::new();
    let Ok(Reply::Ledger { entries, .. }) = local.call(Request::Ledger { heads }).await else {
        panic!("no ledger");
    };
    assert_eq!(entries.len(), authority.entries.len());
    let refusal = local.call(Request::Reflect).await;
    assert_eq!(refusal, Err(Refusal::NotAllowed));
}
