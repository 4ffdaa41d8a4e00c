//! What is said and decided: identities, ledger, tokens, records, who owns which prefix, and the
//! broker's messages.
//!
//! Pure: no sockets, files, clock or randomness. Time and seeds are arguments, so that broker,
//! gateway and agent decide alike and a test can repeat any of it.

#![forbid(unsafe_code)]

pub mod blob;
pub mod codec;
pub mod control;
pub mod enrolment;
pub mod entry;
pub mod frame;
pub mod hello;
pub mod key;
pub mod knowledge;
pub mod lan;
pub mod ledger;
pub mod ledger_file;
pub mod life;
pub mod mesh;
pub mod message;
pub mod name;
pub mod prefix;
pub mod record;
pub mod reflect;
pub mod relay;
pub mod splice;
pub mod token;
