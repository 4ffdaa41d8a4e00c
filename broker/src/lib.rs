//! Where nodes meet.

#![forbid(unsafe_code)]
