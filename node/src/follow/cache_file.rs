//! The cache as a file. Written by a thread that may wait for the disk.

use std::path::PathBuf;

use super::register::Register;
use crate::cache::Line;
use crate::journal::{Content, Journal, JournalError};
use crate::state::LocalNode;

/// The file is written anew when it has grown this much beyond twice what it holds.
const SLACK: u64 = 1 << 20;

pub(super) struct CacheFile {
    /// Away while the thread has it.
    journal: Option<Journal>,
    pub(super) path: PathBuf,
    /// Bytes when it was last written anew.
    compact: u64,
    /// Why the last write failed, if it did.
    pub(super) failed: Option<String>,
}

pub(super) struct Loaded(Content);

impl CacheFile {
    pub(super) fn open(node: &LocalNode) -> Result<(CacheFile, Loaded), JournalError> {
        let path = node.cache_path();
        let (journal, content) = Journal::open(&path)?;
        let file = CacheFile {
            compact: 0,
            journal: Some(journal),
            path,
            failed: None,
        };
        Ok((file, Loaded(content)))
    }

    /// Makes the register's lines durable; whether it could. If not, they are tried again with
    /// the next ones.
    pub(super) async fn keep(&mut self, register: &mut Register) -> bool {
        let lines: Vec<String> = register.lines().iter().map(Line::to_string).collect();
        let kept = lines.is_empty() || self.write(move |journal| journal.append(&lines)).await;
        if kept {
            register.handle_durable();
        }
        kept
    }

    /// Writes the file anew if it holds much that is out of date. To be called when nothing waits
    /// to be made durable.
    pub(super) async fn tidy(&mut self, register: &Register) {
        let length = self.journal.as_ref().map_or(0, Journal::length);
        if length <= 2 * self.compact + SLACK {
            return;
        }
        let lines: Vec<String> = register.all_lines().iter().map(Line::to_string).collect();
        if self.write(move |journal| journal.replace(&lines)).await {
            self.compact = self.journal.as_ref().map_or(0, Journal::length);
        }
    }

    async fn write(
        &mut self,
        work: impl FnOnce(&mut Journal) -> Result<(), JournalError> + Send + 'static,
    ) -> bool {
        let Some(mut journal) = self.journal.take() else {
            return false;
        };
        let written = tokio::task::spawn_blocking(move || {
            let result = work(&mut journal);
            (journal, result)
        });
        match written.await {
            Ok((journal, result)) => {
                self.journal = Some(journal);
                self.note(result.err().map(|error| error.to_string()))
            }
            Err(error) => self.note(Some(error.to_string())),
        }
    }

    fn note(&mut self, failed: Option<String>) -> bool {
        if failed.is_some() != self.failed.is_some() {
            match &failed {
                Some(why) => tracing::warn!("the cache cannot be written: {why}"),
                None => tracing::info!("the cache can be written again"),
            }
        }
        self.failed = failed;
        self.failed.is_none()
    }
}

impl Loaded {
    /// How many lines were of no use.
    pub(super) fn load(self, register: &mut Register, now: u64) -> usize {
        let mut damaged = self.0.damaged;
        for line in &self.0.lines {
            match line.parse() {
                Ok(line) => register.handle_line(line, now),
                Err(_) => damaged += 1,
            }
        }
        register.handle_loaded(damaged == 0);
        damaged
    }
}
