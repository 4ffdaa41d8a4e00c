//! `causeway diagnose` on machines that have something wrong, before they join: it names each thing
//! and the way out, and changes nothing.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;
use tests::broker::command::{self, Said, causeway};
use tests::broker::within;
use tests::lab::{Lab, Namespace, skip};

/// A machine with a LAN, and directories that hold nothing.
struct Machine {
    namespace: Namespace,
    lab: Lab,
}

impl Machine {
    fn new(tag: &str) -> Machine {
        let lab = Lab::new(tag).unwrap();
        let namespace = lab.namespace("node").unwrap();
        let lan = lab.namespace("lan").unwrap();
        lab.veth(&lan, "port", &namespace, "eth0").unwrap();
        namespace.address("eth0", "10.1.0.7/24").unwrap();
        Machine { namespace, lab }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = within(self.namespace.name(), &causeway());
        let nothing = self.lab.directory().join("nothing");
        command
            .args(["diagnose", "--metadata", "off", "--state-dir"])
            .arg(&nothing)
            .arg("--runtime-dir")
            .arg(&nothing)
            .args(words);
        command
    }

    fn say(&self, words: &[&str]) -> Said {
        command::run(self.command(words), None).unwrap()
    }

    fn checks(&self) -> Vec<Value> {
        let said = self.say(&["--json"]);
        let told: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
        let is_failed = told["failed"].as_u64().unwrap() > 0;
        assert_eq!(said.code, Some(i32::from(is_failed)), "{said:?}");
        told["checks"].as_array().unwrap().clone()
    }

    fn nft(&self, rules: &str) {
        let done = self.namespace.run_with_input("nft", &["-f", "-"], rules);
        done.unwrap();
    }

    /// Everything of the kernel's that could be changed here.
    fn state(&self) -> String {
        let lines = [
            "ip -d -j link",
            "ip -j address",
            "ip route show table all",
            "ip -6 route show table all",
            "ip rule",
            "ip -6 rule",
            "ip nexthop",
            "bridge fdb",
            "nft list ruleset",
            "ip netns list | grep -v cwy- || true",
        ];
        let texts = lines.map(|line| self.namespace.sh(line).unwrap());
        let sysctls = ["ipv4", "ipv6", "core"].map(|part| {
            // Some can be written only; some count up by themselves.
            self.namespace
                .sh(&format!(
                    "grep -rs . /proc/sys/net/{part} | grep -v -e 'stable_secret' -e 'route/flush' -e 'netdev_rss_key' | sort"
                ))
                .unwrap()
        });
        texts.join("\n") + &sysctls.join("\n")
    }
}

fn of<'a>(checks: &'a [Value], name: &str, result: &str) -> Vec<&'a Value> {
    let all = checks.iter();
    all.filter(|check| check["name"] == name && check["result"] == result)
        .collect()
}

fn one<'a>(checks: &'a [Value], name: &str, result: &str) -> &'a Value {
    let found = of(checks, name, result);
    assert_eq!(found.len(), 1, "{name} {result}: {checks:#?}");
    found[0]
}

#[test]
fn a_sound_machine_passes_and_nothing_is_changed() {
    if skip("a_sound_machine", &["nft", "bridge"]) {
        return;
    }
    let machine = Machine::new("sound");
    // The first look at a firewall loads modules, and the first namespace of a kernel its tables.
    machine.say(&[]);
    let before = machine.state();
    let checks = machine.checks();
    assert_eq!(machine.state(), before, "diagnose changed something");
    for name in [
        "tun",
        "vxlan",
        "policy-routing",
        "policy-routing-ipv6",
        "nexthop-objects",
        "resilient-groups",
        "nf-tables",
        "privileges",
        "port-tunnel",
        "port-splice",
        "port-agents",
        "port-vxlan",
        "leftover-translations",
        "rule-priority",
        "ipv6",
    ] {
        one(&checks, name, "passed");
    }
    one(&checks, "broker", "skipped");
    let said = machine.say(&[]);
    let failed = checks.iter().any(|check| check["result"] == "failed");
    assert_eq!(said.code, Some(i32::from(failed)), "{}", said.out);
    assert!(said.out.trim_end().ends_with("failed"), "{}", said.out);
    println!("diagnose took {:?}", said.took);
}

#[test]
fn leftover_translations_are_named_with_the_command_that_removes_each() {
    if skip("leftover_translations", &["nft", "iptables"]) {
        return;
    }
    let machine = Machine::new("leftover");
    machine.nft(
        "table ip own { chain out { type nat hook output priority -100; ip daddr 192.168.5.9 dnat to 203.0.113.5; }\n}\n",
    );
    machine
        .namespace
        .sh("iptables -t nat -A OUTPUT -d 192.168.5.10/32 -p tcp -j DNAT --to-destination 203.0.113.6")
        .unwrap();
    let checks = machine.checks();
    // Whether they are of another site is not known before joining.
    let found = of(&checks, "leftover-translations", "warning");
    assert_eq!(found.len(), 2, "{checks:#?}");
    for address in ["192.168.5.9", "192.168.5.10"] {
        let mut all = found.iter();
        let named = all.any(|check| check["saw"].as_str().unwrap().contains(address));
        assert!(named, "{address}: {found:#?}");
    }
    for check in found {
        let next = check["next"].as_str().unwrap();
        let (_, command) = next.split_once(": ").unwrap();
        machine.namespace.sh(command).unwrap();
    }
    one(&machine.checks(), "leftover-translations", "passed");
}

#[test]
fn rules_of_a_cluster_are_left_alone_before_joining() {
    if skip("rules_of_a_cluster", &["nft", "iptables"]) {
        return;
    }
    let machine = Machine::new("cluster");
    machine
        .namespace
        .sh("iptables -t nat -N KUBE-SERVICES && iptables -t nat -N KUBE-SEP-1 && iptables -t nat -N DOCKER &&
             iptables -t nat -A OUTPUT -j KUBE-SERVICES && iptables -t nat -A PREROUTING -j DOCKER &&
             iptables -t nat -A KUBE-SERVICES -d 192.168.96.10/32 -p tcp -j KUBE-SEP-1 &&
             iptables -t nat -A KUBE-SEP-1 -p tcp -j DNAT --to-destination 192.168.244.3:53 &&
             iptables -t nat -A DOCKER -d 192.168.5.5/32 -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80")
        .unwrap();
    let checks = machine.checks();
    one(&checks, "leftover-translations", "passed");
    // What of Docker's is in the way of a gateway is told all the same.
    machine
        .namespace
        .sh("ip route add default via 10.1.0.1 && iptables -P FORWARD DROP")
        .unwrap();
    let checks = machine.checks();
    let forward = one(&checks, "forward-rules", "warning");
    assert!(forward["saw"].as_str().unwrap().contains("FORWARD"));
}

#[test]
fn a_firewall_that_drops_what_must_come_or_pass_is_named() {
    if skip("a_firewall_that_drops", &["nft"]) {
        return;
    }
    let machine = Machine::new("drops");
    machine.nft(
        "table inet host { chain in { type filter hook input priority 0; policy drop; ct state established,related accept; }\n}\n",
    );
    let checks = machine.checks();
    let found = of(&checks, "input-rules", "failed");
    assert!(!found.is_empty(), "{checks:#?}");
    let says = |word: &str| {
        found
            .iter()
            .any(|check| check["saw"].as_str().unwrap().contains(word))
    };
    for word in ["51820", "7802", "7803"] {
        assert!(says(word), "{word}: {found:#?}");
    }
}

#[test]
fn what_is_taken_is_named_with_who_has_it() {
    if skip("what_is_taken", &["nft"]) {
        return;
    }
    let machine = Machine::new("taken");
    let namespace = &machine.namespace;
    let held = namespace.within(|| UdpSocket::bind("0.0.0.0:7802").unwrap());
    let _held = held.unwrap();
    namespace
        .sh("ip link add causeway0 type bridge && ip rule add from 10.9.9.9 table 99 priority 100 && ip route add 10.77.0.0/16 dev lo table 7100")
        .unwrap();
    let checks = machine.checks();
    let port = one(&checks, "port-agents", "failed");
    let saw = port["saw"].as_str().unwrap();
    assert!(
        saw.contains(&format!("process {}", std::process::id())),
        "{saw}"
    );
    let name = one(&checks, "interface-name", "failed");
    namespace
        .sh(name["next"].as_str().unwrap().rsplit(": ").next().unwrap())
        .unwrap();
    one(&checks, "rule-priority", "failed");
    one(&checks, "table", "failed");
    assert!(of(&machine.checks(), "interface-name", "failed").is_empty());
}

#[test]
fn strict_filters_and_a_missing_ipv6_are_warned_of() {
    if skip("strict_filters", &["nft"]) {
        return;
    }
    let machine = Machine::new("strict");
    let namespace = &machine.namespace;
    namespace
        .sysctl("net.ipv4.conf.eth0.rp_filter", "1")
        .unwrap();
    namespace
        .sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        .unwrap();
    namespace
        .sh("ip route add default via 10.1.0.1 && ip link set eth0 mtu 1300")
        .unwrap();
    let checks = machine.checks();
    let filter = one(&checks, "rp-filter", "warning");
    assert!(filter["saw"].as_str().unwrap().contains("eth0"));
    one(&checks, "ipv6", "warning");
    let mtu = one(&checks, "interface-mtu", "warning");
    assert!(mtu["saw"].as_str().unwrap().contains("1300"));
}

#[test]
fn read_only_sysctls_fail_with_the_command_for_the_host() {
    if skip("read_only_sysctls", &["nft", "unshare"]) {
        return;
    }
    let machine = Machine::new("readonly");
    let program = machine.command(&["--json"]);
    let words: Vec<String> = std::iter::once(program.get_program())
        .chain(program.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    // A mount namespace of its own, entered last: `ip netns exec` makes /sys anew.
    let at = words
        .iter()
        .position(|word| causeway().get_program() == word.as_str())
        .unwrap();
    let line = format!(
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec {}",
        words[at..].join(" ")
    );
    let mut command = machine.namespace.command("unshare");
    command.args(["--mount", "sh", "-c", &line]);
    let said = command::run(command, None).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    let told: Value = serde_json::from_str(&said.out).unwrap();
    let checks = told["checks"].as_array().unwrap();
    one(checks, "sysctls-writable", "warning");
    let forwarding = one(checks, "forwarding", "failed");
    assert_eq!(forwarding["next"], "sysctl -w net.ipv4.ip_forward=1");
}

#[test]
fn without_privilege_it_says_what_it_could_not_look_at() {
    if skip("without_privilege", &["nft", "setpriv"]) {
        return;
    }
    let machine = Machine::new("user");
    // Where anybody may run it.
    let place = std::env::temp_dir().join(format!("causeway-diagnose-{}", std::process::id()));
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.join("causeway");
    fs::copy(causeway().get_program(), &program).unwrap();
    let mut command = machine.namespace.command("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ])
        .arg(&program)
        .args([
            "diagnose",
            "--metadata",
            "off",
            "--json",
            "--runtime-dir=/nonexistent",
            "--state-dir=/nonexistent",
        ]);
    let said = command::run(command, None);
    fs::remove_dir_all(&place).unwrap();
    let said = said.unwrap();
    let told: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    let checks = told["checks"].as_array().unwrap();
    one(checks, "privileges", "warning");
    one(checks, "firewall", "skipped");
    one(checks, "port-tunnel", "passed");
    // Tried in a namespace of this user's own where the host allows that, else said.
    let kernel = checks.iter().filter(|check| check["group"] == "kernel");
    assert!(kernel.clone().count() >= 2, "{checks:#?}");
    for check in kernel {
        assert!(check["result"] != "failed", "{check}");
    }
    assert_eq!(said.code, Some(0), "{checks:#?}");
}

#[test]
fn a_broker_that_is_not_there_fails_and_one_whose_port_answers_passes() {
    if skip("a_broker_that_is_not_there", &["nft"]) {
        return;
    }
    let machine = Machine::new("noone");
    let listener = machine
        .namespace
        .within(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let said = machine.say(&["--json", "--broker", "127.0.0.1:1"]);
    let told: Value = serde_json::from_str(&said.out).unwrap();
    one(told["checks"].as_array().unwrap(), "broker", "failed");
    assert_eq!(said.code, Some(1));
    let good = format!("127.0.0.1:{port}");
    let said = machine.say(&["--json", "--broker", "127.0.0.1:1", "--broker", &good]);
    let told: Value = serde_json::from_str(&said.out).unwrap();
    let checks = told["checks"].as_array().unwrap();
    one(checks, "broker", "passed");
    one(checks, "broker", "warning");
    one(checks, "clock", "skipped");
}
