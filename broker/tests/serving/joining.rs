//! Who gets a use of a token, and what all others are told.

use proto::entry::{Body, Closing, StoreId, Uses};
use proto::key::{Hash, SigningKey};
use proto::message::{Refusal, Request};
use rustls::NamedGroup;
use tokio::task::JoinSet;

use crate::cast::{Actor, Authority, Host, Terms, now, random};
use crate::client::Client;

#[tokio::test]
async fn a_joiner_is_a_node_from_then_on_and_may_ask_again() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let (actor, mut client) = Actor::join(&host, &ticket, "gate").await;
    assert_eq!(client.group, Some(NamedGroup::X25519MLKEM768));
    assert!(client.call(Request::Ping).await.is_ok());

    // Crashed before it could store the answer: the same one comes again.
    let mut again = host.connect().await;
    let enrolment = again.enrol(&ticket, &actor.identity).await.unwrap();
    assert_eq!(enrolment, actor.enrolment);
    actor.authenticate(&host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_race_for_one_use_one_wins_and_the_others_are_told_who() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let mut racers = JoinSet::new();
    for _ in 0..100 {
        let (address, pin, mesh) = (host.serving.listen, host.pin, host.mesh);
        let join_key = SigningKey::from_seed(&ticket.join_key.seed());
        let ticket = crate::cast::Ticket {
            entry: ticket.entry.clone(),
            join_key,
        };
        racers.spawn(async move {
            let identity = SigningKey::from_seed(&random());
            let mut client = Client::connect(address, pin, mesh).await;
            let done = client.enrol(&ticket, &identity).await;
            (identity.public(), done)
        });
    }
    let raced = racers.join_all().await;
    let winners: Vec<_> = raced.iter().filter(|(_, done)| done.is_ok()).collect();
    assert_eq!(winners.len(), 1);
    let holder = Some(*winners[0].0.as_bytes());
    let used = Refusal::TokenUsed { uses: 1, holder };
    let refused = raced.iter().filter_map(|(_, done)| done.as_ref().err());
    assert_eq!(refused.filter(|refusal| **refusal == used).count(), 99);
}

#[tokio::test]
async fn a_token_counts_only_within_its_window_and_where_its_store_is() {
    let mut authority = Authority::new();
    let early = authority.grant(Terms {
        not_before: now() + 1000,
        ..Terms::site("early")
    });
    let late = authority.grant(Terms {
        not_after: now() - 10,
        ..Terms::site("late")
    });
    let elsewhere = authority.grant(Terms {
        store: StoreId([9; 16]),
        ..Terms::site("elsewhere")
    });
    let host = Host::start(&mut authority);
    let identity = SigningKey::from_seed(&random());
    let refusal = host.connect().await.enrol(&early, &identity).await;
    assert!(matches!(refusal, Err(Refusal::TokenNotYet { .. })));
    let refusal = host.connect().await.enrol(&late, &identity).await;
    assert!(matches!(refusal, Err(Refusal::TokenExpired { .. })));
    let refusal = host.connect().await.enrol(&elsewhere, &identity).await;
    assert_eq!(refusal, Err(Refusal::WrongStore { brokers: vec![] }));
}

#[tokio::test]
async fn a_grant_signed_while_the_broker_was_down_comes_with_the_joiner() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let unknown = authority.grant(Terms::site("berlin"));
    let beyond = authority.grant(Terms::site("paris"));
    let identity = SigningKey::from_seed(&random());
    let refusal = host.connect().await.enrol(&beyond, &identity).await;
    assert_eq!(refusal, Err(Refusal::GrantUnknown));
    assert!(
        host.connect()
            .await
            .enrol(&unknown, &identity)
            .await
            .is_ok()
    );
    assert!(host.connect().await.enrol(&beyond, &identity).await.is_ok());
}

#[tokio::test]
async fn closed_tokens_and_forged_proofs_are_told_apart() {
    let mut authority = Authority::new();
    let closed = authority.grant(Terms::site("berlin"));
    authority.sign(Body::Revocation {
        keys: Vec::new(),
        closings: vec![Closing {
            grant: closed.entry.hash(),
            stay: Vec::new(),
        }],
    });
    let open = authority.grant(Terms {
        uses: Uses::Unlimited,
        ..Terms::site("paris")
    });
    let host = Host::start(&mut authority);
    let identity = SigningKey::from_seed(&random());
    let refusal = host.connect().await.enrol(&closed, &identity).await;
    assert_eq!(refusal, Err(Refusal::TokenClosed));

    // A proof that somebody overheard, shown on another connection.
    let overheard = host.connect().await.proof(&open, &identity);
    let mut client = host.connect().await;
    let refusal = client.call(Request::Enrol(overheard)).await;
    assert_eq!(refusal, Err(Refusal::BadProof));
    client.wait_until_cut().await;
}

#[tokio::test]
async fn forgers_wait_and_honest_failures_do_not_count() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let identity = SigningKey::from_seed(&random());
    let mut refusals = Vec::new();
    for _ in 0..7 {
        let overheard = host.connect().await.proof(&ticket, &identity);
        let mut client = host.connect().await;
        refusals.push(client.call(Request::Enrol(overheard)).await);
    }
    assert_eq!(refusals[5], Err(Refusal::BadProof));
    assert!(matches!(refusals[6], Err(Refusal::TooOften { .. })));
}

#[tokio::test]
async fn another_meshs_caller_is_told_which_mesh_this_is() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let other = Hash([7; 32]);
    let mut client = Client::connect(host.serving.listen, host.pin, other).await;
    assert_eq!(client.welcome.mesh, host.mesh);
    let identity = SigningKey::from_seed(&random());
    let refusal = client.enrol(&ticket, &identity).await;
    let mesh = host.mesh.0;
    assert_eq!(refusal, Err(Refusal::WrongMesh { mesh }));
}
