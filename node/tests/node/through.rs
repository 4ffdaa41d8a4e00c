//! To a broker through a gateway: honest ones, and such as refuse, lie, cut or keep silent.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use node::follow::{self, BrokerState, Handle, Timing};
use node::join::{JoinError, Joined, Options, Step, join};
use node::state::StateDir;
use proto::entry::{Role, Uses};
use proto::key::SigningKey;
use proto::splice::{self, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::double::{Double, Script};
use crate::follow::until;
use crate::scratch::Scratch;
use crate::world::{Granted, World, name};

/// Nothing listens there.
const NOWHERE: &str = "127.0.0.1:1";

#[derive(Clone, Copy)]
enum Conduct {
    /// To the address that the gateway knows of the broker.
    Honest(SocketAddr),
    Refuses(Verdict),
    /// Says that the broker is connected, and lets through what comes in so long.
    Cuts(SocketAddr, Duration),
    Silent,
    Babbles,
}

/// A gateway as far as brokers are reached through it.
struct Gate {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    conduct: Arc<Mutex<Conduct>>,
    task: AbortHandle,
}

impl Gate {
    async fn start(conduct: Conduct) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::<AtomicUsize>::default();
        let conduct = Arc::new(Mutex::new(conduct));
        let (count, now) = (calls.clone(), conduct.clone());
        let task = tokio::spawn(async move {
            loop {
                let (caller, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let conduct = *now.lock().unwrap();
                tokio::spawn(serve(caller, conduct));
            }
        });
        let task = task.abort_handle();
        Gate {
            address,
            calls,
            conduct,
            task,
        }
    }

    /// From the next call on.
    fn turn(&self, conduct: Conduct) {
        *self.conduct.lock().unwrap() = conduct;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut caller: TcpStream, conduct: Conduct) {
    let mut call = [0; splice::CALL];
    caller.read_exact(&mut call).await.unwrap();
    assert!(splice::read_call(&call).is_some());
    let (broker, until) = match conduct {
        Conduct::Honest(broker) => (broker, Duration::MAX),
        Conduct::Cuts(broker, until) => (broker, until),
        Conduct::Refuses(verdict) => return caller.write_u8(verdict.byte()).await.unwrap(),
        Conduct::Silent => return std::future::pending().await,
        Conduct::Babbles => {
            // Nobody needs to listen to it.
            let _heard = caller.write_all(&[0; 4096]).await;
            return;
        }
    };
    let mut broker = TcpStream::connect(broker).await.unwrap();
    caller.write_u8(Verdict::Connected.byte()).await.unwrap();
    let _cut = timeout(until, copy_bidirectional(&mut caller, &mut broker)).await;
}

/// A broker that the token names by an address where nobody is.
struct Remote {
    world: World,
    broker: Double,
    granted: Granted,
    scratch: Scratch,
}

impl Remote {
    async fn new() -> Remote {
        let mut world = World::new();
        let granted = world.grant("home", "10.9.0.0/16", Uses::AtMost(1));
        let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
        Remote {
            world,
            broker,
            granted,
            scratch: Scratch::new(),
        }
    }

    fn token(&self) -> Zeroizing<String> {
        self.world
            .token(&self.granted, &[(NOWHERE, self.broker.key)])
    }

    async fn join(&self, via: Option<String>) -> (Result<Joined, JoinError>, Vec<Step>) {
        join_with(&self.scratch.state(), self.token(), via).await
    }

    fn follow(&self) -> Handle {
        let state = StateDir::open(&self.scratch.state()).unwrap();
        let timing = Timing {
            back_off: (Duration::from_millis(20), Duration::from_millis(100)),
            ..Timing::default()
        };
        let options = follow::Options {
            role: Role::Agent,
            timing,
            fwmark: None,
        };
        follow::start(&state, options).unwrap()
    }
}

async fn join_with(
    state: &Path,
    token: Zeroizing<String>,
    via: Option<String>,
) -> (Result<Joined, JoinError>, Vec<Step>) {
    let options = Options {
        token: Some(token),
        state_dir: state.to_owned(),
        node: Some(name("here")),
        region: String::new(),
        zone: String::new(),
        via,
    };
    let mut steps = Vec::new();
    let joined = join(options, &mut |step| steps.push(step)).await;
    (joined, steps)
}

#[tokio::test]
async fn a_node_without_a_way_to_the_broker_joins_and_follows_through_a_gateway() {
    let remote = Remote::new().await;
    let gate = Gate::start(Conduct::Honest(remote.broker.address)).await;
    let via = gate.address.to_string();
    let (joined, steps) = remote.join(Some(via.clone())).await;
    joined.unwrap();
    let way = format!("{NOWHERE} through gateway {via}");
    assert!(steps[0].to_string().contains(&way), "{}", steps[0]);
    // Kept for the daemon.
    let handle = remote.follow();
    let there = BrokerState::Connected { address: way };
    until(&handle, |view| view.broker == there).await;
    handle.stop().await;
}

#[tokio::test]
async fn no_gateway_is_called_where_the_broker_can_be_reached() {
    let remote = Remote::new().await;
    let gate = Gate::start(Conduct::Silent).await;
    let at = remote.broker.at();
    let token = remote
        .world
        .token(&remote.granted, &[(&at, remote.broker.key)]);
    let via = Some(gate.address.to_string());
    let (joined, steps) = join_with(&remote.scratch.state(), token, via).await;
    joined.unwrap();
    assert!(!steps[0].to_string().contains("through"), "{}", steps[0]);
    assert_eq!(gate.calls(), 0);
}

#[tokio::test]
async fn a_gateway_that_refuses_or_lies_fails_the_join_in_words_and_takes_no_use() {
    let remote = Remote::new().await;
    let stranger = SigningKey::from_seed(&[77; 32]);
    let liar = Double::start(&stranger, Script::honest(&remote.world.ledger)).await;
    for (conduct, words) in [
        (Conduct::Refuses(Verdict::Stranger), "its own site only"),
        (Conduct::Refuses(Verdict::UnknownBroker), "pinned key"),
        (Conduct::Refuses(Verdict::Unreachable), "cannot reach"),
        (Conduct::Refuses(Verdict::Full), "too many callers"),
        (Conduct::Honest(liar.address), "do not trust it"),
        (Conduct::Babbles, "no Causeway broker"),
    ] {
        let gate = Gate::start(conduct).await;
        let via = gate.address.to_string();
        let (joined, _) = remote.join(Some(via.clone())).await;
        let error = joined.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains(&format!("through gateway {via}")), "{error}");
        assert!(error.contains("is the broker running?"), "{error}");
        assert!(error.contains("nothing was changed here"), "{error}");
    }
    assert!(!remote.scratch.state().exists());
    assert!(liar.seen(|seen| seen.enrolled.is_empty()));
    assert!(remote.broker.seen(|seen| seen.enrolled.is_empty()));
}

#[tokio::test]
async fn what_is_no_address_of_a_gateway_is_refused_before_anything_else() {
    let remote = Remote::new().await;
    let (joined, steps) = remote.join(Some("not a gateway".to_owned())).await;
    assert!(matches!(joined.unwrap_err(), JoinError::Via(_)));
    assert!(steps.is_empty());
}

#[tokio::test]
async fn a_gateway_that_cuts_is_an_outage_and_no_fault_of_the_broker() {
    let remote = Remote::new().await;
    let gate = Gate::start(Conduct::Honest(remote.broker.address)).await;
    let via = gate.address.to_string();
    remote.join(Some(via)).await.0.unwrap();
    gate.turn(Conduct::Cuts(
        remote.broker.address,
        Duration::from_millis(300),
    ));
    let handle = remote.follow();
    until(&handle, |view| {
        gate.calls() > 3 && !view.broker.reasons().is_empty()
    })
    .await;
    let view = handle.view().borrow().clone();
    assert_eq!(view.refused.total(), 0, "{:?}", view.refused);
    // It comes to its senses.
    gate.turn(Conduct::Honest(remote.broker.address));
    let connected = |state: &BrokerState| matches!(state, BrokerState::Connected { .. });
    until(&handle, |view| connected(&view.broker)).await;
    handle.stop().await;
}
