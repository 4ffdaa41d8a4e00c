//! Where nodes meet: accepts, stores and spreads signed records. Trusted with no key but its own.

#![forbid(unsafe_code)]

mod accept;
mod broker;
mod datagrams;
pub mod directory;
mod enrol;
mod entries;
mod fence;
mod follow;
mod frames;
mod gate;
mod http;
mod metrics;
mod pace;
mod publish;
mod reflector;
mod register;
mod relay;
pub mod run;
mod seats;
mod session;
pub mod store;
mod tls;
