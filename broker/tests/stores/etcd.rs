//! The store in real etcd: by one broker, by two, and while etcd fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use broker::store::etcd::{Access, EtcdStore, Location};
use broker::store::{Published, Store, StoreError};
use nix::sys::signal::Signal;
use proto::entry::{StoreId, Uses};
use tokio::task::JoinHandle;

use crate::conformance::{Handles, conforms};
use crate::given::{Model, STORE, broker, claim, done, heard, identity, publication, record};
use crate::support_etcd::Etcd;

/// As short as etcd allows with its usual election time.
const TIME_TO_LIVE: Duration = Duration::from_secs(2);

async fn connect(etcd: &Etcd, prefix: &str) -> EtcdStore {
    let location = etcd.url(prefix).parse().unwrap();
    EtcdStore::ensure(&location, &Access::default(), STORE)
        .await
        .unwrap();
    EtcdStore::connect_with(location, &Access::default(), STORE, TIME_TO_LIVE)
        .await
        .unwrap()
}

async fn conforms_with(handles: usize) {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let count = AtomicU32::new(0);
    conforms(async || -> Handles {
        let prefix = format!("case/{}", count.fetch_add(1, Ordering::Relaxed));
        let mut stores: Handles = Vec::new();
        for _ in 0..handles {
            let store: Arc<dyn Store> = Arc::new(connect(&etcd, &prefix).await);
            stores.push(store);
        }
        stores
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms_with_one_broker() {
    conforms_with(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms_with_two_brokers() {
    conforms_with(2).await;
}

/// Whether it happens in time; asked often.
async fn soon(seconds: u64, mut holds: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        if holds().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Publishes until told to stop; counts what was acknowledged and the longest time without.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(u64, Duration)>,
}

impl Writer {
    fn start(store: &Arc<EtcdStore>, node: u32) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (store, stopped) = (Arc::clone(store), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let (mut acknowledged, mut longest) = (0, Duration::ZERO);
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let next = publication(node, &format!("node-{node}"), acknowledged + 1);
                match store.publish(next).await {
                    Ok(Published::Done { .. } | Published::Same { .. }) => {
                        acknowledged += 1;
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                    Ok(other @ (Published::Old { .. } | Published::NameHeld { .. })) => {
                        panic!("{other:?}");
                    }
                    Err(StoreError::Down(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (acknowledged, longest)
        });
        Writer { stop, task }
    }

    async fn stop(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Follows until the store is as the model says, over every failure.
async fn catch_up(store: &EtcdStore, model: &mut Model) {
    let end = store.load().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while model.revision < end.revision {
        assert!(Instant::now() < deadline, "the changes do not come");
        match store.changes(model.revision).await {
            Ok(batch) => {
                for (revision, change) in batch.changes {
                    model.apply(revision, change);
                }
                model.revision = batch.revision;
            }
            Err(StoreError::Down(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(*model, Model::of(end));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_outlive_a_leader_and_nothing_is_acknowledged_without_a_quorum() {
    let Some(mut etcd) = Etcd::start(3) else {
        return;
    };
    let store = Arc::new(connect(&etcd, "faults").await);
    let mut model = Model::of(store.load().await.unwrap());

    let writer = Writer::start(&store, 1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let leader = etcd.leader().unwrap();
    etcd.kill_member(leader);
    tokio::time::sleep(Duration::from_secs(7)).await;
    let (acknowledged, longest) = writer.stop().await;
    println!("leader killed: {acknowledged} writes, {longest:?} without one");
    // Some 1.5 s on an idle machine; three members that elect share two cores with all else.
    assert!(longest <= Duration::from_secs(6), "{longest:?}");
    let member = store.load().await.unwrap().members.remove(0);
    assert_eq!(member.bytes, record(1, "node-1", acknowledged));
    catch_up(&store, &mut model).await;

    // A second member gone: no quorum.
    let other = (leader + 1) % 3;
    etcd.kill_member(other);
    let (published, claimed, loaded) = tokio::join!(
        store.publish(publication(2, "two", 1)),
        store.enrol(claim(1, Uses::AtMost(1), 2), broker()),
        store.load(),
    );
    assert!(
        matches!(published, Err(StoreError::Down(_))),
        "{published:?}"
    );
    assert!(matches!(claimed, Err(StoreError::Down(_))), "{claimed:?}");
    assert!(matches!(loaded, Err(StoreError::Down(_))), "{loaded:?}");

    etcd.start_member(leader);
    etcd.start_member(other);
    let back = soon(15, async || {
        store.publish(publication(2, "two", 1)).await.is_ok()
    });
    assert!(back.await, "writes do not resume");
    store
        .enrol(claim(1, Uses::AtMost(1), 2), broker())
        .await
        .unwrap();
    let contents = store.load().await.unwrap();
    assert_eq!((contents.members.len(), contents.uses.len()), (2, 1));
    catch_up(&store, &mut model).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_member_is_left() {
    let Some(etcd) = Etcd::start(3) else {
        return;
    };
    let store = Arc::new(connect(&etcd, "hung").await);
    let start = store.load().await.unwrap().revision;
    done(store.publish(publication(1, "a", 1)).await.unwrap());
    let seen = store.changes(start).await.unwrap().revision;
    // The first of the list is the one in use, for writes and for the watch.
    etcd.signal_member(0, Signal::SIGSTOP);
    let follower = Arc::clone(&store);
    let waiting = tokio::spawn(async move { follower.changes(seen).await });
    let began = Instant::now();
    let revision = done(store.publish(publication(2, "b", 1)).await.unwrap());
    let written = began.elapsed();
    let batch = tokio::time::timeout(Duration::from_secs(15), waiting).await;
    println!(
        "hung member: written after {written:?}, seen after {:?}",
        began.elapsed()
    );
    etcd.signal_member(0, Signal::SIGCONT);
    assert!(written <= Duration::from_secs(5), "{written:?}");
    assert_eq!(batch.unwrap().unwrap().unwrap().revision, revision);
}

#[tokio::test]
async fn a_follower_that_history_was_taken_from_loads_again() {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let store = connect(&etcd, "compacted").await;
    let start = store.load().await.unwrap().revision;
    done(store.publish(publication(1, "a", 1)).await.unwrap());
    // The watch is open, and stands here.
    let middle = store.changes(start).await.unwrap().revision;
    for sequence in 2..20 {
        done(store.publish(publication(1, "a", sequence)).await.unwrap());
    }
    let now = store.load().await.unwrap().revision;
    let compacted = etcd.ask(0, "kv/compaction", &format!("{{\"revision\":\"{now}\"}}"));
    assert!(compacted.is_some());
    // Who is in the middle of it goes on or is told; who comes from before is told.
    match store.changes(middle).await {
        Ok(batch) => assert_eq!(batch.changes[0].0, middle + 1, "changes were left out"),
        Err(error) => assert_eq!(error, StoreError::Behind),
    }
    assert_eq!(store.changes(start).await, Err(StoreError::Behind));
    let mut model = Model::of(store.load().await.unwrap());
    done(store.publish(publication(1, "a", 20)).await.unwrap());
    catch_up(&store, &mut model).await;
}

async fn is_connected(store: &EtcdStore, node: u32) -> bool {
    let contents = store.load().await.unwrap();
    contents
        .heard
        .iter()
        .any(|(found, heard)| *found == identity(node) && heard.connected)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_of_a_dead_broker_become_unconnected() {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let dying = connect(&etcd, "live").await;
    let staying = connect(&etcd, "live").await;
    let mut model = Model::of(staying.load().await.unwrap());
    let both = vec![(identity(1), heard(5, true)), (identity(2), heard(6, true))];
    dying.heard(both).await.unwrap();
    // The second node has gone over to the other broker before the first one notices.
    staying
        .heard(vec![(identity(2), heard(7, true))])
        .await
        .unwrap();
    dying
        .heard(vec![(identity(2), heard(8, false))])
        .await
        .unwrap();
    // Longer than a lease lasts: it is renewed.
    tokio::time::sleep(TIME_TO_LIVE + Duration::from_secs(1)).await;
    assert!(is_connected(&staying, 1).await && is_connected(&staying, 2).await);
    drop(dying);
    assert!(soon(15, async || !is_connected(&staying, 1).await).await);
    assert!(is_connected(&staying, 2).await);
    catch_up(&staying, &mut model).await;
    assert_eq!(model.heard[&identity(1)], (5, false));
    assert_eq!(model.heard[&identity(2)], (8, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_lease_ran_out_says_again_who_is_connected() {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let store = connect(&etcd, "lease").await;
    store
        .heard(vec![(identity(1), heard(5, true))])
        .await
        .unwrap();
    let leases = etcd.ask(0, "lease/leases", "{}").unwrap();
    let lease = leases.split("\"ID\":\"").nth(1).unwrap();
    let lease = lease.split('"').next().unwrap();
    let revoked = etcd.ask(0, "lease/revoke", &format!("{{\"ID\":\"{lease}\"}}"));
    assert!(revoked.is_some());
    assert!(!is_connected(&store, 1).await);
    assert!(soon(10, async || is_connected(&store, 1).await).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ended_while_etcd_was_down_does_not_live_on() {
    let Some(mut etcd) = Etcd::start(1) else {
        return;
    };
    let store = connect(&etcd, "down").await;
    store
        .heard(vec![(identity(1), heard(5, true))])
        .await
        .unwrap();
    etcd.kill_member(0);
    let unsaid = store.heard(vec![(identity(1), heard(6, false))]).await;
    assert!(matches!(unsaid, Err(StoreError::Down(_))), "{unsaid:?}");
    etcd.start_member(0);
    etcd.wait_for_leader();
    let said = soon(15, async || {
        store
            .load()
            .await
            .is_ok_and(|contents| contents.heard == [(identity(1), heard(6, false))])
    });
    assert!(said.await);
}

#[tokio::test]
async fn what_is_in_etcd_must_be_this_brokers_store() {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let location: Location = etcd.url("mine").parse().unwrap();
    let missing = EtcdStore::connect(location.clone(), &Access::default(), STORE)
        .await
        .map(drop);
    let Err(StoreError::Damaged(text)) = missing else {
        panic!("{missing:?}");
    };
    assert!(
        text.contains("holds no store") && text.contains("backup"),
        "{text}"
    );
    assert_eq!(
        EtcdStore::ensure(&location, &Access::default(), STORE).await,
        Ok(STORE)
    );
    let other = StoreId([3; 16]);
    assert_eq!(
        EtcdStore::ensure(&location, &Access::default(), other).await,
        Ok(STORE)
    );
    let wrong = EtcdStore::connect(location.clone(), &Access::default(), other)
        .await
        .map(drop);
    assert!(matches!(wrong, Err(StoreError::Damaged(_))), "{wrong:?}");
    let store = EtcdStore::connect(location, &Access::default(), STORE)
        .await
        .unwrap();
    let epoch = store.load().await.unwrap().epoch;
    assert_eq!(store.load().await.unwrap().epoch, epoch);
}

#[tokio::test]
async fn an_unreachable_etcd_is_named_with_every_endpoint() {
    let location: Location = "etcd://127.0.0.1:1,127.0.0.1:2/x".parse().unwrap();
    let down = EtcdStore::connect(location, &Access::default(), STORE)
        .await
        .map(drop);
    let Err(StoreError::Down(text)) = down else {
        panic!("{down:?}");
    };
    assert!(
        text.contains("127.0.0.1:1: ") && text.contains("127.0.0.1:2: "),
        "{text}"
    );
}

#[test]
fn a_location_has_endpoints_and_a_prefix() {
    for bad in [
        "",
        "etcd://",
        "etcd://h:1",
        "etcd://h:1/",
        "etcd://h/x",
        "etcd://h:0/x",
        "http://h:1/x",
        "etcd://h:1,/x",
        "etcd://h:1/a b",
    ] {
        assert!(bad.parse::<Location>().is_err(), "{bad}");
    }
    let good: Location = "etcd://h:1,[::1]:2/a/b/".parse().unwrap();
    assert_eq!(good.to_string(), "etcd://h:1,[::1]:2/a/b");
}
