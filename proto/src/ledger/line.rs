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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Holds.
    Line,
    /// Above an unsettled split: only what it revokes holds.
    Branch,
    /// Given up by a settlement: only what it revokes holds.
    Abandoned,
    /// Beside a change of authority: nothing of it holds, else a thief of the old key could
    /// revoke at will for ever.
    Void,
}

impl Line {
    pub(super) fn of(links: &[Link]) -> Line {
        let void = void(links);
        let abandoned = abandoned(links, &void);
        let live = |at: usize| !void[at] && !abandoned[at];
        let mut places: Vec<Place> = (0..links.len())
            .map(|at| match (void[at], abandoned[at]) {
                (true, _) => Place::Void,
                (false, true) => Place::Abandoned,
                (false, false) => Place::Branch,
            })
            .collect();
        let mut head = (!links.is_empty()).then_some(0);
        let mut forked = false;
        let mut next = head;
        while let Some(at) = next {
            head = Some(at);
            places[at] = Place::Line;
            let mut follow = links[at].children.iter().copied().filter(|&at| live(at));
            next = follow.next();
            if follow.next().is_some() {
                forked = true;
                break;
            }
        }
        let ends = |at: &usize| {
            places[*at] == Place::Branch && !links[*at].children.iter().any(|&child| live(child))
        };
        let branches = (0..links.len()).filter(|_| forked).filter(ends).collect();
        Line {
            void: void.iter().filter(|void| **void).count(),
            branches,
            places,
            head,
        }
    }

    /// Where an entry stands that changes nothing for any other, so that nothing needs to be
    /// judged anew. `None` when that cannot be told at a glance.
    pub(super) fn place_beside(&self, links: &[Link], link: &Link) -> Option<Place> {
        let parent = link.parent?;
        let revokes = match link.body() {
            Body::Authority { .. } | Body::Settlement { .. } => return None,
            Body::Revocation { .. } | Body::SiteRevoked { .. } => true,
            Body::Genesis { .. }
            | Body::Grant(_)
            | Body::Prefixes { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. } => false,
        };
        match self.places[parent] {
            Place::Void => Some(Place::Void),
            Place::Abandoned if !revokes => Some(Place::Abandoned),
            Place::Line if self.replaced_after(links, parent) => Some(Place::Void),
            Place::Line | Place::Branch | Place::Abandoned => None,
        }
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

    pub(super) fn extend_beside(&mut self, place: Place) {
        self.void += usize::from(place == Place::Void);
        self.places.push(place);
    }
}

/// At each split, branches on which the authority is changed make those void on which it is not.
fn void(links: &[Link]) -> Vec<bool> {
    // Whether the entry or one above it changes the authority; then the same of those above.
    let mut changes: Vec<bool> = links.iter().map(Link::changes_authority).collect();
    let mut changes_above = vec![false; links.len()];
    for at in (0..links.len()).rev() {
        changes[at] |= changes_above[at];
        if let Some(parent) = links[at].parent {
            changes_above[parent] |= changes[at];
        }
    }
    let mut void = vec![false; links.len()];
    for at in 0..links.len() {
        if let Some(parent) = links[at].parent {
            void[at] = void[parent] || (changes_above[parent] && !changes[at]);
        }
    }
    void
}

fn abandoned(links: &[Link], void: &[bool]) -> Vec<bool> {
    let mut abandoned = vec![false; links.len()];
    for settlement in holding(links, void) {
        if let Some(settles) = links[settlement].settles {
            abandoned[settles.abandoned] = true;
        }
    }
    for at in 0..links.len() {
        if let Some(parent) = links[at].parent {
            abandoned[at] |= abandoned[parent];
        }
    }
    abandoned
}

/// The settlements that hold. One that another gives up, knowing of it, is past; two that give up
/// each other, neither knowing of the other, are a fork again.
fn holding(links: &[Link], void: &[bool]) -> Vec<usize> {
    let mut present: Vec<usize> = Vec::new();
    let settlements = (0..links.len()).filter(|&at| links[at].settles.is_some() && !void[at]);
    // Newest first: whoever knows of a settlement came after it.
    for at in settlements.rev() {
        let past = present
            .iter()
            .any(|&newer| gives_up(links, newer, at) && knows(links, newer, at));
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

/// Whether `at` is before `entry`, directly or through what was settled.
fn knows(links: &[Link], entry: usize, at: usize) -> bool {
    let mut behind = vec![false; entry + 1];
    behind[entry] = true;
    for now in (at..=entry).rev() {
        if behind[now] {
            for before in links[now].before() {
                behind[before] = true;
            }
        }
    }
    behind[at]
}
