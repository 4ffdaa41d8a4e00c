//! Everything that a fuzzer ever found worth keeping is tried again on every run.

use std::fs;
use std::path::Path;

fn replay(target: &str, body: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&directory).expect("the corpus is committed") {
        let path = entry.expect("a directory can be listed").path();
        // Shown only if the body panics.
        eprintln!("{}", path.display());
        body(&fs::read(&path).expect("an input can be read"));
        count += 1;
    }
    assert!(
        count >= 10,
        "{} holds only {count} inputs",
        directory.display()
    );
}

#[test]
fn frames_from_the_tun_survive_being_cut_and_joined() {
    replay("tun_input", tests::fuzz::tun_input);
}

#[test]
fn what_arrives_on_the_port_opens_to_what_was_sealed_once_or_not_at_all() {
    replay("udp_input", tests::fuzz::udp_input);
}

#[test]
fn what_is_said_to_the_configuration_socket_makes_a_whole_state_or_none() {
    replay("config_socket", tests::fuzz::config_socket);
}
