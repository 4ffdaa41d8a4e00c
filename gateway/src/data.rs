//! The threads that move packets. Thread i owns TUN queue i, UDP socket i and the links placed on
//! it, and runs to completion: take a batch, work, hand a batch on. Control talks to it through a
//! [`mailbox`] and through immutable [`snapshot`]s.

mod flow;
pub mod index;
mod inward;
pub mod link;
mod link_local;
pub mod mailbox;
pub mod outbox;
pub mod snapshot;
mod staging;
pub mod thread;
mod tunnel;
mod waiter;
