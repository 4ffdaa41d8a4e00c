//! `causeway wg` as a program: how it starts, what it refuses, how it ends.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::echo::Echo;
use tests::lab::{Lab, Namespace, wait_for};
use tests::shown::peers;
use tests::subject::{missing, not_causeway};
use tests::tunnel::{FAR_V4, Tunnel, wire};
use tests::wireguard::{Device, Implementation, Keys, MTU};

const ENOUGH: Duration = Duration::from_secs(10);

fn program() -> PathBuf {
    Implementation::Causeway.locate().unwrap()
}

fn socket_of(interface: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{interface}.sock"))
}

fn exists(namespace: &Namespace, interface: &str) -> bool {
    namespace.run("ip", &["link", "show", interface]).is_ok()
}

/// Runs the program to its end; what it must not do is stay.
fn refused(namespace: &Namespace, before: &[&str], arguments: &[&str]) -> Output {
    let mut command = namespace.command("timeout");
    command
        .arg("10")
        .args(before)
        .arg(program())
        .args(arguments);
    let output = command.output().unwrap();
    assert_ne!(
        output.status.code(),
        Some(124),
        "it stayed instead of refusing"
    );
    assert!(!output.status.success(), "it started: {output:?}");
    output
}

/// A refusal says what failed, in words, and is no panic.
fn says(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(!text.contains("panicked"), "{text}");
    assert!(
        output.stdout.is_empty(),
        "words for people go to standard error"
    );
    for word in words {
        assert!(
            text.contains(&word.to_lowercase()),
            "no {word:?} in: {text}"
        );
    }
}

fn one_namespace(tag: &str) -> (Lab, Namespace) {
    let lab = Lab::new(tag).unwrap();
    let namespace = lab.namespace("a").unwrap();
    (lab, namespace)
}

/// The binary where everybody may read it, whatever directory it was built in.
fn public_copy(lab: &Lab) -> PathBuf {
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = lab.directory().join("causeway");
    fs::copy(program(), &copy).unwrap();
    copy
}

#[test]
fn the_configuration_socket_is_for_its_owner_alone() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let (_lab, namespace) = one_namespace("mode");
    let device = Device::start(&namespace, Implementation::Causeway, 51820).unwrap();
    let mode = fs::metadata(device.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn it_ends_cleanly_when_its_interface_is_deleted() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let tunnel = Tunnel::new("del").unwrap();
    tunnel.wait().unwrap();
    let interface = tunnel.near.interface();
    tunnel
        .left()
        .run("ip", &["link", "del", interface])
        .unwrap();
    let status = tunnel.near.process().wait_timeout(ENOUGH).unwrap();
    assert!(
        status.success(),
        "{status}: {}",
        tunnel.near.process().output()
    );
    assert!(!tunnel.near.socket().exists());
}

#[test]
fn it_ends_cleanly_on_signals() {
    if missing(&[]) || not_causeway() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let tunnel = Tunnel::new("term").unwrap();
        tunnel.wait().unwrap();
        tunnel.near.process().signal(signal).unwrap();
        let status = tunnel.near.process().wait_timeout(ENOUGH).unwrap();
        assert!(
            status.success(),
            "{signal}: {status}: {}",
            tunnel.near.process().output()
        );
        assert!(!tunnel.near.socket().exists(), "{signal}");
        assert!(!exists(tunnel.left(), tunnel.near.interface()), "{signal}");
    }
}

/// Deleting the socket is the usual way to end a user-space WireGuard: wg-quick does it.
#[test]
fn it_ends_when_its_socket_is_deleted() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let (_lab, namespace) = one_namespace("sock");
    let device = Device::start(&namespace, Implementation::Causeway, 51820).unwrap();
    fs::remove_file(device.socket()).unwrap();
    device.process().wait_timeout(ENOUGH).unwrap();
    assert!(!exists(&namespace, device.interface()));
}

#[test]
fn a_stale_socket_is_replaced() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let (lab, namespace) = one_namespace("stale");
    let name = lab.interface();
    // Bound once, then nobody listens any more: what a killed program leaves.
    drop(UnixListener::bind(socket_of(&name)).unwrap());
    assert!(socket_of(&name).exists());
    let mut command = namespace.command(program());
    command.args(["wg", &name, "-f"]);
    let process = namespace.spawn(command).unwrap();
    // Not by `wg`, which deletes a socket that refuses it, and would race with who replaces it.
    wait_for("the socket answers", ENOUGH, || {
        UnixStream::connect(socket_of(&name)).is_ok()
    })
    .unwrap();
    namespace.run("wg", &["show", &name]).unwrap();
    process.signal(Signal::SIGTERM).unwrap();
    process.wait_timeout(ENOUGH).unwrap();
    assert!(!socket_of(&name).exists());
}

#[test]
fn a_live_socket_is_refused_and_left_alone() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let (lab, namespace) = one_namespace("live");
    let elsewhere = lab.namespace("b").unwrap();
    let device = Device::start(&namespace, Implementation::Causeway, 51820).unwrap();
    let name = device.interface();
    let output = refused(&elsewhere, &[], &["wg", name, "-f"]);
    says(&output, &[name]);
    assert!(!exists(&elsewhere, name), "its interface is gone with it");
    assert!(device.process().is_running());
    assert_eq!(device.show("listen-port").unwrap().trim(), "51820");
}

#[test]
fn a_name_that_is_taken_is_refused_and_its_owner_left_alone() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let (lab, namespace) = one_namespace("taken");
    let [bridge, tap] = [lab.interface(), lab.interface()];
    namespace
        .run("ip", &["link", "add", &bridge, "type", "bridge"])
        .unwrap();
    // A persistent TUN without a queue attached would be taken over if nothing forbade it.
    namespace
        .run("ip", &["tuntap", "add", &tap, "mode", "tun"])
        .unwrap();
    for name in [&bridge, &tap] {
        let output = refused(&namespace, &[], &["wg", name, "-f"]);
        says(&output, &[name]);
        assert!(exists(&namespace, name));
        assert!(!socket_of(name).exists());
    }
}

#[test]
fn a_name_that_cannot_be_one_is_refused() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let (_lab, namespace) = one_namespace("long");
    for name in ["sixteen-bytes-00", "a/b", "..", "", "wg%d"] {
        let output = refused(&namespace, &[], &["wg", name, "-f"]);
        assert_eq!(output.status.code(), Some(2), "{name:?}");
        says(&output, &["name"]);
    }
    assert_eq!(
        namespace
            .run("ip", &["-br", "link"])
            .unwrap()
            .lines()
            .count(),
        1
    );
}

#[test]
fn without_privilege_it_says_so() {
    if missing(&["setpriv"]) || not_causeway() {
        return;
    }
    let (lab, namespace) = one_namespace("nobody");
    let copy = public_copy(&lab);
    let name = lab.interface();
    for flag in ["-f", ""] {
        let mut command = namespace.command("timeout");
        command.args([
            "10",
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ]);
        command
            .arg(&copy)
            .args(["wg", &name])
            .args(Some(flag).filter(|flag| !flag.is_empty()));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        says(&output, &[&name]);
        let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
        let reasons = [
            "root",
            "cap_net_admin",
            "privilege",
            "permission",
            "permitted",
        ];
        assert!(reasons.iter().any(|word| text.contains(word)), "{text}");
        assert!(!exists(&namespace, &name));
    }
}

#[test]
fn without_a_tun_device_it_says_so() {
    if missing(&["unshare"]) || not_causeway() {
        return;
    }
    let (lab, namespace) = one_namespace("notun");
    let name = lab.interface();
    let hidden = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let before = ["unshare", "-m", "sh", "-c", hidden, "sh"];
    let output = refused(&namespace, &before, &["wg", &name, "-f"]);
    assert_eq!(output.status.code(), Some(1));
    says(&output, &["/dev/net/tun"]);
    assert!(!socket_of(&name).exists());
}

/// A port that is taken is refused whole: the old port stays, and the tunnel with it.
#[test]
fn a_port_that_is_taken_is_refused_and_the_old_one_kept() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let tunnel = Tunnel::new("port").unwrap();
    tunnel.wait().unwrap();
    for taken in ["0.0.0.0:51900", "[::]:51901"] {
        let squatter = tunnel
            .left()
            .within(|| UdpSocket::bind(taken).unwrap())
            .unwrap();
        let port = squatter.local_addr().unwrap().port().to_string();
        assert!(
            tunnel.near.set(&["listen-port", &port]).is_err(),
            "{taken} is taken"
        );
        assert_eq!(tunnel.near.show("listen-port").unwrap().trim(), "51821");
        Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
    }
    tunnel.near.set(&["listen-port", "51902"]).unwrap();
    tunnel.wait().unwrap();
}

/// In the background it returns once the interface is there: wg-quick configures it at once.
#[test]
fn in_the_background_it_returns_when_the_interface_is_there() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let (lab, namespace) = one_namespace("back");
    let name = lab.interface();
    let binary = program();
    namespace
        .run(binary.to_str().unwrap(), &["wg", &name])
        .unwrap();
    namespace.run("wg", &["show", &name]).unwrap();
    assert!(exists(&namespace, &name));
    // A second is refused also where the error must cross from the background.
    says(&refused(&namespace, &[], &["wg", &name]), &[&name]);
    namespace.run("ip", &["link", "del", &name]).unwrap();
    wait_for("the program ends", ENOUGH, || !socket_of(&name).exists()).unwrap();
    let left = || namespace_pids(&namespace).is_empty();
    wait_for("no process is left", ENOUGH, left).unwrap();
}

fn namespace_pids(namespace: &Namespace) -> String {
    // From outside: whoever asks inside would count itself.
    let output = std::process::Command::new("ip")
        .args(["netns", "pids", namespace.name()])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What `wg-quick` needs to find it: the name under which it starts its user-space implementation.
fn wg_quick(lab: &Lab, namespace: &Namespace, action: &str, file: &Path) {
    let link = lab.directory().join("causeway-wg");
    if !link.exists() {
        symlink(program(), &link).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    let mut command = namespace.command("wg-quick");
    command
        .arg(action)
        .arg(file)
        .env("WG_QUICK_USERSPACE_IMPLEMENTATION", "causeway-wg")
        .env("PATH", format!("{}:{path}", lab.directory().display()));
    let output = command.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "wg-quick {action}: {words}");
    assert!(action == "down" || words.contains("causeway-wg"), "{words}");
}

#[test]
fn wg_quick_brings_it_up_and_down() {
    if missing(&["wg-quick"]) || not_causeway() {
        return;
    }
    let lab = Lab::new("quick").unwrap();
    let (left, right) = wire(&lab, 1500).unwrap();
    let far = Device::start(&right, Implementation::Causeway, 51822).unwrap();
    let keys = Keys::generate(&left).unwrap();
    let name = lab.interface();
    let file = lab.directory().join(format!("{name}.conf"));
    let configuration = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.9.0.1/24, fd09::1/64\nListenPort = 51821\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.2:51822\n",
        keys.private,
        far.keys().public
    );
    fs::write(&file, configuration).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    far.set(&[
        "peer",
        &keys.public,
        "allowed-ips",
        "10.9.0.1/32,fd09::1/128",
    ])
    .unwrap();
    far.up(MTU).unwrap();
    far.address("10.9.0.2/24").unwrap();
    far.address("fd09::2/64").unwrap();
    for _ in 0..2 {
        wg_quick(&lab, &left, "up", &file);
        Echo::to(FAR_V4)
            .until_reply(&left, Duration::from_secs(15))
            .unwrap();
        Echo::to("fd09::2".parse::<std::net::IpAddr>().unwrap())
            .flood(&left, 3)
            .unwrap();
        wg_quick(&lab, &left, "down", &file);
        assert!(!exists(&left, &name));
        wait_for("the socket goes", ENOUGH, || !socket_of(&name).exists()).unwrap();
    }
}

/// Sends `request` to the configuration socket and returns the answer.
fn ask(device: &Device, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(device.socket()).unwrap();
    stream.set_read_timeout(Some(ENOUGH)).unwrap();
    stream.set_write_timeout(Some(ENOUGH)).unwrap();
    // A line that is too long may be refused before it is read whole.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Each is refused with an error number, and nothing of it is applied.
#[test]
fn bad_configuration_changes_nothing() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let tunnel = Tunnel::new("bad").unwrap();
    tunnel.wait().unwrap();
    let key = "ab".repeat(32);
    let before = ask(&tunnel.near, b"get=1\n\n");
    let stable = |text: &str| -> Vec<String> {
        let moving = ["rx_bytes", "tx_bytes", "last_handshake"];
        text.lines()
            .filter(|line| !moving.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect()
    };
    let long = format!("set=1\nprivate_key={}\n\n", "a".repeat(1 << 20));
    let requests: Vec<Vec<u8>> = vec![
        b"set=1\nno_such_key=1\n\n".to_vec(),
        b"set=1\nlisten_port=70000\n\n".to_vec(),
        b"set=1\nlisten_port=51999\nno_such_key=1\n\n".to_vec(),
        format!("set=1\npublic_key={key}\nendpoint=nowhere\n\n").into_bytes(),
        format!("set=1\npublic_key={key}\nallowed_ip=10.0.0.0/33\n\n").into_bytes(),
        format!("set=1\nallowed_ip=10.0.0.0/8\npublic_key={key}\n\n").into_bytes(),
        format!("set=1\npublic_key={}\n\n", &key[2..]).into_bytes(),
        b"set=1\nreplace_peers=maybe\n\n".to_vec(),
        b"set=1\nno equals sign\n\n".to_vec(),
        b"set=1\nlisten_port=\xff\xfe\n\n".to_vec(),
        long.into_bytes(),
    ];
    for request in &requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        let answer = ask(&tunnel.near, request);
        assert!(
            !answer.contains("errno=0\n"),
            "{shown:?} was taken: {answer:?}"
        );
        assert!(tunnel.near.process().is_running(), "{shown:?} ended it");
        let after = ask(&tunnel.near, b"get=1\n\n");
        assert_eq!(
            stable(&after),
            stable(&before),
            "{shown:?} was applied in part"
        );
    }
    // Cut off, unknown and empty: no answer is owed, but nothing happens either.
    for request in [
        &b"set=1\nreplace_peers=true\n"[..],
        b"set=1\npublic",
        b"",
        b"\n\n\n",
        b"hello=1\n\n",
    ] {
        ask(&tunnel.near, request);
        let after = ask(&tunnel.near, b"get=1\n\n");
        assert_eq!(stable(&after), stable(&before), "{request:?} was applied");
    }
    Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
}

/// Who connects to the socket and says nothing keeps nobody else from it, nor packets from passing.
#[test]
fn silent_clients_of_the_socket_stall_nobody() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let tunnel = Tunnel::new("silent").unwrap();
    tunnel.wait().unwrap();
    let silent: Vec<_> = (0..8)
        .filter_map(|_| UnixStream::connect(tunnel.near.socket()).ok())
        .collect();
    assert!(!silent.is_empty());
    for mut stream in &silent {
        stream.write_all(b"set=1\nlisten_port=5").unwrap();
    }
    assert_eq!(peers(&tunnel.near).unwrap().len(), 1);
    Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
    drop(silent);
    assert_eq!(tunnel.near.show("listen-port").unwrap().trim(), "51821");
}
