//! Datagrams of two tunnels by way of the broker that ships.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use node::follow::{BrokerState, Handle};
use node::relay::{Event, Options, RelayClient};
use proto::entry::{StoreId, Uses};
use proto::key::PublicKey;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use crate::double::{Double, Script};
use crate::follow::until;
use crate::scratch::Scratch;
use crate::with_broker::{Running, follow_from, join_as};
use crate::world::{Granted, STORE, World};

const PATIENCE: Duration = Duration::from_secs(30);

/// A site's gateway: its follower, its relay client, and a socket in place of its tunnel.
struct Gateway {
    identity: PublicKey,
    directory: PathBuf,
    handle: Handle,
    relay: RelayClient,
    tunnel: UdpSocket,
}

impl Gateway {
    async fn join(
        scratch: &Scratch,
        world: &World,
        granted: &Granted,
        broker: &Running,
    ) -> Gateway {
        let directory = scratch.path().join(granted.site());
        let token = broker.token(world, granted);
        let joined = join_as(&directory, &token, "gate").await.unwrap();
        let handle = follow_from(&directory).await;
        let tunnel = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let relay = RelayClient::start(Options {
            local: handle.local(),
            tunnel: tunnel.local_addr().unwrap(),
            view: handle.view(),
            fwmark: None,
        });
        Gateway {
            identity: joined.identity,
            directory,
            handle,
            relay: relay.unwrap(),
            tunnel,
        }
    }

    async fn ready(&mut self) -> SocketAddr {
        loop {
            match self.event().await {
                Event::Ready { address, .. } => return address,
                Event::Lost { .. } => {}
            }
        }
    }

    async fn lost(&mut self) -> String {
        match self.event().await {
            Event::Lost { why, .. } => why,
            event @ Event::Ready { .. } => panic!("{event:?}"),
        }
    }

    async fn event(&mut self) -> Event {
        let event = timeout(PATIENCE, self.relay.next()).await;
        event.expect("no event").unwrap()
    }

    async fn receive(&self) -> Vec<u8> {
        let mut datagram = [0; 2048];
        let received = timeout(PATIENCE, self.tunnel.recv_from(&mut datagram)).await;
        let (length, _) = received.expect("nothing came").unwrap();
        datagram[..length].to_vec()
    }
}

struct Mesh {
    scratch: Scratch,
    world: World,
    broker: Running,
    paris: Gateway,
    rome: Gateway,
}

impl Mesh {
    async fn new() -> Mesh {
        let scratch = Scratch::new();
        let mut world = World::new();
        let paris = world.grant("paris", "10.1.0.0/16", Uses::AtMost(1));
        let rome = world.grant("rome", "10.2.0.0/16", Uses::AtMost(1));
        let broker = Running::start(scratch.path(), &world, "127.0.0.1:0");
        let paris = Gateway::join(&scratch, &world, &paris, &broker).await;
        let rome = Gateway::join(&scratch, &world, &rome, &broker).await;
        Mesh {
            scratch,
            world,
            broker,
            paris,
            rome,
        }
    }

    /// Both want each other, and have it.
    async fn pair(&mut self) -> [SocketAddr; 2] {
        self.paris.relay.want(self.rome.identity);
        self.rome.relay.want(self.paris.identity);
        [self.paris.ready().await, self.rome.ready().await]
    }
}

/// Sent again until it arrives, as tunnels do.
async fn passes(from: &Gateway, by: SocketAddr, to: &Gateway, datagram: &[u8]) {
    let again = async {
        loop {
            from.tunnel.send_to(datagram, by).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    };
    let arrives = async { while to.receive().await != datagram {} };
    tokio::select! {
        () = again => {}
        () = arrives => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tunnels_reach_each_other_by_sockets_of_their_own_hosts() {
    let mut mesh = Mesh::new().await;
    let [to_rome, to_paris] = mesh.pair().await;
    assert!(to_rome.ip().is_loopback());
    passes(&mesh.paris, to_rome, &mesh.rome, b"a datagram").await;
    passes(&mesh.rome, to_paris, &mesh.paris, &[7; 1420]).await;
    // It comes from the address that stands for the peer.
    mesh.paris
        .tunnel
        .send_to(b"where from", to_rome)
        .await
        .unwrap();
    let mut datagram = [0; 2048];
    loop {
        let (length, from) = mesh.rome.tunnel.recv_from(&mut datagram).await.unwrap();
        assert_eq!(from, to_paris);
        if &datagram[..length] == b"where from" {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_side_may_come_minutes_later_and_go_again() {
    let mut mesh = Mesh::new().await;
    mesh.paris.relay.want(mesh.rome.identity);
    assert!(
        timeout(Duration::from_millis(700), mesh.paris.relay.next())
            .await
            .is_err(),
        "nobody is there"
    );
    mesh.rome.relay.want(mesh.paris.identity);
    let (to_rome, _) = (mesh.paris.ready().await, mesh.rome.ready().await);
    passes(&mesh.paris, to_rome, &mesh.rome, b"a datagram").await;
    mesh.rome.relay.give_back(&mesh.paris.identity);
    assert!(mesh.paris.lost().await.contains("no longer at the relay"));
    mesh.rome.relay.want(mesh.paris.identity);
    assert_eq!(mesh.paris.ready().await, to_rome, "the address stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_broker_comes_back_so_does_the_path() {
    let mut mesh = Mesh::new().await;
    let [to_rome, _] = mesh.pair().await;
    passes(&mesh.paris, to_rome, &mesh.rome, b"before").await;
    let address = mesh.broker.at();
    let (scratch, world) = (&mesh.scratch, &mesh.world);
    drop(mesh.broker);
    mesh.paris.lost().await;
    mesh.rome.lost().await;
    mesh.broker = Running::start(scratch.path(), world, &address);
    assert_eq!(mesh.paris.ready().await, to_rome);
    mesh.rome.ready().await;
    passes(&mesh.paris, to_rome, &mesh.rome, b"after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_gateway_is_cut_off() {
    let mut mesh = Mesh::new().await;
    let [to_rome, to_paris] = mesh.pair().await;
    passes(&mesh.paris, to_rome, &mesh.rome, b"before").await;
    mesh.world.revoke(vec![mesh.rome.identity]);
    mesh.broker.put(&mesh.world).await;
    let why = mesh.paris.lost().await;
    assert!(why.contains("no longer at the relay"), "{why}");
    mesh.rome
        .tunnel
        .send_to(b"still here", to_paris)
        .await
        .unwrap();
    let mut datagram = [0; 2048];
    let late = timeout(Duration::from_millis(500), async {
        loop {
            let (length, _) = mesh.paris.tunnel.recv_from(&mut datagram).await.unwrap();
            assert_ne!(&datagram[..length], b"still here");
        }
    });
    assert!(late.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_of_this_host_sends_to_the_socket_goes_nowhere() {
    let mut mesh = Mesh::new().await;
    let [to_rome, _] = mesh.pair().await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..20 {
        // The kernel refuses it, which the next call hears of.
        let _refused = stranger.send_to(b"not of the tunnel", to_rome).await;
    }
    passes(&mesh.paris, to_rome, &mesh.rome, b"of the tunnel").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_brokers_both_sides_use_one_and_the_other_when_it_dies() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let grants = [
        world.grant("paris", "10.1.0.0/16", Uses::AtMost(1)),
        world.grant("rome", "10.2.0.0/16", Uses::AtMost(1)),
    ];
    let second_key = proto::key::SigningKey::from_seed(&[0x77; 32]);
    let second_dir = Scratch::new();
    let second_store = StoreId([8; 16]);
    let start = |world: &World, at: &str| {
        let of = (&second_key, second_store);
        Running::start_as(second_dir.path(), world, of, at)
    };
    let first = Running::start(scratch.path(), &world, "127.0.0.1:0");
    let second = start(&world, "127.0.0.1:0");
    world.add_broker(first.key, vec![first.at()]);
    world.add_broker_of(second_store, second.key, vec![second.at()]);
    first.put(&world).await;
    second.put(&world).await;
    let mut paris = Gateway::join(&scratch, &world, &grants[0], &first).await;
    let mut rome = Gateway::join(&scratch, &world, &grants[1], &first).await;
    for gateway in [&paris, &rome] {
        until(&gateway.handle, |view| {
            let connected = |state: &BrokerState| matches!(state, BrokerState::Connected { .. });
            view.stores.len() == 2 && view.stores.iter().all(|store| connected(&store.state))
        })
        .await;
    }
    paris.relay.want(rome.identity);
    rome.relay.want(paris.identity);
    let to_rome = paris.ready().await;
    rome.ready().await;
    passes(&paris, to_rome, &rome, b"by either").await;
    // Whichever they use: each of the two has to do alone.
    let (at_first, at_second) = (first.at(), second.at());
    drop(first);
    passes(&paris, to_rome, &rome, b"by the second").await;
    let first = Running::start(scratch.path(), &world, &at_first);
    until(&paris.handle, |view| {
        let connected = |state: &BrokerState| matches!(state, BrokerState::Connected { .. });
        view.stores.iter().all(|store| connected(&store.state))
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    drop(second);
    passes(&paris, to_rome, &rome, b"by the first").await;
    drop((first, at_second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_a_relay_says_so_and_one_of_an_older_version_is_not_asked() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("paris", "10.1.0.0/16", Uses::AtMost(1));
    let of = (&world.broker, STORE);
    let broker = Running::start_with(scratch.path(), &world, of, ("127.0.0.1:0", false));
    let mut paris = Gateway::join(&scratch, &world, &granted, &broker).await;
    let peer = proto::key::SigningKey::from_seed(&[3; 32]).public();
    paris.relay.want(peer);
    let why = paris.lost().await;
    assert!(why.contains("--no-relay"), "{why}");
    let address = broker.at();
    drop((paris.relay, broker));
    let mut script = Script::honest(&world.ledger);
    script.versions = proto::hello::Versions { least: 1, most: 1 };
    let old = Double::start_at(&world.broker, script, &address).await;
    let relay = RelayClient::start(Options {
        local: paris.handle.local(),
        tunnel: paris.tunnel.local_addr().unwrap(),
        view: paris.handle.view(),
        fwmark: None,
    });
    paris.relay = relay.unwrap();
    paris.relay.want(peer);
    let why = paris.lost().await;
    assert!(why.contains("upgrade"), "{why}");
    let connections = old.seen(|seen| seen.connections);
    sleep(Duration::from_secs(2)).await;
    // The follower may come back; the relay's client waits for a minute.
    assert!(old.seen(|seen| seen.connections) <= connections + 2);
    assert!(paris.directory.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_udp_it_goes_through_the_connection() {
    let mesh = Mesh::new().await;
    let (mut paris, mut rome) = (mesh.paris, mesh.rome);
    // A way to the broker that carries TCP only.
    let between = crate::tcp_only::TcpOnly::start(&mesh.broker.at()).await;
    for gateway in [&mut paris, &mut rome] {
        let mut view = (**gateway.handle.view().borrow()).clone();
        let mut contacts = (*view.contacts).clone();
        for contact in &mut contacts {
            contact.address = between.at();
        }
        view.contacts = Arc::new(contacts);
        let (keep, receiver) = tokio::sync::watch::channel(Arc::new(view));
        Box::leak(Box::new(keep));
        let relay = RelayClient::start(Options {
            local: gateway.handle.local(),
            tunnel: gateway.tunnel.local_addr().unwrap(),
            view: receiver,
            fwmark: None,
        });
        gateway.relay = relay.unwrap();
    }
    paris.relay.want(rome.identity);
    rome.relay.want(paris.identity);
    let (to_rome, to_paris) = (paris.ready().await, rome.ready().await);
    passes(&paris, to_rome, &rome, b"there").await;
    passes(&rome, to_paris, &paris, b"and back").await;
    // More at once than waits: the newest arrive, and nothing stalls.
    for _ in 0..2000 {
        paris.tunnel.send_to(&[1; 1400], to_rome).await.unwrap();
        rome.tunnel.send_to(&[2; 1400], to_paris).await.unwrap();
    }
    passes(&paris, to_rome, &rome, b"there again").await;
    passes(&rome, to_paris, &paris, b"and back again").await;
    assert!(between.datagrams() > 0, "UDP was tried, and led nowhere");
}
