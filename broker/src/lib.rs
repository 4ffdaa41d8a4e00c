//! Where nodes meet: accepts, stores and spreads signed records. Trusted with no key but its own.

#![forbid(unsafe_code)]

pub mod directory;
mod fence;
mod gate;
mod http;
mod metrics;
mod pace;
mod reflector;
mod register;
pub mod run;
pub mod store;
mod tls;
