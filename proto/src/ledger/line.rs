//! Which entries count: the line that holds, the branches of an open fork, what a settlement gave
//! up, and what a replaced authority signed beside its replacement.

use super::Link;
use crate::entry::Body;

#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// One for each entry.
    pub(super) places: Vec<Place>,
    /// The last entry of the line that holds.
    pub(super) head: Option<usize>,
    /// The heads of the branches above it when it is forked.
    pub(super) branches: Vec<usize>,
    pub(super) void: usize,
    pub(super) void_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Holds.
    Line,
    /// Above an unsettled split: only what it revokes holds.
    Branch,
    /// Given up by a settlement: only what it revokes holds.
    Abandoned,
    /// Beside a change of authority, but settled before it: only what it revokes holds.
    Settled,
    /// Beside a change of authority that does not know of it: nothing of it holds, else a thief
    /// of the old key could revoke at will for ever.
    Void,
}

impl Line {
    pub(super) fn of(links: &[Link]) -> Line {
        let beside = beside(links);
        let known = known_to_changes(links);
        let mut places: Vec<Place> = (0..links.len())
            .map(|at| match (beside[at], known[at]) {
                (true, true) => Place::Settled,
                (true, false) => Place::Void,
                (false, _) => Place::Branch,
            })
            .collect();
        give_up(links, &mut places);
        let mut head = (!links.is_empty()).then_some(0);
        let mut forked = false;
        let mut next = head;
        while let Some(at) = next {
            head = Some(at);
            places[at] = Place::Line;
            let children = links[at].children.iter().copied();
            let mut follow = children.filter(|&at| places[at] == Place::Branch);
            next = follow.next();
            if follow.next().is_some() {
                forked = true;
                break;
            }
        }
        let is_branch = |at: &usize| places[*at] == Place::Branch;
        let branches = (0..links.len())
            .filter(|at| forked && is_branch(at) && !links[*at].children.iter().any(is_branch))
            .collect();
        let void = || (0..links.len()).filter(|at| places[*at] == Place::Void);
        Line {
            void: void().count(),
            void_bytes: void().map(|at| links[at].signed.bytes().len()).sum(),
            branches,
            places,
            head,
        }
    }

    /// Where an entry stands that changes nothing for any other, so that nothing needs to be
    /// judged anew. `None` when that cannot be told at a glance.
    pub(super) fn place_beside(&self, links: &[Link], link: &Link) -> Option<Place> {
        let parent = link.parent?;
        // A settlement that is void settles nothing.
        if link.changes_authority() {
            return None;
        }
        let void = match self.places[parent] {
            Place::Void | Place::Settled => true,
            Place::Line => self.replaced_after(links, parent),
            Place::Branch | Place::Abandoned => false,
        };
        void.then_some(Place::Void)
    }

    /// Whether the line goes on from here to another authority: then all that the old one signs
    /// here from now on is void. In force are both keys together, since a change may keep one.
    fn replaced_after(&self, links: &[Link], at: usize) -> bool {
        self.head.is_some_and(|head| {
            (links[at].authority, links[at].recovery)
                != (links[head].authority, links[head].recovery)
        })
    }

    /// Whether an entry just makes the line longer.
    pub(super) fn goes_on(&self, links: &[Link], link: &Link) -> bool {
        let extends = self.branches.is_empty()
            && link.parent == self.head
            && self.head.is_none_or(|head| links[head].children.is_empty());
        let judges_others = match link.body() {
            // Makes what stands beside it void.
            Body::Authority { .. } => self.places.iter().any(|place| *place != Place::Line),
            Body::Settlement { .. } => true,
            Body::Genesis { .. }
            | Body::Grant(_)
            | Body::Prefixes { .. }
            | Body::Revocation { .. }
            | Body::SiteRevoked { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. } => false,
        };
        extends && !judges_others
    }

    /// Whether it holds, or would if its branch did.
    pub(super) fn is_live(&self, at: usize) -> bool {
        matches!(self.places[at], Place::Line | Place::Branch)
    }

    pub(super) fn extend(&mut self) {
        self.head = Some(self.places.len());
        self.places.push(Place::Line);
    }

    /// For the last of the links.
    pub(super) fn extend_beside(&mut self, links: &[Link], place: Place) {
        if place == Place::Void {
            self.void += 1;
            self.void_bytes += links.last().map_or(0, |link| link.signed.bytes().len());
        }
        self.places.push(place);
    }
}

/// At each split, the branches on which the authority is not changed stand beside those on which
/// it is.
fn beside(links: &[Link]) -> Vec<bool> {
    // Whether the entry or one above it changes the authority; then the same of those above.
    let mut changes: Vec<bool> = links.iter().map(Link::changes_authority).collect();
    let mut changes_above = vec![false; links.len()];
    for at in (0..links.len()).rev() {
        changes[at] |= changes_above[at];
        if let Some(parent) = links[at].parent {
            changes_above[parent] |= changes[at];
        }
    }
    let mut beside = vec![false; links.len()];
    for at in 0..links.len() {
        if let Some(parent) = links[at].parent {
            beside[at] = beside[parent] || (changes_above[parent] && !changes[at]);
        }
    }
    beside
}

/// What a change of authority follows, settled branches included: its signer has seen it.
fn known_to_changes(links: &[Link]) -> Vec<bool> {
    let changes = links.iter().enumerate();
    let changes = changes.filter(|(_, link)| link.changes_authority());
    behind(links, changes.map(|(at, _)| at))
}

/// Marks what the settlements that hold give up.
fn give_up(links: &[Link], places: &mut [Place]) {
    let mut abandoned = vec![false; links.len()];
    for settlement in holding(links, places) {
        if let Some(settles) = links[settlement].settles {
            abandoned[settles.abandoned] = true;
        }
    }
    for at in 0..links.len() {
        if let Some(parent) = links[at].parent {
            abandoned[at] |= abandoned[parent];
        }
        if abandoned[at] && places[at] == Place::Branch {
            places[at] = Place::Abandoned;
        }
    }
}

/// The settlements that hold. One that another gives up, knowing of it, is past; two that give up
/// each other, neither knowing of the other, are a fork again.
fn holding(links: &[Link], places: &[Place]) -> Vec<usize> {
    let mut present: Vec<usize> = Vec::new();
    let settlements =
        (0..links.len()).filter(|&at| links[at].settles.is_some() && places[at] == Place::Branch);
    // Newest first: whoever knows of a settlement came after it.
    for at in settlements.rev() {
        let past = present
            .iter()
            .any(|&newer| gives_up(links, newer, at) && behind(links, [newer])[at]);
        if !past {
            present.push(at);
        }
    }
    present
        .iter()
        .copied()
        .filter(|&at| !present.iter().any(|&other| gives_up(links, other, at)))
        .collect()
}

/// Whether the settlement gives up the branch on which `at` stands.
fn gives_up(links: &[Link], settlement: usize, at: usize) -> bool {
    links[settlement].settles.is_some_and(|settles| {
        std::iter::successors(Some(at), |&at| links[at].parent)
            .take_while(|&at| at >= settles.abandoned)
            .any(|at| at == settles.abandoned)
    })
}

/// Which entries are one of these or before them, what they settled included.
pub(super) fn behind(links: &[Link], heads: impl IntoIterator<Item = usize>) -> Vec<bool> {
    let mut behind = vec![false; links.len()];
    for head in heads {
        behind[head] = true;
    }
    for at in (0..links.len()).rev() {
        if behind[at] {
            for before in links[at].before() {
                behind[before] = true;
            }
        }
    }
    behind
}
