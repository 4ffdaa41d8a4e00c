//! A broker on redb that is killed again and again: what it acknowledged is there.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::Duration;

use tests::broker::ordeal::Ordeal;
use tests::dice::Dice;

const KILLS: usize = 1000;
const START: Duration = Duration::from_secs(1);
/// Between the first record under way and the end, in microseconds.
const LONGEST_LIFE: u64 = 25_000;

/// How often, unless `CAUSEWAY_KILLS` says otherwise: a thousand take a minute and a half.
fn kills() -> usize {
    let given = std::env::var("CAUSEWAY_KILLS").ok();
    given.and_then(|kills| kills.parse().ok()).unwrap_or(KILLS)
}

#[test]
fn a_broker_killed_a_thousand_times_loses_nothing_it_acknowledged() {
    let mut dice = Dice::new("broker killed");
    let mut ordeal = Ordeal::new().unwrap();
    for round in 0..kills() {
        let life = Duration::from_micros(dice.below(LONGEST_LIFE));
        ordeal
            .round(round, life)
            .unwrap_or_else(|why| panic!("round {round}: {why:#}\n{}", ordeal.last_log()));
        if round % 100 == 0 {
            eprintln!("{round}: {ordeal}");
        }
    }
    ordeal.finish().unwrap();
    eprintln!("{ordeal}");
    assert!(
        ordeal.records > u64::try_from(kills()).unwrap(),
        "hardly anything was written: {ordeal}"
    );
    assert!(ordeal.slowest_start <= START, "{ordeal}");
}
