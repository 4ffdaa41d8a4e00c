//! `causeway cleanup` leaves nothing behind, and what is planned is what the kernel then shows.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use routeagent::diff::Found;
use routeagent::facts::Facts;
use routeagent::plan::{Devices, Ground, plan};
use routeagent::{CleanupError, Holder, Settings, StartError};
use tests::broker::command::causeway;
use tests::lab::{Namespace, skip};
use tests::node_kernel::{LAN, NodeKernel, TUN, facts, prefix, told};

/// What `causeway` with `words` prints in a namespace, and whether it was content.
fn say(namespace: &Namespace, program: &[&str], words: &[&str]) -> (String, bool) {
    let causeway = causeway();
    let (first, rest) = program
        .split_first()
        .map_or((None, &[][..]), |(first, rest)| (Some(*first), rest));
    let mut command: Command = match first {
        Some(first) => {
            let mut command = namespace.command(first);
            command.args(rest).arg(causeway.get_program());
            command
        }
        None => namespace.command(causeway.get_program()),
    };
    let output = command.args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        String::from_utf8_lossy(&text).into_owned(),
        output.status.success(),
    )
}

#[test]
fn cleanup_leaves_everything_as_it_was_before_the_first_start() {
    if skip("cleanup", &["nft", "setpriv"]) {
        return;
    }
    let kernel = NodeKernel::new("cleanup").unwrap();
    let mine = "ip link del cwtun; nft add table inet mine; nft add chain inet mine c; \
        ip rule add priority 200 fwmark 5 lookup 77; ip route add 10.77.0.0/16 dev lan table 77; \
        sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.lan.rp_filter=1 net.ipv4.conf.all.accept_redirects=0 \
        net.ipv6.conf.lan.accept_ra=1 net.ipv4.conf.lan.forwarding=1";
    kernel.node.sh(mine).unwrap();
    let before = kernel.snapshot().unwrap();
    kernel.make_tun().unwrap();
    let handle = kernel.start(Settings::default()).unwrap();
    kernel.until_whole().unwrap();
    assert_eq!(told(&handle.problems()), "");
    // Another run with other facts and another table, and what the first left is not forgotten.
    handle.stop();
    let mut other = facts();
    other.prefixes.remove(&prefix("fd00:2::/32"));
    kernel.set_facts(other);
    let settings = Settings {
        table: 8200,
        ..Settings::default()
    };
    let handle = kernel.start(settings).unwrap();
    let moved = "ip route show table 8201 | grep -q 'mtu 1380' && ! ip rule | grep -q 'lookup 7100' && \
        ! ip route show table all | grep -q 'table 7100'";
    kernel.until(moved, Duration::from_secs(5)).unwrap();
    let running = kernel.snapshot().unwrap();

    let (text, content) = say(&kernel.node, &[], &["cleanup"]);
    assert!(!content && text.contains("stop it first"), "{text}");
    handle.stop();
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let (text, content) = say(&kernel.node, &nobody, &["cleanup"]);
    assert!(!content && text.contains("CAP_NET_ADMIN"), "{text}");
    let (planned, content) = say(&kernel.node, &[], &["cleanup", "--dry-run"]);
    assert!(content, "{planned}");
    assert_eq!(kernel.snapshot().unwrap(), running);

    let (done, content) = say(&kernel.node, &[], &["cleanup"]);
    assert!(content, "{done}");
    assert_eq!(planned.replace("would remove", "removed"), done);
    for line in [
        "removed rule 100: not from all",
        "removed route 10.2.0.0/16 dev cwtun table 8200",
        "removed interface cwtun",
        "removed nft table inet causeway",
        "removed sysctl net/ipv4/ip_forward from 1 to 0",
    ] {
        assert!(done.contains(line), "{line}: {done}");
    }
    assert_eq!(kernel.snapshot().unwrap(), before);
    let (again, content) = say(&kernel.node, &[], &["cleanup"]);
    assert!(content && again.contains("nothing of causeway"), "{again}");
}

#[test]
fn what_a_person_set_meanwhile_stays() {
    if skip("meanwhile", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("meanwhile").unwrap();
    let sysctl = |key: &str| kernel.node.run("sysctl", &["-n", key]).unwrap();
    kernel
        .node
        .sysctl("net.ipv4.conf.all.rp_filter", "1")
        .unwrap();
    let handle = kernel.start(Settings::default()).unwrap();
    kernel.until_forwarding().unwrap();
    assert_eq!(sysctl("net.ipv4.conf.lan.rp_filter").trim(), "2");
    // Sources of the mesh are as strictly kept out elsewhere as before.
    assert_eq!(sysctl("net.ipv4.conf.all.rp_filter").trim(), "1");
    assert_ne!(sysctl("net.ipv4.conf.outside.rp_filter").trim(), "2");
    handle.stop();
    kernel
        .node
        .sysctl("net.ipv4.conf.lan.rp_filter", "0")
        .unwrap();
    kernel
        .node
        .within(|| routeagent::cleanup(false))
        .unwrap()
        .unwrap();
    assert_eq!(sysctl("net.ipv4.conf.lan.rp_filter").trim(), "0");
    assert_eq!(sysctl("net.ipv4.ip_forward").trim(), "0");
}

#[test]
fn one_namespace_has_one_agent() {
    if skip("one_agent", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("one").unwrap();
    let _handle = kernel.start(Settings::default()).unwrap();
    let second = kernel.start(Settings::default()).unwrap_err();
    let Some(StartError::Running(Holder::Process { pid, .. })) = second.downcast_ref() else {
        panic!("{second:?}");
    };
    assert_eq!(*pid, std::process::id());
    let refused = kernel.node.within(|| routeagent::cleanup(false)).unwrap();
    assert!(matches!(
        refused,
        Err(CleanupError::Start(StartError::Running(_)))
    ));
}

#[test]
fn what_cleanup_would_remove_is_told_while_a_daemon_runs() {
    if skip("cleanup_beside_a_daemon", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("beside").unwrap();
    let _handle = kernel.start(Settings::default()).unwrap();
    // The kernel adds addresses of its own then.
    kernel.until_forwarding().unwrap();
    let before = kernel.snapshot().unwrap();
    let (text, content) = say(&kernel.node, &[], &["cleanup", "--dry-run"]);
    let pid = format!("process {} ", std::process::id());
    assert!(content && text.contains(&pid), "{text}");
    assert!(text.contains("would remove route 10.2.0.0/16"), "{text}");
    assert_eq!(kernel.snapshot().unwrap(), before);
}

#[test]
fn sysctls_that_cannot_be_set_are_told_with_the_command() {
    if skip("readonly", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("readonly").unwrap();
    let settings = Settings {
        set_sysctls: false,
        ..Settings::default()
    };
    let handle = kernel.start(settings).unwrap();
    kernel.until_whole().unwrap();
    let told = told(&handle.problems());
    assert!(told.contains("net.ipv4.ip_forward is 0"), "{told}");
    assert!(told.contains("sysctl -w net.ipv4.ip_forward=1"), "{told}");
}

/// Lines as programs print them, without what only a kernel knows.
fn lines(text: &str) -> BTreeSet<String> {
    text.lines()
        .map(|line| {
            let line = line.split(" comment \"").next().unwrap_or_default();
            let line = line.replace(" linkdown", "").replace(" pref medium", "");
            line.replace(":\t", ": ").trim().to_owned()
        })
        .filter(|line| !line.is_empty())
        .collect()
}

/// As the kernel's tools show it, which say names where the kernel has indexes.
fn planned(kernel: &NodeKernel, facts: &Facts, settings: &Settings) -> String {
    let index = |device: &str| -> u32 {
        let path = format!("/sys/class/net/{device}/ifindex");
        let index = kernel.node.run("cat", &[&path]).unwrap();
        index.trim().parse().unwrap()
    };
    let devices = Devices {
        tun: index(TUN),
        vxlan: 0,
        inner: [(LAN.to_owned(), index(LAN))].into(),
    };
    let ground = Ground {
        devices,
        ..Ground::default()
    };
    let mut text = plan(facts, &ground, &Found::default(), settings).to_string();
    for device in [TUN, LAN, "lo"] {
        for word in ["if ", "if != "] {
            let planned = format!("{word}{} ", index(device));
            text = text.replace(&planned, &format!("{word}\"{device}\" "));
        }
    }
    text
}

#[test]
fn the_kernel_shows_what_is_planned() {
    if skip("shows", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("shows").unwrap();
    let mut many = facts();
    let remote = many.prefixes[&prefix("10.2.0.0/16")].clone();
    for third in 0..200 {
        let text = format!("10.{}.{third}.0/24", 30 + third % 2);
        many.prefixes.insert(prefix(&text), remote.clone());
    }
    let settings = Settings::default();
    let wanted = planned(&kernel, &many, &settings);
    kernel.set_facts(many);
    let _handle = kernel.start(settings).unwrap();
    kernel.until_whole().unwrap();
    let last = "ip -6 rule | grep -q '^100:'";
    kernel.until(last, Duration::from_secs(5)).unwrap();
    let shown = "ip -4 route show table all proto 199; ip -6 route show table all proto 199; \
        ip rule | grep 'proto 199'; ip -6 rule | grep 'proto 199' | sed 's/^/-6 /'";
    let shown = lines(&kernel.node.sh(shown).unwrap());
    let (planned, table) = wanted.split_once("table inet").unwrap();
    let planned: BTreeSet<String> = lines(planned)
        .into_iter()
        .filter(|line| !line.starts_with("net."))
        .collect();
    // `ip` leaves the protocol out where it was asked for.
    let planned: BTreeSet<String> = planned
        .iter()
        .map(|line| {
            if line.contains("lookup") {
                line.clone()
            } else {
                line.replace(" proto 199", "")
            }
        })
        .collect();
    assert_eq!(shown, planned);
    let listed = kernel
        .node
        .sh("nft -s -y list table inet causeway")
        .unwrap();
    let joined = |text: &str| text.replace(",\n", ",").replace('\t', "");
    let flat = |text: &str| -> BTreeSet<String> {
        lines(&joined(text))
            .iter()
            .map(|line| {
                line.split(", ")
                    .map(str::trim)
                    .collect::<Vec<_>>()
                    .join(",")
            })
            .map(|line| line.replace(", ", ","))
            .collect()
    };
    assert_eq!(flat(&listed), flat(&format!("table inet{table}")));
}
