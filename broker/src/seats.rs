//! Who is connected, and how to end that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use proto::key::{Hash, PublicKey};
use tokio::sync::Notify;

/// Sessions one node may have: its daemon has one for its watch and one for the relay, the old
/// ones may linger while it comes back, and its commands ask beside it.
const MOST_OF_A_NODE: usize = 6;

#[derive(Default)]
pub(crate) struct Seats {
    by_identity: DashMap<PublicKey, Vec<Seat>>,
    next: AtomicU64,
}

struct Seat {
    number: u64,
    grant: Hash,
    ends: Arc<Notify>,
}

/// One session's place; to be given back with [`Seats::leave`].
pub(crate) struct Taken {
    number: u64,
    /// Told when the session is to end.
    pub(crate) ends: Arc<Notify>,
    /// Nobody else of this identity is here.
    pub(crate) first: bool,
}

impl Seats {
    /// When a node has too many, its oldest goes.
    pub(crate) fn take(&self, identity: PublicKey, grant: Hash) -> Taken {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ends = Arc::new(Notify::new());
        let mut seats = self.by_identity.entry(identity).or_default();
        let first = seats.is_empty();
        if seats.len() >= MOST_OF_A_NODE {
            seats.remove(0).ends.notify_one();
        }
        seats.push(Seat {
            number,
            grant,
            ends: Arc::clone(&ends),
        });
        Taken {
            number,
            ends,
            first,
        }
    }

    /// Whether it was the last one of its identity.
    pub(crate) fn leave(&self, identity: &PublicKey, taken: &Taken) -> bool {
        if let Some(mut seats) = self.by_identity.get_mut(identity) {
            seats.retain(|seat| seat.number != taken.number);
        }
        self.by_identity
            .remove_if(identity, |_, seats| seats.is_empty())
            .is_some()
    }

    pub(crate) fn is_taken(&self, identity: &PublicKey) -> bool {
        self.by_identity.contains_key(identity)
    }

    pub(crate) fn identities(&self) -> Vec<PublicKey> {
        self.by_identity.iter().map(|seats| *seats.key()).collect()
    }

    /// Ends the sessions of those for whom this holds.
    pub(crate) fn cut_off(&self, out: impl Fn(&PublicKey, &Hash) -> bool) {
        for seats in &self.by_identity {
            for seat in seats.value() {
                if out(seats.key(), &seat.grant) {
                    // Kept until the session looks, should it be busy.
                    seat.ends.notify_one();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    fn identity() -> PublicKey {
        SigningKey::from_seed(&[1; 32]).public()
    }

    const GRANT: Hash = Hash([0; 32]);

    #[test]
    fn a_node_is_here_until_its_last_session_leaves() {
        let seats = Seats::default();
        let one = seats.take(identity(), GRANT);
        let other = seats.take(identity(), GRANT);
        assert!(one.first && !other.first);
        assert!(!seats.leave(&identity(), &one));
        assert!(seats.is_taken(&identity()));
        assert!(seats.leave(&identity(), &other));
        assert!(!seats.is_taken(&identity()));
    }

    #[tokio::test]
    async fn the_oldest_of_too_many_is_told_to_end() {
        let seats = Seats::default();
        let oldest = seats.take(identity(), GRANT);
        for _ in 0..MOST_OF_A_NODE {
            seats.take(identity(), GRANT);
        }
        oldest.ends.notified().await;
        assert!(!seats.leave(&identity(), &oldest));
    }

    #[tokio::test]
    async fn who_is_cut_off_hears_of_it_even_while_busy() {
        let seats = Seats::default();
        let taken = seats.take(identity(), GRANT);
        seats.cut_off(|_, grant| *grant == GRANT);
        taken.ends.notified().await;
    }
}
