//! Metrics as text, in the form that Prometheus reads.

use std::fmt::{Display, Write};

/// One family after the other, as the format wants it.
pub struct Page {
    text: String,
    /// Of every name.
    prefix: &'static str,
    /// What the next lines belong to.
    family: String,
}

impl Page {
    /// Names begin with this, as in `causeway_gateway`.
    pub fn new(prefix: &'static str) -> Page {
        Page {
            text: String::new(),
            prefix,
            family: String::new(),
        }
    }

    pub fn text(self) -> String {
        self.text
    }

    pub fn gauge(&mut self, name: &str, help: &str) {
        self.family(name, help, "gauge");
    }

    pub fn counter(&mut self, name: &str, help: &str) {
        self.family(name, help, "counter");
    }

    pub fn family(&mut self, name: &str, help: &str, kind: &str) {
        self.family = format!("{}_{name}", self.prefix);
        let name = &self.family;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub fn line(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, text)| format!("{name}=\"{}\"", escaped(text)))
            .collect();
        let labels = match labels.as_slice() {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.text, "{}{labels} {value}", self.family);
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out() {
        assert_eq!(escaped("a\"} 1\nb\\"), "a\\\"} 1\\nb\\\\");
    }
}
