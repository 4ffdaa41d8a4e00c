//! The links between what comes in and what goes out: the driving rule, written once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use node::status::{Kernel, Problem, Refusal};
use proto::key::WireguardKey;
use proto::name::Name;
use tokio::sync::{mpsc, oneshot};

use super::local::Question;
use super::{Daemon, problems, report};
use crate::data::link::LinkShared;
use crate::drops::DropReason;
use crate::io::{self, boottime};
use crate::links::{Change, Counters, Event, PathKind, Roster};
use crate::plane::{Command, NewLink};
use crate::roster;
use crate::status::{Pong, Status};
use crate::table::Table;

/// A link that the plane has.
pub(super) struct Linked {
    wireguard: WireguardKey,
    site: Name,
    node: Name,
    pub(super) shared: Arc<LinkShared>,
    is_proven: bool,
    told: u32,
    told_since: Duration,
    counted: Counters,
}

/// Lines about one link in this time; what it does beyond is left to the metrics.
const LINES: u32 = 12;
const LINES_IN: Duration = Duration::from_secs(60);

/// So many links without a direct path are asked of routes; a report is made where hellos are sent.
const LOOKED_AT: usize = 32;

impl Linked {
    /// A link that goes up and down for hours must not fill the log.
    fn may_tell(&mut self, now: Duration) -> bool {
        if now.saturating_sub(self.told_since) >= LINES_IN {
            (self.told_since, self.told) = (now, 0);
        }
        self.told += 1;
        if self.told == LINES {
            let (site, gateway) = (self.site.as_str(), self.node.as_str());
            tracing::warn!(
                site,
                gateway,
                "it changes all the time; no more is said of it for a minute"
            );
        }
        self.told < LINES
    }
}

impl Daemon {
    /// After every input: what the links want done, then what they want sent.
    pub(super) fn drain(&mut self) {
        while let Some(event) = self.links.poll_event() {
            self.handle_event(event);
        }
        if std::mem::take(&mut self.table_is_old) {
            self.table.carry(self.links.carriers());
            let table = Arc::new(self.table.clone());
            self.plane.command(Command::Table(table));
        }
        let links = &mut self.links;
        let transmits = std::iter::from_fn(|| links.poll_transmit());
        self.plane
            .transmit(transmits.map(|transmit| Command::Transmit {
                to: transmit.to,
                path: transmit.path,
                packet: transmit.packet.into(),
            }));
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Initiate { to, addresses } => {
                self.plane.command(Command::Initiate { to, addresses });
            }
            Event::UsePath { of, address } => self.plane.command(Command::UsePath { of, address }),
            Event::Mtu { of, mtu } => {
                self.mtus.insert(of, mtu);
                self.plane.command(Command::Mtu { of, mtu });
                self.facts_are_old = true;
            }
            Event::CarriersChanged => (self.table_is_old, self.facts_are_old) = (true, true),
            Event::Relay { of, wanted: true } => {
                if let Some(address) = self.relayed.want(of) {
                    self.links.handle_relay(&of, Some(address), boottime());
                }
            }
            Event::Relay { of, wanted: false } => {
                self.relayed.give_back(&of);
                // Nobody is behind that address any more.
                self.links.handle_relay(&of, None, boottime());
            }
            Event::HandedOver { from, handover } => {
                if !self.node.hand_in(handover) {
                    tracing::debug!(%from, "too much is handed over at once; it is offered again");
                }
            }
            Event::Changed { of, change } => {
                if change == Change::Proven {
                    self.tell_proven();
                }
                self.tell_change(&of, &change);
            }
            Event::Ponged { id, rtt, .. } => self.pings.handle_pong(id, rtt),
            Event::Left => self.stopping.handle_left(boottime()),
        }
    }

    fn tell_change(&mut self, of: &proto::key::PublicKey, change: &Change) {
        let Some(linked) = self.linked.get_mut(of) else {
            return;
        };
        if !linked.may_tell(boottime()) {
            return;
        }
        let (site, gateway) = (linked.site.as_str(), linked.node.as_str());
        match change {
            Change::Proven => tracing::debug!(site, gateway, "has proven who it is"),
            Change::Up => tracing::info!(site, gateway, "up"),
            Change::Down(why) => {
                tracing::info!(site, gateway, "down: {}", report::sentence(*why));
            }
            Change::Path { from, to } => {
                tracing::info!(site, gateway, %from, %to, "goes another way");
            }
            Change::TwoOfOneKey => tracing::warn!(
                site,
                gateway,
                "two machines use its key: a state directory was copied. Stop one, delete its copy, and join it with a token of its own"
            ),
            Change::ShutOut => tracing::warn!(
                site,
                gateway,
                "it takes nothing from here, since two machines use this node's key: a state directory was copied. Stop one, delete its copy, and join it with a token of its own"
            ),
            Change::NotProven => tracing::warn!(
                site,
                gateway,
                "its proof does not hold: its record may claim a key that is another's"
            ),
        }
    }

    /// Those that are gone first, so that a key that moved to another node is free.
    pub(super) fn tell_plane_of(&mut self, roster: &Roster) {
        let gone: Vec<_> = self
            .linked
            .iter()
            .filter(|(identity, linked)| {
                let now = roster.gateways.get(identity);
                now.is_none_or(|now| now.wireguard != linked.wireguard || now.site != linked.site)
            })
            .map(|(identity, _)| *identity)
            .collect();
        for identity in gone {
            self.linked.remove(&identity);
            self.mtus.remove(&identity);
            self.relayed.give_back(&identity);
            self.plane.command(Command::RemoveLink(identity));
        }
        for (identity, gateway) in &roster.gateways {
            if self.linked.contains_key(identity) {
                continue;
            }
            let shared = Arc::new(LinkShared::default());
            let linked = Linked {
                wireguard: gateway.wireguard,
                site: gateway.site.clone(),
                node: gateway.node.clone(),
                shared: shared.clone(),
                is_proven: false,
                told: 0,
                told_since: Duration::ZERO,
                counted: Counters::default(),
            };
            self.linked.insert(*identity, linked);
            self.plane.command(Command::AddLink(NewLink {
                identity: *identity,
                wireguard: gateway.wireguard,
                site: gateway.site.clone(),
                shared,
            }));
        }
    }

    /// Nothing of a site is taken from a tunnel before its other end has proven whose it is.
    pub(super) fn tell_proven(&mut self) {
        for (identity, linked) in &mut self.linked {
            if !linked.is_proven && self.links.is_proven(identity) {
                linked.is_proven = true;
                self.plane.command(Command::Proven(*identity));
            }
        }
    }

    pub(super) fn tell_table(&mut self) {
        let mut table = Table::new(&self.view.prefixes, &self.view.site, self.links.carriers());
        table.probes = roster::probe_addresses(&self.view.identity);
        if table != self.table {
            self.table = table;
            self.plane
                .command(Command::Table(Arc::new(self.table.clone())));
        }
    }

    /// What the packet path has counted since the last time.
    pub(super) fn count(&mut self, now: Duration) {
        for (identity, linked) in &mut self.linked {
            let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
            let counters = Counters {
                tx_data: load(&linked.shared.tx_data),
                rx_data: load(&linked.shared.rx_data),
                rx_any: load(&linked.shared.rx_any),
                large: load(&linked.shared.large),
            };
            if counters != linked.counted {
                linked.counted = counters;
                self.links.handle_counters(identity, counters, now);
            }
        }
    }

    pub(super) fn ask_reflectors(&mut self) {
        let nonces = || {
            let mut bytes = [0; 8];
            // Without randomness a nonce can be guessed, and the MAC still cannot.
            let _ = getrandom::fill(&mut bytes);
            u64::from_ne_bytes(bytes)
        };
        let due = self.reflection.due(boottime(), nonces);
        self.plane
            .transmit(due.into_iter().map(|(to, datagram)| Command::Ask {
                to,
                datagram: Box::new(datagram),
            }));
    }

    // ---- questions --------------------------------------------------------------------------

    pub(super) fn handle_question(&mut self, question: Question) {
        match question {
            Question::Status(answer) => {
                let now = boottime();
                let kept = self.shown.get(now);
                let status = kept.unwrap_or_else(|| self.shown.keep(self.status(), now));
                // Whoever asked may have gone.
                let _told = answer.send(status);
            }
            Question::Passage(answer) => self.passage.ask(answer),
            Question::Ping {
                site,
                count,
                answers,
                taken,
            } => {
                let _told = self.start_ping(&site, count, (answers, taken));
            }
        }
    }

    fn start_ping(
        &mut self,
        site: &str,
        count: u32,
        (answers, taken): (mpsc::Sender<Pong>, oneshot::Sender<Result<(), Refusal>>),
    ) -> Result<(), Result<(), Refusal>> {
        let links = self.links.statuses(boottime());
        let gateways: Vec<_> = links
            .iter()
            .filter(|link| link.site.as_str() == site)
            .map(|link| (link.of, report::pong(link)))
            .collect();
        if gateways.is_empty() {
            return taken.send(Err(no_such_site(site, &self.view.site)));
        }
        if !self.pings.start(gateways, count, answers) {
            return taken.send(Err(Refusal {
                what: "too many pings are under way".to_owned(),
                next: "wait until they have ended".to_owned(),
            }));
        }
        taken.send(Ok(()))
    }

    pub(super) fn status(&self) -> Status {
        let now = boottime();
        let refused = self.links.refused();
        let of_links = [
            ("control_unreadable", refused.unreadable),
            ("control_addresses", refused.addresses),
            ("control_unproven", refused.unproven),
            ("control_word", refused.words),
        ];
        let counts = DropReason::ALL
            .iter()
            .map(|reason| (reason.label(), self.plane.dropped(*reason)))
            .chain(of_links)
            .chain(self.hellos.refused())
            .map(|(label, count)| (label.to_owned(), count));
        let drops: BTreeMap<String, u64> = counts.filter(|(_, count)| *count > 0).collect();
        let links = self.links.statuses(now);
        let in_vain = links.iter().filter(|link| {
            let is_relayed = link.path.is_some_and(|(_, kind)| kind == PathKind::Relay);
            link.state.is_err() || is_relayed
        });
        let in_vain = in_vain.take(LOOKED_AT).flat_map(problems::direct);
        report::status(report::Facts {
            view: &self.view,
            unrouted: io::way::unrouted(in_vain, self.options.fwmark.0),
            links,
            linked: &self.linked,
            carriers: self.links.carriers(),
            mtus: &self.mtus,
            relayed: &self.relayed,
            addresses: self.whereabouts.candidates(),
            lan: self.whereabouts.lan(),
            place: self.whereabouts.place(),
            tun: &self.options.tun,
            port: self.plane.port,
            kernel: Kernel {
                table: self.options.table,
                rule_priority: self.options.rule_priority,
                vxlan_port: self.options.vxlan_port,
            },
            uptime: now.saturating_sub(self.begun),
            ready: self.is_ready.load(Ordering::Relaxed),
            drops,
            agents: self.hellos.statuses(now),
            problems: self.problems(),
        })
    }

    /// Of the parts that are no link's and no broker's.
    fn problems(&self) -> Vec<Problem> {
        let interface = self.interface.iter().map(|why| Problem {
            what: format!("interface {} is gone: {why}", self.options.tun),
            next: "it is tried until it can be made".to_owned(),
            stops: true,
        });
        let routes = self.routes.problems();
        let passage = self.passage.problems(&routes);
        interface
            .chain(routes)
            .chain(passage)
            .chain(self.hellos.problems())
            .chain(self.whereabouts.problems())
            .chain(self.splice.problems())
            .collect()
    }
}

fn no_such_site(site: &str, own: &Name) -> Refusal {
    let (what, next) = if site == own.as_str() {
        (
            format!("{site} is this gateway's own site, and it has no other gateway"),
            "name another site; `causeway status` shows those there are",
        )
    } else {
        (
            format!("no gateway of a site {site} is known here"),
            "`causeway status` shows the sites there are; one that is new needs a gateway that has joined",
        )
    };
    Refusal {
        what,
        next: next.to_owned(),
    }
}
