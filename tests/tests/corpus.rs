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
