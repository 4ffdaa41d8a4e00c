//! Whole gateways on virtual time, in the order of a link's life.

#[allow(dead_code, reason = "tests follow")]
mod wire;

use std::time::Duration;

use wire::{Wire, ms};

const NEAR: Duration = ms(10);

#[test]
fn two_that_start_together_are_up_within_two_round_trips_of_a_session() {
    let mut wire = Wire::new(&["a", "b"], NEAR, 1);
    let began = wire.now;
    wire.introduce();
    let is_up = wire.run_until(began + ms(1000), |wire| {
        wire.state(0, 1).is_ok() && wire.state(1, 0).is_ok()
    });
    assert!(is_up);
    // One round trip makes the session.
    assert!(wire.now - began <= NEAR * 6, "{:?}", wire.now - began);
    assert_eq!(wire.carriers(0, "b"), (true, vec![1]));
    assert_eq!(wire.carriers(1, "a"), (true, vec![0]));
}
