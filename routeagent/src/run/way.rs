//! Which way packets go, and which is still open to what is on its way.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ip_network::IpNetwork;
use node::boottime;
use node::follow::View;
use proto::key::PublicKey;
use proto::ledger::{PrefixState, SitePrefix};

use super::Daemon;
use super::gateways::Gateways;
use super::kept::Setting;
use super::kernel::may_be_used;
use super::mode::{self, Asked, Choosing};
use super::place::Place;
use crate::facts::Mode;
use crate::health::{Fallback, GatewayHealth};

/// Gateways hear of another mode with the next question, and their kernels follow; those that do not
/// hear us learn it from our record.
const TURNING: Duration = Duration::from_secs(5);

impl Daemon {
    /// Which way packets go.
    pub(super) fn decide(&mut self) {
        let now = boottime();
        let setting = setting(&self.place, &self.gateways);
        if self.mode.used().is_none() {
            // The cache may have been empty at the start.
            let kept = self.memory.mode(&setting);
            self.mode = Choosing::new(self.options.mode, kept);
        }
        let (before, programmed) = (self.mode.used(), self.mode.programmed());
        let mut seen = mode::seen(&self.choice, |who, health| self.where_is(who, health));
        if !self.is_proven {
            // Probes may have found no route.
            seen.iter_mut().for_each(mode::Seen::forget_failures);
        }
        let is_blind = self.choice.fallback == Some(Fallback::All);
        if self.mode.handle(&seen, is_blind, now) {
            let why = self.mode.why().sentence();
            tracing::info!(from = ?before, to = ?self.mode.used(), why, "mode");
        }
        // Nobody sends by a way that was never chosen.
        if before.is_some() && self.mode.programmed() != programmed && self.kernel.is_told() {
            self.turned = Some(now);
        }
        if let (Some(used), Asked::Auto) = (self.mode.used(), self.options.mode)
            && seen.iter().any(mode::Seen::is_alive)
        {
            self.memory.keep(used, &setting);
        }
        self.health.set_mode(
            match self.mode.used() {
                None => proto::lan::Mode::Undecided,
                Some(Mode::Direct) => proto::lan::Mode::Direct,
                Some(Mode::Vxlan) => proto::lan::Mode::Vxlan,
            },
            now,
        );
    }

    fn where_is(&self, who: &PublicKey, health: &GatewayHealth) -> mode::Where {
        let Some(gateway) = self.gateways.get(who) else {
            return mode::Where::default();
        };
        let other = health.other_lan;
        let other = other.filter(|other| may_be_used(*other, gateway.lan, &self.place));
        let has = |v4| gateway.lan.is_ipv4() == v4 || other.is_some_and(|one| one.is_ipv4() == v4);
        mode::Where {
            is_near: self.place.is_near(gateway.lan),
            lacks_family: self.families.iter().any(|v4| !has(*v4)),
        }
    }

    /// When nobody sends by the former mode any more, once our own kernel has the new one.
    pub(super) fn turn_ends(&self) -> Option<Duration> {
        let turned = self.turned.filter(|_| self.applied.is_some())?;
        Some(turned + TURNING)
    }
}

pub(super) fn families(view: &View, place: &Place) -> BTreeSet<bool> {
    let in_force = |one: &&SitePrefix| one.state == PrefixState::Owned && one.site != view.site;
    let all = view.prefixes.iter().filter(in_force);
    let all: BTreeSet<bool> = all.map(|one| is_v4(one.prefix)).collect();
    let own = place.lan().iter().map(IpAddr::is_ipv4);
    own.filter(|v4| all.contains(v4)).collect()
}

pub(super) const fn is_v4(prefix: IpNetwork) -> bool {
    matches!(prefix, IpNetwork::V4(_))
}

pub(super) fn setting(place: &Place, gateways: &Gateways) -> Setting {
    let gateways = gateways.iter();
    Setting {
        lan: place.own(),
        gateways: gateways.map(|(who, one)| (*who, one.lan)).collect(),
    }
}
