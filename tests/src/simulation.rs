//! A whole mesh in one thread on virtual time: the real deciding parts of gateways ([`Links`]) and
//! the real verification ([`proto::mesh::Mesh`]) over a simulated network, with a broker that may
//! die, lag or lie. The same seed always gives the same run.
//!
//! [`Links`]: gateway::links::Links

pub mod broker;
pub mod cast;
pub mod check;
pub mod contact;
pub mod deeds;
pub mod edge;
pub mod expect;
pub mod flow;
pub mod life;
pub mod line;
pub mod network;
pub mod node;
pub mod scenario;
pub mod trace;
pub mod tunnel;
pub mod wire;
pub mod world;
