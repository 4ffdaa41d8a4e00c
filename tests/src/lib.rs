//! Whole-system tests; this library is the laboratory they run in.

#![forbid(unsafe_code)]

pub mod broker;
pub mod capture;
pub mod dice;
pub mod echo;
pub mod fuzz;
pub mod hand;
pub mod lab;
pub mod mesh;
pub mod node_kernel;
pub mod relay;
pub mod rival;
pub mod shown;
pub mod simulation;
pub mod site_kernel;
pub mod stream;
pub mod subject;
pub mod tunnel;
pub mod wireguard;
