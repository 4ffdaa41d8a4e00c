//! Two brokers on one store in etcd.

use broker::directory::{StoreUrl, claim_store};
use proto::entry::Role;
use proto::key::SigningKey;
use proto::message::{Refusal, Reply, Request};
use tokio::task::JoinSet;

use crate::cast::{Actor, Authority, Host, Terms, Ticket, random};
use crate::client::Client;
use crate::support_etcd::Etcd;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_broker_takes_the_other_spreads_and_enforces() {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let url: StoreUrl = etcd.url("mesh").parse().unwrap();
    let store = claim_store(&url).unwrap();
    assert_eq!(claim_store(&url).unwrap(), store);
    let mut authority = Authority::new();
    let berlin = authority.grant(Terms {
        store,
        ..Terms::site("berlin")
    });
    let paris = authority.grant(Terms {
        store,
        ..Terms::site("paris")
    });
    let one = Host::start_sharing(&mut authority, &url);
    let other = Host::start_sharing(&mut authority, &url);
    let (mut actor, mut client) = Actor::join(&one, &berlin, "gate").await;
    let (mut far, mut watcher) = Actor::join(&other, &paris, "gate").await;
    assert_eq!(far.role, Role::Gateway);
    watcher.publish(far.member()).await.unwrap();
    watcher.watch(None, Vec::new()).await;
    let member = actor.member();
    client.publish(member.clone()).await.unwrap();
    while !watcher.push().await.members.contains(&member) {}

    // Connected there, so it lives here too.
    let list = watcher.call(Request::ListNodes { after: None }).await;
    let Ok(Reply::Nodes(nodes)) = list else {
        panic!("{list:?}");
    };
    assert_eq!(nodes.len(), 2);
    authority.revoke(actor.identity.public());
    other.push(&authority).await;
    client.wait_until_cut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_raced_for_at_two_brokers_goes_to_one() {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let url: StoreUrl = etcd.url("mesh").parse().unwrap();
    let store = claim_store(&url).unwrap();
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms {
        store,
        ..Terms::site("berlin")
    });
    let hosts = [
        Host::start_sharing(&mut authority, &url),
        Host::start_sharing(&mut authority, &url),
    ];
    hosts[0].push(&authority).await;
    let mut racers = JoinSet::new();
    for number in 0..40 {
        let host = &hosts[number % 2];
        let (address, pin, mesh) = (host.serving.listen, host.pin, host.mesh);
        let ticket = Ticket {
            entry: ticket.entry.clone(),
            join_key: SigningKey::from_seed(&ticket.join_key.seed()),
        };
        racers.spawn(async move {
            let identity = SigningKey::from_seed(&random());
            let mut client = Client::connect(address, pin, mesh).await;
            let done = client.enrol(&ticket, &identity).await;
            (identity.public(), done)
        });
    }
    let raced = racers.join_all().await;
    let winner = raced.iter().find(|(_, done)| done.is_ok()).unwrap().0;
    let used = Refusal::TokenUsed {
        uses: 1,
        holder: Some(*winner.as_bytes()),
    };
    let refused = raced.iter().filter_map(|(_, done)| done.as_ref().err());
    assert_eq!(refused.filter(|refusal| **refusal == used).count(), 39);
}
