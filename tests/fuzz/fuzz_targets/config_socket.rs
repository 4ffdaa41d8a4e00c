#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| tests::fuzz::config_socket(text));
