//! Random lives of a mesh: what can happen to one, in any order, with the reference model asked
//! whenever all has been calm for long enough.

use std::time::Duration;

use super::broker::{Broker, LIES};
use super::check::CALM;
use super::edge::{DEPENDENCES, EdgeKind};
use super::flow::Seen;
use super::line::{Line, Loss};
use super::network::HostId;
use super::node::NodeId;
use super::world::World;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Join,
    Leave,
    Kill,
    Start,
    /// For less than it takes to be missed.
    Stall,
    Freeze,
    Thaw,
    Restart,
    RollingRestart,
    Partition,
    OneWayCut,
    LanSplit,
    Heal,
    RebindPort,
    RebindAddress,
    Renumber,
    MtuShrinks,
    MtuGrows,
    SomeLoss,
    HeavyLoss,
    Bursts,
    Disorder,
    SlowLine,
    FarAway,
    GoodLines,
    BrokerDies,
    BrokerHangs,
    BrokerReturns,
    BrokerLags,
    BrokerLies,
    BrokerWithholds,
    NoRelay,
    RevokeNode,
    RevokeSite,
    PrefixAdded,
    KeyRotation,
    Clone,
    Replay,
    ClockBack,
    Wait,
}

pub const STEPS: [Step; 40] = [
    Step::Join,
    Step::Leave,
    Step::Kill,
    Step::Start,
    Step::Stall,
    Step::Freeze,
    Step::Thaw,
    Step::Restart,
    Step::RollingRestart,
    Step::Partition,
    Step::OneWayCut,
    Step::LanSplit,
    Step::Heal,
    Step::RebindPort,
    Step::RebindAddress,
    Step::Renumber,
    Step::MtuShrinks,
    Step::MtuGrows,
    Step::SomeLoss,
    Step::HeavyLoss,
    Step::Bursts,
    Step::Disorder,
    Step::SlowLine,
    Step::FarAway,
    Step::GoodLines,
    Step::BrokerDies,
    Step::BrokerHangs,
    Step::BrokerReturns,
    Step::BrokerLags,
    Step::BrokerLies,
    Step::BrokerWithholds,
    Step::NoRelay,
    Step::RevokeNode,
    Step::RevokeSite,
    Step::PrefixAdded,
    Step::KeyRotation,
    Step::Clone,
    Step::Replay,
    Step::ClockBack,
    Step::Wait,
];

const MOST_NODES: usize = 6;
const MOMENT: Duration = Duration::from_millis(500);
/// Without loss every sample of this time before the end of a calm must have come.
const WITNESS: Duration = Duration::from_secs(5);

pub struct Scenario {
    pub world: World,
    pub steps: Vec<Step>,
}

impl Scenario {
    /// Two or three sites of any kind, one or two gateways each, all of them started.
    pub fn new(seed: u64) -> Scenario {
        let mut world = World::new(seed);
        let sites = 2 + world.dice.below(2);
        for _ in 0..sites {
            let kind = any_edge(&mut world);
            let edge = world.add_site(kind);
            for _ in 0..=world.dice.below(2) {
                world.add_node(edge);
            }
        }
        for at in 0..world.nodes.len() {
            world.start(at);
        }
        add_flows(&mut world);
        Scenario {
            world,
            steps: Vec::new(),
        }
    }

    /// The whole of it; what is wrong is among the world's faults.
    pub fn run(&mut self) {
        let edges = &self.world.network.edges[1..];
        let kinds: Vec<EdgeKind> = edges.iter().map(|edge| edge.kind).collect();
        self.world.note(format!("sites: {kinds:?}"));
        self.advance(Duration::from_secs(8));
        for _ in 0..2 {
            for _ in 0..2 + self.world.dice.below(7) {
                let step = *self.world.dice.pick(&STEPS).expect("there are steps");
                self.step(step);
                let span = [50, 500, 3_000, 15_000];
                let longest = *self.world.dice.pick(&span).expect("there are spans");
                let wait = self.world.dice.below(longest);
                self.advance(Duration::from_millis(wait));
            }
            self.calm();
        }
        self.step(Step::Heal);
        self.step(Step::GoodLines);
        self.step(Step::BrokerReturns);
        self.calm();
    }

    fn calm(&mut self) {
        for at in 0..self.world.nodes.len() {
            self.world.thaw(at);
        }
        self.world.note("calm".to_owned());
        self.advance(CALM);
        if self.world.faults.is_empty() {
            self.world.check_calm();
            self.check_flows();
        }
    }

    pub fn advance(&mut self, span: Duration) {
        let end = self.world.now + span;
        while self.world.now < end && self.world.faults.is_empty() {
            self.world.run_until(end.min(self.world.now + MOMENT));
            self.world.check_moment();
        }
    }

    fn check_flows(&mut self) {
        let now = self.world.now;
        let until = now.saturating_sub(Duration::from_secs(1));
        for flow in 0..self.world.flows.len() {
            let Seen { sent, lost, .. } = self.world.flows[flow].seen(until - WITNESS, until);
            if lost > 0 && self.world.must_deliver(flow) {
                let from = self.world.nodes[self.world.flows[flow].from].label();
                let to = self.world.flows[flow].to.clone();
                self.world.fault(format!(
                    "{lost} of {sent} packets from {from} to {to} are lost"
                ));
            }
        }
    }

    pub fn step(&mut self, step: Step) {
        if !self.world.faults.is_empty() {
            return;
        }
        self.steps.push(step);
        self.world.note(format!("STEP {step:?}"));
        match step {
            Step::Join => self.join(),
            Step::Leave => self.with_running(|own, at| own.world.leave(at)),
            Step::Kill => self.with_running(|own, at| own.world.kill(at)),
            Step::Start => self.start(),
            Step::Stall => self.with_running(Scenario::stall),
            Step::Freeze => self.with_running(|own, at| own.world.freeze(at)),
            Step::Thaw => self.thaw(),
            Step::Restart => self.with_running(Scenario::restart),
            Step::RollingRestart => self.with_running(Scenario::rolling_restart),
            Step::Partition => self.partition(),
            Step::OneWayCut => self.with_running(Scenario::one_way_cut),
            Step::LanSplit => self.with_running(Scenario::lan_split),
            Step::Heal => self.heal(),
            Step::RebindPort => self.with_running(|own, at| own.rebind(at, false)),
            Step::RebindAddress => self.with_running(|own, at| own.rebind(at, true)),
            Step::Renumber => self.with_running(|own, at| own.world.renumber(at)),
            Step::MtuShrinks => self.mtu(220),
            Step::MtuGrows => self.lines(|line| line.mtu = 1500),
            Step::SomeLoss => self.lines(|line| line.loss = Loss::Independent(40)),
            Step::HeavyLoss => self.bad_lines(|line| line.loss = Loss::Independent(300)),
            Step::Bursts => self.bad_lines(|line| line.loss = BURSTS),
            Step::Disorder => self.lines(disorder),
            Step::SlowLine => self.bad_lines(|line| line.rate = Some(200_000)),
            Step::FarAway => self.bad_lines(|line| line.latency = Duration::from_millis(150)),
            Step::GoodLines => self.good_lines(),
            Step::BrokerDies => self.broker_fails(|broker| broker.is_up = false),
            Step::BrokerHangs => self.broker_fails(|broker| broker.is_hung = true),
            Step::NoRelay => self.broker_fails(|broker| broker.relays = false),
            Step::BrokerReturns => self.broker_returns(),
            Step::BrokerLags => self.world.broker.lag = Duration::from_secs(3),
            Step::BrokerLies => {
                let lie = self.world.dice.pick(&LIES).copied();
                self.world.broker.lies.extend(lie);
            }
            Step::BrokerWithholds => self.with_running(|own, at| {
                own.world.broker.withheld.insert(at);
            }),
            Step::RevokeNode => self.with_ledger(World::revoke_node),
            Step::RevokeSite => self.revoke_site(),
            Step::PrefixAdded => self.with_ledger(World::add_prefix),
            Step::KeyRotation => self.with_running(|own, at| own.world.rotate(at)),
            Step::Clone => self.clone_one(),
            Step::Replay => self.world.replay(20),
            Step::ClockBack => self.with_running(Scenario::clock_back),
            Step::Wait => self.advance(Duration::from_secs(30)),
        }
    }

    fn with_running(&mut self, deed: impl Fn(&mut Scenario, NodeId)) {
        if let Some(at) = self.any(|world, at| world.nodes[at].is_running()) {
            deed(self, at);
        }
    }

    fn any(&mut self, which: impl Fn(&World, NodeId) -> bool) -> Option<NodeId> {
        let nodes = 0..self.world.nodes.len();
        let fitting: Vec<NodeId> = nodes.filter(|at| which(&self.world, *at)).collect();
        self.world.dice.pick(&fitting).copied()
    }

    fn start(&mut self) {
        let is_down = |world: &World, at: NodeId| {
            let node = &world.nodes[at];
            node.process.is_none() && !node.has_left
        };
        if let Some(at) = self.any(is_down) {
            self.world.start(at);
        }
    }

    fn thaw(&mut self) {
        if let Some(at) = self.any(|world, at| world.nodes[at].is_stopped) {
            self.world.thaw(at);
        }
    }

    fn join(&mut self) {
        let world = &mut self.world;
        let sites = world.network.edges.len() as u64 - 1;
        // By hand an entry goes to nobody here: a joiner needs a broker that takes it.
        if world.nodes.len() >= MOST_NODES || !world.broker.works() {
            return;
        }
        let edge = usize::try_from(1 + world.dice.below(sites)).unwrap_or(1);
        let name = World::site_name(edge);
        let is_revoked = world.nodes.iter();
        if is_revoked
            .clone()
            .any(|node| node.actor.site == name && node.is_revoked)
        {
            return;
        }
        let at = world.add_node(edge);
        world.start(at);
    }

    /// Shorter than anyone may act on.
    fn stall(&mut self, at: NodeId) {
        let touched = self.world.nodes[at].touched;
        self.world.freeze(at);
        self.advance(Duration::from_millis(200));
        self.world.thaw(at);
        // It is no excuse for anything.
        self.world.nodes[at].touched = touched;
    }

    fn restart(&mut self, at: NodeId) {
        self.world.stop(at);
        self.advance(Duration::from_millis(1500));
        if self.world.nodes[at].process.is_some() {
            let label = self.world.nodes[at].label();
            self.world
                .fault(format!("{label} does not end 1.5 s after SIGTERM"));
        }
        self.world.start(at);
    }

    /// One gateway of the site after the other.
    fn rolling_restart(&mut self, first: NodeId) {
        let site = self.world.nodes[first].actor.site.clone();
        for at in self.world.running() {
            if self.world.nodes[at].actor.site == site {
                self.restart(at);
                self.advance(Duration::from_secs(2));
            }
        }
    }

    fn clone_one(&mut self) {
        if self.world.nodes.len() >= MOST_NODES {
            return;
        }
        let single =
            |world: &World, at: NodeId| world.nodes[at].is_running() && !world.nodes[at].is_clone;
        if let Some(at) = self.any(single) {
            let clone = self.world.clone_node(at);
            self.world.touch(at);
            self.world.start(clone);
        }
    }

    fn clock_back(&mut self, at: NodeId) {
        self.world.kill(at);
        self.world.nodes[at].clock -= 3_600_000_000;
        self.world.start(at);
    }

    fn heal(&mut self) {
        for (_, line) in self.world.network.lines() {
            line.is_cut = false;
        }
        self.touch_all();
    }

    fn partition(&mut self) {
        let inside: Vec<NodeId> = (0..self.world.nodes.len())
            .filter(|_| self.world.dice.chance(400))
            .collect();
        let hosts: Vec<HostId> = inside.iter().map(|at| self.world.nodes[*at].host).collect();
        for ((from, to), line) in self.world.network.lines() {
            line.is_cut |= hosts.contains(from) != hosts.contains(to);
        }
        for at in inside {
            self.world.touch(at);
        }
    }

    fn one_way_cut(&mut self, one: NodeId) {
        let site = self.world.nodes[one].actor.site.clone();
        if let Some(other) = self.any(|world, at| world.nodes[at].actor.site != site) {
            let hosts = (self.world.nodes[one].host, self.world.nodes[other].host);
            self.world.network.line(hosts.0, hosts.1).is_cut = true;
            self.world.excuse(one, other);
        }
    }

    /// Two siblings lose each other; nobody else may.
    fn lan_split(&mut self, one: NodeId) {
        let site = self.world.nodes[one].actor.site.clone();
        if let Some(other) = self.any(|world, at| at != one && world.nodes[at].actor.site == site) {
            self.world.each_way(one, other, |line| line.is_cut = true);
            self.world.excuse(one, other);
        }
    }

    fn rebind(&mut self, at: NodeId, other_address: bool) {
        let edge = self.world.network.hosts[self.world.nodes[at].host].edge;
        self.world.network.rebind(edge, other_address);
        for other in 0..self.world.nodes.len() {
            if self.world.network.hosts[self.world.nodes[other].host].edge == edge {
                self.world.touch(other);
            }
        }
    }

    /// Of one host: what is no excuse for a failure.
    fn lines(&mut self, change: impl Fn(&mut Line)) {
        self.with_running(|own, at| own.world.around(own.world.nodes[at].host, &change));
    }

    /// What is.
    fn bad_lines(&mut self, change: impl Fn(&mut Line)) {
        self.with_running(|own, at| {
            own.world.around(own.world.nodes[at].host, &change);
            own.world.touch(at);
        });
    }

    fn mtu(&mut self, range: u64) {
        let mtu = 1300 + usize::try_from(self.world.dice.below(range)).unwrap_or_default();
        self.lines(|line| line.mtu = mtu);
    }

    fn good_lines(&mut self) {
        for (_, line) in self.world.network.lines() {
            line.loss = Loss::Independent(0);
            line.mtu = 1500;
            line.rate = None;
            line.late = 0;
            line.twice = 0;
            line.jitter = Duration::ZERO;
        }
        self.touch_all();
    }

    fn touch_all(&mut self) {
        for at in 0..self.world.nodes.len() {
            self.world.touch(at);
        }
    }

    /// Who depends on the relay depends on the broker.
    fn broker_fails(&mut self, how: impl Fn(&mut Broker)) {
        how(&mut self.world.broker);
        self.world.touch_relayed();
    }

    fn broker_returns(&mut self) {
        self.world.broker.recover();
        self.world.push_entries();
        self.world.touch_relayed();
    }

    /// The operator's commands need a broker that takes their entries.
    fn with_ledger(&mut self, deed: impl Fn(&mut World, NodeId)) {
        let at = self.any(|world, at| !world.nodes[at].is_revoked);
        if let Some(at) = at.filter(|_| self.world.broker.works()) {
            deed(&mut self.world, at);
        }
    }

    fn revoke_site(&mut self) {
        if self.world.network.edges.len() > 3 {
            self.with_ledger(World::revoke_site);
        }
    }
}

const BURSTS: Loss = Loss::Bursts {
    well: Duration::from_secs(5),
    ill: Duration::from_millis(400),
};

fn disorder(line: &mut Line) {
    line.jitter = Duration::from_millis(20);
    line.late = 100;
    line.twice = 50;
}

fn any_edge(world: &mut World) -> EdgeKind {
    let mapping = *world.dice.pick(&DEPENDENCES).expect("three kinds");
    let filtering = *world.dice.pick(&DEPENDENCES).expect("three kinds");
    match world.dice.below(10) {
        0..=3 => EdgeKind::Open,
        4 => EdgeKind::Firewall,
        5..=8 => EdgeKind::Nat { mapping, filtering },
        _ => EdgeKind::NoUdp,
    }
}

/// From some gateways to some other sites.
fn add_flows(world: &mut World) {
    for from in 0..world.nodes.len() {
        for edge in 1..world.network.edges.len() {
            let to = World::site_name(edge);
            if to != world.nodes[from].actor.site && world.dice.chance(500) {
                let interval = world
                    .dice
                    .between(Duration::from_millis(100), Duration::from_millis(1000));
                let flow = world.add_flow(from, &to, interval);
                let size = usize::try_from(100 + world.dice.below(1300)).unwrap_or(100);
                world.flows[flow].size = size;
            }
        }
    }
}
