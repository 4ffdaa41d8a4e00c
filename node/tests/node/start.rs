//! How long a node takes to start from what it has kept.

use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use node::follow::{self, Options, Timing};
use node::journal::Journal;
use node::state::StateDir;
use proto::entry::{Role, Uses};

use crate::follow::Home;

const SITES: usize = 1000;
const ROUNDS: usize = 5;
/// What the design promises of a gateway with all brokers down, on a machine that is its own. A build
/// that is not optimised only has to be no matter of minutes.
const MOST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 2 });

/// `cargo test --release -p node --test node start -- --nocapture`
#[tokio::test]
async fn a_thousand_sites_are_there_within_two_seconds_without_a_broker() {
    let mut home = Home::new().await;
    home.broker.script(|script| script.hung = true);
    let mut lines = Vec::new();
    for number in 0..SITES {
        let prefix = format!("10.{}.{}.0/24", 10 + number / 256, number % 256);
        let granted = home
            .world
            .grant(&format!("site-{number}"), &prefix, Uses::AtMost(1));
        let other = home.world.other(&granted, 0, "gate");
        let member = BASE64URL_NOPAD.encode(&other.member(1));
        lines.push(format!("member {member}"));
    }
    let entries = home.world.entries().into_iter();
    let entries = entries.map(|entry| format!("entry {}", BASE64URL_NOPAD.encode(&entry)));
    let position = "00000000000000000000000000000000 1";
    let synced = format!("synced 05050505050505050505050505050505 {position} 1800000000");
    let lines: Vec<String> = entries.chain(lines).chain([synced]).collect();
    let cache = home.state().join("node/cache.journal");
    let (mut journal, _) = Journal::open(&cache).unwrap();
    journal.replace(&lines).unwrap();
    drop(journal);
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let state = StateDir::open(&home.state()).unwrap();
        let options = Options {
            role: Role::Gateway,
            timing: Timing::default(),
            fwmark: None,
        };
        let handle = follow::start(&state, options).unwrap();
        let view = handle.view().borrow().clone();
        took.push(began.elapsed());
        assert_eq!(view.peers.len(), SITES);
        assert_eq!(view.prefixes.len(), SITES + 1);
        handle.stop().await;
    }
    took.sort();
    println!(
        "{SITES} sites from the cache: median {:?}, most {:?}",
        took[ROUNDS / 2],
        took[ROUNDS - 1]
    );
    // What else runs here makes some rounds slow, hardly all of them.
    assert!(took[0] <= MOST, "{took:?}");
}
