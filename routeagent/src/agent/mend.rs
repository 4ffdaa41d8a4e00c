//! What differs is put right, and what cannot be is told.

use std::collections::BTreeSet;
use std::time::Duration;

use ip_network::IpNetwork;
use tokio::time::Instant;

use super::checks;
use super::see::Seen;
use super::{Agent, FIGHT, FIGHT_SPAN, FOREIGN, REPAIR_EVERY, REPAIRS_AT_ONCE, ROUND, tun};
use crate::diff::{Change, diff};
use crate::facts::Facts;
use crate::guard::FoundTable;
use crate::netlink::vxlan::{self, Named};
use crate::netlink::{Refused, link, nexthop, route, rule};
use crate::plan::{self, Ground, plan};
use crate::problem::Problem;
use crate::settings::{ALIAS, VXLAN_DEVICE};
use crate::sysctl;
use crate::wanted::{Nexthop, Wanted, Way};

/// What a look has led to.
pub(super) struct Mended {
    /// Until the next look without cause.
    pub(super) wait: Duration,
    /// As the kernel was before the changes.
    pub(super) seen: Seen,
    changes: Vec<Change>,
    /// The facts as far as this node can be what they say.
    pub(super) usable: Facts,
}

impl Agent {
    pub(super) async fn mend(
        &mut self,
        facts: &Facts,
        mut seen: Seen,
        fresh: bool,
        problems: &mut Vec<Problem>,
    ) -> Result<Mended, Refused> {
        seen.found.guard = self.found_guard()?;
        let now = Instant::now();
        self.forget_old_repairs(now);
        let held = (!fresh).then(|| self.too_soon(now)).flatten();
        let usable = checks::usable(facts, &seen, problems);
        let mut ground = self.ground(&usable, &seen);
        if held.is_none() && self.settle_vxlan(&usable, &ground, &seen, problems) {
            seen = self.see(facts).await?;
            seen.found.guard = self.found_guard()?;
            ground = self.ground(&usable, &seen);
        }
        let wanted = plan(&usable, &ground, &seen.found, &self.settings);
        self.tell_closed(&usable, &wanted);
        self.mark_tun(facts, &seen).await;
        let changes = self.changes(&wanted, &seen);
        let wait = match held {
            _ if changes.is_empty() => ROUND,
            Some(held) => held,
            None => self.carry_out(&changes, &seen, fresh, problems).await,
        };
        for message in seen.rules.strange.iter().cloned() {
            if let Err(refused) = rule::remove_strange(&self.handle, message).await {
                tracing::debug!(%refused, "a rule of another version stays");
            }
        }
        self.check_sysctls(&wanted, facts, problems);
        checks::hops(&usable, &ground, &seen, problems);
        self.tell_fight(problems);
        Ok(Mended {
            wait,
            seen,
            changes,
            usable,
        })
    }

    fn tell_closed(&self, facts: &Facts, wanted: &Wanted) {
        let closed = closed(facts, wanted, self.settings.table);
        self.closed.send_if_modified(|told| {
            let is_new = *told != closed;
            *told = closed;
            is_new
        });
    }

    fn found_guard(&mut self) -> Result<Option<FoundTable>, Refused> {
        if let Some(found) = &self.guard {
            return Ok(found.clone());
        }
        let found = match &self.nft {
            Ok(nft) => nft.found()?,
            Err(_) => None,
        };
        self.guard = Some(found.clone());
        Ok(found)
    }

    /// What was read and not changed need not be read again before something is told.
    pub(super) fn keep(&mut self, Mended { seen, changes, .. }: Mended) {
        let is_guard =
            |change: &&Change| matches!(change, Change::Guard(_) | Change::Elements { .. });
        let guarded = changes.iter().filter(is_guard).count();
        if guarded > 0 {
            self.guard = None;
        }
        self.seen = (guarded == changes.len()).then_some(seen);
    }

    fn changes(&self, wanted: &Wanted, seen: &Seen) -> Vec<Change> {
        let mut changes = diff(wanted, &seen.found);
        if self.nft.is_err() {
            changes.retain(|change| !matches!(change, Change::Guard(_) | Change::Elements { .. }));
        }
        changes
    }

    /// The interface must be there before anything leads to it. Whether it has changed.
    fn settle_vxlan(
        &self,
        facts: &Facts,
        ground: &Ground,
        seen: &Seen,
        problems: &mut Vec<Problem>,
    ) -> bool {
        let Some(wanted) = plan::vxlan(facts, ground) else {
            return false;
        };
        let is_up = seen.found.devices.contains(VXLAN_DEVICE);
        let done = match &seen.vxlan {
            Named::Foreign => return false,
            Named::Ours {
                vxlan: Some(there), ..
            } if *there == wanted && is_up => return false,
            Named::Ours {
                index,
                vxlan: Some(there),
            } if there.port == wanted.port
                && there.local == wanted.local
                && there.mac == wanted.mac =>
            {
                vxlan::settle(&self.raw, *index, &wanted)
            }
            Named::Ours { index, .. } => vxlan::remove(&self.raw, *index)
                .and_then(|()| vxlan::make(&self.raw, &wanted))
                .and_then(|()| self.settle_new(&wanted)),
            Named::Nobodys => {
                vxlan::make(&self.raw, &wanted).and_then(|()| self.settle_new(&wanted))
            }
        };
        match done {
            Ok(()) => tracing::info!(interface = VXLAN_DEVICE, "made ready"),
            Err(refused) => problems.push(checks::no_vxlan(&refused, &wanted)),
        }
        true
    }

    fn settle_new(&self, wanted: &crate::wanted::Vxlan) -> Result<(), Refused> {
        match vxlan::find(&self.raw)? {
            Named::Ours { index, .. } => vxlan::settle(&self.raw, index, wanted),
            Named::Nobodys | Named::Foreign => Ok(()),
        }
    }

    fn forget_old_repairs(&mut self, now: Instant) {
        while self
            .repairs
            .front()
            .is_some_and(|made| now - *made > FIGHT_SPAN)
        {
            self.repairs.pop_front();
        }
    }

    /// The last defence against two programs that undo each other's work as fast as they can.
    fn too_soon(&self, now: Instant) -> Option<Duration> {
        let latest = self.repairs.back()?;
        let wait = REPAIR_EVERY.checked_sub(now - *latest)?;
        let is_burst = self.repairs.len() >= REPAIRS_AT_ONCE;
        (is_burst && !wait.is_zero()).then_some(wait)
    }

    async fn carry_out(
        &mut self,
        changes: &[Change],
        seen: &Seen,
        fresh: bool,
        problems: &mut Vec<Problem>,
    ) -> Duration {
        let failed = self.apply(changes, seen).await;
        for change in changes {
            tracing::debug!(%change, failed = failed.len(), "kernel changed");
        }
        if !fresh && failed.len() < changes.len() {
            self.repairs.push_back(Instant::now());
            let all: Vec<String> = changes.iter().take(3).map(Change::to_string).collect();
            self.fought = all.join(", ");
            tracing::info!(
                count = changes.len(),
                first = self.fought,
                "kernel state repaired"
            );
        }
        let wait = if failed.is_empty() {
            ROUND
        } else {
            REPAIR_EVERY
        };
        problems.extend(
            failed
                .into_iter()
                .take(10)
                .map(|refused| checks::refusal(&refused)),
        );
        wait
    }

    async fn apply(&self, changes: &[Change], seen: &Seen) -> Vec<Refused> {
        let indexes = seen.indexes();
        let (mut failed, mut rest) = (vec![], changes);
        while !rest.is_empty() {
            let (about_routes, refused) = route::apply(&self.raw, rest, &indexes);
            failed.extend(refused);
            rest = rest.get(about_routes..).unwrap_or_default();
            // Of routes some are left only if the kernel took none of a batch.
            if about_routes > 0 {
                continue;
            }
            if let Some((first, others)) = rest.split_first() {
                failed.extend(self.apply_one(first, seen).await.err());
                rest = others;
            }
        }
        failed
    }

    /// But for routes, of which there are thousands.
    async fn apply_one(&self, change: &Change, seen: &Seen) -> Result<(), Refused> {
        match change {
            Change::Guard(_) | Change::Elements { .. } => match &self.nft {
                Ok(nft) => nft.apply(change),
                Err(_) => Ok(()),
            },
            Change::AddRoute(..) | Change::ReplaceRoute(..) | Change::RemoveRoute(..) => Ok(()),
            Change::AddRule(rule) => rule::add(&self.handle, rule).await,
            Change::RemoveRule(rule) => rule::remove(&self.handle, rule).await,
            Change::RemoveVxlan
            | Change::SetForwarding(_)
            | Change::RemoveForwarding(_)
            | Change::SetNeighbour(_)
            | Change::RemoveNeighbour(_) => self.apply_link_layer(change),
            Change::AddNexthop(..) | Change::ReplaceNexthop(..) | Change::RemoveNexthop(..) => {
                self.apply_nexthop(change, seen)
            }
        }
    }

    fn apply_link_layer(&self, change: &Change) -> Result<(), Refused> {
        let (raw, index) = (&self.raw, self.vxlan);
        match change {
            Change::RemoveVxlan => vxlan::remove(raw, index),
            Change::SetForwarding(entry) => vxlan::set_forwarding(raw, index, entry),
            Change::RemoveForwarding(entry) => vxlan::remove_forwarding(raw, index, entry),
            Change::SetNeighbour(node) => vxlan::set_neighbour(raw, index, node),
            Change::RemoveNeighbour(node) => vxlan::remove_neighbour(raw, index, node),
            Change::Guard(_)
            | Change::Elements { .. }
            | Change::AddNexthop(..)
            | Change::ReplaceNexthop(..)
            | Change::RemoveNexthop(..)
            | Change::AddRoute(..)
            | Change::ReplaceRoute(..)
            | Change::RemoveRoute(..)
            | Change::AddRule(_)
            | Change::RemoveRule(_) => Ok(()),
        }
    }

    fn apply_nexthop(&self, change: &Change, seen: &Seen) -> Result<(), Refused> {
        let oif = |nexthop: &Nexthop| match nexthop {
            Nexthop::Hop(hop) => seen.index(&hop.device),
            Nexthop::Group(_) => 0,
        };
        match change {
            Change::AddNexthop(id, nexthop) => nexthop::add(&self.raw, *id, nexthop, oif(nexthop)),
            Change::ReplaceNexthop(id, nexthop) => {
                nexthop::replace(&self.raw, *id, nexthop, oif(nexthop))
            }
            Change::RemoveNexthop(id, _) => nexthop::remove(&self.raw, *id),
            Change::Guard(_)
            | Change::Elements { .. }
            | Change::RemoveVxlan
            | Change::SetForwarding(_)
            | Change::RemoveForwarding(_)
            | Change::SetNeighbour(_)
            | Change::RemoveNeighbour(_)
            | Change::AddRoute(..)
            | Change::ReplaceRoute(..)
            | Change::RemoveRoute(..)
            | Change::AddRule(_)
            | Change::RemoveRule(_) => Ok(()),
        }
    }

    /// By its alias the interface is known as ours, whatever its name, when everything is taken away.
    async fn mark_tun(&self, facts: &Facts, seen: &Seen) {
        if let Some(tun) = tun(facts)
            && let Some(link) = seen.links.get(tun)
            && link.alias.as_deref() != Some(ALIAS)
            && let Err(refused) = link::set_alias(&self.handle, link, ALIAS).await
        {
            tracing::debug!(%refused, interface = tun, "the interface gets no alias");
        }
    }

    fn check_sysctls(&mut self, wanted: &Wanted, facts: &Facts, problems: &mut Vec<Problem>) {
        let ours: Vec<&str> = tun(facts).into_iter().chain([VXLAN_DEVICE]).collect();
        match &mut self.memory {
            Ok(memory) => problems.extend(sysctl::check(
                &wanted.sysctls,
                self.settings.set_sysctls,
                memory,
                &ours,
            )),
            Err(error) => problems.push(Problem::new(
                format!("what sysctls were before cannot be read: {error}"),
                "look at the files in /run/causeway/kernel",
            )),
        }
    }

    /// Whether what others have is known from before.
    pub(super) fn check_sometimes(&mut self, facts: &Facts, seen: &Seen) -> bool {
        let now = Instant::now();
        if now < self.others_due {
            return true;
        }
        let mut found = vec![];
        self.check_others(facts, seen, &mut found);
        (self.others, self.others_due) = (Some(found), now + FOREIGN);
        false
    }

    fn tell_fight(&self, problems: &mut Vec<Problem>) {
        if self.repairs.len() >= FIGHT {
            problems.push(Problem::new(
                format!(
                    "something else keeps undoing the mesh's kernel state, {} times in {} s; last: {}",
                    self.repairs.len(),
                    FIGHT_SPAN.as_secs(),
                    self.fought
                ),
                "find the other program with `ip monitor all` and `nft monitor`, and tell it to \
                 leave protocol 199 and the table inet causeway alone (systemd-networkd: \
                 ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no)",
            ));
        }
    }
}

/// Of an agent: what should be led to gateways and is not.
fn closed(facts: &Facts, wanted: &Wanted, table: u32) -> BTreeSet<IpNetwork> {
    let asked = facts.prefixes.iter();
    let mut closed: BTreeSet<IpNetwork> = asked
        .filter(|(_, remote)| !remote.by.is_empty())
        .map(|(prefix, _)| *prefix)
        .filter(|prefix| plan::refusal(facts, *prefix).is_none())
        .collect();
    if !closed.is_empty() {
        for (place, way) in &wanted.routes {
            match way {
                Way::Leads { .. } if place.table == table => {
                    closed.remove(&place.prefix);
                }
                Way::Leads { .. } | Way::Unreachable | Way::Strange => {}
            }
        }
    }
    closed
}
