//! What every node does whatever its role.

#![forbid(unsafe_code)]
