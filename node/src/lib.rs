//! What every node does whatever its role: its state directory, joining and leaving a mesh, and
//! staying in touch with brokers.
//!
//! What is trusted is decided by `proto::mesh`; gateway and agent make use of it.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod back_off;
mod cache;
pub mod cloud;
pub mod contacts;
mod durable;
pub mod follow;
pub mod join;
pub mod journal;
pub mod leave;
pub mod local;
mod login;
mod mark;
pub mod membership;
pub mod netlink;
pub mod refusal;
pub mod relay;
pub mod session;
pub mod state;
pub mod status;
mod stores;
pub mod tls;

/// Unix seconds by this machine's clock.
pub fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Since the boot of this machine, the time it slept included.
pub fn boottime() -> std::time::Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    // Every kernel that this runs on has that clock.
    now.map_or(std::time::Duration::ZERO, std::time::Duration::from)
}
