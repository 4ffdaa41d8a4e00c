//! Which implementation the system tests judge.

use crate::lab::{find_program, skip_or_fail};
use crate::wireguard::{self, Implementation};

/// Names another implementation to run the tests against: a test that wireguard-go fails is wrong
/// more often than wireguard-go.
const VARIABLE: &str = "CAUSEWAY_SUBJECT";

/// Causeway, unless [`VARIABLE`] names another.
pub fn subject() -> Implementation {
    let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else {
        return Implementation::Causeway;
    };
    Implementation::ALL
        .into_iter()
        .find(|implementation| name == implementation.name())
        .unwrap_or_else(|| panic!("{VARIABLE}={} is no implementation", name.display()))
}

/// Whether the test that calls must stop because root, the subject or one of `programs` is missing.
pub fn missing(programs: &[&str]) -> bool {
    let thread = std::thread::current();
    let test = thread.name().expect("libtest names the thread of a test");
    if wireguard::skip(test, &[subject()]) {
        return true;
    }
    programs
        .iter()
        .find(|program| find_program(program).is_none())
        .is_some_and(|program| skip_or_fail(test, &format!("the program {program} is not on PATH")))
}

/// Whether the test that calls must stop because it asks for what only Causeway has.
pub fn not_causeway() -> bool {
    let other = subject() != Implementation::Causeway;
    if other {
        eprintln!("only Causeway has what this test asks for");
    }
    other
}
