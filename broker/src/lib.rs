//! Where nodes meet: accepts, stores and spreads signed records. Trusted with no key but its own.

#![forbid(unsafe_code)]

pub mod directory;
pub mod run;
pub mod store;
