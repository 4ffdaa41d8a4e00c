//! Bytes in, bytes out: headers, checksums, splitting and coalescing. No IO, no clock.
