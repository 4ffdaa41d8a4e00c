//! Compares bytes with those that were written down. Each line is a name and hex.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use data_encoding::HEXLOWER;

/// A difference here is a change of what is on the wire or on disk, which other versions cannot
/// read. Where that is wanted: a new version in the hello or in the blob, and the test run once
/// with `CAUSEWAY_WRITE_GOLDEN=1`.
pub(crate) fn check(file: &str, made: &[(String, Vec<u8>)]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    if std::env::var_os("CAUSEWAY_WRITE_GOLDEN").is_some() {
        let text = made.iter().fold(String::new(), |mut text, (name, bytes)| {
            writeln!(text, "{name} {}", HEXLOWER.encode(bytes)).expect("a string takes all");
            text
        });
        fs::write(&path, text).expect("the directory is there");
    }
    let text = fs::read_to_string(&path).expect("the vectors are committed");
    let kept: Vec<(&str, &str)> = text
        .lines()
        .map(|line| line.split_once(' ').expect("a name and hex"))
        .collect();
    for (name, bytes) in made {
        let kept = kept.iter().find(|(kept, _)| kept == name);
        let (_, kept) = kept.unwrap_or_else(|| panic!("{file} has no {name}"));
        assert_eq!(
            &HEXLOWER.encode(bytes),
            kept,
            "{name} in {file} has changed"
        );
    }
    assert_eq!(kept.len(), made.len(), "{file} has what is no longer made");
}
