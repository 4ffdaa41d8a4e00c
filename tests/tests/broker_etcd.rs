//! Two brokers over one etcd: races, and a broker that is killed.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proto::entry::Uses;
use proto::message::{Refusal, Reply, Request};
use tests::broker::cast::{Actor, Authority, Ticket};
use tests::broker::client::{Client, Entrance, Target, runtime};
use tests::broker::crowd::Crowd;
use tests::broker::etcd::{self, Etcd};
use tests::broker::race::race;
use tests::broker::{ENOUGH, Mesh};
use tests::lab::wait_for;
use tokio::runtime::Runtime;

const RACERS: usize = 100;
const ROUNDS: usize = 30;
const SITES: usize = 10;
const RESUMES: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(60);

fn two_brokers(tag: &str, etcd: &Etcd) -> Mesh {
    let url = etcd.url(tag);
    let mut mesh = Mesh::over(tag, Some(&url)).unwrap();
    mesh.brokers[0].start().unwrap();
    mesh.add_broker(Some(&url)).unwrap();
    mesh
}

/// Hands entries to the first broker; the other has them from etcd.
fn hand_over(authority: &Authority, mesh: &Mesh, tickets: &[Ticket]) {
    let targets: Vec<Target> = mesh
        .brokers
        .iter()
        .map(|broker| authority.target(broker).unwrap())
        .collect();
    let entries: Vec<Vec<u8>> = tickets
        .iter()
        .map(|ticket| ticket.entry.bytes().to_owned())
        .collect();
    let last = tickets.last().unwrap().entry.hash().0;
    runtime().unwrap().block_on(async {
        let mut client = targets[0].connect(None).await.unwrap();
        client.authenticate_authority(&authority.key).await.unwrap();
        let reply = client.call(Request::PutLedger { entries }).await.unwrap();
        assert!(matches!(reply, Reply::LedgerTaken { .. }), "{reply:?}");
        let mut client = targets[1].connect(None).await.unwrap();
        client.authenticate_authority(&authority.key).await.unwrap();
        let begin = Instant::now();
        loop {
            let heads = vec![last];
            let reply = client.call(Request::Ledger { heads }).await.unwrap();
            if let Reply::Ledger { heads, .. } = reply
                && heads == [last]
            {
                break;
            }
            assert!(begin.elapsed() < ENOUGH, "the other broker lacks entries");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

fn tickets(authority: &mut Authority, count: usize) -> Vec<Ticket> {
    (0..count)
        .map(|number| {
            let (site, prefix) = (format!("site-{number:04}"), format!("10.1.{number}.0/24"));
            authority.grant(&site, &prefix, Uses::AtMost(1)).unwrap()
        })
        .collect()
}

#[test]
fn of_a_hundred_clients_that_race_over_two_brokers_exactly_one_wins_thirty_times() {
    if etcd::missing() {
        return;
    }
    let etcd = Etcd::start(1).unwrap();
    let mesh = two_brokers("race", &etcd);
    let mut authority = Authority::of(&mesh).unwrap();
    let tickets = tickets(&mut authority, ROUNDS);
    hand_over(&authority, &mesh, &tickets);
    let targets: Vec<Target> = mesh
        .brokers
        .iter()
        .map(|broker| authority.target(broker).unwrap())
        .collect();
    for (round, ticket) in tickets.into_iter().enumerate() {
        let outcome = race(&targets, ticket, RACERS).unwrap_or_else(|why| {
            let logs: String = mesh.brokers.iter().map(|broker| broker.log()).collect();
            panic!("round {round}: {why:#}\n{logs}")
        });
        let winner = outcome.winner.to_string();
        let logs: String = mesh.brokers.iter().map(|broker| broker.log()).collect();
        let named = outcome.losers.iter().filter(|loser| {
            let loser = loser.to_string();
            logs.lines()
                .any(|line| line.contains(&winner) && line.contains(&loser))
        });
        assert_eq!(named.count(), RACERS - 1, "round {round}");
    }
}

#[test]
fn sites_go_on_at_the_other_broker_when_theirs_is_killed() {
    if etcd::missing() {
        return;
    }
    let etcd = Etcd::start(1).unwrap();
    let mut mesh = two_brokers("other", &etcd);
    let mut authority = Authority::of(&mesh).unwrap();
    let tickets = tickets(&mut authority, SITES);
    hand_over(&authority, &mesh, &tickets);
    let mut crowd = Crowd::start(&mesh, &authority, tickets).unwrap();
    crowd.wait_until_all_know_all(LIMIT).unwrap();
    // Half of the sites are at each broker; a change at one reaches those of the other.
    for publisher in [0, 1] {
        let times = crowd.spread(publisher, LIMIT).unwrap();
        assert_eq!(times.len(), SITES - 1);
    }
    for killed in [0, 1] {
        mesh.brokers[killed].kill();
        let begin = Instant::now();
        crowd
            .wait_until_all_are_at(mesh.brokers[1 - killed].address, LIMIT)
            .unwrap();
        eprintln!("all at the other broker after {:?}", begin.elapsed());
        for publisher in [0, 1] {
            let times = crowd.spread(publisher, LIMIT).unwrap();
            assert_eq!(times.len(), SITES - 1);
        }
        mesh.brokers[killed].start().unwrap();
    }
}

#[test]
fn a_join_passes_over_a_broker_that_is_dead() {
    if etcd::missing() {
        return;
    }
    let etcd = Etcd::start(1).unwrap();
    let mut mesh = two_brokers("dead", &etcd);
    let token = mesh
        .token("paris", "10.1.0.0/16", &["--uses", "2"])
        .unwrap();
    mesh.brokers[0].kill();
    mesh.join("a", &token).unwrap().expect_success().unwrap();
    mesh.brokers[0].start().unwrap();
    mesh.brokers[1].kill();
    mesh.join("b", &token).unwrap().expect_success().unwrap();
    let third = mesh.join("c", &token).unwrap();
    third.assert_refused(&["used", "all 2"]);
}

#[test]
fn a_join_passes_over_a_broker_that_is_stopped() {
    if etcd::missing() {
        return;
    }
    let etcd = Etcd::start(1).unwrap();
    let mesh = two_brokers("stopped", &etcd);
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    let stopped = mesh.brokers[0].process();
    stopped.signal(Signal::SIGSTOP).unwrap();
    let said = mesh.join("a", &token).unwrap();
    stopped.signal(Signal::SIGCONT).unwrap();
    let said = said.expect_success().unwrap();
    assert!(said.took < ENOUGH, "{:?}", said.took);
}

/// A broker over three members, one node, and what it has been acknowledged.
struct Quorum {
    etcd: Etcd,
    mesh: Mesh,
    actor: Actor,
    target: Target,
    runtime: Runtime,
    acknowledged: u64,
}

impl Quorum {
    fn new() -> Quorum {
        let etcd = Etcd::start(3).unwrap();
        let mut mesh = Mesh::over("quorum", Some(&etcd.url("quorum"))).unwrap();
        mesh.brokers[0].start().unwrap();
        let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
        mesh.join("a", &token).unwrap().expect_success().unwrap();
        let authority = Authority::of(&mesh).unwrap();
        Quorum {
            actor: Actor::joined(&mesh.node("a")).unwrap(),
            target: authority.target(&mesh.brokers[0]).unwrap(),
            runtime: runtime().unwrap(),
            acknowledged: 0,
            etcd,
            mesh,
        }
    }

    fn enter(&self) -> Box<Client> {
        let entered = self.runtime.block_on(self.target.enter(None, &self.actor));
        match entered.unwrap() {
            Entrance::In(client) => client,
            Entrance::Refused(refusal) => panic!("{refusal:?}: {}", self.mesh.brokers[0].log()),
        }
    }

    /// Publishes until one is acknowledged; how long that took, if it was within the limit.
    fn publish_within(&mut self, client: &mut Client, limit: Duration) -> Option<Duration> {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            let published = self.runtime.block_on(client.publish(&mut self.actor));
            match published.unwrap() {
                Ok(()) => {
                    self.acknowledged = self.actor.sequence;
                    return Some(begin.elapsed());
                }
                Err(Refusal::StoreDown { .. } | Refusal::TooOften { .. }) => {
                    std::thread::sleep(Duration::from_millis(120));
                }
                Err(other) => panic!("refused for another reason: {other:?}"),
            }
        }
        None
    }

    fn check_what_is_listed(&self, client: &mut Client) {
        let listed = self.runtime.block_on(client.sequences()).unwrap();
        let listed = listed.get(&self.actor.identity.public()).copied();
        assert!(
            listed.unwrap_or(0) >= self.acknowledged,
            "{listed:?} after {} was acknowledged",
            self.acknowledged
        );
    }
}

#[test]
fn writes_resume_when_the_leader_is_killed_and_none_is_acknowledged_without_quorum() {
    if etcd::missing() {
        return;
    }
    let mut quorum = Quorum::new();
    let mut client = quorum.enter();
    quorum.publish_within(&mut client, ENOUGH).unwrap();
    let first = quorum.etcd.leader().unwrap();
    quorum.etcd.kill_member(first);
    let took = quorum.publish_within(&mut client, ENOUGH);
    eprintln!("the leader killed: {took:?}");
    assert!(took.unwrap() <= RESUMES, "{took:?}");
    let second = (first + 1) % 3;
    quorum.etcd.kill_member(second);
    // Two of three are gone.
    let took = quorum.publish_within(&mut client, Duration::from_secs(5));
    assert_eq!(took, None, "acknowledged without quorum");
    quorum.check_what_is_listed(&mut client);
    let mut another = quorum.enter();
    quorum.check_what_is_listed(&mut another);
    quorum.etcd.start_member(second).unwrap();
    wait_for("etcd has a quorum again", LIMIT, || {
        quorum.etcd.is_healthy_member(second)
    })
    .unwrap();
    let took = quorum.publish_within(&mut client, ENOUGH);
    eprintln!("quorum back: {took:?}");
    assert!(took.unwrap() <= RESUMES, "{took:?}");
    quorum.check_what_is_listed(&mut client);
}
