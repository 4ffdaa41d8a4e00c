//! The text that `wg` speaks over the configuration socket: requests in, answers out. Pure.
//!
//! A request is lines of `key=value`, ended by an empty line; `get=1` or `set=1` comes first, and
//! `get_drops=1` is our own. A request with one bad line is refused as a whole, and the rest of it is
//! skipped up to its empty line, so that the next one is understood. Reading deadlines are the socket's.

mod answer;
mod line;

use std::mem;

use zeroize::{Zeroize, Zeroizing};

use crate::wg::device::{ConfigError, SetRequest};
pub use answer::{PeerStats, parse_drops, print_drops, print_get, print_get_error, print_set};
use line::{Draft, Fault};

/// Bytes before the line feed. The longest line with a meaning has under 100.
pub const MAX_LINE: usize = 4096;
/// Bytes of a whole request: some 2 million allowed-ips.
pub const MAX_REQUEST: usize = 64 << 20;

/// The number of the interface of this name, for link-local endpoints (`fe80::1%eth0`).
pub type ScopeIndex = fn(&str) -> Option<u32>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    Set(SetRequest),
    /// The drop counters.
    Drops,
}

/// Collects bytes until they make a request. Not `Debug`: the bytes may be a key.
pub struct RequestReader {
    scope_index: ScopeIndex,
    /// The start of a line whose end has not come. Never grows, so that no key is left behind in
    /// memory given back.
    line: Zeroizing<Vec<u8>>,
    /// Bytes and lines of the request so far.
    length: usize,
    line_number: usize,
    draft: Draft,
}

/// Reads exactly one request, its empty line included.
pub fn parse_request(bytes: &[u8], scope_index: ScopeIndex) -> Result<Request, ConfigError> {
    let mut reader = RequestReader::new(scope_index);
    let not_one = |what| Err(ConfigError::new(libc::EPROTO, what));
    match reader.handle_bytes(bytes) {
        (taken, Some(request)) if taken == bytes.len() => request,
        (_, Some(_)) => not_one("more follows the request's empty line; send one at a time"),
        (_, None) => {
            reader.handle_end()?;
            not_one("the request is empty; begin it with get=1 or set=1")
        }
    }
}

impl RequestReader {
    pub fn new(scope_index: ScopeIndex) -> RequestReader {
        RequestReader {
            scope_index,
            line: Zeroizing::new(Vec::with_capacity(MAX_LINE)),
            length: 0,
            line_number: 1,
            draft: Draft::Empty,
        }
    }

    /// Takes bytes up to the end of one request at most. Says how many it took, and the request if
    /// it ended in them; call again with the rest.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> (usize, Option<Result<Request, ConfigError>>) {
        let mut taken = 0;
        while let Some(end) = bytes[taken..].iter().position(|byte| *byte == b'\n') {
            let piece = &bytes[taken..taken + end];
            taken += end + 1;
            self.count(end + 1);
            if self.line.is_empty() && piece.is_empty() {
                return (taken, Some(self.finish()));
            }
            self.handle_line(piece);
        }
        self.count(bytes.len() - taken);
        self.append(&bytes[taken..]);
        (bytes.len(), None)
    }

    /// The other side will say no more. An error if that cuts a request off.
    pub fn handle_end(&mut self) -> Result<(), ConfigError> {
        if self.is_idle() {
            return Ok(());
        }
        let line_number = self.line_number;
        self.reset();
        Err(ConfigError::new(
            libc::EPROTO,
            format!(
                "request cut off in line {line_number}, nothing was changed; end it with an empty line"
            ),
        ))
    }

    /// Between requests.
    pub fn is_idle(&self) -> bool {
        self.length == 0
    }

    fn reset(&mut self) -> Draft {
        self.forget_line();
        self.length = 0;
        self.line_number = 1;
        mem::replace(&mut self.draft, Draft::Empty)
    }

    fn count(&mut self, bytes: usize) {
        self.length = self.length.saturating_add(bytes);
        if self.length > MAX_REQUEST {
            self.refuse(Fault::new(
                libc::E2BIG,
                format!("the request is longer than {MAX_REQUEST} bytes; send it in parts"),
            ));
        }
    }

    /// Keeps the start of a line until its end comes.
    fn append(&mut self, piece: &[u8]) {
        if self.line.len() + piece.len() > MAX_LINE {
            self.refuse(Fault::new(
                libc::E2BIG,
                format!("longer than {MAX_LINE} bytes; no key needs that much"),
            ));
        }
        if !matches!(self.draft, Draft::Refused(_)) {
            self.line.extend_from_slice(piece);
        } else if self.line.is_empty() && !piece.is_empty() {
            // Of a request that is skipped, only whether the line is empty matters.
            self.line.push(b'?');
        }
    }

    fn handle_line(&mut self, end: &[u8]) {
        let outcome = if self.line.is_empty() && end.len() <= MAX_LINE {
            self.read_line(end)
        } else {
            self.append(end);
            let line = mem::take(&mut *self.line);
            let outcome = self.read_line(&line);
            *self.line = line;
            outcome
        };
        if let Err(fault) = outcome {
            self.refuse(fault);
        }
        self.forget_line();
        self.line_number += 1;
    }

    /// Wipes what was used and no more: the whole buffer once a line would take most of the time.
    fn forget_line(&mut self) {
        self.line.as_mut_slice().zeroize();
        self.line.clear();
    }

    /// Only the first fault is kept; what was read before it is wiped.
    fn refuse(&mut self, fault: Fault) {
        if !matches!(self.draft, Draft::Refused(_)) {
            let what = format!("line {} of the request: {}", self.line_number, fault.what);
            self.draft = Draft::Refused(ConfigError::new(fault.errno, what));
        }
    }

    fn read_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        if matches!(self.draft, Draft::Refused(_)) {
            return Ok(());
        }
        let text = str::from_utf8(line)
            .map_err(|_| Fault::new(libc::EPROTO, "not UTF-8; the protocol is plain ASCII"))?;
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| Fault::new(libc::EPROTO, "no `=`; write key=value"))?;
        line::read(&mut self.draft, key, value, self.scope_index)
    }

    fn finish(&mut self) -> Result<Request, ConfigError> {
        match self.reset() {
            Draft::Empty => Err(ConfigError::new(
                libc::EPROTO,
                "a request of one empty line; begin it with get=1 or set=1",
            )),
            Draft::Get => Ok(Request::Get),
            Draft::Drops => Ok(Request::Drops),
            Draft::Set(request) => Ok(Request::Set(*request)),
            Draft::Refused(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
