//! Those who want to harm others: without a key, with what was recorded, or with a key of their own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::lan::{Answer, Ask, Heard, Message, Mode, PORT, ProbeBy, probe_address, tag_of};

use super::world::{Packet, World, ms};

const VICTIM: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 9, 9)), PORT);

/// A question of an agent that is used as its owner likes.
fn ask(number: u64, heard: Option<Heard>) -> Ask {
    Ask {
        boot: 77,
        number,
        interval: 50,
        heard,
        table: 0,
        parts: 0,
        mode: Mode::Vxlan,
        passes: None,
        other_lan: None,
        shows_other: false,
    }
}

fn seal(world: &World, agent: usize, message: &Message) -> Vec<u8> {
    let node = &world.agents[agent].node;
    let key = node.key(&world.gateways[0].node);
    message.seal(tag_of(&node.identity), &key)
}

/// Hands it over, and gives what it made the gateway send.
fn hand(world: &mut World, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) -> Vec<Packet> {
    let kept = world.kept.replace(vec![]);
    let at = world.now;
    world.deliver(Packet {
        at,
        from,
        to,
        bytes,
    });
    let sent = std::mem::replace(&mut world.kept, kept);
    sent.unwrap_or_default()
}

/// The answer among what was sent.
fn answer(world: &World, agent: usize, sent: &[Packet]) -> Option<Answer> {
    let key = world.agents[agent].node.key(&world.gateways[0].node);
    let mut opened = sent.iter().map(|packet| Message::open(&packet.bytes, &key));
    opened.find_map(|message| match message {
        Ok(Message::Answer(answer)) => Some(answer),
        Ok(_) | Err(_) => None,
    })
}

fn heard(answer: Option<Answer>) -> Option<Heard> {
    answer.map(|answer| Heard {
        boot: answer.boot,
        number: answer.number,
    })
}

/// An agent asks twice from an address at which it hears the answers.
fn become_fresh(world: &mut World, agent: usize, from: SocketAddr) -> Option<Heard> {
    let to = world.gateways[0].node.address;
    let mut last = None;
    for number in 1..3 {
        let bytes = seal(world, agent, &Message::Ask(ask(number, last)));
        let sent = hand(world, from, to, bytes);
        last = heard(answer(world, agent, &sent));
    }
    last
}

#[test]
fn what_others_forge_costs_an_agent_no_answer() {
    let mut world = World::new(1, 2, &["berlin"]);
    world.run(ms(2000));
    let [home, near] = [0, 1].map(|agent| world.agents[agent].node.address);
    let to = world.gateways[0].node.address;
    let tags = [0, 1].map(|agent| tag_of(&world.agents[agent].node.identity));
    let mut forged = [0, 1].map(|agent| seal(&world, agent, &Message::Ask(ask(1, None))));
    forged
        .iter_mut()
        .for_each(|bytes| *bytes.last_mut().unwrap() ^= 1);
    let [of_it, of_other] = forged;
    assert_ne!(tags[0], tags[1]);
    let elsewhere = SocketAddr::new(home.ip(), 4000);
    let kinds = [
        (home, &of_other),
        (elsewhere, &of_it),
        (elsewhere, &of_other),
        (home, &of_it),
        (near, &of_it),
        (VICTIM, &of_it),
    ];
    let before = world.agents[0].choices.len();
    let flood = |world: &mut World, milliseconds: u64| {
        for _ in 0..milliseconds {
            for (from, bytes) in kinds {
                for _ in 0..10 {
                    let packet = (from, to, bytes.clone());
                    assert!(hand(world, packet.0, packet.1, packet.2).is_empty());
                }
            }
            world.run(ms(1));
        }
    };
    flood(&mut world, 200);
    assert_eq!(world.agents[0].choices.len(), before);
    let refused = world.gateways[0].agents.as_ref().unwrap().refused();
    assert!(refused.limited > 0, "{refused:?}");
    // A gateway that starts has heard nobody yet.
    world.kill(0);
    world.run(ms(500));
    world.start_gateway(0);
    flood(&mut world, 200);
    let agents = world.gateways[0].agents.as_ref().unwrap();
    assert!(agents.statuses(world.now).iter().all(|one| one.is_heard));
}

#[test]
fn an_agent_has_nothing_sent_to_others() {
    let names: Vec<String> = (0..1000).map(|number| format!("site-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(1, 1, &names);
    world.agents[0].health = None;
    let home = world.agents[0].node.address;
    let to = world.gateways[0].node.address;
    let fresh = become_fresh(&mut world, 0, home);
    let (mut asked, mut answered) = (0, 0);
    for number in 3..3000 {
        let bytes = seal(&world, 0, &Message::Ask(ask(number, fresh)));
        asked += bytes.len();
        let sent = hand(&mut world, VICTIM, to, bytes);
        answered += sent.iter().map(|packet| packet.bytes.len()).sum::<usize>();
        world.run(Duration::from_micros(100));
    }
    assert!(answered <= asked, "{answered} for {asked} bytes");
    let status = world.gateways[0].agents.as_ref().unwrap();
    assert_eq!(status.statuses(world.now)[0].address, Some(home.ip()));
}

#[test]
fn an_agent_gets_no_more_answers_and_tables_than_it_needs() {
    let names: Vec<String> = (0..1000).map(|number| format!("site-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(1, 1, &names);
    world.agents[0].health = None;
    let home = world.agents[0].node.address;
    let to = world.gateways[0].node.address;
    let fresh = become_fresh(&mut world, 0, home);
    let (mut answers, mut parts) = (0, 0);
    for number in 3..10_003 {
        let bytes = seal(&world, 0, &Message::Ask(ask(number, fresh)));
        for packet in hand(&mut world, home, to, bytes) {
            if packet.bytes.len() > 112 {
                parts += 1;
            } else {
                answers += 1;
            }
        }
        world.run(Duration::from_micros(100));
    }
    assert!((90..=130).contains(&answers), "{answers}");
    assert!(parts <= 10 * 42, "{parts}");
}

#[test]
fn an_address_of_the_other_family_counts_once_it_was_shown_and_for_a_while() {
    let mut world = World::new(1, 2, &["berlin"]).with_other();
    world.run(ms(50));
    let others = [0, 1].map(|agent| Some(world.agents[agent].node.other.ip()));
    let believed = |world: &World| [0, 1].map(|agent| world.believed(0, agent));
    assert_eq!(believed(&world), others);
    world.run(Duration::from_secs(100));
    assert_eq!(believed(&world), others);
    // Another start of either side learns it as quickly.
    world.kill(0);
    world.start_gateway(0);
    world.run(ms(150));
    assert_eq!(believed(&world), others);
    world.start_agent(0);
    world.run(ms(50));
    assert_eq!(believed(&world), others);
    let agents = world.gateways[0].agents.as_mut().unwrap();
    agents.take_change();
    world.agents[0].health = None;
    world.run(Duration::from_secs(62));
    assert_eq!(believed(&world), [None, others[1]]);
    assert!(world.gateways[0].agents.as_mut().unwrap().take_change());
}

#[test]
fn an_agent_that_has_no_such_address_any_more_is_believed_at_once() {
    let mut world = World::new(1, 1, &["berlin"]).with_other();
    world.run(ms(50));
    assert!(world.believed(0, 0).is_some());
    let health = world.agents[0].health.as_mut().unwrap();
    health.set_other_lan(None);
    world.run(ms(60));
    assert_eq!(world.believed(0, 0), None);
}

#[test]
fn nobody_gets_the_address_of_another_by_naming_it() {
    let mut world = World::new(1, 2, &["berlin"]).with_other();
    let victim = world.agents[1].node.other;
    let health = world.agents[0].health.as_mut().unwrap();
    health.set_other_lan(Some(victim.ip()));
    world.run(ms(500));
    assert_eq!(world.believed(0, 0), None, "it asks from its own address");
    assert_eq!(world.believed(0, 1), Some(victim.ip()), "and takes nothing");
    // Nor by sending in its name: what shows it is not heard elsewhere.
    world.agents[0].node.other = victim;
    let agents = &mut world.agents;
    agents.swap(0, 1);
    world.run(Duration::from_secs(30));
    assert_eq!(world.believed(0, 1), None);
    assert_eq!(world.believed(0, 0), Some(victim.ip()));
}

#[test]
fn an_address_that_was_shown_once_is_not_shown_again_from_memory() {
    let mut world = World::new(1, 1, &["berlin"]).with_other();
    world.agents[0].health = None;
    let (home, other) = (world.agents[0].node.address, world.agents[0].node.other);
    let to = world.gateways[0].node.address;
    let fresh = become_fresh(&mut world, 0, home);
    let claim = Ask {
        other_lan: Some(other.ip()),
        ..ask(3, fresh)
    };
    let bytes = seal(&world, 0, &Message::Ask(claim));
    hand(&mut world, home, to, bytes);
    let shows = |number, heard| Ask {
        shows_other: true,
        ..ask(number, heard)
    };
    // It hoards answers for later.
    let mut hoard = vec![];
    for number in 1..100 {
        let bytes = seal(&world, 0, &Message::Ask(shows(number, None)));
        let sent = hand(&mut world, other, to, bytes);
        hoard.push(heard(answer(&world, 0, &sent)));
    }
    assert_eq!(world.believed(0, 0), None);
    let bytes = seal(&world, 0, &Message::Ask(shows(200, hoard[0])));
    hand(&mut world, other, to, bytes);
    assert_eq!(world.believed(0, 0), Some(other.ip()));
    for (at, heard) in hoard.iter().enumerate().skip(1) {
        world.run(ms(1000));
        let bytes = seal(&world, 0, &Message::Ask(shows(200 + at as u64, *heard)));
        hand(&mut world, other, to, bytes);
    }
    assert_eq!(world.believed(0, 0), None);
}

#[test]
fn recorded_probes_do_not_take_the_place_of_true_ones() {
    let mut world = World::new(1, 1, &["berlin"]);
    world.kept = Some(vec![]);
    world.run(ms(3000));
    let gateway = world.gateways[0].node.identity;
    let home = world.agents[0].node.address;
    let to = [ProbeBy::Direct, ProbeBy::Vxlan].map(|by| probe_address(&gateway, by, home.ip()));
    let recorded = world.kept.take().unwrap();
    let probes: Vec<Packet> = recorded
        .into_iter()
        .filter(|packet| to.contains(&packet.to.ip()))
        .collect();
    assert!(probes.len() > 20);
    for at in 0..6000 {
        let probe = probes[at % probes.len()].clone();
        world.deliver(probe);
        world.run(ms(1));
        assert_eq!(
            world.probes(0, 0),
            (Some(true), Some(true)),
            "after {at} ms"
        );
    }
}
