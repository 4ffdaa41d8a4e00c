//! Whole-system tests; this library is the laboratory they run in.
