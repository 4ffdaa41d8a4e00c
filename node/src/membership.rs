//! Whether this node is one of the mesh at all, and what its log says when it is not.

use crate::follow::{BrokerState, Problem, View};
use crate::status;
use proto::ledger::{PrefixState, SitePrefix, Standing};
use proto::message::Refusal;

/// Before the ledger has come, and once it has put this node out, nothing can be carried.
pub fn is_member(view: &View) -> bool {
    match view.standing {
        Standing::Good | Standing::Quarantined => true,
        Standing::NoGrant | Standing::GrantClosed | Standing::SiteRevoked | Standing::Revoked => {
            false
        }
    }
}

/// A broker says that the ledger has put this node out, none takes it, and no other gateway speaks
/// with it either: the entry that says so may never reach it. One broker's word alone is no proof.
pub fn is_shut_out(view: &View, has_link: bool) -> bool {
    let is_connected = matches!(view.broker, BrokerState::Connected { .. });
    !has_link && !is_connected && view.problems.iter().any(says_put_out)
}

fn says_put_out(problem: &Problem) -> bool {
    let Problem::NotTaken { refusal, .. } = problem else {
        return false;
    };
    matches!(refusal, Refusal::Revoked | Refusal::SiteRevoked)
}

/// A site of which no prefix is in force: whatever comes from it, all others drop.
pub fn without_prefix(view: &View) -> Option<status::Problem> {
    let in_force = |one: &SitePrefix| one.site == view.site && one.state == PrefixState::Owned;
    let is_without = view.standing == Standing::Good && !view.prefixes.iter().any(in_force);
    let site = &view.site;
    is_without.then(|| status::Problem {
        what: format!(
            "this site, {site}, has no prefix in force: other sites take nothing from it, and nothing is sent to it"
        ),
        next: format!(
            "give it one where the authority is: `causeway site add-prefix {site} PREFIX`; `causeway site show {site}` tells what became of those it had"
        ),
        stops: true,
    })
}

/// What the log has said of it.
#[derive(Default)]
pub struct Told(Vec<Problem>);

impl Told {
    /// What the log does not say yet. That nothing is known is nothing to tell of before it `is_late`.
    pub fn news(&mut self, view: &View, is_late: bool) -> Vec<Problem> {
        let is_connected = matches!(view.broker, BrokerState::Connected { .. });
        self.look(&view.problems, is_late, is_connected)
    }

    fn look(&mut self, all: &[Problem], is_late: bool, is_connected: bool) -> Vec<Problem> {
        let ours = all.iter().filter(|problem| is_ours(problem, is_late));
        let ours: Vec<&Problem> = ours.collect();
        // One that comes and goes with each try is told once.
        if ours.is_empty() && is_connected {
            self.0.clear();
        }
        let new = ours.into_iter().filter(|problem| !self.0.contains(problem));
        let new: Vec<Problem> = new.cloned().collect();
        self.0.extend(new.iter().cloned());
        new
    }
}

fn is_ours(problem: &Problem, is_late: bool) -> bool {
    match problem {
        Problem::Standing(Standing::NoGrant) => is_late,
        Problem::Standing(_) => true,
        Problem::NotTaken { refusal, .. } => !crate::refusal::is_passing(refusal),
        Problem::Mesh(_)
        | Problem::NameTaken { .. }
        | Problem::StoreLost { .. }
        | Problem::CacheUnwritable { .. }
        | Problem::CacheDamaged { .. }
        | Problem::ClockOff { .. }
        | Problem::SequenceExhausted
        | Problem::EntriesWithheld { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(standing: Standing) -> Vec<Problem> {
        let refused = |by: &str, refusal| Problem::NotTaken {
            by: by.to_owned(),
            refusal,
        };
        vec![
            Problem::Standing(standing),
            refused("a:7800", Refusal::Revoked),
        ]
    }

    #[test]
    fn that_a_node_was_put_out_is_told_once() {
        let (mut told, all) = (Told::default(), problems(Standing::Revoked));
        assert_eq!(told.look(&all, false, false), all);
        assert_eq!(told.look(&all[..1], false, false), []);
        assert_eq!(told.look(&[], false, false), []);
        assert_eq!(told.look(&all, true, false), []);
        // It was let in again meanwhile.
        assert_eq!(told.look(&[], false, true), []);
        assert_eq!(told.look(&all, true, true), all);
    }

    #[test]
    fn only_a_refusal_as_revoked_says_that_a_node_was_put_out() {
        let all = problems(Standing::Good);
        assert!(!says_put_out(&all[0]) && says_put_out(&all[1]));
        let by = "a:7800".to_owned();
        let refusal = Refusal::TokenClosed;
        assert!(!says_put_out(&Problem::NotTaken { by, refusal }));
    }

    #[test]
    fn that_nothing_is_known_yet_is_told_when_it_lasts() {
        let (mut told, all) = (Told::default(), problems(Standing::NoGrant));
        assert_eq!(told.look(&all[..1], false, false), []);
        assert_eq!(told.look(&all[..1], true, false), all[..1]);
    }
}
