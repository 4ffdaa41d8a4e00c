//! Asking whoever sits at the terminal. Where nobody does, `--yes` has to say it beforehand.

use std::io::{self, BufRead, IsTerminal};

use anyhow::bail;

use crate::command::Usage;

/// Ok means yes.
pub(crate) fn confirm(question: &str, is_sure: bool) -> anyhow::Result<()> {
    if is_sure {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!(Usage(
            "nobody can be asked, since standard input is no terminal: add --yes if you are sure. Nothing was signed".to_owned()
        ));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        bail!("nothing was signed")
    }
}
