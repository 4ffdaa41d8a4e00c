//! `causeway gateway run` as a program: how it starts without a broker, what it refuses and in which
//! words, what it leaves behind when it ends.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::broker::command::{self, Said, causeway};
use tests::broker::{ENOUGH, Mesh};
use tests::lab::{Lab, Namespace, Process, skip, wait_for};

/// A machine of the site with nobody to reach, and the state it joined with.
struct Machine {
    lab: Lab,
    namespace: Namespace,
    directory: PathBuf,
    mesh: Mesh,
}

impl Machine {
    fn new(tag: &str) -> Machine {
        let mut mesh = Mesh::new(tag).unwrap();
        let token = mesh
            .token("here", "10.1.0.0/16", &["--role=gateway", "--uses=2"])
            .unwrap();
        for node in ["one", "two"] {
            mesh.join(node, &token).unwrap().expect_success().unwrap();
        }
        let token = mesh.token("agents", "10.9.0.0/16", &["--role=agent"]);
        mesh.join("agent", &token.unwrap())
            .unwrap()
            .expect_success()
            .unwrap();
        mesh.brokers[0].kill();
        // Another tag: a mesh and a lab of one number would share a directory.
        let lab = Lab::new(&format!("{tag}-lab")).unwrap();
        let namespace = lab.namespace("gate").unwrap();
        namespace.address("lo", "10.1.0.1/16").unwrap();
        Machine {
            directory: lab.directory().to_owned(),
            namespace,
            mesh,
            lab,
        }
    }

    fn runtime(&self, name: &str) -> PathBuf {
        self.directory.join(format!("run-{name}"))
    }

    fn command(&self, node: &str) -> Command {
        self.command_through(&[], &self.mesh.node(node), &self.runtime(node))
    }

    /// As a child of a program and its arguments, which becomes it.
    fn command_through(&self, through: &[&str], state: &Path, runtime: &Path) -> Command {
        self.command_in(&self.namespace, through, (state, runtime))
    }

    fn command_in(
        &self,
        namespace: &Namespace,
        through: &[&str],
        (state, runtime): (&Path, &Path),
    ) -> Command {
        let causeway = causeway();
        let mut command = namespace.command(through.first().unwrap_or(&"env"));
        command
            .args(through.get(1..).unwrap_or(&[]))
            .arg(causeway.get_program())
            .args(["gateway", "run", "--metrics", "off", "--state-dir"])
            .arg(state)
            .arg("--runtime-dir")
            .arg(runtime);
        command
    }

    fn start(&self, node: &str) -> Process {
        let process = self.namespace.spawn(self.command(node)).unwrap();
        wait_for("the gateway says that it is ready", ENOUGH, || {
            !process.is_running()
                || self
                    .status(node)
                    .is_some_and(|status| status["ready"] == true)
        })
        .unwrap();
        assert!(process.is_running(), "{}", process.output());
        process
    }

    fn status(&self, node: &str) -> Option<serde_json::Value> {
        let mut stream = UnixStream::connect(self.runtime(node).join("gateway.sock")).ok()?;
        stream.set_read_timeout(Some(ENOUGH)).ok()?;
        stream
            .write_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    fn has_interface(&self) -> bool {
        let shown = self.namespace.run("ip", &["link", "show", "causeway0"]);
        shown.is_ok_and(|text| text.contains("UP"))
    }
}

fn refused(command: Command) -> Said {
    let said = command::run(command, None).unwrap();
    assert_eq!(said.code, Some(1), "{}", said.err);
    said
}

#[test]
fn it_starts_without_a_broker_and_leaves_its_interface_when_it_ends() {
    if skip(
        "it_starts_without_a_broker_and_leaves_its_interface_when_it_ends",
        &[],
    ) {
        return;
    }
    let machine = Machine::new("gwlife");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let process = machine.start("one");
        let status = machine.status("one").unwrap();
        assert_eq!(status["site"], "here");
        assert_eq!(status["lan_address"], "10.1.0.1");
        assert_eq!(status["broker"]["state"], "cached");
        let begin = Instant::now();
        process.signal(signal).unwrap();
        let ended = process.wait_timeout(ENOUGH).unwrap();
        assert!(ended.success(), "{signal}: {ended}: {}", process.output());
        let took = begin.elapsed();
        assert!(took <= Duration::from_secs(2), "{signal}: {took:?}");
        assert!(!machine.runtime("one").join("gateway.sock").exists());
        assert!(machine.has_interface(), "{signal}");
    }
}

#[test]
fn a_gateway_that_knows_nothing_of_its_mesh_is_not_ready_and_says_what_it_waits_for() {
    if skip("a_gateway_that_knows_nothing", &[]) {
        return;
    }
    let machine = Machine::new("gwblank");
    let cache = machine.mesh.node("one").join("node").join("cache.journal");
    std::fs::remove_file(&cache).unwrap();
    let process = machine.namespace.spawn(machine.command("one")).unwrap();
    let waits = "lacks this node's grant";
    wait_for("the log says what it waits for", ENOUGH, || {
        process.output().contains(waits)
    })
    .unwrap();
    let mut wait = machine.namespace.command(causeway().get_program());
    wait.args(["status", "--wait", "--timeout", "1s", "--runtime-dir"])
        .arg(machine.runtime("one"));
    refused(wait).assert_refused(&["not ready", waits]);
    assert_eq!(machine.status("one").unwrap()["ready"], false);
}

#[test]
fn a_deleted_interface_is_there_again_within_a_second() {
    if skip("a_deleted_interface_is_there_again_within_a_second", &[]) {
        return;
    }
    let machine = Machine::new("gwdel");
    let process = machine.start("one");
    for _ in 0..3 {
        machine
            .namespace
            .run("ip", &["link", "delete", "causeway0"])
            .unwrap();
        wait_for("the interface", Duration::from_secs(1), || {
            machine.has_interface()
        })
        .unwrap();
    }
    machine
        .namespace
        .run("ip", &["link", "set", "causeway0", "down"])
        .unwrap();
    wait_for("the interface is up", Duration::from_secs(1), || {
        machine.has_interface()
    })
    .unwrap();
    assert!(process.is_running());
}

#[test]
fn what_is_in_use_is_refused_by_name_and_the_first_goes_on() {
    if skip(
        "what_is_in_use_is_refused_by_name_and_the_first_goes_on",
        &[],
    ) {
        return;
    }
    let machine = Machine::new("gwtwo");
    let first = machine.start("one");
    let pid = format!("process {} ", first.pid());
    let mut beside = machine.command("two");
    beside.args(["--tun", "other0", "--listen", "[::]:51999"]);
    refused(beside).assert_refused(&[&pid, "gateway run", "this network namespace", "stop it"]);
    let left = machine.namespace.run("ip", &["link", "show", "other0"]);
    assert!(left.is_err(), "{left:?}");
    assert!(!machine.runtime("two").join("gateway.sock").exists());

    let elsewhere = machine.lab.namespace("elsewhere").unwrap();
    let (one, two) = (machine.mesh.node("one"), machine.mesh.node("two"));
    let same_state = machine.command_in(&elsewhere, &[], (&one, &machine.runtime("elsewhere")));
    refused(same_state).assert_refused(&["in use by another process", "stop that first"]);
    let same_runtime = machine.command_in(&elsewhere, &[], (&two, &machine.runtime("one")));
    refused(same_runtime).assert_refused(&["running already", "--runtime-dir"]);
    assert!(machine.status("one").is_some());
    assert!(first.is_running());
}

#[test]
fn a_port_of_another_program_is_refused_and_nothing_of_it_is_lost() {
    if skip(
        "a_port_of_another_program_is_refused_and_nothing_of_it_is_lost",
        &[],
    ) {
        return;
    }
    let machine = Machine::new("gwport");
    let taken = machine
        .namespace
        .within(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 51820)).unwrap())
        .unwrap();
    refused(machine.command("one")).assert_refused(&["51820", "ss -lunp"]);
    let left = machine.namespace.run("ip", &["link", "show", "causeway0"]);
    assert!(left.is_err(), "{left:?}");
    drop(taken);
    machine.start("one");
}

#[test]
fn what_is_missing_is_told_with_what_to_do() {
    if skip(
        "what_is_missing_is_told_with_what_to_do",
        &["setpriv", "unshare"],
    ) {
        return;
    }
    let machine = Machine::new("gwmiss");
    let (one, runtime) = (machine.mesh.node("one"), machine.runtime("one"));
    let nowhere = machine.directory.join("nowhere");
    let absent = machine.command_through(&[], &nowhere, &runtime);
    refused(absent).assert_refused(&["does not exist", "causeway join"]);
    let agent = machine.command_through(&[], &machine.mesh.node("agent"), &runtime);
    refused(agent).assert_refused(&["agent", "--role gateway"]);
    let unwritable = machine.command_through(&[], &one, Path::new("/proc/causeway"));
    refused(unwritable).assert_refused(&["/proc/causeway", "--runtime-dir"]);
    let weak = [
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
    ];
    refused(machine.command_through(&weak, &one, &runtime))
        .assert_refused(&["privilege", "CAP_NET_ADMIN"]);
    let without_device = ["unshare", "-m", "sh", "-c", HIDE_TUN, "sh"];
    refused(machine.command_through(&without_device, &one, &runtime))
        .assert_refused(&["/dev/net/tun", "load the tun module"]);
    let mut lanes = machine.command("one");
    lanes.args(["--datapath", "lanes"]);
    let said = command::run(lanes, None).unwrap();
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("no lanes yet"), "{}", said.err);
}

const HIDE_TUN: &str = "mount -t tmpfs none /dev/net && exec \"$@\"";
