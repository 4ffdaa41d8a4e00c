mod hostile;
mod lives;
mod world;

use std::time::Duration;

use proto::lan::{INTERVAL, ProbeBy, Site};
use proto::name::Name;
use routeagent::health::{Fallback, GatewayState};

use world::{Weather, World, ms, reached};

/// The bar is 300 ms for all that follows the kill, the kernel included.
const NOTICED: Duration = ms(260);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Runs until the agent uses these for the first site; how long that took.
fn until_used(world: &mut World, used: &[usize], at_most: Duration) -> Duration {
    let begun = world.now;
    while world.first(0) != used {
        assert!(
            world.now - begun < at_most,
            "{:?} is used, not {used:?}",
            world.first(0)
        );
        world.run(ms(1));
    }
    world.now - begun
}

#[test]
fn an_agent_that_starts_knows_all_within_milliseconds() {
    let mut world = World::new(2, 1, &["berlin"]);
    assert!(!world.choice(0).settled);
    let took = until_used(&mut world, &[0, 1], ms(50));
    assert!(took <= ms(20), "{took:?}");
    let choice = world.choice(0);
    assert!(choice.settled && choice.fallback.is_none());
    assert_eq!(choice.of(&name("berlin")).mtu, Some(1400));
    assert!(choice.of(&name("cork")).by.is_empty());
}

#[test]
fn a_death_is_noticed_in_time_whenever_it_comes() {
    let mut longest = Duration::ZERO;
    for phase in 0..60 {
        let mut world = World::new(2, 1, &["berlin"]);
        world.run(ms(3000 + phase));
        world.kill(1);
        longest = longest.max(until_used(&mut world, &[0], ms(1000)));
        assert_eq!(world.state(0, 1), GatewayState::Silent);
    }
    assert!(longest <= NOTICED, "{longest:?}");
}

#[test]
fn a_stall_of_the_agent_takes_nobody_out() {
    for stall in [60, 200, 210, 1000, 10_000] {
        for phase in (0..60).step_by(7) {
            let mut world = World::new(2, 1, &["berlin"]);
            world.run(ms(3000 + phase));
            world.agents[0].stalled = world.now + ms(stall);
            world.run(ms(stall + 2000));
            let choices = &world.agents[0].choices;
            let after = choices.iter().filter(|(at, _)| *at > ms(1_003_000));
            assert_eq!(after.count(), 0, "{stall} ms at {phase}: {choices:?}");
        }
    }
}

#[test]
fn a_death_during_a_stall_is_noticed_after_it() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.run(ms(3000));
    world.agents[0].stalled = world.now + ms(500);
    world.run(ms(100));
    world.kill(1);
    let took = until_used(&mut world, &[0], ms(1000));
    assert!(took <= ms(400) + NOTICED, "{took:?}");
}

#[test]
fn what_a_bad_network_loses_doubles_and_turns_round_takes_nobody_out() {
    for seed in 1..4 {
        let mut world = World::new(2, 2, &["berlin"]);
        world.seed(seed);
        world.run(ms(100));
        world.weather = Weather {
            lost: 50,
            doubled: 100,
            delay: ms(40),
        };
        let before = world.agents[0].choices.len();
        world.run(Duration::from_secs(20));
        let choices = &world.agents[0].choices;
        assert_eq!(choices.len(), before, "seed {seed}: {choices:?}");
    }
}

#[test]
fn who_leaves_is_left_at_once_and_waits_until_all_know() {
    for lost in [0, 100] {
        let mut world = World::new(2, 20, &["berlin"]);
        world.run(ms(3000));
        world.weather.lost = lost;
        world.leave(1);
        let begun = world.now;
        while !world.gateways[1]
            .agents
            .as_ref()
            .unwrap()
            .has_left(world.now)
        {
            world.run(ms(1));
        }
        let took = world.now - begun;
        assert!(took >= ms(150) && took <= ms(900), "{took:?}");
        for agent in 0..20 {
            assert_eq!(world.first(agent), [0], "agent {agent}");
            assert_eq!(world.state(agent, 1), GatewayState::Leaving);
            let mut choices = world.agents[agent].choices.iter();
            let without =
                choices.find(|(at, used)| *at >= begun && !used[&name("berlin")].contains(&1));
            let left = without.unwrap().0 - begun;
            assert!(lost > 0 || left <= ms(1), "agent {agent}: {left:?}");
            assert!(
                left + ms(100) <= took,
                "agent {agent}: {left:?} of {took:?}"
            );
        }
    }
}

#[test]
fn one_that_left_is_used_at_once_when_it_is_back_and_reaches_something() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.run(ms(3000));
    world.leave(1);
    world.run(ms(300));
    world.kill(1);
    world.run(ms(2000));
    let sites = std::mem::take(&mut world.gateways[1].sites);
    world.start_gateway(1);
    world.run(ms(1000));
    assert_eq!(world.first(0), [0], "it reaches nothing yet");
    world.tell(1, sites);
    let took = until_used(&mut world, &[0, 1], ms(1000));
    assert!(took <= ms(60), "{took:?}");
}

#[test]
fn one_that_died_is_used_again_after_the_hold_down_or_at_once_if_alone() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.run(ms(3000));
    world.kill(1);
    world.run(ms(2000));
    world.start_gateway(1);
    world.run(Duration::from_secs(25));
    assert_eq!(world.first(0), [0]);
    assert_eq!(world.state(0, 1), GatewayState::HeldDown);
    // The other dies, and the one that is held is all there is.
    world.kill(0);
    let took = until_used(&mut world, &[1], ms(1000));
    assert!(took <= NOTICED, "{took:?}");
    world.start_gateway(0);
    // The hold of the one ends before that of the other.
    world.run(Duration::from_secs(10));
    assert_eq!(world.first(0), [1]);
    let took = until_used(&mut world, &[0, 1], Duration::from_secs(40));
    assert!(took > Duration::from_secs(10), "{took:?}");
}

#[test]
fn when_all_are_silent_the_last_choice_stays_and_nothing_is_held_against_them() {
    let mut world = World::new(3, 1, &["berlin"]);
    world.run(ms(3000));
    let before = world.agents[0].choices.len();
    world.weather.lost = 1000;
    world.run(ms(5000));
    assert_eq!(world.first(0), [0, 1, 2]);
    assert_eq!(world.choice(0).fallback, Some(Fallback::Last));
    assert_eq!(world.state(0, 1), GatewayState::Silent);
    world.weather.lost = 0;
    world.run(ms(5000));
    assert_eq!(world.agents[0].choices.len(), before, "no flicker");
    assert_eq!(world.choice(0).fallback, None);
    assert_eq!(world.state(0, 1), GatewayState::Up);
}

#[test]
fn where_none_ever_answered_all_are_used_until_the_first_has_told_what_it_reaches() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.kill(0);
    world.kill(1);
    world.start_agent(0);
    world.run(ms(1000));
    assert_eq!(world.choice(0).fallback, Some(Fallback::All));
    // Its first answer comes well before its table.
    world.weather.delay = ms(20);
    world.start_gateway(1);
    while world.first(0) != [1] {
        assert_eq!(world.first(0), [0, 1]);
        world.run(ms(1));
    }
}

#[test]
fn after_all_were_silent_one_that_is_back_alone_is_used_alone() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.run(ms(3000));
    world.kill(0);
    world.kill(1);
    world.run(ms(2000));
    assert_eq!(world.first(0), [0, 1]);
    world.start_gateway(1);
    let took = until_used(&mut world, &[1], ms(1000));
    assert!(took <= ms(250), "{took:?}");
}

#[test]
fn one_that_never_answered_is_not_used_beside_another_and_all_are_if_none_did() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.kill(1);
    world.run(ms(20));
    assert!(!world.choice(0).settled);
    world.run(ms(400));
    assert_eq!(world.first(0), [0]);
    assert_eq!(world.state(0, 1), GatewayState::Never);
    assert!(world.choice(0).settled);
    world.kill(0);
    world.start_agent(0);
    world.run(ms(400));
    assert_eq!(world.first(0), [0, 1]);
    assert_eq!(world.choice(0).fallback, Some(Fallback::All));
    assert_eq!(world.choice(0).of(&name("berlin")).mtu, Some(1280));
    world.start_gateway(1);
    until_used(&mut world, &[1], ms(500));
}

#[test]
fn next_hops_are_per_site() {
    let mut world = World::new(2, 1, &["berlin", "cork"]);
    world.run(ms(1000));
    let (berlin, cork) = (name("berlin"), name("cork"));
    world.tell(0, vec![reached(&berlin, 1380)]);
    world.run(ms(100));
    assert_eq!(world.used(0)[&berlin], [0, 1]);
    assert_eq!(world.choice(0).of(&berlin).mtu, Some(1380));
    assert_eq!(world.used(0)[&cork], [1]);
    // It hands on to its sibling: as good as nothing while that one is heard itself.
    let by_sibling = Site {
        by_sibling: true,
        ..reached(&cork, 1300)
    };
    world.tell(0, vec![reached(&berlin, 1380), by_sibling]);
    world.run(ms(100));
    assert_eq!(world.used(0)[&cork], [1]);
    world.kill(1);
    world.run(ms(400));
    assert_eq!(world.used(0)[&cork], [0]);
    assert_eq!(world.choice(0).of(&cork).mtu, Some(1300));
    world.tell(0, vec![reached(&berlin, 1380)]);
    world.run(ms(100));
    assert!(world.used(0)[&cork].is_empty());
}

#[test]
fn a_restart_that_nobody_noticed_leaves_the_last_choice_until_the_new_table_is_there() {
    let mut world = World::new(1, 1, &["berlin"]);
    world.run(ms(3000));
    let before = world.agents[0].choices.len();
    world.kill(0);
    world.run(ms(100));
    world.start_gateway(0);
    world.run(ms(2000));
    assert_eq!(world.agents[0].choices.len(), before);
    assert_eq!(world.state(0, 0), GatewayState::Up);
}

#[test]
fn a_restarted_agent_finds_the_same_again() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.run(ms(3000));
    for _ in 0..3 {
        world.start_agent(0);
        until_used(&mut world, &[0, 1], ms(50));
        world.run(ms(300));
        assert!(world.choice(0).settled);
    }
}

#[test]
fn a_thousand_sites_arrive_through_a_lossy_network() {
    let names: Vec<String> = (0..1000).map(|number| format!("site-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(1, 1, &names);
    world.weather.lost = 300;
    world.run(ms(2000));
    let health = world.choice(0);
    let health = health.gateways.values().next().unwrap();
    assert_eq!(health.reaches, 1000);
    let all = world.used(0);
    assert!(all.values().all(|used| used == &[0]));
    // Once it is there nothing of it is sent again.
    world.weather.lost = 0;
    world.run(ms(200));
    let before = world.sent;
    world.run(ms(1000));
    assert!(world.sent - before <= 45, "{}", world.sent - before);
}

#[test]
fn many_agents_are_asked_to_ask_less() {
    let mut world = World::new(1, 110, &["berlin"]);
    world.run(ms(2500));
    let before = world.sent;
    world.run(ms(1000));
    let datagrams = world.sent - before;
    // A question and an answer each ten times a second, and two probes a second.
    assert!((2200..=3200).contains(&datagrams), "{datagrams}");
    let agents = world.gateways[0].agents.as_ref().unwrap();
    let twice = |one: &super::AgentStatus| one.is_heard && one.interval == Some(INTERVAL * 2);
    assert!(agents.statuses(world.now).iter().all(twice));
    world.kill(0);
    world.run(ms(2 * 260));
    assert!((0..110).all(|agent| world.state(agent, 0) == GatewayState::Silent));
}

#[test]
fn probes_tell_which_way_foreign_packets_pass() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.gateways[1].passes = [ProbeBy::Vxlan].into();
    world.run(ms(100));
    assert_eq!(world.probes(0, 0), (Some(true), Some(true)));
    assert_eq!(world.probes(0, 1), (None, Some(true)), "not long enough");
    world.run(ms(1100));
    assert_eq!(world.probes(0, 1), (Some(false), Some(true)));
    world.gateways[1].passes = [ProbeBy::Direct, ProbeBy::Vxlan].into();
    world.gateways[0].passes.clear();
    world.run(Duration::from_secs(12));
    assert_eq!(world.probes(0, 1), (Some(true), Some(true)));
    assert_eq!(world.probes(0, 0), (Some(false), Some(false)));
}

#[test]
fn what_was_recorded_and_is_sent_again_moves_nothing() {
    let mut world = World::new(2, 3, &["berlin"]);
    world.kept = Some(vec![]);
    world.run(ms(2000));
    world.leave(1);
    world.run(ms(200));
    world.kill(1);
    world.run(ms(1000));
    world.start_gateway(1);
    world.start_agent(0);
    world.run(ms(2000));
    let before: Vec<usize> = world.agents.iter().map(|one| one.choices.len()).collect();
    let recorded = world.kept.take().unwrap();
    for packet in recorded {
        let mut packet = packet;
        if world.throw(2) == 0 {
            packet.from.set_ip([10, 1, 200, 1].into());
        }
        world.deliver(packet);
        if world.throw(20) == 0 {
            world.run(ms(1));
        }
    }
    world.run(ms(1000));
    let after: Vec<usize> = world.agents.iter().map(|one| one.choices.len()).collect();
    assert_eq!(after, before);
    for agent in 0..3 {
        assert_eq!(world.first(agent), [0, 1]);
        assert_eq!(world.state(agent, 1), GatewayState::Up);
    }
    let agents = world.gateways[0].agents.as_ref().unwrap();
    assert!(agents.refused().stale > 20, "{:?}", agents.refused());
    let statuses = agents.statuses(world.now);
    let at_home = |one: &&super::AgentStatus| one.address.unwrap().to_string() != "10.1.200.1";
    assert_eq!(statuses.iter().filter(at_home).count(), 3);
}

#[test]
fn a_gateway_that_answers_and_passes_nothing_is_not_used_while_another_does() {
    let mut world = World::new(2, 1, &["berlin"]);
    world.gateways[1].passes.clear();
    world.run(ms(3000));
    assert_eq!(
        world.first(0),
        [0, 1],
        "the routes of probes may be missing"
    );
    world.prove(0, true);
    until_used(&mut world, &[0], ms(1));
    // What is known stays known while the kernel is told of something else.
    world.prove(0, false);
    world.run(ms(1500));
    assert_eq!(world.first(0), [0]);
    world.prove(0, true);
    world.gateways[0].passes.clear();
    until_used(&mut world, &[0, 1], ms(13_000));
    world.gateways[1].passes = [ProbeBy::Direct, ProbeBy::Vxlan].into();
    until_used(&mut world, &[1], ms(13_000));
}

#[test]
fn a_gateway_whose_kernel_fails_is_used_last() {
    let mut world = World::new(2, 1, &["berlin"]);
    for gateway in &mut world.gateways {
        gateway.passes.clear();
    }
    world.run(ms(1000));
    world.forwards(0, false);
    until_used(&mut world, &[1], ms(60));
    world.forwards(1, false);
    until_used(&mut world, &[0, 1], ms(60));
    world.forwards(0, true);
    until_used(&mut world, &[0], ms(60));
    // What probes find counts for more than what a gateway thinks of itself.
    world.gateways[1].passes = [ProbeBy::Direct, ProbeBy::Vxlan].into();
    until_used(&mut world, &[0, 1], ms(2000));
}
