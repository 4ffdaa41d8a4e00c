//! A store file that somebody or something changed: either every acknowledged write is there, or
//! the broker refuses with instructions. The work is done in child processes, since on some
//! damage the process ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use broker::store::redb::RedbStore;
use broker::store::{Contents, Store, StoreError};
use proto::entry::Uses;

use crate::disk::{Random, SECTOR, TestDisk};
use crate::given::{STORE, broker, claim, done, entries, heard, identity, publication};
use crate::power::{new_disk, open, path};

const MUTATIONS: u64 = 2000;
const BLOCK: usize = 4096;
/// First and last case that a child tries, and what to do.
const CASES: &str = "CAUSEWAY_TEST_STORE_CASES";
const PANIC: &str = "CAUSEWAY_TEST_STORE_PANIC";

/// A store with some history: an older image of it, one as after a crash, and one closed.
struct Images {
    older: Vec<u8>,
    running: Vec<u8>,
    closed: Vec<u8>,
    /// Sectors of the closed and of the running image that hold anything: most of a file is
    /// empty space, and damage there proves little.
    used: [Vec<usize>; 2],
    contents: Contents,
}

fn used_sectors(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len() / SECTOR)
        .filter(|sector| {
            bytes[sector * SECTOR..][..SECTOR]
                .iter()
                .any(|byte| *byte != 0)
        })
        .collect()
}

async fn images() -> Images {
    let disk = new_disk();
    let store = open(&disk).unwrap();
    store.append(entries(0, 40)).await.unwrap();
    for round in 1..4 {
        for node in 0..30 {
            let name = format!("node-{node}");
            done(
                store
                    .publish(publication(node, &name, round))
                    .await
                    .unwrap(),
            );
        }
    }
    let older = disk.bytes();
    for number in 0..10 {
        let claim = claim(number, Uses::AtMost(1), number);
        store.enrol(claim, broker()).await.unwrap();
    }
    store
        .heard(vec![(identity(2), heard(9, false))])
        .await
        .unwrap();
    store.forget(vec![identity(5)]).await.unwrap();
    let contents = store.load().await.unwrap();
    let running = disk.bytes();
    drop(store);
    let closed = disk.bytes();
    Images {
        used: [used_sectors(&closed), used_sectors(&running)],
        older,
        running,
        closed,
        contents,
    }
}

impl Images {
    fn mutated(&self, case: u64) -> Vec<u8> {
        let mut random = Random::new(case + 1);
        let image = if case.is_multiple_of(2) {
            &self.closed
        } else {
            &self.running
        };
        let mut bytes = image.clone();
        let used = &self.used[(case % 2) as usize];
        let sector = match random.below(5) {
            0 => random.below(2 * (BLOCK / SECTOR) as u64) as usize,
            1..=4 => used[random.below(used.len() as u64) as usize],
            _ => unreachable!("below five"),
        };
        let at = sector * SECTOR + random.below(SECTOR as u64) as usize;
        let block = at / BLOCK * BLOCK;
        match random.below(10) {
            0..=4 => bytes[at] ^= 1 << random.below(8),
            5 => bytes[block..block + BLOCK].fill(0),
            6 => bytes[sector * SECTOR..][..SECTOR].fill_with(|| random.below(256) as u8),
            7 => bytes.truncate(random.below(bytes.len() as u64) as usize),
            8 => {
                // A write that never reached the disk.
                let end = (block + BLOCK).min(self.older.len());
                if block < end {
                    bytes[block..end].copy_from_slice(&self.older[block..end]);
                }
            }
            _ => {
                let length = bytes.len() + random.below(3) as usize * BLOCK + 1;
                bytes.resize(length, 0);
            }
        }
        bytes
    }

    /// "whole" or "refused"; panics when something was lost.
    async fn try_case(&self, case: u64) -> &'static str {
        let disk = TestDisk::new(self.mutated(case));
        let store = match open(&disk) {
            Ok(store) => store,
            Err(error) => return refused(&error),
        };
        let mut found = match store.load().await {
            Ok(found) => found,
            Err(error) => return refused(&error),
        };
        // Nothing else may differ.
        assert!(found == self.contents, "case {case}: lost or changed");
        // What is damaged and not reached by reading must not lose what is written now.
        for node in 100..110 {
            let new = publication(node, &format!("node-{node}"), 1);
            match store.publish(new).await {
                Ok(_) => {}
                Err(error) => return refused(&error),
            }
        }
        drop(store);
        let store = match open(&disk) {
            Ok(store) => store,
            Err(error) => return refused(&error),
        };
        found = store.load().await.unwrap();
        assert_eq!(found.members.len(), self.contents.members.len() + 10);
        "whole"
    }
}

fn refused(error: &StoreError) -> &'static str {
    assert!(matches!(error, StoreError::Damaged(_)), "{error:?}");
    has_instructions(&error.to_string());
    "refused"
}

fn has_instructions(text: &str) {
    assert!(
        text.contains(path().to_str().unwrap()) && text.contains("from a backup"),
        "no instructions: {text}"
    );
}

/// Not a test of its own: what [`damage_is_mended_or_refused`] runs as a child.
#[tokio::test]
async fn child_that_tries_cases() {
    let Ok(cases) = std::env::var(CASES) else {
        return;
    };
    let (first, last) = cases.split_once(' ').unwrap();
    let images = images().await;
    for case in first.parse::<u64>().unwrap()..last.parse().unwrap() {
        println!("\nbegun {case}");
        std::io::stdout().flush().unwrap();
        println!("\n{}", images.try_case(case).await);
    }
}

pub(crate) fn child(name: &str, variable: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(variable, value)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn damage_is_mended_or_refused() {
    let (mut whole, mut refused, mut ended) = (0, 0, 0);
    let mut next = 0;
    while next < MUTATIONS {
        let mut child = child(
            "damage::child_that_tries_cases",
            CASES,
            &format!("{next} {MUTATIONS}"),
        )
        .spawn()
        .unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(case) = line.strip_prefix("begun ") {
                next = case.parse::<u64>().unwrap() + 1;
            }
            whole += u64::from(line == "whole");
            refused += u64::from(line == "refused");
        }
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let status = child.wait().unwrap();
        if !status.success() {
            // What the panic hook does, and nothing else.
            assert_eq!(status.code(), Some(1), "case {}: {said}", next - 1);
            has_instructions(&said);
            assert!(!said.contains("panicked at"), "{said}");
            ended += 1;
        }
    }
    println!("{whole} whole, {refused} refused, {ended} ended with instructions");
    assert_eq!(whole + refused + ended, MUTATIONS);
    assert!(whole > 0 && refused > 0, "{whole} whole, {refused} refused");
}

/// Not a test of its own: see below.
#[tokio::test]
async fn child_whose_disk_panics() {
    if std::env::var_os(PANIC).is_none() {
        return;
    }
    let disk = new_disk();
    disk.set_panics();
    drop(open(&disk));
}

#[test]
fn a_panic_in_the_store_ends_with_instructions() {
    let output = child("damage::child_whose_disk_panics", PANIC, "1")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    has_instructions(&said);
    assert!(!said.contains("panicked at"), "{said}");
}

#[test]
fn an_empty_file_and_a_foreign_one_are_refused() {
    for bytes in [vec![], vec![0; 10], vec![0; 1 << 20], b"redb".repeat(5000)] {
        refused(&open(&TestDisk::new(bytes)).unwrap_err());
    }
    let disk = new_disk();
    refused(&open(&TestDisk::new(disk.bytes()[..BLOCK].to_vec())).unwrap_err());
}

#[test]
fn another_store_is_refused() {
    let other = proto::entry::StoreId([8; 16]);
    let disk: Arc<TestDisk> = new_disk();
    let Err(StoreError::Damaged(text)) = RedbStore::open_on(path(), disk, other) else {
        panic!("opened");
    };
    assert!(text.contains(&STORE.to_string()) && text.contains(&other.to_string()));
}
