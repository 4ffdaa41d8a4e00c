//! What agents and gateways of a site hear: from anyone, and from one who has the key and lies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use boringtun::x25519::{PublicKey as X25519, StaticSecret};
use gateway::agents::{AgentAt, Agents, Own};
use proto::key::{Hash, PublicKey, SigningKey, WireguardKey};
use proto::lan::{
    Answer, Ask, Heard, MAX_PARTS, Message, Mode, PART_SITES, PairKey, Probe, ProbeBy, Site, Sites,
    probe_address, tag_of,
};
use routeagent::health::{self, GatewayAt, Health};

const MESH: Hash = Hash([7; 32]);
const STEPS: usize = 200;
/// What one datagram or one moment makes a side send, at most.
const MOST_SENT: usize = MAX_PARTS + 4;

/// Steps that bytes describe, between an agent and a gateway each of which may be lied to.
///
/// # Panics
/// If anything panics, if more is sent than is right, or if a lie makes either side hold more than
/// one table.
pub fn lan(steps: &[u8]) {
    let mut script = Script(steps);
    let mut scene = Scene::new();
    scene.forge(steps);
    for _ in 0..STEPS {
        let Some(step) = script.byte() else { break };
        scene.step(step, &mut script);
        scene.check();
    }
}

/// Bytes that are used up; numbers are 0 when there are no more.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Small, or anything.
    fn number(&mut self, near: u64) -> u64 {
        match self.byte().unwrap_or_default() {
            0 => 0,
            255 => u64::MAX,
            offset @ 1..=100 => near.wrapping_add(u64::from(offset)).wrapping_sub(50),
            other => u64::from(other) << 40,
        }
    }
}

struct Scene {
    now: Duration,
    health: Health,
    agents: Agents,
    key: PairKey,
    agent: (PublicKey, SocketAddr),
    gateway: (PublicKey, SocketAddr),
    /// The last true datagrams of either side, and what they said.
    sent: Vec<(bool, Vec<u8>)>,
    asked: u64,
    answered: Heard,
}

fn node(number: u8) -> (PublicKey, StaticSecret, WireguardKey, SocketAddr) {
    let secret = StaticSecret::from([number; 32]);
    let public = X25519::from(&secret).to_bytes();
    (
        SigningKey::from_seed(&[number; 32]).public(),
        secret,
        WireguardKey::new(public).expect("made from a secret"),
        SocketAddr::from(([10, 1, 0, number], proto::lan::PORT)),
    )
}

impl Scene {
    fn new() -> Scene {
        let now = Duration::from_secs(1000);
        let (agent, agent_secret, agent_key, from) = node(1);
        let (gateway, secret, gateway_key, to) = node(2);
        let shared = agent_secret.diffie_hellman(&X25519::from(*gateway_key.as_bytes()));
        let key = PairKey::derive(shared.as_bytes(), &MESH, &agent, &gateway);
        let key = key.expect("no weak keys");
        let mut agents = Agents::new(Own {
            mesh: MESH,
            identity: gateway,
            wireguard: secret,
            boot: 20,
            secret: 30,
        });
        let at = AgentAt {
            name: "worker".parse().expect("a name"),
            wireguard: agent_key,
            lan: Some(from.ip()),
            by_vxlan: false,
        };
        agents.handle_roster(BTreeMap::from([(agent, at)]), BTreeSet::new());
        agents.handle_sites(sites(300), true);
        let own = health::Own {
            identity: agent,
            boot: 10,
            seed: 1,
        };
        let mut health = Health::new(own, now);
        let at = GatewayAt {
            name: "gate".parse().expect("a name"),
            address: to,
            key: key.clone(),
            is_near: true,
        };
        health.set_mode(Mode::Vxlan, now);
        health.handle_gateways(&BTreeMap::from([(gateway, at)]), now);
        Scene {
            now,
            health,
            agents,
            key,
            agent: (agent, from),
            gateway: (gateway, to),
            sent: Vec::new(),
            asked: 0,
            answered: Heard {
                boot: 20,
                number: 0,
            },
        }
    }

    /// Without the key nothing holds.
    fn forge(&self, bytes: &[u8]) {
        assert!(Message::open(bytes, &self.key).is_err());
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        match step % 8 {
            0 => self.wait(script),
            1 | 2 => self.deliver(script, false),
            3 => self.deliver(script, true),
            4 => self.lie_to_agent(script),
            5 => self.lie_to_gateway(script),
            6 => self.restart(script),
            _ => self.tell(script),
        }
        self.drain();
    }

    fn wait(&mut self, script: &mut Script<'_>) {
        let steps = u32::from(script.byte().unwrap_or_default());
        self.now += Duration::from_millis(5) * steps;
        self.health.handle_timeout(self.now);
        self.agents.handle_timeout(self.now);
    }

    /// One of the last true datagrams, in any order and as often as it pleases; or damaged.
    fn deliver(&mut self, script: &mut Script<'_>, is_damaged: bool) {
        let back = usize::from(script.byte().unwrap_or_default());
        let Some(at) = self.sent.len().checked_sub(1 + back % 32) else {
            return;
        };
        let (of_agent, mut bytes) = self.sent[at].clone();
        if is_damaged {
            let bit = script.number(0) as usize % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Message::open(&bytes, &self.key).is_err());
        }
        self.hand(of_agent, &bytes);
    }

    fn hand(&mut self, of_agent: bool, bytes: &[u8]) {
        if !of_agent {
            return self.health.handle_datagram(self.gateway.1, bytes, self.now);
        }
        self.agents.handle_datagram(self.agent.1, bytes, self.now);
        for by in [ProbeBy::Direct, ProbeBy::Vxlan] {
            let to = probe_address(&self.gateway.0, by, self.gateway.1.ip());
            if let Some(answer) = self.agents.handle_probe(to, bytes, self.now) {
                let from = SocketAddr::new(to, proto::lan::PORT);
                self.health.handle_datagram(from, &answer, self.now);
            }
        }
    }

    fn lie_to_agent(&mut self, script: &mut Script<'_>) {
        let to = Heard {
            boot: 10,
            number: script.number(self.asked),
        };
        let boot = script.number(self.answered.boot);
        let table = script.number(1);
        let flags = script.byte().unwrap_or_default();
        let answer = Message::Answer(Answer {
            boot,
            number: script.number(self.answered.number),
            to,
            interval: script.number(50) as u16,
            table,
            leaving: flags & 1 != 0,
            forwards: flags & 2 != 0,
            other_lan: (flags & 4 != 0).then(|| [0xff02_u16, 0, 0, 0, 0, 0, 0, 1].into()),
        });
        let part = Message::Sites(Sites {
            boot,
            table,
            part: script.byte().unwrap_or_default() % MAX_PARTS as u8,
            of: MAX_PARTS as u8,
            sites: sites(usize::from(flags)),
        });
        let probe = Message::ProbeAnswer(Probe {
            nonce: script.number(1),
            by: ProbeBy::Direct,
            heard: self.answered,
        });
        for message in [answer, part, probe] {
            let bytes = message.seal(tag_of(&self.gateway.0), &self.key);
            self.hand(false, &bytes);
        }
    }

    fn lie_to_gateway(&mut self, script: &mut Script<'_>) {
        let flags = script.byte().unwrap_or_default();
        let ask = Message::Ask(Ask {
            boot: script.number(10),
            number: script.number(self.asked),
            interval: script.number(50) as u16,
            heard: (flags & 1 == 0).then(|| Heard {
                boot: 20,
                number: script.number(self.answered.number),
            }),
            table: script.number(1),
            parts: script.number(0),
            mode: [Mode::Undecided, Mode::Direct, Mode::Vxlan][usize::from(flags >> 1) % 3],
            passes: None,
            other_lan: (flags & 8 != 0).then(|| [0_u16; 8].into()),
            shows_other: flags & 16 != 0,
        });
        let probe = Message::Probe(Probe {
            nonce: script.number(0),
            by: ProbeBy::Vxlan,
            heard: Heard {
                boot: 20,
                number: script.number(self.answered.number),
            },
        });
        for message in [ask, probe] {
            let bytes = message.seal(tag_of(&self.agent.0), &self.key);
            self.hand(true, &bytes);
        }
    }

    fn restart(&mut self, script: &mut Script<'_>) {
        let kept = (self.now, std::mem::take(&mut self.sent));
        let is_agent = script.number(0) == 0;
        let fresh = Scene::new();
        (self.now, self.sent) = kept;
        if is_agent {
            self.health = fresh.health;
            self.health.handle_timeout(self.now);
        } else {
            self.agents = fresh.agents;
        }
    }

    fn tell(&mut self, script: &mut Script<'_>) {
        match script.byte().unwrap_or_default() {
            255 => self.agents.handle_stop(self.now),
            count => self
                .agents
                .handle_sites(sites(usize::from(count) * 40), true),
        }
    }

    fn drain(&mut self) {
        let mut sent = 0;
        while let Some((_, bytes)) = self.health.poll_transmit() {
            if let Ok(Message::Ask(ask)) = Message::open(&bytes, &self.key) {
                self.asked = ask.number;
            }
            self.sent.push((true, bytes));
            sent += 1;
        }
        while let Some((_, bytes)) = self.agents.poll_transmit() {
            if let Ok(Message::Answer(answer)) = Message::open(&bytes, &self.key) {
                self.answered.number = answer.number;
            }
            self.sent.push((false, bytes));
            sent += 1;
        }
        assert!(sent <= 2 * MOST_SENT, "{sent} datagrams at once");
        let surplus = self.sent.len().saturating_sub(64);
        self.sent.drain(..surplus);
    }

    fn check(&self) {
        let choice = self.health.choice();
        assert!(choice.sites.len() <= MAX_PARTS * PART_SITES);
        for site in choice.sites.values() {
            assert!(!site.by.is_empty() && site.mtu.is_some_and(|mtu| mtu >= 576));
        }
        let gateway = &choice.gateways[&self.gateway.0];
        assert_eq!(gateway.other_lan, None, "no node has such an address");
        assert!(self.health.poll_timeout().is_some());
        for (_, agent) in self.agents.reached() {
            assert_eq!(agent.other, None);
        }
    }
}

fn sites(count: usize) -> Vec<Site> {
    let site = |number: usize| Site {
        hash: (number as u64).to_be_bytes(),
        mtu: number as u16,
        by_sibling: number.is_multiple_of(3),
    };
    (0..count).map(site).collect()
}
