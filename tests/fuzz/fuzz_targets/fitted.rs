#![no_main]

libfuzzer_sys::fuzz_target!(|frame: &[u8]| tests::fuzz::fitted(frame));
