//! Watches: what is seen, what is sent again, and that nobody waits for the slow.

use std::time::{Duration, Instant};

use proto::entry::{Body, Broker, GrantRole, Role};
use proto::key::SigningKey;
use proto::message::{Reply, Request};
use tokio::net::TcpSocket;

use crate::cast::{Actor, Authority, Host, STORE, Terms, random};
use crate::client::{Client, get};

#[tokio::test]
async fn a_watcher_gets_everything_then_each_change_then_only_what_it_missed() {
    let mut authority = Authority::new();
    let one = authority.grant(Terms::site("berlin"));
    let other = authority.grant(Terms::site("paris"));
    let host = Host::start(&mut authority);
    let (mut berlin, mut watcher) = Actor::join(&host, &one, "gate").await;
    let (mut paris, mut client) = Actor::join(&host, &other, "gate").await;
    let own = berlin.member();
    watcher.publish(own.clone()).await.unwrap();
    let all = watcher.watch(None, Vec::new()).await;
    assert!(all.reset);
    assert_eq!(all.entries.len(), authority.entries.len());
    assert_eq!(all.members, [own]);

    let first = paris.member();
    client.publish(first.clone()).await.unwrap();
    let change = watcher.caught_up().await;
    assert!(!change.reset && change.entries.is_empty());
    assert_eq!(change.members, [first]);

    drop(watcher);
    let second = paris.member();
    client.publish(second.clone()).await.unwrap();
    let third = authority.grant(Terms::site("rome"));
    host.push(&authority).await;
    let mut watcher = berlin.authenticate(&host).await;
    let heads = vec![authority.entries[authority.entries.len() - 2].hash().0];
    let missed = watcher.watch(Some(change.position), heads).await;
    assert!(!missed.reset);
    assert_eq!(missed.entries, [third.entry.bytes()]);
    assert_eq!(missed.members, [second]);
}

#[tokio::test]
async fn who_resumes_from_nowhere_known_is_sent_everything() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let (_, mut watcher) = Actor::join(&host, &ticket, "gate").await;
    let mut position = watcher.watch(None, Vec::new()).await.position;
    position.revision += 1000;
    assert!(watcher.watch(Some(position), Vec::new()).await.reset);
    position.epoch = [1; 16];
    assert!(watcher.watch(Some(position), Vec::new()).await.reset);
}

#[tokio::test]
async fn a_position_outlives_a_restart_of_the_broker() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let mut host = Host::start(&mut authority);
    let (mut actor, mut watcher) = Actor::join(&host, &ticket, "gate").await;
    watcher.publish(actor.member()).await.unwrap();
    let position = watcher.watch(None, Vec::new()).await.position;
    host.restart();
    let mut watcher = actor.authenticate(&host).await;
    let missed = watcher.watch(Some(position), Vec::new()).await;
    assert!(!missed.reset && missed.members.is_empty());
}

#[tokio::test]
async fn gateways_see_all_gateways_and_agents_their_own_site() {
    let mut authority = Authority::new();
    let berlin = authority.grant(Terms {
        uses: proto::entry::Uses::AtMost(2),
        ..Terms::site("berlin")
    });
    let paris = authority.grant(Terms {
        uses: proto::entry::Uses::AtMost(2),
        ..Terms::site("paris")
    });
    let host = Host::start(&mut authority);
    let mut clients = Vec::new();
    for (ticket, node, role) in [
        (&berlin, "gate", Role::Gateway),
        (&berlin, "worker", Role::Agent),
        (&paris, "gate", Role::Gateway),
        (&paris, "worker", Role::Agent),
    ] {
        let (mut actor, mut client) = Actor::join(&host, ticket, node).await;
        actor.role = role;
        let member = actor.member();
        client.publish(member.clone()).await.unwrap();
        clients.push((client, member));
    }
    let members: Vec<Vec<u8>> = clients.iter().map(|(_, member)| member.clone()).collect();
    for (at, sees) in [
        (0, vec![0, 1, 2]),
        (1, vec![0, 1]),
        (2, vec![0, 2, 3]),
        (3, vec![2, 3]),
    ] {
        let seen = clients[at].0.watch(None, Vec::new()).await.members;
        let expected: Vec<Vec<u8>> = sees.iter().map(|at| members[*at].clone()).collect();
        assert_eq!(seen, expected, "watcher {at}");
    }
}

#[tokio::test]
async fn a_node_that_turns_out_to_be_a_gateway_is_shown_the_rest() {
    let mut authority = Authority::new();
    let berlin = authority.grant(Terms {
        role: GrantRole::Any,
        ..Terms::site("berlin")
    });
    let paris = authority.grant(Terms::site("paris"));
    let host = Host::start(&mut authority);
    let (mut other, mut client) = Actor::join(&host, &paris, "gate").await;
    client.publish(other.member()).await.unwrap();
    let (mut actor, mut watcher) = Actor::join(&host, &berlin, "gate").await;
    assert!(watcher.watch(None, Vec::new()).await.members.is_empty());
    watcher.publish(actor.member()).await.unwrap();
    let all = watcher.caught_up().await;
    assert!(all.reset);
    assert_eq!(all.members.len(), 2);
}

/// Entries of two kilobytes that mean nothing to anybody.
fn bulk(authority: &mut Authority, count: usize) {
    let key = SigningKey::from_seed(&random()).public();
    for number in 0..count {
        let address = format!("{:0>240}:{}", "a", 1000 + number);
        authority.sign(Body::Broker(Broker {
            key,
            store: STORE,
            addresses: vec![address; 8],
        }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_is_dropped_and_nobody_waits_for_it() {
    let mut authority = Authority::new();
    bulk(&mut authority, 600);
    let tickets = [
        authority.grant(Terms::site("slow")),
        authority.grant(Terms::site("quick")),
        authority.grant(Terms::site("busy")),
    ];
    let host = Host::start(&mut authority);
    let (slow, _) = Actor::join(&host, &tickets[0], "gate").await;
    let (mut reader, mut quick) = Actor::join(&host, &tickets[1], "gate").await;
    quick.publish(reader.member()).await.unwrap();
    let (mut busy, mut client) = Actor::join(&host, &tickets[2], "gate").await;
    client.publish(busy.member()).await.unwrap();

    // Asks for everything and reads nothing.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(host.serving.listen).await.unwrap();
    let mut stuck = Client::connect_on(stream, host.pin, host.mesh)
        .await
        .unwrap();
    stuck
        .authenticate(&slow.identity, &slow.enrolment)
        .await
        .unwrap();
    let (resume, heads) = (None, Vec::new());
    let reply = stuck.call(Request::Watch { resume, heads }).await;
    assert_eq!(reply, Ok(Reply::Watching));

    quick.watch(None, Vec::new()).await;
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let dropped = r#"closed_total{reason="slow"}"#;
    while host.metric(dropped).await == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "not dropped");
        let member = busy.member();
        client.publish(member.clone()).await.unwrap();
        let sent = Instant::now();
        while !quick.push().await.members.contains(&member) {}
        slowest = slowest.max(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");

    // It comes back and has what it missed.
    drop(stuck);
    let mut back = slow.authenticate(&host).await;
    let all = back.watch(None, Vec::new()).await;
    assert_eq!(all.entries.len(), authority.entries.len());
    assert!(
        get(host.serving.http.unwrap(), "/healthz")
            .await
            .ends_with("ok\n")
    );
}
