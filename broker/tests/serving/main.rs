//! Brokers that serve on loopback, on threads of this process.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on ends by panicking"
)]

mod cast;
mod client;
mod crowding;
mod fencing;
mod hostile;
mod joining;
mod publishing;
mod relaying;
mod sharing;
mod standing;
mod storing;
#[path = "../support/etcd.rs"]
#[expect(dead_code, reason = "the tests of the stores use more of it")]
mod support_etcd;
mod watching;
