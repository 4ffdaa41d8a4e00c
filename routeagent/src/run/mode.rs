//! Direct or VXLAN: which way packets go to the gateways and back, found out by trying. Pure.

use std::time::Duration;

use crate::facts::Mode;
use crate::health::{Choice, GatewayHealth, GatewayState};
use proto::key::PublicKey;

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    #[default]
    Auto,
    Direct,
    Vxlan,
}

impl Asked {
    pub const fn name(self) -> &'static str {
        match self {
            Asked::Auto => "auto",
            Asked::Direct => "direct",
            Asked::Vxlan => "vxlan",
        }
    }
}

/// So long the direct way must have passed before VXLAN is left for it.
const STEADY: Duration = Duration::from_secs(30);
/// Each fall back to VXLAN doubles that, up to this.
const STEADIEST: Duration = Duration::from_secs(3600);

/// Without an address of one family for longer, a gateway is taken to have none.
const PATIENT: Duration = Duration::from_secs(2);

/// Why it is as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Asked,
    /// Nobody has been heard yet.
    Beginning,
    Kept,
    /// On the same segment; the probes have not all come back yet.
    Trying,
    Passed,
    OtherSegment(String),
    Failed(String),
    /// The direct way does not pass to this one alone, and VXLAN was left a short while ago, or
    /// passes to nobody.
    Avoiding(String),
    /// It has no address on this segment in a family that prefixes of other sites have.
    OtherFamily(String),
    /// It passes again, and is watched for a while before it is used.
    Watching(String),
}

impl Why {
    pub(super) fn sentence(&self) -> String {
        match self {
            Why::Asked => "it was asked for with --mode".to_owned(),
            Why::Beginning => "no gateway has answered yet".to_owned(),
            Why::Kept => "as in the run before; it is tried again".to_owned(),
            Why::Trying => {
                "all gateways are on this node's segment; probes are under way".to_owned()
            }
            Why::Passed => {
                "all gateways are on this node's segment, and packets of other sites pass there in both directions".to_owned()
            }
            Why::OtherSegment(name) => {
                format!("gateway {name} is not on this node's segment")
            }
            Why::Failed(name) => format!(
                "packets of other sites do not pass directly between this node and gateway {name}, as where a cloud checks sources and destinations"
            ),
            Why::Avoiding(name) => format!(
                "packets of other sites pass directly to other gateways, and not to gateway {name}, which is used last"
            ),
            Why::OtherFamily(name) => format!(
                "gateway {name} has addresses on this node's segment in one family only, and other sites have prefixes of both"
            ),
            Why::Watching(name) => format!(
                "packets of other sites did not pass directly to gateway {name}; now they do, and direct is used once that lasts"
            ),
        }
    }
}

/// What the choice rests on, of one gateway.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    name: String,
    is_alive: bool,
    is_near: bool,
    /// The same is not so of a second family that is needed.
    lacks_family: bool,
    direct: Option<bool>,
    vxlan: Option<bool>,
}

impl Seen {
    pub(super) const fn is_alive(&self) -> bool {
        self.is_alive
    }

    pub(super) fn forget_failures(&mut self) {
        self.direct = self.direct.filter(|passed| *passed);
        self.vxlan = self.vxlan.filter(|passed| *passed);
    }
}

/// Where a gateway's addresses are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Where {
    pub(super) is_near: bool,
    pub(super) lacks_family: bool,
}

pub(super) fn seen(
    choice: &Choice,
    place: impl Fn(&PublicKey, &GatewayHealth) -> Where,
) -> Vec<Seen> {
    let all = choice.gateways.iter();
    let all = all.map(|(who, health)| {
        let place = place(who, health);
        Seen {
            name: health.name.to_string(),
            is_alive: is_alive(health),
            is_near: place.is_near,
            lacks_family: place.lacks_family,
            // Where its own kernel is in the way another way is no better.
            direct: health
                .direct
                .passed
                .filter(|passed| *passed || health.forwards),
            vxlan: health.vxlan.passed,
        }
    });
    all.collect()
}

pub(super) fn is_alive(health: &GatewayHealth) -> bool {
    match health.state {
        GatewayState::Up | GatewayState::HeldDown => true,
        GatewayState::Leaving | GatewayState::Silent | GatewayState::Never => false,
    }
}

pub(super) struct Choosing {
    asked: Asked,
    used: Option<Mode>,
    why: Why,
    /// Since when the direct way has passed to all while VXLAN is used.
    passing: Option<Duration>,
    /// Since when a gateway lacks a family.
    lacking: Option<Duration>,
    /// Until then no single gateway makes us turn once more.
    calm: Duration,
    /// It passed to nobody when it was left.
    vxlan_failed: bool,
    due: Option<Duration>,
    steady: Duration,
}

impl Choosing {
    pub(super) fn new(asked: Asked, kept: Option<Mode>) -> Choosing {
        let (used, why) = match (asked, kept) {
            (Asked::Direct, _) => (Some(Mode::Direct), Why::Asked),
            (Asked::Vxlan, _) => (Some(Mode::Vxlan), Why::Asked),
            (Asked::Auto, Some(kept)) => (Some(kept), Why::Kept),
            (Asked::Auto, None) => (None, Why::Beginning),
        };
        Choosing {
            asked,
            used,
            why,
            passing: None,
            lacking: None,
            calm: Duration::ZERO,
            vxlan_failed: false,
            due: None,
            steady: STEADY,
        }
    }

    pub(super) const fn asked(&self) -> Asked {
        self.asked
    }

    /// `None` before anything is known.
    pub(super) const fn used(&self) -> Option<Mode> {
        self.used
    }

    /// What the kernel is told: packets go directly until that is known to fail.
    pub(super) fn programmed(&self) -> Mode {
        self.used.unwrap_or(Mode::Direct)
    }

    pub(super) const fn why(&self) -> &Why {
        &self.why
    }

    /// When it is worth to look again without anything having changed.
    pub(super) const fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Whether the mode changed. `is_blind`: nobody has ever answered, and all are used.
    pub(super) fn handle(&mut self, all: &[Seen], is_blind: bool, now: Duration) -> bool {
        if self.asked != Asked::Auto {
            return false;
        }
        let before = self.used;
        self.due = None;
        let alive: Vec<&Seen> = all.iter().filter(|one| one.is_alive).collect();
        if alive.is_empty() {
            // Whoever comes back is most likely where it was.
            (self.passing, self.lacking) = (None, None);
            self.begin_blindly(all, is_blind);
        } else if !self.must_be_vxlan(&alive, now) {
            match self.used {
                Some(Mode::Vxlan) => self.look_for_return(&alive, now),
                Some(Mode::Direct) | None => self.look_at_direct(&alive, now),
            }
        }
        self.used != before
    }

    /// Where no gateway is on this segment nothing can be sent directly, heard or not.
    fn begin_blindly(&mut self, all: &[Seen], is_blind: bool) {
        let far = all.iter().find(|one| !one.is_near);
        let is_sure = is_blind || all.iter().all(|one| !one.is_near);
        if let (None, Some(far)) = (self.used, far.filter(|_| is_sure)) {
            self.set(Mode::Vxlan, Why::OtherSegment(far.name.clone()));
        }
    }

    /// Where the direct way does not exist it need not be tried.
    fn must_be_vxlan(&mut self, alive: &[&Seen], now: Duration) -> bool {
        let far = alive.iter().find(|one| !one.is_near);
        let lacking = alive.iter().find(|one| one.lacks_family);
        let since = lacking.map(|_| self.lacking.unwrap_or(now));
        self.lacking = since;
        if let Some(far) = far {
            self.set(Mode::Vxlan, Why::OtherSegment(far.name.clone()));
        } else if let (Some(lacking), Some(since)) = (lacking, since) {
            // Addresses of a host that starts come one after the other.
            if self.used != Some(Mode::Vxlan) && now < since + PATIENT {
                self.due = Some(since + PATIENT);
                return false;
            }
            self.set(Mode::Vxlan, Why::OtherFamily(lacking.name.clone()));
        } else {
            return false;
        }
        self.passing = None;
        true
    }

    fn look_at_direct(&mut self, alive: &[&Seen], now: Duration) {
        let failing = alive.iter().find(|one| one.direct == Some(false));
        let passes = |one: &&Seen| one.direct == Some(true);
        let Some(failing) = failing else {
            if alive.iter().all(passes) {
                self.set(Mode::Direct, Why::Passed);
            } else if self.why != Why::Kept {
                // One more gateway has come, which tells nothing of the others.
                self.set(Mode::Direct, Why::Trying);
            }
            return;
        };
        // One gateway alone does not turn the traffic of the others to and fro.
        let is_lost = !alive.iter().any(passes);
        if is_lost || !self.vxlan_failed && now >= self.calm {
            self.vxlan_failed = false;
            self.set(Mode::Vxlan, Why::Failed(failing.name.clone()));
        } else {
            self.due = Some(self.calm).filter(|_| !self.vxlan_failed);
            self.set(Mode::Direct, Why::Avoiding(failing.name.clone()));
        }
    }

    fn look_for_return(&mut self, alive: &[&Seen], now: Duration) {
        let passes = |one: &&Seen| one.direct == Some(true);
        // One that does not forward yet is not tried, and says nothing.
        let mut tried = alive
            .iter()
            .filter(|one| one.direct.is_some() || one.vxlan.is_some());
        let is_stuck = tried.all(|one| one.vxlan == Some(false));
        if is_stuck && alive.iter().any(passes) {
            if now >= self.calm {
                self.vxlan_failed = true;
                return self.return_to_direct(alive, now);
            }
            self.due = Some(self.calm);
        }
        if !alive.iter().all(passes) {
            self.passing = None;
            if let Some(failing) = alive.iter().find(|one| one.direct == Some(false)) {
                self.why = Why::Failed(failing.name.clone());
            }
            return;
        }
        let since = *self.passing.get_or_insert(now);
        if now.saturating_sub(since) >= self.steady {
            self.return_to_direct(alive, now);
        } else {
            let at = since + self.steady;
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
            if let Why::Failed(name) = &self.why {
                self.why = Why::Watching(name.clone());
            }
        }
    }

    fn return_to_direct(&mut self, alive: &[&Seen], now: Duration) {
        self.passing = None;
        self.steady = (self.steady * 2).min(STEADIEST);
        self.calm = now + self.steady;
        let failing = alive.iter().find(|one| one.direct != Some(true));
        self.set(
            Mode::Direct,
            failing.map_or(Why::Passed, |one| Why::Avoiding(one.name.clone())),
        );
    }

    fn set(&mut self, mode: Mode, why: Why) {
        (self.used, self.why) = (Some(mode), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(name: &str, is_near: bool, direct: Option<bool>) -> Seen {
        Seen {
            name: name.to_owned(),
            is_alive: true,
            is_near,
            lacks_family: false,
            direct,
            vxlan: None,
        }
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn on_the_same_segment_it_begins_directly_and_stays_if_probes_pass() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        assert_eq!(choosing.programmed(), Mode::Direct);
        assert!(choosing.handle(&[gateway("a", true, None)], false, at(1)));
        assert_eq!(choosing.why(), &Why::Trying);
        assert!(!choosing.handle(&[gateway("a", true, Some(true))], false, at(2)));
        assert_eq!(
            (choosing.used(), choosing.why()),
            (Some(Mode::Direct), &Why::Passed)
        );
    }

    #[test]
    fn a_gateway_elsewhere_means_vxlan_at_once() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let all = [gateway("a", true, Some(true)), gateway("b", false, None)];
        assert!(choosing.handle(&all, false, at(1)));
        assert_eq!(choosing.used(), Some(Mode::Vxlan));
        assert_eq!(choosing.why(), &Why::OtherSegment("b".to_owned()));
    }

    #[test]
    fn a_dead_gateway_decides_nothing() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let mut dead = gateway("b", false, Some(false));
        dead.is_alive = false;
        let mut silent = gateway("a", true, None);
        silent.is_alive = false;
        assert!(!choosing.handle(&[dead.clone(), silent], false, at(1)));
        choosing.handle(&[gateway("a", true, Some(true)), dead], false, at(1));
        assert_eq!(choosing.used(), Some(Mode::Direct));
    }

    #[test]
    fn where_the_direct_way_fails_vxlan_is_left_only_after_it_has_passed_for_long() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let failed = [gateway("a", true, Some(false))];
        let passed = [gateway("a", true, Some(true))];
        assert!(choosing.handle(&failed, false, at(1)));
        assert_eq!(choosing.used(), Some(Mode::Vxlan));
        assert!(!choosing.handle(&passed, false, at(10)));
        assert!(!choosing.handle(&failed, false, at(30)));
        assert!(!choosing.handle(&passed, false, at(35)));
        assert_eq!(choosing.due(), Some(at(65)));
        assert!(!choosing.handle(&passed, false, at(64)));
        assert!(choosing.handle(&passed, false, at(65)));
        assert_eq!(choosing.used(), Some(Mode::Direct));
        // The second time it takes twice as long.
        assert!(choosing.handle(&failed, false, at(70)));
        assert!(!choosing.handle(&passed, false, at(80)));
        assert_eq!(choosing.due(), Some(at(140)));
    }

    #[test]
    fn where_vxlan_fails_and_the_direct_way_passes_it_is_left_at_once() {
        let mut choosing = Choosing::new(Asked::Auto, Some(Mode::Vxlan));
        choosing.handle(&[gateway("a", true, Some(true))], false, at(1));
        assert!(choosing.due().is_some());
        choosing.handle(&[], false, at(2));
        assert_eq!(choosing.due(), None, "nothing is waited for");
        let mut one = gateway("a", true, Some(true));
        one.vxlan = Some(false);
        assert!(choosing.handle(&[one], false, at(1)));
        assert_eq!(choosing.used(), Some(Mode::Direct));
    }

    #[test]
    fn what_was_asked_for_is_never_changed() {
        let mut choosing = Choosing::new(Asked::Direct, Some(Mode::Vxlan));
        assert!(!choosing.handle(&[gateway("a", false, Some(false))], false, at(1)));
        assert_eq!(choosing.programmed(), Mode::Direct);
    }

    #[test]
    fn what_was_kept_is_used_until_something_speaks_against_it() {
        let mut choosing = Choosing::new(Asked::Auto, Some(Mode::Vxlan));
        assert!(!choosing.handle(&[gateway("a", true, None)], false, at(1)));
        assert_eq!(
            (choosing.used(), choosing.why()),
            (Some(Mode::Vxlan), &Why::Kept)
        );
    }

    #[test]
    fn where_all_are_behind_a_router_vxlan_does_not_wait_for_an_answer() {
        let silent = |name, is_near| Seen {
            is_alive: false,
            ..gateway(name, is_near, None)
        };
        let mut choosing = Choosing::new(Asked::Auto, None);
        assert!(choosing.handle(&[silent("a", false), silent("b", false)], false, at(1)));
        assert_eq!(choosing.used(), Some(Mode::Vxlan));
        // One of them may yet be the only one that lives.
        let mut choosing = Choosing::new(Asked::Auto, None);
        let all = [silent("a", true), silent("b", false)];
        assert!(!choosing.handle(&all, false, at(1)));
        assert_eq!(choosing.used(), None);
        assert!(choosing.handle(&all, true, at(2)));
        assert_eq!(choosing.why(), &Why::OtherSegment("b".to_owned()));
    }

    #[test]
    fn a_family_that_has_no_direct_way_means_vxlan_after_a_moment() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let both = gateway("a", true, Some(true));
        let one = Seen {
            lacks_family: true,
            ..both.clone()
        };
        assert!(choosing.handle(std::slice::from_ref(&one), false, at(10)));
        assert_eq!(
            (choosing.used(), choosing.due()),
            (Some(Mode::Direct), Some(at(12)))
        );
        assert!(choosing.handle(&[one], false, at(12)));
        assert_eq!(choosing.why(), &Why::OtherFamily("a".to_owned()));
        assert!(!choosing.handle(std::slice::from_ref(&both), false, at(20)));
        assert!(choosing.handle(&[both], false, at(50)));
        assert_eq!(choosing.used(), Some(Mode::Direct));
    }

    /// How often the mode turns in two hours for one that answers as `liar` says in each mode.
    fn turns(liar: impl Fn(Mode) -> Seen) -> usize {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let mut turns = 0;
        for now in 0..7200 {
            let honest = Seen {
                vxlan: Some(true),
                ..gateway("a", true, Some(true))
            };
            let all = [honest, liar(choosing.programmed())];
            turns += usize::from(choosing.handle(&all, false, at(now)));
        }
        turns
    }

    #[test]
    fn one_gateway_that_lies_turns_nobody_to_and_fro() {
        let liar = |mode| Seen {
            vxlan: Some(false),
            ..gateway("b", true, Some(mode == Mode::Vxlan))
        };
        let turns = turns(liar);
        assert!((3..=15).contains(&turns), "{turns}");
    }

    #[test]
    fn where_vxlan_passes_to_nobody_one_that_fails_directly_is_avoided() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let one = |name, direct| Seen {
            vxlan: Some(false),
            ..gateway(name, true, Some(direct))
        };
        let all = [one("a", true), one("b", false)];
        assert!(choosing.handle(&all, false, at(1)));
        assert!(choosing.handle(&all, false, at(2)));
        assert_eq!(choosing.why(), &Why::Avoiding("b".to_owned()));
        for now in 3..4000 {
            assert!(!choosing.handle(&all, false, at(now)), "{now}");
        }
        // The last one that passed is gone.
        assert!(choosing.handle(&all[1..], false, at(4000)));
        assert_eq!(choosing.used(), Some(Mode::Vxlan));
    }
}
