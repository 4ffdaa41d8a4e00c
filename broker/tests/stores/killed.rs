//! A process that writes to a store file, killed at random moments.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::store::Store;
use broker::store::redb::RedbStore;
use tokio::task::JoinSet;

use crate::damage::child;
use crate::disk::Random;
use crate::given::{STORE, done, identity, publication};
use crate::redb::{Scratch, new_store};

const KILLS: u64 = 100;
/// More of them, for who has a minute.
const MORE_KILLS: &str = "CAUSEWAY_TEST_STORE_KILLS";
/// The file to write to, and the round.
const WRITES: &str = "CAUSEWAY_TEST_STORE_WRITES";

/// Not a test of its own: what the test below kills. Says what was acknowledged.
#[tokio::test]
async fn child_that_writes() {
    let Ok(told) = std::env::var(WRITES) else {
        return;
    };
    let (round, path) = told.split_once(' ').unwrap();
    let round: u64 = round.parse().unwrap();
    let store = Arc::new(RedbStore::open(path.as_ref(), STORE).unwrap());
    println!("\nopen");
    for step in 0..100_000 {
        let mut tasks = JoinSet::new();
        for node in 0..4 {
            let store = Arc::clone(&store);
            let sequence = round * 100_000 + step;
            tasks.spawn(async move {
                let name = format!("node-{node}");
                done(
                    store
                        .publish(publication(node, &name, sequence))
                        .await
                        .unwrap(),
                );
                (node, sequence)
            });
        }
        while let Some(task) = tasks.join_next().await {
            let (node, sequence) = task.unwrap();
            println!("\nwritten {node} {sequence}");
            std::io::stdout().flush().unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_outlives_the_process() {
    let scratch = Scratch::new();
    let path = scratch.join("store.redb");
    drop(new_store(&path));
    let mut acknowledged = BTreeMap::new();
    let kills = std::env::var(MORE_KILLS).map_or(KILLS, |kills| kills.parse().unwrap());
    for round in 1..=kills {
        let told = format!("{round} {}", path.display());
        let mut writer = child("killed::child_that_writes", WRITES, &told)
            .spawn()
            .unwrap();
        let mut said = BufReader::new(writer.stdout.take().unwrap()).lines();
        assert!(
            said.by_ref().any(|line| line.unwrap() == "open"),
            "round {round}"
        );
        let wait = Random::new(round).below(30);
        std::thread::sleep(Duration::from_millis(wait));
        writer.kill().unwrap();
        writer.wait().unwrap();
        for line in said.map_while(Result::ok) {
            let mut words = line.split(' ');
            if words.next() == Some("written") {
                let node: u32 = words.next().unwrap().parse().unwrap();
                // The last line may be cut off.
                let Some(Ok(sequence)) = words.next().map(str::parse::<u64>) else {
                    continue;
                };
                acknowledged.insert(node, sequence);
            }
        }
        let began = Instant::now();
        let store = RedbStore::open(&path, STORE).unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        let contents = store.load().await.unwrap();
        for (node, sequence) in &acknowledged {
            let member = contents
                .members
                .iter()
                .find(|member| member.identity == identity(*node));
            let text = String::from_utf8(member.unwrap().bytes.clone()).unwrap();
            let found: u64 = text.split(' ').nth(2).unwrap().parse().unwrap();
            assert!(
                found >= *sequence,
                "round {round}: {found} where {sequence} was acknowledged"
            );
        }
    }
    assert_eq!(acknowledged.len(), 4, "nothing was ever acknowledged");
}
