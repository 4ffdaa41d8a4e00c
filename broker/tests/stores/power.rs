//! The store in a file, on a disk that loses power, fills up or fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::store::redb::RedbStore;
use broker::store::{Enrolled, Store, StoreError};
use proto::entry::Uses;
use tokio::task::JoinSet;

use crate::disk::{Random, TestDisk};
use crate::given::{STORE, broker, claim, done, entries, heard, identity, publication};

const CRASHES: u64 = 1000;

pub(crate) fn path() -> &'static Path {
    Path::new("/var/lib/causeway/broker/store.redb")
}

pub(crate) fn new_disk() -> Arc<TestDisk> {
    let disk = TestDisk::new(Vec::new());
    drop(RedbStore::create_on(path(), disk.clone(), STORE).unwrap());
    disk
}

pub(crate) fn open(disk: &Arc<TestDisk>) -> Result<RedbStore, StoreError> {
    RedbStore::open_on(path(), disk.clone(), STORE)
}

/// What the store has acknowledged.
#[derive(Default)]
struct Acknowledged {
    revision: u64,
    /// Highest sequence number by node.
    members: BTreeMap<u32, u64>,
    uses: BTreeMap<u32, Vec<u8>>,
    entries: u64,
}

enum Answer {
    Member(u32, u64, u64),
    Use(u32, Vec<u8>),
    Entries(u64, u64),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_a_thousand_losses_of_power() {
    let mut acknowledged = Acknowledged::default();
    let mut disk = new_disk();
    let mut slowest = Duration::ZERO;
    let mut partly = 0;
    for crash in 0..CRASHES {
        let mut random = Random::new(crash + 1);
        let began = Instant::now();
        let store = Arc::new(open(&disk).unwrap_or_else(|error| {
            panic!("after crash {crash} the store does not open: {error}")
        }));
        slowest = slowest.max(began.elapsed());
        check(&store, &mut acknowledged, crash).await;
        disk.power_goes_after(random.below(60));
        let answered = write_until_dark(&store, &mut acknowledged, crash).await;
        partly += u64::from(answered);
        drop(store);
        disk = TestDisk::new(disk.after_power_loss(&mut random));
    }
    assert!(slowest < Duration::from_secs(1), "opening took {slowest:?}");
    assert!(partly > CRASHES / 4, "only {partly} rounds had any answer");
}

async fn check(store: &RedbStore, acknowledged: &mut Acknowledged, crash: u64) {
    let contents = store.load().await.unwrap();
    assert!(contents.revision >= acknowledged.revision, "crash {crash}");
    let members: BTreeMap<_, _> = contents
        .members
        .iter()
        .map(|member| (member.identity, &member.bytes))
        .collect();
    for (node, sequence) in &acknowledged.members {
        let bytes = members[&identity(*node)];
        let text = std::str::from_utf8(bytes).unwrap();
        let found: u64 = text.split(' ').nth(2).unwrap().parse().unwrap();
        assert!(found >= *sequence, "crash {crash}, node {node}");
    }
    for (number, enrolment) in &acknowledged.uses {
        let grant = crate::given::grant(*number);
        let taken = contents.uses.iter().find(|taken| taken.grant == grant);
        assert_eq!(&taken.unwrap().enrolment, enrolment, "crash {crash}");
    }
    let found: Vec<_> = contents.entries;
    for entry in entries(0, acknowledged.entries) {
        assert!(found.contains(&entry.bytes().to_vec()), "crash {crash}");
    }
    acknowledged.revision = contents.revision;
}

/// Whether anything was acknowledged before the power went.
async fn write_until_dark(
    store: &Arc<RedbStore>,
    acknowledged: &mut Acknowledged,
    crash: u64,
) -> bool {
    let mut any = false;
    for round in 0..8 {
        let mut tasks = JoinSet::new();
        for node in 0..6_u32 {
            let store = Arc::clone(store);
            let sequence = crash * 10 + round;
            tasks.spawn(async move {
                let name = format!("node-{node}");
                match store.publish(publication(node, &name, sequence)).await {
                    Ok(published) => Some(Answer::Member(node, sequence, done(published))),
                    Err(_) => None,
                }
            });
        }
        let use_number = u32::try_from(crash).unwrap() % 40;
        let user = Arc::clone(store);
        tasks.spawn(async move {
            let claim = claim(use_number, Uses::AtMost(1), 7);
            match user.enrol(claim, broker()).await {
                Ok(Enrolled::Fresh(bytes) | Enrolled::Again(bytes)) => {
                    Some(Answer::Use(use_number, bytes))
                }
                Ok(Enrolled::AllUsed { .. }) => panic!("used by nobody else"),
                Err(_) => None,
            }
        });
        let count = (crash / 20).max(1);
        let appender = Arc::clone(store);
        tasks.spawn(async move {
            let revision = appender.append(entries(0, count)).await.ok()?;
            Some(Answer::Entries(count, revision))
        });
        while let Some(answer) = tasks.join_next().await {
            let Some(answer) = answer.unwrap() else {
                continue;
            };
            any = true;
            match answer {
                Answer::Member(node, sequence, revision) => {
                    acknowledged.members.insert(node, sequence);
                    acknowledged.revision = acknowledged.revision.max(revision);
                }
                Answer::Use(number, bytes) => {
                    acknowledged.uses.insert(number, bytes);
                }
                Answer::Entries(count, revision) => {
                    acknowledged.entries = acknowledged.entries.max(count);
                    acknowledged.revision = acknowledged.revision.max(revision);
                }
            }
        }
    }
    any
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_publications_at_once_take_few_syncs() {
    let disk = new_disk();
    let store = Arc::new(open(&disk).unwrap());
    disk.set_sync_time(Duration::from_millis(1));
    let before = disk.syncs();
    let mut tasks = JoinSet::new();
    for node in 0..1000 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let name = format!("node-{node}");
            done(store.publish(publication(node, &name, 1)).await.unwrap());
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let syncs = disk.syncs() - before;
    println!("1000 publications took {syncs} syncs");
    assert!(syncs <= 200, "{syncs} syncs");
}

#[tokio::test]
async fn a_large_store_opens_within_a_second() {
    let disk = new_disk();
    let store = Arc::new(open(&disk).unwrap());
    let mut tasks = JoinSet::new();
    for node in 0..4096 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let name = format!("node-{node}");
            store.publish(publication(node, &name, 1)).await.unwrap()
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    disk.power_goes_after(0);
    drop(store);
    let disk = TestDisk::new(disk.after_power_loss(&mut Random::new(1)));
    let began = Instant::now();
    let store = open(&disk).unwrap();
    let opened = began.elapsed();
    println!("a store of 4096 nodes opened in {opened:?}");
    assert_eq!(store.load().await.unwrap().members.len(), 4096);
    assert!(opened < Duration::from_secs(1), "{opened:?}");
}

#[tokio::test]
async fn a_failing_sync_ends_the_store_and_acknowledges_nothing() {
    // The first sync is redb's, the second the witness's.
    for healthy in 0..2 {
        let disk = new_disk();
        let store = open(&disk).unwrap();
        done(store.publish(publication(1, "a", 1)).await.unwrap());
        let revision = store.load().await.unwrap().revision;
        disk.syncs_fail_after(healthy);
        let failed = store.publish(publication(1, "a", 2)).await;
        let Err(StoreError::Fatal(text)) = failed else {
            panic!("{failed:?}");
        };
        assert!(text.contains(path().to_str().unwrap()) && text.contains("start the broker again"));
        let writes = disk.writes();
        for _ in 0..3 {
            let again = store.publish(publication(1, "a", 3)).await;
            assert!(matches!(again, Err(StoreError::Fatal(_))), "{again:?}");
        }
        let followed = store.changes(revision).await;
        assert!(matches!(followed, Err(StoreError::Fatal(_))));
        drop(store);
        assert_eq!(disk.writes(), writes, "written after a failed sync");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let disk = new_disk();
    let store = open(&disk).unwrap();
    let first = done(store.publish(publication(1, "a", 1)).await.unwrap());
    for round in 2..5 {
        disk.set_full(true);
        let full = store.publish(publication(1, "a", round)).await;
        let Err(StoreError::Down(text)) = full else {
            panic!("{full:?}");
        };
        assert!(
            text.contains("cannot be written") && text.contains("space"),
            "{text}"
        );
        disk.set_full(false);
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = store.publish(publication(1, "a", round)).await {
            assert!(matches!(error, StoreError::Down(_)), "{error:?}");
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let contents = store.load().await.unwrap();
    assert_eq!(contents.members[0].bytes, publication(1, "a", 4).bytes);
    let batch = store.changes(first).await;
    assert!(
        batch.is_ok() || batch == Err(StoreError::Behind),
        "followers go on or load again: {batch:?}"
    );
    drop(store);
    assert_eq!(open(&disk).unwrap().load().await.unwrap().members.len(), 1);
}

#[tokio::test]
async fn a_disk_that_is_read_only_is_named() {
    let disk = new_disk();
    disk.set_read_only();
    let refused = open(&disk).map(drop);
    let Err(StoreError::Down(text)) = refused else {
        panic!("{refused:?}");
    };
    assert!(text.contains("Read-only"), "{text}");
}

#[tokio::test]
async fn nobody_is_connected_after_a_restart() {
    let disk = new_disk();
    let store = open(&disk).unwrap();
    store
        .heard(vec![(identity(1), heard(5, true))])
        .await
        .unwrap();
    drop(store);
    let contents = open(&disk).unwrap().load().await.unwrap();
    assert_eq!(contents.heard, [(identity(1), heard(5, false))]);
}

#[tokio::test]
async fn revisions_of_an_old_copy_are_not_given_again() {
    let disk = new_disk();
    let store = open(&disk).unwrap();
    done(store.publish(publication(1, "a", 1)).await.unwrap());
    let copy = disk.bytes();
    let lost = done(store.publish(publication(1, "a", 2)).await.unwrap());
    drop(store);
    let store = open(&TestDisk::new(copy)).unwrap();
    let next = done(store.publish(publication(2, "b", 1)).await.unwrap());
    assert!(next > lost);
    // Who saw what was lost goes on with what is new.
    assert_eq!(store.changes(lost).await.unwrap().revision, next);
}
