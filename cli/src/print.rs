//! Data on standard output: text, JSON, tables. Words for people go to standard error.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

use crate::private;

/// Prints and is content if whoever read it has seen enough.
pub(crate) fn data(text: &str) -> anyhow::Result<()> {
    more(text).map(|_| ())
}

/// The same for what goes on; false once nobody reads any more.
pub(crate) fn more(text: &str) -> anyhow::Result<bool> {
    raw(text.as_bytes())
}

/// The same for what may be cut anywhere.
pub(crate) fn raw(bytes: &[u8]) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot print the result; check standard output"),
    }
}

pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    text.push('\n');
    data(&text)
}

/// Others' words without what a terminal would obey: control characters, and marks that turn the
/// direction of writing round.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|letter| if obeys(letter) { '\u{fffd}' } else { letter })
        .collect()
}

fn obeys(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON whose strings are escaped as far as a terminal asks for; the layout is kept.
pub(crate) fn quiet_json(text: &str) -> String {
    let mut quiet = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter != '\n' && obeys(letter) {
            // None of them is beyond the sixteen bits that such an escape holds.
            quiet.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            quiet.push(letter);
        }
    }
    quiet
}

/// Columns under headings, as wide as their longest cell, two spaces apart.
pub(crate) struct Table {
    columns: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Table {
        Table {
            columns: N,
            rows: vec![headings.map(str::to_uppercase).to_vec()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns);
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}", width = *width))
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// What failed and why, from the outside in. Some errors repeat their cause in their own words;
/// a person needs it once.
pub(crate) fn error(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text.push_str(next(error, &text));
    text
}

/// What to do about a fault of a file, where whoever met it has not said so.
fn next(error: &anyhow::Error, text: &str) -> &'static str {
    let mut causes = error.chain();
    let fault = causes.find_map(|cause| cause.downcast_ref::<io::Error>());
    let next = fault.map_or("", |fault| private::next(fault.kind()));
    // One that was told ends the text; the operating system's own words never do so.
    if text.ends_with(')') { next } else { "" }
}

/// "1 node", "3 nodes".
pub(crate) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// `a, b, c`; a dash for nothing.
pub(crate) fn list<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_spaces() {
        let mut table = Table::new(["site", "prefixes"]);
        table.row(["berlin".to_owned(), "10.1.0.0/16".to_owned()]);
        table.row(["x".to_owned(), String::new()]);
        assert_eq!(table.text(), "SITE    PREFIXES\nberlin  10.1.0.0/16\nx\n");
    }

    #[test]
    fn a_cause_that_was_named_is_not_named_again() {
        let cause = io::Error::other("disk on fire");
        let outer = anyhow::Error::new(cause).context("cannot write: disk on fire");
        assert_eq!(error(&outer), "cannot write: disk on fire");
        let outer = outer.context("no token was made");
        assert_eq!(
            error(&outer),
            "no token was made: cannot write: disk on fire"
        );
    }

    #[test]
    fn nothing_that_a_terminal_obeys_comes_through() {
        let bad = "a\u{1b}[2Jb\nc\u{9b}d\u{202e}e\u{7f}ü";
        assert_eq!(
            plain(bad),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\u{fffd}e\u{fffd}ü"
        );
        let text = quiet_json(&serde_json::to_string(bad).unwrap());
        assert!(!text.contains(obeys), "{text:?}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), bad);
    }

    #[test]
    fn numbers_have_their_plural() {
        assert_eq!(count(0, "entry", "entries"), "0 entries");
        assert_eq!(count(1, "entry", "entries"), "1 entry");
        assert_eq!(list::<u8>(&[]), "-");
        assert_eq!(list(&[1, 2]), "1, 2");
    }
}
