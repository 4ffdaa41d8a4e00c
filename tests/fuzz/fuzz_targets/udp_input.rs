#![no_main]

libfuzzer_sys::fuzz_target!(|steps: &[u8]| tests::fuzz::udp_input(steps));
