//! The relay, over UDP and over the connection.

use std::net::UdpSocket;
use std::time::Duration;

use proto::entry::{GrantRole, Uses};
use proto::key::PublicKey;
use proto::message::{Answer, Refusal, Relay};
use proto::relay::{self, Bind, FROM_RELAY, Key, MAX_DATAGRAM, TO_RELAY};

use crate::cast::{Actor, Authority, Host, Terms};
use crate::client::Client;

/// A gateway that speaks to the relay by UDP from a socket of its own.
struct Gateway {
    actor: Actor,
    client: Client,
    relay: Relay,
    key: Key,
    socket: UdpSocket,
}

impl Gateway {
    async fn new(
        host: &Host,
        (actor, mut client): (Actor, Client),
        wants: &[(u32, PublicKey)],
    ) -> Gateway {
        let relay = client.relay(wants).await.unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .connect((host.serving.listen.ip(), relay.port))
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Gateway {
            actor,
            client,
            key: Key::new(&relay.key),
            relay,
            socket,
        }
    }

    /// The challenge for this address, or 0 once it is bound.
    fn ask(&self, echo: u64) -> u64 {
        let session = self.relay.session;
        let question = Bind {
            session,
            nonce: 9,
            echo,
        };
        let question = relay::bind(question, &self.key);
        self.socket.send(&question).unwrap();
        let mut answer = [0; MAX_DATAGRAM];
        let length = self.socket.recv(&mut answer).unwrap();
        assert_eq!(length, question.len());
        relay::read_bound(&answer[..length], &self.key)
            .unwrap()
            .challenge
    }

    fn bind(&self) {
        let challenge = self.ask(0);
        assert_ne!(challenge, 0);
        assert_eq!(self.ask(challenge), 0);
    }

    fn send(&self, channel: u32, payload: &[u8]) {
        let to = (self.relay.session, channel);
        let datagram = relay::wrap(payload, TO_RELAY, to, &self.key).unwrap();
        self.socket.send(&datagram).unwrap();
    }

    fn receive(&self) -> Option<(u32, Vec<u8>)> {
        let mut datagram = [0; MAX_DATAGRAM];
        let length = self.socket.recv(&mut datagram).ok()?;
        let carried = relay::open(&datagram[..length], FROM_RELAY, &self.key).unwrap();
        Some((carried.channel, carried.payload.to_vec()))
    }

    /// So that what does not come is not waited for for long.
    fn be_impatient(&self) {
        self.socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
    }

    async fn until_open(&mut self, channels: &[u32]) {
        loop {
            match self.client.relayed().await {
                Answer::Open { channels: open } if open == channels => return,
                Answer::Open { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Two that both want each other, as channels 12 and 21.
async fn pair(host: &Host, authority_ticket: &crate::cast::Ticket) -> [Gateway; 2] {
    let one = Actor::join(host, authority_ticket, "one").await;
    let two = Actor::join(host, authority_ticket, "two").await;
    let keys = [one.0.identity.public(), two.0.identity.public()];
    let mut one = Gateway::new(host, one, &[(12, keys[1])]).await;
    let mut two = Gateway::new(host, two, &[(21, keys[0])]).await;
    one.until_open(&[12]).await;
    two.until_open(&[21]).await;
    [one, two]
}

fn grant(authority: &mut Authority) -> crate::cast::Ticket {
    authority.grant(Terms {
        uses: Uses::AtMost(8),
        ..Terms::site("berlin")
    })
}

#[tokio::test]
async fn datagrams_of_a_pair_go_by_udp_to_addresses_that_have_echoed() {
    let mut authority = Authority::new();
    let ticket = grant(&mut authority);
    let host = Host::start(&mut authority);
    let [one, two] = pair(&host, &ticket).await;
    one.bind();
    two.bind();
    one.send(12, b"there");
    assert_eq!(two.receive(), Some((21, b"there".to_vec())));
    two.send(21, &[7; relay::MAX_PAYLOAD]);
    assert_eq!(one.receive(), Some((12, vec![7; relay::MAX_PAYLOAD])));
    assert_eq!(host.metric("relay_pairs").await, 1);
    assert_eq!(host.metric(r#"relay_datagrams_total{way="udp"}"#).await, 2);
    let bytes = u64::try_from(relay::MAX_PAYLOAD).unwrap() + 5;
    assert_eq!(host.metric(r#"relay_bytes_total{way="udp"}"#).await, bytes);
}

#[tokio::test]
async fn an_address_that_has_not_echoed_gets_nothing_by_udp() {
    let mut authority = Authority::new();
    let ticket = grant(&mut authority);
    let host = Host::start(&mut authority);
    let [one, mut two] = pair(&host, &ticket).await;
    one.bind();
    assert_ne!(two.ask(0), 0, "asked, and not echoed");
    one.send(12, b"there");
    let carried = two.client.relayed().await;
    let datagram = b"there".to_vec();
    assert_eq!(
        carried,
        Answer::Carried {
            channel: 21,
            datagram
        }
    );
    two.be_impatient();
    assert_eq!(two.receive(), None);
    two.send(21, b"back");
    one.be_impatient();
    assert_eq!(one.receive(), None);
    assert_eq!(
        host.metric(r#"relay_dropped_total{reason="unbound"}"#)
            .await,
        1
    );
}

#[tokio::test]
async fn over_the_connection_it_goes_both_ways_and_to_udp() {
    let mut authority = Authority::new();
    let ticket = grant(&mut authority);
    let host = Host::start(&mut authority);
    let [mut one, mut two] = pair(&host, &ticket).await;
    one.client.carry(12, b"there").await;
    let datagram = b"there".to_vec();
    assert_eq!(
        two.client.relayed().await,
        Answer::Carried {
            channel: 21,
            datagram
        }
    );
    two.client.carry(21, b"back").await;
    let datagram = b"back".to_vec();
    assert_eq!(
        one.client.relayed().await,
        Answer::Carried {
            channel: 12,
            datagram
        }
    );
    two.bind();
    one.client.carry(12, b"to udp").await;
    assert_eq!(two.receive(), Some((21, b"to udp".to_vec())));
}

#[tokio::test]
async fn a_pair_is_not_opened_by_one_of_them() {
    let mut authority = Authority::new();
    let ticket = grant(&mut authority);
    let host = Host::start(&mut authority);
    let one = Actor::join(&host, &ticket, "one").await;
    let two = Actor::join(&host, &ticket, "two").await;
    let key = two.0.identity.public();
    let one = Gateway::new(&host, one, &[(12, key)]).await;
    let two = Gateway::new(&host, two, &[]).await;
    one.bind();
    two.bind();
    one.send(12, b"there");
    two.be_impatient();
    assert_eq!(two.receive(), None);
    assert_eq!(
        host.metric(r#"relay_dropped_total{reason="pair"}"#).await,
        1
    );
    assert_eq!(host.metric("relay_pairs").await, 0);
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_from_the_relay_at_once() {
    let mut authority = Authority::new();
    let ticket = grant(&mut authority);
    let host = Host::start(&mut authority);
    let [mut one, mut two] = pair(&host, &ticket).await;
    one.bind();
    two.bind();
    one.send(12, b"before");
    assert!(two.receive().is_some());
    authority.revoke(two.actor.identity.public());
    host.push(&authority).await;
    one.send(12, b"after");
    two.send(21, b"after");
    one.be_impatient();
    two.be_impatient();
    assert_eq!(one.receive(), None);
    assert_eq!(two.receive(), None);
    two.client.wait_until_cut().await;
    one.until_open(&[]).await;
}

#[tokio::test]
async fn who_floods_is_limited_and_loses_and_others_lose_nothing() {
    let mut authority = Authority::new();
    let ticket = grant(&mut authority);
    let host = Host::start(&mut authority);
    let flooding = pair(&host, &ticket).await;
    let others = {
        let three = Actor::join(&host, &ticket, "three").await;
        let four = Actor::join(&host, &ticket, "four").await;
        let keys = [three.0.identity.public(), four.0.identity.public()];
        let mut three = Gateway::new(&host, three, &[(34, keys[1])]).await;
        let four = Gateway::new(&host, four, &[(43, keys[0])]).await;
        three.until_open(&[34]).await;
        [three, four]
    };
    for gateway in flooding.iter().chain(&others) {
        gateway.bind();
    }
    // The rates themselves are measured with a clock of their own, beside the code.
    for round in 0_u32..200 {
        for _ in 0..20 {
            flooding[0].send(12, &[1; 1400]);
        }
        others[0].send(34, &round.to_be_bytes());
        assert_eq!(
            others[1].receive(),
            Some((43, round.to_be_bytes().to_vec()))
        );
    }
    let dropped = host.metric(r#"relay_dropped_total{reason="rate"}"#).await;
    assert!(dropped > 0);
}

#[tokio::test]
async fn agents_have_no_relay_and_one_asks_for_no_more_than_it_may() {
    let mut authority = Authority::new();
    let agents = authority.grant(Terms {
        role: GrantRole::Agent,
        ..Terms::site("rome")
    });
    let ticket = grant(&mut authority);
    let host = Host::start(&mut authority);
    let (_, mut agent) = Actor::join(&host, &agents, "agent").await;
    assert_eq!(agent.relay(&[]).await, Err(Refusal::NotAllowed));
    let (actor, mut gateway) = Actor::join(&host, &ticket, "gate").await;
    let many: Vec<_> = (0..257).map(|at| (at, actor.identity.public())).collect();
    assert!(matches!(
        gateway.relay(&many).await,
        Err(Refusal::Quota { most: 256, .. })
    ));
    gateway.relay(&many[..256]).await.unwrap();
    // Who has no place at the relay and carries all the same is hung up on.
    agent.carry(1, b"there").await;
    agent.wait_until_cut().await;
}

#[tokio::test]
async fn whoever_does_not_read_loses_the_oldest_and_keeps_nobody_waiting() {
    let mut authority = Authority::new();
    let ticket = grant(&mut authority);
    let host = Host::start(&mut authority);
    let [mut one, two] = pair(&host, &ticket).await;
    let mut carried = 0_u32;
    while host.metric(r#"relay_dropped_total{reason="queue"}"#).await == 0 {
        for _ in 0..50 {
            one.client.carry(12, &[1; 1400]).await;
        }
        carried += 50;
        assert!(carried < 200_000, "all of it waits somewhere");
    }
    drop(two);
    assert!(one.client.call(proto::message::Request::Ping).await.is_ok());
}
