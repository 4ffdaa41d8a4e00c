//! Whole meshes in one thread on virtual time: random lives against a reference model, and the
//! figures that are promised, stated in virtual time. `SEED=N` repeats one life exactly
//! and tells what happens, with `MESSAGES=1` every message too; `SECONDS=N` keeps trying new ones.

#[path = "simulation/figures.rs"]
mod figures;
#[path = "simulation/nats.rs"]
mod nats;

use std::time::{Duration, Instant};

use tests::simulation::scenario::Scenario;

/// Lives that once went wrong.
const CORPUS: &str = include_str!("simulation/corpus");

/// In a run without wishes, from seed 0 on: the same for everyone, so that a failure is news.
const LIVES: u64 = 6;

struct Outcome {
    hash: u64,
    report: Option<String>,
    virtual_time: Duration,
}

fn live(seed: u64, is_loud: bool) -> Outcome {
    let mut scenario = Scenario::new(seed);
    scenario.world.trace.is_loud = is_loud;
    scenario.world.trace.shows_messages = is_loud && number("MESSAGES").is_some();
    let begun = scenario.world.now;
    scenario.run();
    let world = &scenario.world;
    let report = (!world.faults.is_empty()).then(|| {
        format!(
            "{}\nsteps: {:?}\n{}\nrepeat with SEED={seed} make simulate",
            world.trace,
            scenario.steps,
            world.faults.join("\n"),
        )
    });
    Outcome {
        hash: world.trace.hash(),
        report,
        virtual_time: world.now - begun,
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn lives_that_once_went_wrong_go_well() {
    for line in CORPUS.lines() {
        let seed = line.split('#').next().unwrap_or_default().trim();
        if seed.is_empty() {
            continue;
        }
        if let Some(report) = live(seed.parse().unwrap(), false).report {
            panic!("{report}");
        }
    }
}

#[test]
fn random_lives_agree_with_the_reference_model() {
    if let Some(seed) = number("SEED") {
        if let Some(report) = live(seed, true).report {
            panic!("{report}");
        }
        return;
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let is_random = number("RANDOM_LIVES").is_some();
    let today = if is_random {
        since.unwrap().as_secs() << 16
    } else {
        0
    };
    let first = number("FIRST").unwrap_or(today);
    let span = Duration::from_secs(number("SECONDS").unwrap_or(u64::MAX));
    let begun = Instant::now();
    let mut lived = Duration::ZERO;
    let mut count = 0;
    let mut failed = Vec::new();
    while begun.elapsed() < span && (is_random || count < LIVES) {
        let seed = first + count;
        let outcome = live(seed, false);
        lived += outcome.virtual_time;
        count += 1;
        if let Some(report) = outcome.report {
            eprintln!("{report}\n");
            failed.push(seed);
        }
    }
    println!(
        "{count} lives from seed {first} on, {} h of virtual time in {} s",
        lived.as_secs() / 3600,
        begun.elapsed().as_secs(),
    );
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn the_same_seed_gives_the_same_life() {
    for seed in 1..=2 {
        assert_eq!(live(seed, false).hash, live(seed, false).hash, "{seed}");
    }
    assert_ne!(live(1, false).hash, live(2, false).hash);
}
