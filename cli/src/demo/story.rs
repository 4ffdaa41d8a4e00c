//! What the demo says, in plain words, and when it said it.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::print;

/// Of the narrowest terminal that people still use.
pub(super) const COLUMNS: usize = 80;
const INDENT: &str = "  ";

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
        self.print(&format!("\n{}\n", wrapped(text, COLUMNS)));
    }

    /// Words that belong to the chapter, set off.
    pub(super) fn tell(&self, text: &str) {
        self.show(&wrapped(text, COLUMNS - INDENT.len()));
    }

    /// The same of what has lines of its own.
    pub(super) fn show(&self, text: &str) {
        let lines: Vec<String> = text
            .lines()
            .map(|line| format!("{INDENT}{line}").trim_end().to_owned())
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

/// With lines of at most so many columns, if its words have room there. Lines that are short enough
/// stay as they are.
pub(super) fn wrapped(text: &str, columns: usize) -> String {
    let lines = text.lines().flat_map(|line| wrapped_line(line, columns));
    lines.collect::<Vec<_>>().join("\n")
}

fn wrapped_line(line: &str, columns: usize) -> Vec<String> {
    if line.chars().count() <= columns {
        return vec![line.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let Some(last) = lines.last_mut() else {
            continue;
        };
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= columns {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_between_words_and_short_ones_are_left_alone() {
        let text = "    ── a picture ──┐\none two three four five\n\nsix";
        let broken = "    ── a picture ──┐\none two three four\nfive\n\nsix";
        assert_eq!(wrapped(text, 20), broken);
        assert_eq!(
            wrapped("seventeen-letters! is", 9),
            "seventeen-letters!\nis"
        );
    }
}
