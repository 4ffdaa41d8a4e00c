//! Random lives of a site: gateways and agents that die, stall, are cut off and come back, over a
//! wire that loses, doubles, delays and turns round, while somebody repeats what he heard and sends
//! junk. What must always hold is looked at every few milliseconds. `SEED=N` repeats one life,
//! `LAN_LIVES=N` lives so many.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::name::Name;
use routeagent::health::GatewayState;

use super::world::{Packet, Weather, World, ms};

const LIVES: u64 = 3;
const STEPS: usize = 40;
const TICK: Duration = ms(5);
/// The bar, kernel included; what is under way is heard later still.
const NOTICED: Duration = ms(300);
/// Of all weathers, since what was sent in the last is still under way.
const LONGEST_DELAY: Duration = ms(40);
/// After so long without a change of its own a pair knows each other, through any of these weathers.
const SETTLED: Duration = ms(1500);
const HOLD_DOWN: Duration = Duration::from_secs(30);
/// Sooner it may be the first of its kind to arrive.
const OLD: Duration = Duration::from_secs(5);
const SITE: &str = "berlin";

#[derive(Clone, Copy, Debug)]
enum Step {
    Kill,
    Start,
    Leave,
    RestartInPlace,
    CutGateway,
    CutAgent,
    Stall,
    RestartAgent,
    Weather,
    Replay,
    Junk,
    Wait,
}

const ALL: [Step; 12] = [
    Step::Kill,
    Step::Start,
    Step::Leave,
    Step::RestartInPlace,
    Step::CutGateway,
    Step::CutAgent,
    Step::Stall,
    Step::RestartAgent,
    Step::Weather,
    Step::Replay,
    Step::Junk,
    Step::Wait,
];

enum Later {
    Kill(usize),
    Start(usize),
    HealGateway(usize),
    HealAgent(usize),
}

/// What is true of an agent and a gateway, whatever either believes.
#[derive(Clone, Copy)]
struct Pair {
    /// Both run, neither leaves, and datagrams pass.
    is_whole: bool,
    since: Duration,
}

/// What an agent had at the last look.
#[derive(Clone, Default)]
struct Look {
    used: Vec<usize>,
    states: Vec<GatewayState>,
}

struct Life {
    seed: u64,
    world: World,
    leaving: Vec<bool>,
    pairs: Vec<Vec<Pair>>,
    /// When each agent stalled or started last.
    disturbed: Vec<Duration>,
    looks: Vec<Look>,
    later: Vec<(Duration, Later)>,
    steps: Vec<(Duration, Step)>,
}

impl Life {
    fn new(seed: u64) -> Life {
        let gateways = 2 + (seed % 2) as u16;
        let mut world = World::new(gateways, 2, &[SITE, "cork"]);
        world.seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        world.kept = Some(vec![]);
        let now = world.now;
        let pair = Pair {
            is_whole: true,
            since: now,
        };
        Life {
            seed,
            world,
            leaving: vec![false; gateways.into()],
            pairs: vec![vec![pair; gateways.into()]; 2],
            disturbed: vec![now; 2],
            looks: vec![Look::default(); 2],
            later: vec![],
            steps: vec![],
        }
    }

    fn live(&mut self) {
        self.run(ms(2000));
        for _ in 0..STEPS {
            let step = ALL[self.world.throw(ALL.len() as u64) as usize];
            self.steps.push((self.world.now, step));
            self.take(step);
            let pause = match self.world.throw(4) {
                0 => 10,
                1 => 300,
                2 => 1000,
                _ => 3000,
            };
            let pause = ms(self.world.throw(pause));
            self.run(pause);
        }
        self.end_well();
    }

    /// Everyone comes back, and is used again.
    fn end_well(&mut self) {
        self.run(Duration::from_secs(5));
        self.world.weather = Weather {
            delay: ms(1),
            ..Weather::default()
        };
        for gateway in 0..self.leaving.len() {
            self.later.push((self.world.now, Later::Start(gateway)));
        }
        self.run(HOLD_DOWN + Duration::from_secs(2));
        let all: Vec<usize> = (0..self.leaving.len()).collect();
        for agent in 0..2 {
            self.assert_that(self.world.first(agent) == all, agent, "not all are used");
        }
    }

    fn take(&mut self, step: Step) {
        let now = self.world.now;
        let gateway = self.world.throw(self.leaving.len() as u64) as usize;
        let agent = self.world.throw(2) as usize;
        let soon = now + ms(self.world.throw(3000));
        match step {
            Step::Kill => self.world.kill(gateway),
            Step::Start => self.later.push((now, Later::Start(gateway))),
            Step::Leave => {
                if self.world.gateways[gateway].agents.is_some() {
                    self.world.leave(gateway);
                    self.leaving[gateway] = true;
                    self.later.push((now + ms(800), Later::Kill(gateway)));
                }
            }
            Step::RestartInPlace => {
                self.world.kill(gateway);
                let after = now + ms(self.world.throw(400));
                self.later.push((after, Later::Start(gateway)));
            }
            Step::CutGateway => {
                let address = self.world.gateways[gateway].node.address;
                self.world.cut.insert(address);
                self.later.push((soon, Later::HealGateway(gateway)));
            }
            Step::CutAgent => {
                let address = self.world.agents[agent].node.address;
                self.world.cut.insert(address);
                self.later.push((soon, Later::HealAgent(agent)));
            }
            Step::Stall => {
                self.world.agents[agent].stalled = soon;
                self.disturbed[agent] = soon;
            }
            Step::RestartAgent => {
                self.world.agents[agent].stalled = now;
                self.world.start_agent(agent);
                self.disturbed[agent] = now;
                self.looks[agent] = Look::default();
            }
            Step::Weather => self.change_weather(),
            Step::Replay => self.replay(),
            Step::Junk => self.junk(),
            Step::Wait => self.run(Duration::from_secs(10)),
        }
        self.see_truth();
    }

    fn change_weather(&mut self) {
        let delays = [1, 5, 20, 40];
        self.world.weather = Weather {
            lost: self.world.throw(31),
            doubled: self.world.throw(101),
            delay: ms(delays[self.world.throw(4) as usize]),
        };
    }

    /// Until then, with a look at everything on the way.
    fn run(&mut self, span: Duration) {
        let end = self.world.now + span;
        while self.world.now < end {
            self.do_what_is_due();
            self.world.run(TICK.min(end - self.world.now));
            self.look();
        }
    }

    fn do_what_is_due(&mut self) {
        let now = self.world.now;
        let later = std::mem::take(&mut self.later);
        let (due, later): (Vec<_>, Vec<_>) = later.into_iter().partition(|(at, _)| *at <= now);
        self.later = later;
        for (_, what) in due {
            match what {
                Later::Kill(gateway) => self.world.kill(gateway),
                Later::Start(gateway) => {
                    if self.world.gateways[gateway].agents.is_none() {
                        self.world.start_gateway(gateway);
                        self.leaving[gateway] = false;
                    }
                }
                Later::HealGateway(gateway) => {
                    let address = self.world.gateways[gateway].node.address;
                    self.world.cut.remove(&address);
                }
                Later::HealAgent(agent) => {
                    let address = self.world.agents[agent].node.address;
                    self.world.cut.remove(&address);
                }
            }
        }
        self.see_truth();
    }

    fn see_truth(&mut self) {
        let world = &self.world;
        for (agent, pairs) in self.pairs.iter_mut().enumerate() {
            for (gateway, pair) in pairs.iter_mut().enumerate() {
                let node = &world.gateways[gateway];
                let is_cut = world.cut.contains(&node.node.address)
                    || world.cut.contains(&world.agents[agent].node.address);
                let is_whole = node.agents.is_some() && !self.leaving[gateway] && !is_cut;
                if is_whole != pair.is_whole {
                    *pair = Pair {
                        is_whole,
                        since: world.now,
                    };
                }
            }
        }
    }

    fn look(&mut self) {
        let now = self.world.now;
        for agent in 0..self.looks.len() {
            if self.world.agents[agent].stalled >= now {
                continue;
            }
            let (used, states) = self.world.look(agent);
            let look = Look { used, states };
            let before = std::mem::replace(&mut self.looks[agent], look);
            self.check(agent, &before);
        }
    }

    fn check(&self, agent: usize, before: &Look) {
        let (world, look) = (&self.world, &self.looks[agent]);
        let undisturbed = world.now.saturating_sub(self.disturbed[agent]);
        let lasts = |pair: &Pair| (world.now - pair.since).min(undisturbed);
        let pairs = &self.pairs[agent];
        let is_kept = before.used.is_empty() || !look.used.is_empty();
        self.assert_that(is_kept, agent, "an empty choice after one that was not");
        let knows = |pair: &Pair| pair.is_whole && lasts(pair) > SETTLED;
        if !pairs.iter().any(knows) {
            return;
        }
        self.assert_that(!look.used.is_empty(), agent, "empty while one is there");
        let noticed = NOTICED + 2 * LONGEST_DELAY + TICK;
        for (gateway, pair) in pairs.iter().enumerate() {
            let is_used = look.used.contains(&gateway);
            let is_gone = !pair.is_whole && lasts(pair) > noticed;
            self.assert_that(!is_gone || !is_used, agent, "one that is gone is used");
            let was_up = before.states.get(gateway) == Some(&GatewayState::Up);
            let did_well = before.used.contains(&gateway) && was_up && knows(pair);
            self.assert_that(!did_well || is_used, agent, "one that did well is left");
        }
    }

    #[track_caller]
    fn assert_that(&self, holds: bool, agent: usize, what: &str) {
        assert!(
            holds,
            "SEED={} at {:?}: agent {agent}: {what}; it uses {:?}, {:?}; steps: {:?}",
            self.seed, self.world.now, self.looks[agent].used, self.looks[agent].states, self.steps,
        );
    }

    /// What agents use, and where gateways think that agents are.
    fn believed(&self) -> (Vec<BTreeMap<Name, Vec<usize>>>, String) {
        let used = (0..self.looks.len()).map(|agent| self.world.used(agent));
        let reached = self.world.gateways.iter().map(|gateway| {
            let agents = gateway.agents.as_ref();
            agents.map(|agents| (agents.reached(), places(agents, self.world.now)))
        });
        let reached = format!("{:?}", reached.collect::<Vec<_>>());
        (used.collect(), reached)
    }

    /// Something arrives from somewhere, and nobody believes anything else than before.
    fn inject(&mut self, packet: Packet, what: &str) {
        let before = self.believed();
        self.world.deliver(packet);
        let after = self.believed();
        assert_eq!(after, before, "SEED={}: {what} was believed", self.seed);
    }

    fn recorded(&mut self) -> Option<Packet> {
        let now = self.world.now;
        let kept = self.world.kept.as_deref().unwrap_or_default();
        let old = kept.partition_point(|packet| packet.at + OLD < now);
        let at = self.world.throw(old.max(1) as u64) as usize;
        self.world.kept.as_deref()?.get(..old)?.get(at).cloned()
    }

    fn replay(&mut self) {
        for _ in 0..20 {
            let Some(mut packet) = self.recorded() else {
                return;
            };
            if self.world.throw(2) == 0 {
                packet.from.set_ip([10, 1, 200, 1].into());
            }
            self.inject(packet, "a repeated datagram");
        }
    }

    fn junk(&mut self) {
        for _ in 0..20 {
            let Some(mut packet) = self.recorded() else {
                return;
            };
            let length = packet.bytes.len() as u64;
            match self.world.throw(3) {
                0 => packet.bytes.truncate(self.world.throw(length) as usize),
                1 => {
                    let at = self.world.throw(length) as usize;
                    packet.bytes[at] ^= 1 << self.world.throw(8);
                }
                _ => packet.bytes.push(self.world.throw(256) as u8),
            }
            self.inject(packet, "a damaged datagram");
        }
    }
}

fn places(agents: &super::super::Agents, now: Duration) -> Vec<String> {
    let statuses = agents.statuses(now).into_iter();
    let places = statuses.map(|one| format!("{:?} {:?} {}", one.address, one.mode, one.is_heard));
    places.collect()
}

#[test]
fn whatever_happens_to_a_site_its_agents_use_who_lives_and_nobody_else() {
    let one = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let lives: Vec<u64> = match one {
        Some(seed) => vec![seed],
        None => {
            let wanted = std::env::var("LAN_LIVES").ok();
            (0..wanted.and_then(|count| count.parse().ok()).unwrap_or(LIVES)).collect()
        }
    };
    for seed in lives {
        Life::new(seed).live();
    }
}
