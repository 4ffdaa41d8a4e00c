//! An agent that is killed and started again changes nothing that is still right, and removes what
//! has become wrong once it knows.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use tests::broker::command;
use tests::lab::{Process, skip, wait_for};
use tests::mesh::{AgentNode, Lan, Layout, Mesh, PATIENCE, Plan, bar, rounds};

/// From the agent's word with the broker to the end of what is stale.
const STALE: Duration = Duration::from_secs(2);
/// For an event to be printed.
const ECHO: Duration = Duration::from_millis(500);
const EXTRA: &str = "10.200.0.0/24";

/// All that the kernel tells of while it is watched.
struct Events(Vec<Process>);

impl Events {
    fn watch(agent: &AgentNode) -> Events {
        let monitor = |program: &str, words: &[&str]| {
            let mut command = agent.namespace.command(program);
            command.args(words);
            agent.namespace.spawn(command).unwrap()
        };
        let events = Events(vec![
            monitor("ip", &["-4", "monitor", "route", "rule"]),
            monitor("ip", &["-6", "monitor", "route", "rule"]),
            monitor("ip", &["monitor", "nexthop"]),
            monitor("ip", &["monitor", "link"]),
            monitor("nft", &["monitor"]),
        ]);
        // A monitor that shows what is done under its eyes has begun.
        let probe =
            "ip route add 198.51.100.1/32 dev lo table 9; ip route del 198.51.100.1/32 table 9";
        wait_for("the monitors look", PATIENCE, || {
            agent.namespace.sh(probe).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            events.0[0].output().contains("198.51.100.1")
        })
        .unwrap();
        std::thread::sleep(ECHO);
        events
    }

    /// But for what the watch itself did, and neighbours that the kernel finds.
    fn seen(&self) -> Vec<String> {
        let outputs = self.0.iter().map(Process::output);
        let lines: Vec<String> = outputs
            .flat_map(|output| output.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let noise = ["198.51.100.1", "fe80::/64", "# new generation"];
        let is_noise = |line: &String| noise.iter().any(|word| line.contains(word));
        lines.into_iter().filter(|line| !is_noise(line)).collect()
    }
}

fn restart(mesh: &mut Mesh) {
    let agent = &mut mesh.sites[0].agents[0];
    agent.kill();
    agent.start().unwrap();
    agent.wait_until_ready(PATIENCE).unwrap();
}

fn nothing_is_seen(tag: &str, layout: Layout) {
    if skip(tag, &["nft"]) {
        return;
    }
    let mut mesh = Mesh::up(tag, &[layout, Plan::ONE.agents(1)]).unwrap();
    for _ in 0..rounds(2) {
        let events = Events::watch(&mesh.sites[0].agents[0]);
        let meters = [mesh.meter(0, 1).unwrap(), mesh.meter(1, 0).unwrap()];
        restart(&mut mesh);
        mesh.wait_for_agents(PATIENCE).unwrap();
        std::thread::sleep(ECHO);
        for meter in meters {
            let report = meter.finish();
            assert_eq!(report.lost, 0, "{report:?}");
        }
        assert_eq!(events.seen(), Vec::<String>::new());
    }
    mesh.watch.assert_clean();
}

#[test]
fn a_restart_is_not_seen_in_direct_mode() {
    nothing_is_seen("still", Plan::OPEN.agents(1));
}

#[test]
fn a_restart_is_not_seen_on_vxlan() {
    nothing_is_seen("stillvx", Plan::OPEN.agents(1).over(Lan::Routed));
}

fn operate(mesh: &Mesh, words: &[&str]) {
    let command = mesh.trust.operator(words);
    command::run(command, None)
        .unwrap()
        .expect_success()
        .unwrap();
}

#[test]
fn what_became_stale_meanwhile_goes_after_the_first_word_and_not_before() {
    if skip("what_became_stale", &["nft"]) {
        return;
    }
    let layout = Plan::ONE.agents(1);
    let mut mesh = Mesh::up("stale", &[layout, layout]).unwrap();
    let programmed = |mesh: &Mesh| {
        let agent = &mesh.sites[0].agents[0];
        let all = ["route", "show", "table", "all"];
        agent.namespace.run("ip", &all).unwrap().contains(EXTRA)
    };
    for _ in 0..rounds(1) {
        operate(&mesh, &["site", "add-prefix", "site-2", EXTRA]);
        wait_for("the prefix comes", PATIENCE, || programmed(&mesh)).unwrap();
        mesh.sites[0].agents[0].kill();
        operate(&mesh, &["site", "remove-prefix", "site-2", EXTRA]);
        let gateway_knows = || {
            let status = mesh.sites[1].gateways[0].status().unwrap();
            !status["prefixes"].to_string().contains(EXTRA)
        };
        wait_for("the removal is known", PATIENCE, gateway_knows).unwrap();
        // Without a broker the agent knows what it knew, and keeps it.
        mesh.trust.brokers[0].kill();
        restart(&mut mesh);
        assert!(programmed(&mesh), "removed before anybody said so");
        mesh.start_broker().unwrap();
        let in_touch = || {
            let status = mesh.sites[0].agents[0].status().unwrap();
            status["broker"]["state"] == "connected"
        };
        wait_for("the agent is in touch", PATIENCE, in_touch).unwrap();
        let begin = Instant::now();
        wait_for("it goes", PATIENCE, || !programmed(&mesh)).unwrap();
        let took = begin.elapsed();
        println!("stale for {took:?} after the first word");
        assert!(took <= bar(STALE), "{took:?}");
    }
    mesh.watch.assert_clean();
}
