//! What happened: the last events in words, and a hash over all of them.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

const KEPT: usize = 120;

#[derive(Default)]
pub struct Trace {
    hasher: DefaultHasher,
    last: VecDeque<(Duration, String)>,
    pub events: u64,
    /// Prints everything as it happens.
    pub is_loud: bool,
    /// Prints every message that is read out of a tunnel.
    pub shows_messages: bool,
}

impl Trace {
    /// Anything that a repetition must repeat.
    pub fn add(&mut self, what: impl Hash) {
        self.events += 1;
        what.hash(&mut self.hasher);
    }

    /// Something that a reader of a failure wants to see.
    pub fn note(&mut self, now: Duration, text: String) {
        text.hash(&mut self.hasher);
        if self.is_loud {
            eprintln!("{:>10.3} {text}", now.as_secs_f64());
        }
        self.last.push_back((now, text));
        if self.last.len() > KEPT {
            self.last.pop_front();
        }
    }

    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, text) in &self.last {
            writeln!(out, "{:>10.3} {text}", at.as_secs_f64())?;
        }
        Ok(())
    }
}
