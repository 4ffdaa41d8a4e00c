//! Records: whose they are, who has a name, how many a site may have.

use proto::enrolment::Enrolment;
use proto::entry::{Body, GrantRole, Role, Uses};
use proto::key::SigningKey;
use proto::message::{Refusal, Reply, Request};

use crate::cast::{Actor, Authority, Host, Terms, random};

#[tokio::test]
async fn a_record_is_taken_once_listed_and_never_replaced_by_an_older_one() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let (mut actor, mut client) = Actor::join(&host, &ticket, "gate").await;
    let (older, newer) = (actor.member(), actor.member());
    client.publish(newer.clone()).await.unwrap();
    client.publish(newer.clone()).await.unwrap();
    let refusal = client.publish(older).await;
    assert_eq!(refusal, Err(Refusal::OldSequence { latest: 2 }));
    let Ok(Reply::Nodes(nodes)) = client.call(Request::ListNodes { after: None }).await else {
        panic!("no list");
    };
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].member, newer);
    assert!(nodes[0].connected);
}

#[tokio::test]
async fn nobody_publishes_for_another_or_beyond_its_grant() {
    let mut authority = Authority::new();
    let one = authority.grant(Terms::site("berlin"));
    let other = authority.grant(Terms {
        role: GrantRole::Agent,
        ..Terms::site("paris")
    });
    let host = Host::start(&mut authority);
    let (mut berlin, mut client) = Actor::join(&host, &one, "gate").await;
    let (mut paris, mut agent) = Actor::join(&host, &other, "gate").await;
    let refusal = agent.publish(berlin.member()).await;
    assert_eq!(refusal, Err(Refusal::NotAllowed));
    assert_eq!(agent.publish(paris.member()).await, Err(Refusal::WrongRole));
    berlin.site = "paris";
    let refusal = client.publish(berlin.member()).await;
    assert!(matches!(refusal, Err(Refusal::BadRecord { .. })));
}

#[tokio::test]
async fn a_name_stays_with_who_lives_and_passes_when_it_says_goodbye() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms {
        uses: Uses::AtMost(2),
        ..Terms::site("berlin")
    });
    let host = Host::start(&mut authority);
    let (mut first, mut holder) = Actor::join(&host, &ticket, "gate").await;
    let (mut second, mut client) = Actor::join(&host, &ticket, "gate").await;
    holder.publish(first.member()).await.unwrap();
    let refusal = client.publish(second.member()).await;
    let expected = Refusal::NameTaken {
        holder: *first.identity.public().as_bytes(),
        heard_s: 0,
    };
    assert_eq!(refusal, Err(expected.clone()));

    // Gone, but not for long enough.
    drop(holder);
    assert!(matches!(
        client.publish(second.member()).await,
        Err(Refusal::NameTaken { .. })
    ));
    let mut holder = first.authenticate(&host).await;
    holder.publish(first.goodbye()).await.unwrap();
    client.publish(second.member()).await.unwrap();
}

#[tokio::test]
async fn a_revoked_node_holds_no_name() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms {
        uses: Uses::AtMost(2),
        ..Terms::site("berlin")
    });
    let host = Host::start(&mut authority);
    let (mut first, mut holder) = Actor::join(&host, &ticket, "gate").await;
    let (mut second, mut client) = Actor::join(&host, &ticket, "gate").await;
    holder.publish(first.member()).await.unwrap();
    authority.revoke(first.identity.public());
    host.push(&authority).await;
    client.publish(second.member()).await.unwrap();
}

#[tokio::test]
async fn a_site_has_sixteen_gateways_and_no_more() {
    let names: Vec<&'static str> = (0..17)
        .map(|number| &*format!("gate-{number}").leak())
        .collect();
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms {
        uses: Uses::Unlimited,
        ..Terms::site("berlin")
    });
    let host = Host::start(&mut authority);
    for name in &names[..16] {
        let (mut actor, mut client) = Actor::join(&host, &ticket, name).await;
        client.publish(actor.member()).await.unwrap();
    }
    let (mut actor, mut client) = Actor::join(&host, &ticket, names[16]).await;
    let refusal = client.publish(actor.member()).await;
    assert!(matches!(refusal, Err(Refusal::Quota { most: 16, .. })));
    actor.role = Role::Agent;
    client.publish(actor.member()).await.unwrap();
}

#[tokio::test]
async fn a_node_that_publishes_without_end_is_told_to_wait() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let (_, mut client) = Actor::join(&host, &ticket, "gate").await;
    let mut refusals = Vec::new();
    for _ in 0..40 {
        refusals.push(client.publish(vec![0; 8]).await.unwrap_err());
    }
    assert!(matches!(refusals[0], Refusal::BadRecord { .. }));
    assert!(refusals.contains(&Refusal::TooOften { retry_s: 1 }));
}

#[tokio::test]
async fn uses_are_listed_in_pages() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms {
        uses: Uses::AtMost(3),
        ..Terms::site("berlin")
    });
    let host = Host::start(&mut authority);
    for _ in 0..3 {
        let identity = SigningKey::from_seed(&random());
        host.connect()
            .await
            .enrol(&ticket, &identity)
            .await
            .unwrap();
    }
    let path = host.serving.socket.clone();
    let mut local = crate::client::Client::connect_local(&path, host.mesh).await;
    let Ok(Reply::Uses(uses)) = local.call(Request::ListUses { after: None }).await else {
        panic!("no list");
    };
    let numbers: Vec<u32> = uses.iter().map(|one| one.use_number).collect();
    assert_eq!(numbers, [0, 1, 2]);
    for one in &uses {
        let enrolment = Enrolment::read(&one.enrolment).unwrap();
        assert_eq!(enrolment.proof.identity.as_bytes(), &one.identity);
        assert_eq!(enrolment.use_number, one.use_number);
        let Body::Grant(grant) = &ticket.entry.entry().body else {
            panic!("not a grant");
        };
        enrolment.verify(grant).unwrap();
    }
    let after = Some((ticket.entry.hash().0, 1));
    let Ok(Reply::Uses(rest)) = local.call(Request::ListUses { after }).await else {
        panic!("no list");
    };
    assert_eq!(rest, uses[2..]);
}
