//! What takes several requests: the ledger in pieces, nodes and uses page by page.

use std::collections::VecDeque;

use proto::entry::SignedEntry;
use proto::frame::MAX_FRAME;
use proto::key::Hash;
use proto::message::{GrantUse, NodeStatus, Reply, Request};

use super::{Failure, Session, Why};

/// No list of ours comes near these; a broker that goes on for ever is left.
const MAX_PIECES: usize = 256;
const MAX_PAGES: usize = 4096;
/// Half a frame of them.
pub(crate) const MAX_HEADS: usize = MAX_FRAME / 64;
/// Room for what stands around the entries in a frame.
const PIECE: usize = MAX_FRAME / 2;

/// What a broker has of the ledger beyond what the caller has.
pub struct Fetched {
    /// As received, parents first; they prove themselves.
    pub entries: Vec<Vec<u8>>,
    /// The broker's heads.
    pub heads: Vec<Hash>,
}

/// The heads of what the caller has and of what has come so far.
struct Asked(VecDeque<[u8; 32]>);

impl Asked {
    fn new(heads: &[Hash]) -> Asked {
        Asked(heads.iter().map(|head| head.0).collect())
    }

    /// The latest, if there are more than a frame has room for.
    fn heads(&self) -> Vec<[u8; 32]> {
        let skipped = self.0.len().saturating_sub(MAX_HEADS);
        self.0.iter().skip(skipped).copied().collect()
    }

    /// Parents come first. Normally each follows the one before; on a fork there are more ends
    /// than the last one, and what is behind none that is named would come again and again.
    fn handle_entries(&mut self, entries: &[Vec<u8>]) {
        for entry in entries
            .iter()
            .filter_map(|bytes| SignedEntry::read(bytes).ok())
        {
            let previous = entry.entry().previous.0;
            // Nearly always the last one.
            if let Some(at) = self.0.iter().rposition(|head| *head == previous) {
                self.0.remove(at);
            }
            self.0.push_back(entry.hash().0);
        }
    }
}

impl Session {
    /// The entries that are not behind `heads`.
    pub async fn fetch_ledger(&mut self, heads: &[Hash]) -> Result<Fetched, Failure> {
        let mut fetched = Fetched {
            entries: Vec::new(),
            heads: Vec::new(),
        };
        let mut asked = Asked::new(heads);
        for _ in 0..MAX_PIECES {
            let request = Request::Ledger {
                heads: asked.heads(),
            };
            let reply = self.call(request).await?;
            let Reply::Ledger {
                entries,
                heads,
                more,
            } = reply
            else {
                return Err(self.failed(Why::OutOfOrder));
            };
            if more && entries.is_empty() {
                return Err(self.failed(Why::Endless));
            }
            asked.handle_entries(&entries);
            fetched.entries.extend(entries);
            fetched.heads = heads.into_iter().map(Hash).collect();
            if !more {
                return Ok(fetched);
            }
        }
        Err(self.failed(Why::Endless))
    }

    /// Hands over entries, parents first; the broker's heads afterwards.
    pub async fn put_ledger<'a>(
        &mut self,
        entries: impl IntoIterator<Item = &'a SignedEntry>,
    ) -> Result<Vec<Hash>, Failure> {
        let mut taken = Vec::new();
        let mut piece = Vec::new();
        let mut length = 0;
        let mut entries = entries.into_iter().peekable();
        while let Some(entry) = entries.next() {
            length += entry.bytes().len();
            piece.push(entry.bytes().to_vec());
            if length < PIECE && entries.peek().is_some() {
                continue;
            }
            length = 0;
            let request = Request::PutLedger {
                entries: std::mem::take(&mut piece),
            };
            let reply = self.call(request).await?;
            let Reply::LedgerTaken { heads } = reply else {
                return Err(self.failed(Why::OutOfOrder));
            };
            taken = heads.into_iter().map(Hash).collect();
        }
        Ok(taken)
    }

    /// Sends as many of these as one request takes, without waiting for the reply; its number, and
    /// how many went.
    pub async fn send_ledger(&mut self, entries: &[SignedEntry]) -> Result<(u32, usize), Failure> {
        let mut piece = Vec::new();
        let mut length = 0;
        for entry in entries {
            if length >= PIECE {
                break;
            }
            length += entry.bytes().len();
            piece.push(entry.bytes().to_vec());
        }
        let count = piece.len();
        let number = self.send(Request::PutLedger { entries: piece }).await?;
        Ok((number, count))
    }

    /// In the order of their identities. Nothing of it is verified here.
    pub async fn list_nodes(&mut self) -> Result<Vec<NodeStatus>, Failure> {
        let mut nodes: Vec<NodeStatus> = Vec::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let reply = self.call(Request::ListNodes { after }).await?;
            let Reply::Nodes(page) = reply else {
                return Err(self.failed(Why::OutOfOrder));
            };
            let Some(last) = page.last() else {
                return Ok(nodes);
            };
            let Some(identity) = identity(last) else {
                return Err(self.failed(Why::OutOfOrder));
            };
            if after.is_some_and(|after| after >= identity) {
                return Err(self.failed(Why::Endless));
            }
            after = Some(identity);
            nodes.extend(page);
        }
        Err(self.failed(Why::Endless))
    }

    /// In the order of grants and use numbers. Nothing of it is verified here.
    pub async fn list_uses(&mut self) -> Result<Vec<GrantUse>, Failure> {
        let mut uses: Vec<GrantUse> = Vec::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let reply = self.call(Request::ListUses { after }).await?;
            let Reply::Uses(page) = reply else {
                return Err(self.failed(Why::OutOfOrder));
            };
            let Some(last) = page.last() else {
                return Ok(uses);
            };
            let reached = (last.grant, last.use_number);
            if after.is_some_and(|after| after >= reached) {
                return Err(self.failed(Why::Endless));
            }
            after = Some(reached);
            uses.extend(page);
        }
        Err(self.failed(Why::Endless))
    }
}

fn identity(status: &NodeStatus) -> Option<[u8; 32]> {
    let member = proto::record::Member::read(&status.member).ok()?;
    let record = proto::record::SignedRecord::read(&member.record).ok()?;
    Some(*record.record().identity.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::entry::{Body, Entry};
    use proto::key::SigningKey;

    fn after(previous: Hash, number: u64) -> SignedEntry {
        let site = "a".parse().unwrap();
        let body = Body::SiteRevoked { site };
        let entry = Entry {
            number,
            previous,
            issued: number,
            body,
        };
        entry.sign(&SigningKey::from_seed(&[1; 32]))
    }

    #[test]
    fn what_has_come_is_named_by_its_ends_and_in_no_more_than_half_a_frame() {
        let mut asked = Asked::new(&[Hash([5; 32])]);
        let first = after(Hash([5; 32]), 1);
        let second = after(first.hash(), 2);
        let line = [&first, &second].map(|entry| entry.bytes().to_vec());
        asked.handle_entries(&line);
        assert_eq!(asked.heads(), [second.hash().0]);
        let branches: Vec<SignedEntry> = (3..6000).map(|at| after(first.hash(), at)).collect();
        let bytes: Vec<Vec<u8>> = branches.iter().map(|one| one.bytes().to_vec()).collect();
        asked.handle_entries(&bytes);
        assert_eq!(asked.heads().len(), MAX_HEADS);
        assert_eq!(
            asked.heads().last(),
            branches.last().map(|one| one.hash().0).as_ref()
        );
        asked.handle_entries(&[vec![1, 2, 3]]);
    }
}
