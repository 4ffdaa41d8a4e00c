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

pub(super) fn seen(choice: &Choice, is_near: impl Fn(&PublicKey) -> bool) -> Vec<Seen> {
    let all = choice.gateways.iter();
    all.map(|(who, health)| Seen {
        name: health.name.to_string(),
        is_alive: is_alive(health),
        is_near: is_near(who),
        direct: health.direct.passed,
        vxlan: health.vxlan.passed,
    })
    .collect()
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
    /// To whom it did not pass.
    failed: String,
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
            failed: String::new(),
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
    pub(super) fn due(&self) -> Option<Duration> {
        self.passing.map(|since| since + self.steady)
    }

    /// Whether the mode changed.
    pub(super) fn handle(&mut self, all: &[Seen], now: Duration) -> bool {
        if self.asked != Asked::Auto {
            return false;
        }
        let before = self.used;
        let alive: Vec<&Seen> = all.iter().filter(|one| one.is_alive).collect();
        if alive.is_empty() {
            // Whoever comes back is most likely where it was.
            self.passing = None;
            return false;
        }
        let far = alive.iter().find(|one| !one.is_near);
        let failing = alive.iter().find(|one| one.direct == Some(false));
        let pass = alive.iter().all(|one| one.direct == Some(true));
        if let Some(far) = far {
            self.passing = None;
            self.set(Mode::Vxlan, Why::OtherSegment(far.name.clone()));
        } else if self.used == Some(Mode::Vxlan) {
            self.look_for_return(&alive, pass, failing.copied(), now);
        } else if let Some(failing) = failing {
            self.failed = failing.name.clone();
            self.set(Mode::Vxlan, Why::Failed(failing.name.clone()));
        } else if pass {
            self.set(Mode::Direct, Why::Passed);
        } else if self.why != Why::Kept {
            // One more gateway has come, which tells nothing of the others.
            self.set(Mode::Direct, Why::Trying);
        }
        self.used != before
    }

    fn look_for_return(
        &mut self,
        alive: &[&Seen],
        pass: bool,
        failing: Option<&Seen>,
        now: Duration,
    ) {
        if !pass {
            self.passing = None;
            if let Some(failing) = failing {
                self.failed = failing.name.clone();
                self.why = Why::Failed(failing.name.clone());
            }
            return;
        }
        let since = *self.passing.get_or_insert(now);
        let is_stuck = alive.iter().any(|one| one.vxlan == Some(false));
        if is_stuck || now.saturating_sub(since) >= self.steady {
            self.passing = None;
            self.steady = (self.steady * 2).min(STEADIEST);
            self.set(Mode::Direct, Why::Passed);
        } else if let Why::Failed(name) = &self.why {
            self.why = Why::Watching(name.clone());
        }
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
        assert!(choosing.handle(&[gateway("a", true, None)], at(1)));
        assert_eq!(choosing.why(), &Why::Trying);
        assert!(!choosing.handle(&[gateway("a", true, Some(true))], at(2)));
        assert_eq!(
            (choosing.used(), choosing.why()),
            (Some(Mode::Direct), &Why::Passed)
        );
    }

    #[test]
    fn a_gateway_elsewhere_means_vxlan_at_once() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let all = [gateway("a", true, Some(true)), gateway("b", false, None)];
        assert!(choosing.handle(&all, at(1)));
        assert_eq!(choosing.used(), Some(Mode::Vxlan));
        assert_eq!(choosing.why(), &Why::OtherSegment("b".to_owned()));
    }

    #[test]
    fn a_dead_gateway_decides_nothing() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let mut dead = gateway("b", false, Some(false));
        dead.is_alive = false;
        assert!(!choosing.handle(&[dead.clone()], at(1)));
        choosing.handle(&[gateway("a", true, Some(true)), dead], at(1));
        assert_eq!(choosing.used(), Some(Mode::Direct));
    }

    #[test]
    fn where_the_direct_way_fails_vxlan_is_left_only_after_it_has_passed_for_long() {
        let mut choosing = Choosing::new(Asked::Auto, None);
        let failed = [gateway("a", true, Some(false))];
        let passed = [gateway("a", true, Some(true))];
        assert!(choosing.handle(&failed, at(1)));
        assert_eq!(choosing.used(), Some(Mode::Vxlan));
        assert!(!choosing.handle(&passed, at(10)));
        assert!(!choosing.handle(&failed, at(30)));
        assert!(!choosing.handle(&passed, at(35)));
        assert_eq!(choosing.due(), Some(at(65)));
        assert!(!choosing.handle(&passed, at(64)));
        assert!(choosing.handle(&passed, at(65)));
        assert_eq!(choosing.used(), Some(Mode::Direct));
        // The second time it takes twice as long.
        assert!(choosing.handle(&failed, at(70)));
        assert!(!choosing.handle(&passed, at(80)));
        assert_eq!(choosing.due(), Some(at(140)));
    }

    #[test]
    fn where_vxlan_fails_and_the_direct_way_passes_it_is_left_at_once() {
        let mut choosing = Choosing::new(Asked::Auto, Some(Mode::Vxlan));
        choosing.handle(&[gateway("a", true, Some(true))], at(1));
        assert!(choosing.due().is_some());
        choosing.handle(&[], at(2));
        assert_eq!(choosing.due(), None, "nothing is waited for");
        let mut one = gateway("a", true, Some(true));
        one.vxlan = Some(false);
        assert!(choosing.handle(&[one], at(1)));
        assert_eq!(choosing.used(), Some(Mode::Direct));
    }

    #[test]
    fn what_was_asked_for_is_never_changed() {
        let mut choosing = Choosing::new(Asked::Direct, Some(Mode::Vxlan));
        assert!(!choosing.handle(&[gateway("a", false, Some(false))], at(1)));
        assert_eq!(choosing.programmed(), Mode::Direct);
    }

    #[test]
    fn what_was_kept_is_used_until_something_speaks_against_it() {
        let mut choosing = Choosing::new(Asked::Auto, Some(Mode::Vxlan));
        assert!(!choosing.handle(&[gateway("a", true, None)], at(1)));
        assert_eq!(
            (choosing.used(), choosing.why()),
            (Some(Mode::Vxlan), &Why::Kept)
        );
    }
}
