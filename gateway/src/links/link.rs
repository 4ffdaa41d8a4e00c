//! One link: the machines of one remote gateway or sibling, and what their states make of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::control::{Control, Echo, Hello, Probe};
use proto::key::PublicKey;

use super::boots::{Boots, Speaker, Speech};
use super::carriers::Bearing;
use super::desk::Desk;
use super::handshakes::Handshakes;
use super::hold::Hold;
use super::liveness::{Life, Liveness, Says};
use super::loss::Loss;
use super::lost::Hears;
use super::mtu::{MtuOutput, MtuSearch};
use super::paths::{PathOutput, Paths, Rtt};
use super::pings::Pings;
use super::prefixes::Prefixes;
use super::proof::{Checked, Proof};
use super::shut_out::ShutOut;
use super::witness::{Inquiry, Watch};
use super::{Change, Counters, Event, Gateway, LinkStatus, Why};

/// A probe that only asks for a path's life.
const SMALL_PROBE: u16 = 128;

/// Who was cleared of a word is not asked again and again, whoever repeats it: under losses one
/// inquiry after the other would take a healthy gateway out in the end. A few are free: words of
/// who was cut off wait in its kernel until it is back, and the next one may be true.
const INQUIRIES_APART: Duration = Duration::from_secs(5);
const FREE_INQUIRIES: u32 = 6;

pub(super) struct Link {
    pub(super) of: PublicKey,
    pub(super) gateway: Gateway,
    pub(super) is_sibling: bool,
    pub(super) state: Result<(), Why>,
    pub(super) hold: Hold,
    pub(super) loss: Loss,
    pub(super) life: Liveness,
    pub(super) paths: Paths,
    pub(super) mtu: MtuSearch,
    /// What a sibling told us of the sites it has lost.
    pub(super) hears: Hears,
    pub(super) has_session: bool,
    handshakes: Handshakes,
    addresses: Vec<SocketAddr>,
    proof: Proof,
    boots: Boots,
    watch: Watch,
    inquiry: Option<Inquiry>,
    /// Every time it was cleared puts this off by [`INQUIRIES_APART`].
    cleared_until: Duration,
    /// When it was taken out because nothing cleared it of a word.
    accused_at: Option<Duration>,
    /// The boot that said goodbye.
    left: Option<u64>,
    pings: Pings,
    counters: Counters,
    swept_at: Duration,
    bearing: Bearing,
    were_two: bool,
    shut_out: ShutOut,
    /// Another boot speaks than when it was looked at last.
    is_other_boot: bool,
}

/// What looking at a link has changed for the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) went_up: bool,
    pub(super) went_down: bool,
    /// Who is to carry may be others now.
    pub(super) is_other_bearing: bool,
    /// This sibling died, with this boot.
    pub(super) dead: Option<u64>,
}

impl Link {
    pub(super) fn new(of: PublicKey, gateway: Gateway, desk: &mut Desk, now: Duration) -> Link {
        let is_sibling = gateway.site == desk.local.site;
        let proof = Proof::new(of, gateway.wireguard, desk.local.wireguard);
        let mut link = Link {
            of,
            is_sibling,
            state: Err(Why::NoAnswer),
            hold: Hold::default(),
            loss: Loss::default(),
            life: Liveness::new(desk.local.boot, is_sibling),
            paths: Paths::new(desk.dice.next(), now),
            mtu: MtuSearch::new(desk.dice.next(), now),
            hears: Hears::default(),
            has_session: false,
            handshakes: Handshakes::new(desk.dice.next(), now),
            addresses: Vec::new(),
            proof,
            boots: Boots::default(),
            watch: Watch::default(),
            inquiry: None,
            cleared_until: Duration::ZERO,
            accused_at: None,
            left: None,
            pings: Pings::default(),
            counters: Counters::default(),
            swept_at: now,
            bearing: Bearing::default(),
            were_two: false,
            shut_out: ShutOut::default(),
            is_other_boot: false,
            gateway,
        };
        link.handle_prefixes(&desk.prefixes);
        link.handle_record(now);
        link
    }

    pub(super) fn handle_prefixes(&mut self, prefixes: &Arc<Prefixes>) {
        self.paths.handle_prefixes(prefixes, &self.gateway.site);
    }

    /// What may change without making the link anew.
    pub(super) fn handle_gateway(&mut self, gateway: &Gateway, now: Duration) {
        if self.gateway != *gateway {
            self.gateway = gateway.clone();
            self.handle_record(now);
        }
    }

    fn handle_record(&mut self, now: Duration) {
        let (candidates, lan) = (&self.gateway.candidates, self.gateway.lan);
        self.paths.handle_record(candidates, lan, now);
    }

    pub(super) fn handle_session(&mut self, source: SocketAddr, now: Duration) {
        self.has_session = true;
        self.paths.handle_session(source, now);
        self.handshakes.handle_session(source, now);
        self.proof.handle_session(now);
        self.life.handle_session(now);
    }

    pub(super) fn handle_source(&mut self, source: SocketAddr, now: Duration) {
        self.paths.handle_source(source, now);
        self.handle_opened(now, now);
    }

    pub(super) fn handle_relay(&mut self, address: Option<SocketAddr>, now: Duration) {
        self.paths.handle_relay(address, now);
    }

    /// Whether anything has changed.
    pub(super) fn handle_counters(&mut self, counters: Counters, now: Duration) -> bool {
        let before = std::mem::replace(&mut self.counters, counters);
        let swept_before = std::mem::replace(&mut self.swept_at, now);
        if before.tx_data != counters.tx_data || before.rx_data != counters.rx_data {
            self.life.handle_data(now);
        }
        if before.large != counters.large {
            self.mtu.handle_large(counters.large, now);
        }
        if before.rx_any != counters.rx_any {
            self.paths.handle_heard(now);
            self.handle_opened(swept_before, now);
        }
        before != counters
    }

    pub(super) fn handle_slept(&mut self, now: Duration) {
        self.life.handle_slept(now);
        self.watch.handle_slept(now);
        if let Some(inquiry) = &mut self.inquiry {
            inquiry.handle_slept(now);
        }
    }

    pub(super) fn handle_ping(&mut self, id: u64, desk: &mut Desk, now: Duration) {
        self.pings.handle_ping(id, now);
        desk.say(&self.of, &Control::Ping { id });
    }

    pub(super) fn is_meant(&self, boot: u64) -> bool {
        self.life.remote_boot() == Some(boot)
    }

    /// A sibling of it says that it is dead.
    pub(super) fn handle_word(&mut self, now: Duration) {
        let is_again = self.cleared_until > now + INQUIRIES_APART * (FREE_INQUIRIES - 1);
        if self.state.is_ok() && self.inquiry.is_none() && !is_again {
            let wait = self.paths.rtt().map(Rtt::limit);
            self.inquiry = Some(Inquiry::new(wait, now));
        }
    }

    /// A control packet was opened that came from there.
    pub(super) fn handle_control_source(&mut self, source: SocketAddr, now: Duration) {
        self.paths.handle_source(source, now);
        self.handle_opened(now, now);
    }

    /// It stops and has heard that we stop: nothing more is said.
    pub(super) fn handle_end(&mut self) {
        self.life.handle_end();
        self.watch.handle_goodbye();
    }

    /// What concerns this link alone; the rest is not looked at.
    pub(super) fn handle_control(
        &mut self,
        control: &Control,
        source: SocketAddr,
        desk: &mut Desk,
        now: Duration,
    ) {
        match control {
            Control::Hello(hello) => self.handle_hello(hello, desk, now),
            Control::Goodbye { boot } => self.handle_goodbye(*boot, desk),
            Control::Probe(probe) => self.echo(probe, source, desk),
            Control::Echo(echo) => self.handle_echo(*echo, now),
            Control::Prove { nonce } => {
                if let Some(proof) = self.proof.handle_prove(nonce, &desk.local.identity, now) {
                    desk.say(&self.of, &proof);
                }
            }
            Control::Proof { nonce, signature } => {
                let change = match self.proof.handle_proof(nonce, signature, now) {
                    Checked::Holds => Change::Proven,
                    Checked::DoesNotHold => Change::NotProven,
                    Checked::NotAsked => return,
                };
                desk.changed(&self.of, change);
            }
            Control::Question { id } => desk.say(&self.of, &Control::Answer { id: *id }),
            Control::Ping { id } => desk.say(&self.of, &Control::Pong { id: *id }),
            Control::Pong { id } => {
                if let Some(rtt) = self.pings.handle_pong(*id, now) {
                    let (of, id) = (self.of, *id);
                    desk.events.push_back(Event::Ponged { of, id, rtt });
                }
            }
            Control::Candidates { addresses } if self.proof.is_proven() => {
                self.paths.handle_candidates(addresses, now);
            }
            Control::TwoOfOneKey if self.proof.is_proven() => {
                if self.shut_out.handle_told(now) {
                    desk.changed(&self.of, Change::ShutOut);
                }
            }
            Control::TwoOfOneKey
            | Control::Candidates { .. }
            | Control::Answer { .. }
            | Control::GoodbyeHeard { .. }
            | Control::Word(_)
            | Control::Lost(_)
            | Control::Digest(_)
            | Control::Want(_)
            | Control::Part(_) => {}
        }
    }

    /// Everything that is due; what it means for the rest.
    pub(super) fn settle(&mut self, desk: &mut Desk, now: Duration) -> Settled {
        self.settle_paths(desk, now);
        self.settle_handshakes(desk, now);
        self.settle_mtu(desk, now);
        let mut settled = Settled::default();
        self.settle_state(&mut settled, desk, now);
        if !self.has_session {
            return settled;
        }
        if let Some(prove) = self.proof.poll_prove(now, &mut desk.dice) {
            desk.say(&self.of, &prove);
        }
        let says = Says {
            carries: self.state.is_ok(),
            hears: self.proof.is_proven(),
        };
        if let Some(hello) = self.life.poll_hello(says, now, &mut desk.dice) {
            desk.say(&self.of, &Control::Hello(hello));
            if self.were_two {
                desk.say(&self.of, &Control::TwoOfOneKey);
            }
        }
        if let Some(question) = self
            .inquiry
            .as_mut()
            .and_then(|inquiry| inquiry.poll_question(now))
        {
            desk.say(&self.of, &question);
        }
        settled.dead = self.watch.poll_silent(now);
        settled
    }

    pub(super) fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        [
            self.paths.poll_timeout(),
            self.handshakes.poll_timeout(),
            self.mtu.poll_timeout(),
            self.life.poll_timeout(),
            self.proof.poll_timeout().filter(|_| self.has_session),
            self.inquiry.as_ref().map(Inquiry::poll_timeout),
            self.watch.poll_timeout(),
            self.hold.poll_timeout(now),
            self.boots.poll_timeout().filter(|at| now < *at),
            self.shut_out.poll_timeout().filter(|at| now < *at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) const fn is_proven(&self) -> bool {
        self.proof.is_proven()
    }

    pub(super) const fn bearing(&self) -> Bearing {
        self.bearing
    }

    pub(super) fn status(&self, now: Duration) -> LinkStatus {
        let rtt = self.paths.rtt();
        LinkStatus {
            of: self.of,
            site: self.gateway.site.clone(),
            node: self.gateway.node.clone(),
            is_sibling: self.is_sibling,
            state: self.state,
            proven: self.is_proven(),
            carries: self.bearing.carries,
            held_down: self.bearing.is_held,
            path: self.paths.in_use(),
            rtt: rtt.map(|rtt| rtt.smoothed),
            jitter: rtt.map(|rtt| rtt.deviation),
            loss: self.loss.part(now, self.life.missing(now)),
            mtu: self.mtu.mtu(),
            failovers: self.hold.failovers(),
            down_for: self.hold.down_for(now),
            seen_as: self.paths.seen_as(),
            candidates: self.paths.candidates(),
        }
    }

    /// Whether it answers at all, up or not.
    pub(super) fn is_heard(&self, now: Duration) -> bool {
        let lives = matches!(self.life.life(now), Life::Alive | Life::NotHeard);
        self.has_session && self.left.is_none() && lives
    }

    /// Something was opened, not earlier than `since`.
    fn handle_opened(&mut self, since: Duration, now: Duration) {
        self.handshakes.handle_heard(now);
        self.life.handle_heard(now);
        if let Some(inquiry) = &mut self.inquiry {
            inquiry.handle_heard(since);
        }
        if self.accused_at.is_some_and(|at| since >= at) {
            self.accused_at = None;
        }
        if self.is_sibling
            && self.proof.is_proven()
            && self.left.is_none()
            && let Some(boot) = self.life.remote_boot()
        {
            self.watch.handle_heard(boot, now);
        }
    }

    fn handle_hello(&mut self, hello: &Hello, desk: &Desk, now: Duration) {
        let own_boot = desk.local.boot;
        let heard = hello.heard.filter(|heard| heard.boot == own_boot);
        let speech = Speech {
            boot: hello.boot,
            number: hello.number,
            heard: heard.map(|heard| heard.number),
            ours: self.life.said(),
        };
        match self.boots.handle_hello(speech, now) {
            Speaker::Old => return,
            Speaker::Same => {}
            Speaker::New => {
                self.life.handle_boot();
                self.loss.handle_boot();
                self.hears.forget();
                self.left = self.left.filter(|left| *left == hello.boot);
                self.inquiry = None;
                self.cleared_until = Duration::ZERO;
                self.accused_at = None;
                self.is_other_boot = true;
                self.shut_out = ShutOut::default();
            }
        }
        if self.left == Some(hello.boot) {
            return;
        }
        if hello.carries {
            self.shut_out = ShutOut::default();
        }
        self.loss.handle_hello(hello.number, now);
        self.life.handle_hello(hello, now);
        let milliseconds = |count: u32| Duration::from_millis(count.into());
        let age = hello.heard.map(|heard| milliseconds(heard.age));
        let interval = milliseconds(hello.interval.into());
        let own = self.life.announced();
        self.paths.handle_hello(interval, age, own, now);
    }

    fn handle_goodbye(&mut self, boot: u64, desk: &mut Desk) {
        desk.say(&self.of, &Control::GoodbyeHeard { boot });
        if self
            .life
            .remote_boot()
            .is_none_or(|current| current == boot)
        {
            self.left = Some(boot);
            self.inquiry = None;
            self.watch.handle_goodbye();
        }
    }

    /// Only what arrived whole is echoed, by the path it came on.
    fn echo(&self, probe: &Probe, source: SocketAddr, desk: &mut Desk) {
        let echo = Control::Echo(Echo {
            nonce: probe.nonce,
            seen_as: source,
        });
        desk.say_by(&self.of, Some(source), &echo, 0);
    }

    fn handle_echo(&mut self, echo: Echo, now: Duration) {
        let is_paths = self.paths.handle_echo(echo.nonce, echo.seen_as, now);
        if !is_paths {
            self.mtu.handle_echo(echo.nonce, now);
        }
    }

    fn settle_paths(&mut self, desk: &mut Desk, now: Duration) {
        self.paths.handle_timeout(&mut desk.strangers, now);
        desk.refused_addresses += self.paths.take_refused();
        while let Some(output) = self.paths.poll_output() {
            match output {
                PathOutput::Probe { to, nonce } => self.probe(to, nonce, SMALL_PROBE, desk),
                PathOutput::Use { from, to } => {
                    self.mtu.handle_path(to, self.paths.has_echoed(to), now);
                    let of = self.of;
                    desk.events.push_back(Event::UsePath { of, address: to });
                    if let Some(from) = from {
                        desk.changed(&self.of, Change::Path { from, to });
                    }
                }
                PathOutput::Relay { wanted } => {
                    let of = self.of;
                    desk.events.push_back(Event::Relay { of, wanted });
                }
                PathOutput::TellCandidates => {
                    let addresses = desk.own_addresses.clone();
                    desk.say(&self.of, &Control::Candidates { addresses });
                }
            }
        }
        if let Some((path, _)) = self.paths.in_use()
            && self.paths.has_echoed(path)
        {
            self.mtu.handle_path_echoed(now);
        }
    }

    fn settle_handshakes(&mut self, desk: &mut Desk, now: Duration) {
        let addresses = self.paths.addresses();
        if addresses != self.addresses {
            self.handshakes.handle_addresses(&addresses, now);
            self.addresses = addresses;
        }
        self.handshakes.handle_timeout(now);
        if let Some(addresses) = self.handshakes.poll_initiation() {
            let to = self.of;
            desk.events.push_back(Event::Initiate { to, addresses });
        }
    }

    fn settle_mtu(&mut self, desk: &mut Desk, now: Duration) {
        self.mtu.handle_timeout(now);
        while let Some(output) = self.mtu.poll_output() {
            match output {
                MtuOutput::Probe { to, nonce, size } => self.probe(to, nonce, size, desk),
                MtuOutput::Changed(mtu) => {
                    let of = self.of;
                    desk.events.push_back(Event::Mtu { of, mtu });
                }
            }
        }
    }

    fn probe(&self, to: SocketAddr, nonce: u64, size: u16, desk: &mut Desk) {
        let probe = Control::Probe(Probe { nonce, size });
        desk.say_by(&self.of, Some(to), &probe, size.into());
    }

    fn settle_state(&mut self, settled: &mut Settled, desk: &mut Desk, now: Duration) {
        let inquiry = self.inquiry.as_ref();
        if let Some(is_dead) = inquiry.and_then(|inquiry| inquiry.verdict(now)) {
            self.inquiry = None;
            self.accused_at = is_dead.then_some(now);
            if !is_dead {
                self.cleared_until = self.cleared_until.max(now) + INQUIRIES_APART;
            }
        }
        let are_two = self.boots.are_two(now);
        if are_two && !self.were_two {
            desk.changed(&self.of, Change::TwoOfOneKey);
        }
        self.were_two = are_two;
        let state = self.judge(now);
        let before = std::mem::replace(&mut self.state, state);
        match (before, state) {
            (Err(_), Ok(())) => {
                settled.went_up = true;
                self.hold.handle_up(now);
                desk.changed(&self.of, Change::Up);
            }
            (Ok(()), Err(why)) => {
                settled.went_down = true;
                if why != Why::Goodbye {
                    self.hold.handle_failure(now);
                }
                desk.changed(&self.of, Change::Down(why));
            }
            (Ok(()), Ok(())) | (Err(_), Err(_)) => {}
        }
        if state == Err(Why::Goodbye) && before != state {
            self.hold.handle_goodbye();
            self.hears.forget();
        }
        let bearing = Bearing {
            is_up: state.is_ok(),
            is_held: self.hold.is_held(now),
            carries: self.life.remote_carries(),
        };
        let is_other_boot = std::mem::take(&mut self.is_other_boot);
        // What was said to the boot before is to be said again.
        settled.went_up |= is_other_boot && state.is_ok();
        settled.is_other_bearing = bearing != self.bearing || is_other_boot;
        self.bearing = bearing;
    }

    fn judge(&self, now: Duration) -> Result<(), Why> {
        if self.boots.are_two(now) {
            return Err(Why::TwoOfOneKey);
        }
        if self.left.is_some() {
            return Err(Why::Goodbye);
        }
        if !self.has_session {
            return Err(if self.addresses.is_empty() {
                Why::NoAddress
            } else {
                Why::NoAnswer
            });
        }
        if self.shut_out.is_so(now) {
            return Err(Why::ShutOut);
        }
        if self.accused_at.is_some() {
            return Err(Why::Accused);
        }
        match self.life.life(now) {
            Life::Silent => Err(Why::Silent),
            Life::Unheard | Life::NotHeard | Life::Alive if !self.proof.is_proven() => {
                Err(Why::NotProven)
            }
            Life::Unheard => Err(Why::Silent),
            Life::NotHeard => Err(Why::NotHeard),
            Life::Alive => Ok(()),
        }
    }
}
