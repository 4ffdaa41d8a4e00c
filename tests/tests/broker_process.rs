//! `causeway broker run` as a program: what it refuses, what it never touches, how it ends.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::broker::crowd::{Crowd, prepare};
use tests::broker::{ENOUGH, Mesh, command, look};

const STOP: Duration = Duration::from_secs(2);
const START: Duration = Duration::from_secs(1);

#[test]
fn it_serves_within_a_second() {
    let mut mesh = Mesh::at_rest("start").unwrap();
    let begin = Instant::now();
    mesh.brokers[0].start().unwrap();
    assert!(begin.elapsed() <= START, "{:?}", begin.elapsed());
}

#[test]
fn it_stops_within_two_seconds_with_sites_connected() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut mesh = Mesh::at_rest("term").unwrap();
        let (authority, tickets) = prepare(&mesh, 10).unwrap();
        mesh.brokers[0].start().unwrap();
        let mut crowd = Crowd::start(&mesh, &authority, tickets).unwrap();
        crowd.wait_until_all_know_all(ENOUGH).unwrap();
        let process = mesh.brokers[0].process();
        let begin = Instant::now();
        process.signal(signal).unwrap();
        let status = process.wait_timeout(ENOUGH).unwrap();
        assert!(status.success(), "{signal}: {status}: {}", process.output());
        assert!(begin.elapsed() <= STOP, "{signal}: {:?}", begin.elapsed());
        assert!(
            !mesh.brokers[0].runtime.join("broker.sock").exists(),
            "{signal}"
        );
    }
}

#[test]
fn two_brokers_on_one_store_file_are_refused_and_the_first_goes_on() {
    let mesh = Mesh::new("two").unwrap();
    let first = &mesh.brokers[0];
    let mut second = command::causeway();
    second
        .args(["broker", "run", "--state-dir"])
        .arg(&first.state)
        .arg("--runtime-dir")
        .arg(mesh.path().join("run-2"))
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let said = command::run(second, None).unwrap();
    said.assert_refused(&["store.redb"]);
    assert!(look::healthy(first.http));
    mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
}

#[test]
fn an_address_in_use_is_refused_by_name() {
    let mesh = Mesh::new("port").unwrap();
    let mut other = Mesh::at_rest("port").unwrap();
    other.brokers[0].address = mesh.brokers[0].address;
    let said = command::run(other.brokers[0].run_command(), None).unwrap();
    said.assert_refused(&[&mesh.brokers[0].address.to_string(), "in use"]);
}

#[test]
fn a_state_directory_with_loose_permissions_is_refused_with_the_command_that_helps() {
    let mesh = Mesh::at_rest("loose").unwrap();
    let state = mesh.brokers[0].state.join("broker");
    for (path, loose, tight) in [
        (state.clone(), 0o755, 0o700),
        (state.join("broker.key"), 0o644, 0o600),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(loose)).unwrap();
        let said = command::run(mesh.brokers[0].run_command(), None).unwrap();
        said.assert_refused(&["chmod", &path.display().to_string()]);
        fs::set_permissions(&path, fs::Permissions::from_mode(tight)).unwrap();
    }
}

#[test]
fn a_store_that_has_vanished_is_refused_and_never_begun_anew() {
    let mut mesh = Mesh::new("vanished").unwrap();
    mesh.brokers[0].kill();
    let store = mesh.brokers[0].state.join("broker/store.redb");
    fs::remove_file(&store).unwrap();
    let said = command::run(mesh.brokers[0].run_command(), None).unwrap();
    said.assert_refused(&[&store.display().to_string()]);
    assert!(!store.exists());
}

#[test]
fn a_broker_is_never_made_twice_nor_its_key_replaced() {
    let mesh = Mesh::at_rest("init").unwrap();
    let key = mesh.brokers[0].state.join("broker/broker.key");
    let before = fs::read(&key).unwrap();
    let mut again = command::causeway();
    again
        .args(["broker", "init", "--state-dir"])
        .arg(&mesh.brokers[0].state)
        .args(["--address", "127.0.0.1:7800"]);
    let said = command::run(again, None).unwrap();
    said.assert_refused(&["already"]);
    assert_eq!(fs::read(&key).unwrap(), before);
    assert!(
        !mesh.brokers[0].state.join("authority").exists(),
        "a refused init leaves nothing"
    );
}

/// What shuts it out is tested with the broker; this is what a whole process shows of it.
#[test]
fn it_runs_without_the_authority_says_where_the_key_lies_and_that_it_is_shut_out() {
    let mut mesh = Mesh::at_rest("fence").unwrap();
    mesh.brokers[0].start().unwrap();
    let log = mesh.brokers[0].log();
    let authority = mesh.authority().display().to_string();
    let warning = log
        .lines()
        .find(|line| line.contains("WARN") && line.contains(&authority));
    assert!(
        warning.is_some(),
        "no warning that names {authority}: {log}"
    );
    assert!(log.to_lowercase().contains("landlock"), "{log}");
    let open = look::open_files(mesh.brokers[0].process().pid());
    let inside = open.iter().find(|path| path.starts_with(&authority));
    assert_eq!(inside, None);
    mesh.brokers[0].kill();
    let away = mesh.path().join("away");
    fs::rename(mesh.authority(), &away).unwrap();
    mesh.brokers[0].start().unwrap();
    assert!(look::healthy(mesh.brokers[0].http));
    fs::rename(away, mesh.authority()).unwrap();
    mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
}

#[test]
fn it_follows_no_link_from_its_directory_to_the_authority() {
    let mut mesh = Mesh::at_rest("path").unwrap();
    let own = mesh.brokers[0].state.join("broker/ledger");
    fs::remove_file(&own).unwrap();
    symlink(mesh.authority().join("ledger"), &own).unwrap();
    let said = command::run(mesh.brokers[0].run_command(), None).unwrap();
    said.assert_refused(&[&own.display().to_string()]);
    fs::remove_file(&own).unwrap();
    fs::copy(mesh.authority().join("ledger"), &own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
    mesh.brokers[0].start().unwrap();
}

#[test]
fn metrics_are_for_loopback_names_only() {
    let mesh = Mesh::new("metrics").unwrap();
    let http = mesh.brokers[0].http;
    let (status, metrics) = look::get(http, "/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(metrics.contains("causeway_broker_"), "{metrics}");
    let (status, body) = look::get_as(http, "/metrics", "evil.example").unwrap();
    assert!(status >= 400, "{status} {body}");
    assert!(!body.contains("causeway_broker_"), "{body}");
    let (status, body) = look::get(http, "/healthz").unwrap();
    assert_eq!((status, body.trim()), (200, "ok"));
}
