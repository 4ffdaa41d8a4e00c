//! Ten thousand prefixes, and other programs that change a hundred thousand routes of their own.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::time::{Duration, Instant};

use routeagent::facts::{Facts, Mode};
use routeagent::{Handle, Settings};
use tests::lab::{skip, wait_for};
use tests::mesh::bar_or;
use tests::node_kernel::{prefix, told};
use tests::site_kernel::{SiteKernel, agent_facts, remote};

/// What is promised for one change, and for all after an overrun.
const ONE: Duration = Duration::from_millis(200);
const EXACT: Duration = Duration::from_secs(1);
/// Debug builds on a busy machine included.
const LIMIT: Duration = Duration::from_secs(60);
const PREFIXES: u32 = 10_000;

/// With a gap after each, so that no two of them are one interval.
fn nth(number: u32) -> String {
    let [a, b, c, _] = (0x0a40_0000 + number * 512).to_be_bytes();
    format!("{a}.{b}.{c}.0/24")
}

fn many() -> Facts {
    let mut facts = agent_facts(Mode::Vxlan, &[1, 2]);
    for number in 0..PREFIXES {
        facts.prefixes.insert(prefix(&nth(number)), remote(&[1, 2]));
    }
    facts
}

/// How long until the kernel is as these facts want it.
fn apply(site: &SiteKernel, handle: &Handle, facts: &Facts) -> Duration {
    let begin = Instant::now();
    let facts = site.set_facts(facts.clone());
    while !handle.has_applied(&facts) {
        assert!(begin.elapsed() < LIMIT, "not applied");
        std::thread::sleep(Duration::from_millis(1));
    }
    begin.elapsed()
}

/// Nothing was told for a while: the agent has looked at what it did.
fn settle(handle: &Handle) {
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(told(&handle.problems()), "");
}

#[test]
fn one_of_ten_thousand_prefixes_changes_with_one_change_of_the_kernel() {
    if skip("ten_thousand", &["nft"]) {
        return;
    }
    let site = SiteKernel::new("scale").unwrap();
    let mut facts = many();
    site.set_facts(facts.clone());
    let handle = site.start(Settings::default()).unwrap();
    let first = apply(&site, &handle, &facts);
    let routes = site
        .node
        .sh("ip route show table 7100 proto 199 | grep -c nhid")
        .unwrap();
    assert_eq!(routes.trim().parse::<u32>().unwrap(), PREFIXES + 1);
    let mut command = site.node.command("ip");
    command.args(["-o", "monitor", "route", "nexthop"]);
    let log = site.node.spawn(command).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let mut times = vec![];
    for number in [7, 4_000, 9_999] {
        settle(&handle);
        let one = prefix(&nth(number));
        facts.prefixes.get_mut(&one).unwrap().mtu = Some(1400);
        times.push(apply(&site, &handle, &facts));
    }
    settle(&handle);
    let lines = log.output();
    assert_eq!(lines.lines().count(), 3, "{lines}");
    // A gateway dies for all of them.
    for remote in facts.prefixes.values_mut() {
        remote.by.pop_first();
    }
    let death = apply(&site, &handle, &facts);
    settle(&handle);
    // Besides the three the next hop's end, and what the kernel tells of a group of each family.
    let lines = log.output().lines().count() - 3;
    assert!(lines <= 3, "{lines} lines");
    println!(
        "all at first {first:?}; one of {PREFIXES} {times:?} (200 ms are promised); a death {death:?}"
    );
    let bar = bar_or(ONE, LIMIT / 4);
    assert!(times.iter().all(|time| *time <= bar), "{times:?}");
}

/// Lines for `ip -batch`.
fn batch(verb: &str) -> String {
    let lines = (0..100_000_u32).map(|number| {
        let [_, a, b, c] = number.to_be_bytes();
        format!("route {verb} 100.{}.{b}.{c}/32 dev lan proto 77\n", 64 + a)
    });
    lines.collect()
}

#[test]
fn after_an_overrun_the_state_is_exact_again() {
    if skip("overrun", &["nft"]) {
        return;
    }
    let site = SiteKernel::new("overrun").unwrap();
    site.set_facts(agent_facts(Mode::Vxlan, &[1, 2]));
    let handle = site.start(Settings::default()).unwrap();
    site.until(&tests::site_kernel::whole(Mode::Vxlan)).unwrap();
    let churn = |verb: &str| {
        let path = site.lab.directory().join(verb);
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(batch(verb).as_bytes()).unwrap();
        let mut command = site.node.command("ip");
        command.arg("-batch").arg(&path);
        site.node.spawn(command).unwrap()
    };
    let mut times = vec![];
    for verb in ["add", "del"] {
        let program = churn(verb);
        std::thread::sleep(Duration::from_millis(100));
        // Told among a hundred thousand others.
        let damage =
            "ip route del 10.2.0.0/16 table 7100; ip nexthop flush proto 199; nft flush ruleset";
        site.node.sh(damage).unwrap();
        program.wait_timeout(LIMIT).unwrap();
        let begin = Instant::now();
        site.until(&tests::site_kernel::whole(Mode::Vxlan)).unwrap();
        times.push(begin.elapsed());
    }
    println!("exact again {times:?} after the last of 100,000 changes (1 s is promised)");
    wait_for("no problem", LIMIT, || told(&handle.problems()).is_empty()).unwrap();
    let bar = bar_or(EXACT, LIMIT / 4);
    assert!(times.iter().all(|time| *time <= bar), "{times:?}");
}
