//! Other programs' packet filters: what of them is in the way is told, and opened if that is wanted.

use std::time::{Duration, Instant};

use netlink_packet_netfilter::NetfilterProtoFamily;
use tokio::sync::oneshot;

use super::see::Seen;
use super::{FOREIGN, tun};
use crate::facts::{Exit, Facts, Mode};
use crate::inspect::{Accept, Judged, Listening, Program, Ruleset, Situation, Topic, judge};
use crate::netlink::Refused;
use crate::netlink::nft::{ForwardChain, Nft};
use crate::problem::Problem;
use crate::settings::{Settings, VXLAN_DEVICE};

/// A host with very many rules is asked so seldom that it costs it a hundredth of a core at most.
const SHARE: u32 = 100;
/// While what is asked changes all the time, a quarter.
const SHARE_OF_CHANGES: u32 = 4;

#[derive(Debug, Default)]
pub(super) struct Filters {
    last: Option<Answer>,
    /// What is being read, on a thread of its own: neither very many rules nor a program that does
    /// not answer may keep repairs waiting.
    reading: Option<oneshot::Receiver<Answer>>,
    /// When a chain was opened last.
    opened: Option<Instant>,
    /// What is known is of facts or interfaces that have changed since.
    is_of_before: bool,
}

/// What was judged for which situation, when, and how long it took.
#[derive(Debug)]
struct Answer {
    situation: Situation,
    when: Instant,
    took: Duration,
    judged: Vec<Judged>,
}

impl Filters {
    /// Until something has been read that was not told yet.
    pub(super) async fn read(&mut self) {
        match &mut self.reading {
            Some(reading) => {
                let answer = reading.await;
                self.reading = None;
                self.last = answer.ok().or(self.last.take());
            }
            None => std::future::pending().await,
        }
    }

    /// What is in the way as it was last read; it is read again where that was long ago.
    pub(super) fn check(
        &mut self,
        nft: &Nft,
        facts: &Facts,
        seen: &Seen,
        settings: &Settings,
    ) -> Result<Vec<Problem>, Refused> {
        // Whoever closes it again and again is not answered faster than this.
        let may_open = self.opened.is_none_or(|at| at.elapsed() >= FOREIGN);
        let opens = (settings.open_forward && may_open)
            .then(|| tun(facts))
            .flatten();
        let mut has_opened = false;
        if let Some(tun) = opens {
            let mut chains = nft.forward_chains()?;
            chains.extend(self.judged().iter().filter_map(chain));
            chains.dedup();
            for chain in &chains {
                has_opened |= open(nft, chain, tun)?;
            }
        }
        let situation = situation(facts, seen);
        if has_opened {
            // What was read, or is just being read, is of before.
            *self = Filters {
                opened: Some(Instant::now()),
                ..Filters::default()
            };
        }
        let is_of = |last: &Answer| last.situation == situation;
        self.is_of_before = !self.last.as_ref().is_some_and(is_of);
        if self.is_old(&situation) {
            self.ask(situation);
        }
        Ok(self.judged().iter().filter_map(problem).collect())
    }

    pub(super) const fn is_of_before(&self) -> bool {
        self.is_of_before
    }

    fn judged(&self) -> &[Judged] {
        self.last.as_ref().map_or(&[], |last| &last.judged)
    }

    fn is_old(&self, situation: &Situation) -> bool {
        let last = self.last.as_ref();
        last.is_none_or(|last| {
            let is_of_now = last.situation == *situation;
            last.when.elapsed() >= last.took * if is_of_now { SHARE } else { SHARE_OF_CHANGES }
        })
    }

    fn ask(&mut self, situation: Situation) {
        if self.reading.is_some() {
            return;
        }
        let (tell, told) = oneshot::channel();
        let thread = std::thread::Builder::new().name("filters".to_owned());
        let spawned = thread.spawn(move || drop(tell.send(answer(situation))));
        match spawned {
            Ok(_) => self.reading = Some(told),
            Err(error) => tracing::debug!(%error, "other programs' rules are not judged"),
        }
    }
}

/// Threads are in the network namespace of those that start them.
fn answer(situation: Situation) -> Answer {
    let when = Instant::now();
    let judged = match Ruleset::read() {
        Ok(ruleset) => judge(&ruleset, &situation),
        Err(error) => {
            tracing::debug!(%error, "other programs' rules are not judged");
            vec![]
        }
    };
    Answer {
        situation,
        when,
        took: when.elapsed(),
        judged,
    }
}

/// Whether it was closed until now.
fn open(nft: &Nft, chain: &ForwardChain, tun: &str) -> Result<bool, Refused> {
    if nft.openings(chain)?.len() >= 2 {
        return Ok(false);
    }
    nft.open(chain, tun)?;
    tracing::info!(%chain, "accept rules inserted");
    Ok(true)
}

/// Where a rule of nf_tables that drops what is forwarded can be forestalled.
fn chain(judged: &Judged) -> Option<ForwardChain> {
    let rule = &judged.finding.rule;
    let is_of_nft = rule.program != Program::LegacyIptables;
    let family = match rule.family {
        "inet" => NetfilterProtoFamily::Inet,
        "ip" => NetfilterProtoFamily::IPv4,
        "ip6" => NetfilterProtoFamily::IPv6,
        _ => return None,
    };
    (judged.topic == Topic::Forward && is_of_nft).then(|| ForwardChain {
        family,
        table: rule.table.clone(),
        chain: rule.base_chain.clone(),
    })
}

/// What only may be in the way is for who asks: `causeway diagnose`. But a chain that drops by
/// policy is told of if nothing accepts for certain.
fn problem(judged: &Judged) -> Option<Problem> {
    let is_policy = judged.finding.rule.remove.is_none();
    let certain = judged.finding.certain;
    let problem = Problem::new(&judged.what, &judged.next);
    match judged.topic {
        Topic::Leftover => Some(problem.that_stops_traffic()),
        Topic::SourceChange | Topic::Input => certain.then_some(problem),
        Topic::Forward if certain => Some(problem.that_stops_traffic()),
        Topic::Forward => is_policy.then_some(problem),
    }
}

fn situation(facts: &Facts, seen: &Seen) -> Situation {
    let devices = seen.devices(facts);
    let mut inner: Vec<String> = devices.inner.into_keys().collect();
    let mut situation = Situation {
        remote: facts.prefixes.keys().copied().collect(),
        local: facts.local.clone(),
        ..Situation::default()
    };
    match &facts.exit {
        Exit::Tunnel(tunnel) => {
            let from = |from: bool| if from { facts.local.clone() } else { vec![] };
            let mut listening = vec![
                (
                    Accept::Udp(tunnel.listen_port),
                    false,
                    "the tunnels of other gateways",
                ),
                (Accept::Udp(proto::lan::PORT), true, "this site's agents"),
                (
                    Accept::Tcp(proto::splice::PORT),
                    true,
                    "nodes on their way to the broker",
                ),
            ];
            if !tunnel.agents.is_empty() {
                inner.push(VXLAN_DEVICE.to_owned());
                let port = Accept::Udp(tunnel.vxlan.port);
                listening.push((port, true, "VXLAN of this site's agents"));
            }
            let listening = listening.into_iter();
            situation.listening = listening
                .map(|(accept, is_local, what)| Listening {
                    what: what.to_owned(),
                    accept,
                    from: from(is_local),
                })
                .collect();
            situation.mesh_devices = vec![tunnel.tun.clone()];
            situation.forwards = true;
        }
        Exit::Gateways(gateways) => {
            situation.mesh_devices = match gateways.mode {
                Mode::Vxlan => vec![VXLAN_DEVICE.to_owned()],
                Mode::Direct => inner.clone(),
            };
        }
    }
    situation.inner_devices = inner;
    situation
}
