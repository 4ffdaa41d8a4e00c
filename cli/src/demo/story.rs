//! What the demo says, in plain words, and when it said it.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::print;

/// Words go to standard output; with `--json` to standard error, and the figures at the end alone to
/// standard output.
pub(super) struct Story {
    json: bool,
    begun: Instant,
}

impl Story {
    pub(super) fn new(json: bool) -> Story {
        Story {
            json,
            begun: Instant::now(),
        }
    }

    /// A new chapter.
    pub(super) fn say(&self, text: &str) {
        self.print(&format!("\n{text}\n"));
    }

    /// What belongs to the chapter, set off.
    pub(super) fn show(&self, text: &str) {
        let lines: Vec<String> = text
            .lines()
            .map(|line| format!("  {line}").trim_end().to_owned())
            .collect();
        self.print(&(lines.join("\n") + "\n"));
    }

    fn print(&self, text: &str) {
        if self.json {
            eprint!("{text}");
        } else if let Err(error) = print::data(text) {
            // The parent is gone, or its output is; the demo ends by that alone.
            tracing::debug!("{error:#}");
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn finish(&self, figures: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            print::json(figures)?;
        }
        Ok(())
    }
}
