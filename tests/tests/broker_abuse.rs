//! Callers that say what nobody should: the broker ends the conversation, and serves the others.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use proto::codec::encode;
use proto::frame::MAX_FRAME;
use proto::hello::{Hello, MAX_HELLO, Versions};
use proto::key::{Hash, SigningKey};
use proto::message::{Call, Refusal, Reply, Request};
use tests::broker::cast::{Actor, Authority, random};
use tests::broker::client::{Client, Entrance, Target, runtime};
use tests::broker::{Mesh, look};

/// The deadline for a first message is 5 s.
const CUT_WITHIN: Duration = Duration::from_secs(10);

struct Scene {
    mesh: Mesh,
    target: Target,
    actor: Actor,
}

impl Scene {
    fn new() -> Scene {
        let mesh = Mesh::new("abuse").unwrap();
        let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
        mesh.join("a", &token).unwrap().expect_success().unwrap();
        let authority = Authority::of(&mesh).unwrap();
        Scene {
            target: authority.target(&mesh.brokers[0]).unwrap(),
            actor: Actor::joined(&mesh.node("a")).unwrap(),
            mesh,
        }
    }

    async fn enter(&self) -> Box<Client> {
        match self.target.enter(None, &self.actor).await.unwrap() {
            Entrance::In(client) => client,
            Entrance::Refused(refusal) => panic!("{refusal:?}"),
        }
    }

    /// TLS is done, nothing said, then these bytes.
    async fn says_first(&self, bytes: &[u8]) -> Client {
        let mut client = self.target.shake_hands(None).await.unwrap();
        // It may be closed before all is written.
        let _ = client.send_raw(bytes).await;
        client
    }

    fn is_well(&self) {
        let broker = &self.mesh.brokers[0];
        assert!(broker.is_running(), "{}", broker.log());
        assert!(look::healthy(broker.http));
        assert!(!broker.log().contains("panicked"), "{}", broker.log());
    }
}

#[track_caller]
fn assert_soon(what: &str, begin: Instant) {
    let took = begin.elapsed();
    assert!(took <= CUT_WITHIN, "{what}: cut only after {took:?}");
}

fn framed(length: u32, content: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], content].concat()
}

/// What may come first and is no hello.
fn bad_beginnings() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Hello {
        versions: Versions { least: 9, most: 9 },
        mesh: Hash([7; 32]),
    };
    let later = hello.write();
    let length = u32::try_from(later.len()).unwrap();
    let long = u32::try_from(MAX_HELLO + 1).unwrap();
    vec![
        ("nothing", Vec::new()),
        ("an empty frame", framed(0, &[])),
        ("a frame without end", framed(u32::MAX, b"cwy")),
        ("a long hello", framed(long, &[0; MAX_HELLO + 1])),
        ("a hello cut off", framed(40, &later[..20])),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("foreign magic", framed(length, &vec![1; later.len()])),
        ("no common version", framed(length, &later)),
    ]
}

#[test]
fn whoever_begins_badly_is_cut_off_in_time() {
    let scene = Scene::new();
    runtime().unwrap().block_on(async {
        for (what, bytes) in bad_beginnings() {
            let begin = Instant::now();
            let mut client = scene.says_first(&bytes).await;
            client.wait_until_cut().await.unwrap();
            assert_soon(what, begin);
        }
        scene.enter().await;
    });
    scene.is_well();
}

#[test]
fn whoever_goes_on_badly_is_cut_off_and_nobody_else_is() {
    let scene = Scene::new();
    runtime().unwrap().block_on(async {
        let mut witness = scene.enter().await;
        let too_long = u32::try_from(MAX_FRAME + 1).unwrap();
        let calls = [
            ("a frame that is too long", framed(too_long, &[0; 64])),
            ("no message", framed(5, &[0xff; 5])),
            ("an unknown request", framed(2, &[1, 200])),
            ("more than a message", {
                let call = Call {
                    number: 1,
                    request: Request::Ping,
                };
                let mut content = encode(&call).unwrap();
                content.push(0);
                framed(u32::try_from(content.len()).unwrap(), &content)
            }),
        ];
        for (what, bytes) in calls {
            let begin = Instant::now();
            let mut client = scene.enter().await;
            let _ = client.send_raw(&bytes).await;
            client.wait_until_cut().await.unwrap();
            assert_soon(what, begin);
            let reply = witness.call(Request::Ping).await.unwrap();
            assert_eq!(reply, Reply::Pong, "{what}");
        }
    });
    scene.is_well();
}

/// Refused or cut off, but never done.
#[test]
fn nothing_is_done_for_whoever_has_not_said_who_they_are() {
    let mut scene = Scene::new();
    let member = scene.actor.next_member("zone");
    let requests = [
        Request::Publish { member },
        Request::Watch {
            resume: None,
            heads: Vec::new(),
        },
        Request::Ledger { heads: Vec::new() },
        Request::PutLedger {
            entries: Vec::new(),
        },
        Request::Reflect,
        Request::ListNodes { after: None },
        Request::ListUses { after: None },
    ];
    runtime().unwrap().block_on(async {
        for request in requests {
            let mut client = scene.target.connect(None).await.unwrap();
            let outcome = client.call(request.clone()).await;
            if let Ok(reply) = outcome {
                assert!(matches!(reply, Reply::Refused(_)), "{request:?}: {reply:?}");
            }
        }
        // And nothing for whoever only says so.
        let mut client = scene.target.connect(None).await.unwrap();
        let stranger = SigningKey::from_seed(&random());
        let reply = client
            .authenticate(&stranger, &scene.actor.enrolment)
            .await
            .unwrap();
        assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
        // A key that the broker may yet hear of may hand it a ledger that proves so, no more.
        let mut client = scene.target.connect(None).await.unwrap();
        client.authenticate_authority(&stranger).await.unwrap();
        for request in [
            Request::Ledger { heads: Vec::new() },
            Request::ListNodes { after: None },
            Request::ListUses { after: None },
        ] {
            let reply = client.call(request.clone()).await.unwrap();
            assert!(matches!(reply, Reply::Refused(_)), "{request:?}: {reply:?}");
        }
    });
    scene.is_well();
}

#[test]
fn a_node_publishes_for_itself_alone_and_never_goes_back() {
    let mut scene = Scene::new();
    let token = scene.mesh.token("berlin", "10.2.0.0/16", &[]).unwrap();
    let said = scene.mesh.join("b", &token).unwrap();
    said.expect_success().unwrap();
    let mut other = Actor::joined(&scene.mesh.node("b")).unwrap();
    runtime().unwrap().block_on(async {
        let mut client = scene.enter().await;
        let member = other.next_member("zone");
        let reply = client.call(Request::Publish { member }).await.unwrap();
        assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
        let mut client = scene.enter().await;
        let early = scene.actor.next_member("early");
        assert_eq!(client.publish(&mut scene.actor).await.unwrap(), Ok(()));
        let request = Request::Publish { member: early };
        let reply = client.call(request).await.unwrap();
        let old = matches!(reply, Reply::Refused(Refusal::OldSequence { latest: 2 }));
        assert!(old, "{reply:?}");
    });
    scene.is_well();
}
