//! Moves packets: TUN, UDP and WireGuard.
//!
//! `packet` knows bytes and nothing else; `data` owns the threads that move them; `wg` is the
//! process that configures them as a drop-in WireGuard; `run` is the one that does so for a mesh,
//! as `links` decide, with `plane` between both; `io` is the only part that touches the kernel.

pub mod agents;
pub mod data;
pub mod drops;
pub mod io;
pub mod keys;
pub mod links;
pub mod packet;
mod places;
pub mod plane;
pub mod roster;
pub mod run;
mod screen;
pub mod status;
pub mod table;
pub mod wg;
