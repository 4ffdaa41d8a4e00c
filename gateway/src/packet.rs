//! Bytes in, bytes out: headers, checksums, splitting and coalescing. No IO, no clock.

pub mod address;
pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod fit;
pub mod headers;
pub mod mss;
pub mod probe;
pub mod split;
pub mod unreachable;
pub mod vnet;

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod reference;
