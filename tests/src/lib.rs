//! Whole-system tests; this library is the laboratory they run in.

#![forbid(unsafe_code)]

pub mod lab;
pub mod wireguard;
