//! Keys and tokens are looked for wherever they must not be: logs at the finest level, arguments,
//! environment, metrics, words.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
use nix::sys::signal::Signal;
use tests::broker::cast::{Ticket, read_seed};
use tests::broker::command::{self, Said, causeway};
use tests::broker::{ENOUGH, Mesh, join_command, look};
use tests::lab::{Process, wait_for};

/// Names of secrets and every form they could be shown in.
#[derive(Default)]
struct Canaries(Vec<(String, Vec<u8>)>);

impl Canaries {
    fn add(&mut self, name: &str, secret: &[u8]) {
        let forms = [
            secret.to_vec(),
            HEXLOWER.encode(secret).into_bytes(),
            HEXUPPER.encode(secret).into_bytes(),
            BASE64.encode(secret).into_bytes(),
            BASE64_NOPAD.encode(secret).into_bytes(),
            BASE64URL_NOPAD.encode(secret).into_bytes(),
            // As `{:?}` of an array prints it.
            format!("{secret:?}").trim_matches(['[', ']']).into(),
        ];
        for form in forms {
            // Half of a secret is too much as well.
            let half = form.len() / 2;
            self.0.push((name.to_owned(), form[..half].to_vec()));
            self.0.push((name.to_owned(), form[half..].to_vec()));
        }
    }

    fn add_token(&mut self, token: &str) {
        let ticket = Ticket::of(token).unwrap();
        self.add("a token's seed", &*ticket.join_key().seed());
        // What stands before the end of a token is no secret; the seed is at its end.
        let end = token.len() - 40;
        self.0.push(("a token".to_owned(), token[end..].into()));
    }

    fn add_file(&mut self, path: &Path) {
        let seed = read_seed(path).unwrap();
        self.add(&path.display().to_string(), &*seed);
    }

    /// The first that is shown.
    fn find(&self, bytes: &[u8]) -> Option<&str> {
        let shown = |form: &[u8]| bytes.windows(form.len()).any(|window| window == form);
        let found = self.0.iter().find(|(_, form)| shown(form));
        found.map(|(name, _)| name.as_str())
    }

    #[track_caller]
    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        if let Some(name) = self.find(bytes) {
            panic!("{name} is in {place}: {}", String::from_utf8_lossy(bytes));
        }
    }

    #[track_caller]
    fn assert_absent_in(&self, said: &Said) {
        self.assert_absent(
            &format!("the words of `{}`", said.what),
            said.err.as_bytes(),
        );
        self.assert_absent(
            &format!("the output of `{}`", said.what),
            said.out.as_bytes(),
        );
    }

    /// Of a process that still runs.
    #[track_caller]
    fn assert_absent_around(&self, what: &str, pid: u32) {
        let (arguments, environment) = look::arguments_and_environment(pid);
        assert!(!arguments.is_empty(), "{what} has ended too early");
        self.assert_absent(&format!("the arguments of {what}"), &arguments);
        self.assert_absent(&format!("the environment of {what}"), &environment);
    }
}

fn finest(mut command: Command) -> Command {
    command.env("CAUSEWAY_LOG", "trace");
    command
}

/// A mesh whose broker logs everything, and the secrets of its making.
fn talkative() -> (Mesh, Canaries) {
    let mut mesh = Mesh::at_rest("secrets").unwrap();
    // A token that was left in the environment is no business of a broker's.
    let stray = format!("cwy1.{}", BASE64URL_NOPAD.encode(&[77; 200]));
    for (name, value) in [("CAUSEWAY_LOG", "trace"), ("CAUSEWAY_TOKEN", &stray)] {
        let variable = (name.to_owned(), value.to_owned());
        mesh.brokers[0].environment.push(variable);
    }
    mesh.brokers[0].start().unwrap();
    let mut canaries = Canaries::default();
    canaries
        .0
        .push(("a stray token".to_owned(), stray.into_bytes()));
    canaries.add_file(&mesh.authority().join("authority.key"));
    canaries.add_file(&mesh.brokers[0].state.join("broker/broker.key"));
    let (_, recovery) = mesh.about.recovery.split_once('.').unwrap();
    let recovery = BASE64URL_NOPAD.decode(recovery.as_bytes()).unwrap();
    canaries.add("the recovery key", &recovery[..32]);
    (mesh, canaries)
}

fn token(mesh: &Mesh, canaries: &mut Canaries, site: &str, prefix: &str) -> String {
    let command = finest(mesh.token_command(site, prefix, &[]));
    let said = command::run(command, None).unwrap();
    let said = said.expect_success().unwrap();
    let token = said.out.trim().to_owned();
    assert_eq!(canaries.find(token.as_bytes()), None);
    canaries.add_token(&token);
    assert!(
        canaries.find(token.as_bytes()).is_some(),
        "nothing is found"
    );
    canaries.assert_absent("the words of token create", said.err.as_bytes());
    token
}

fn check_broker(mesh: &Mesh, canaries: &Canaries) {
    let broker = &mesh.brokers[0];
    let log = broker.log();
    assert!(
        log.contains("DEBUG"),
        "the broker does not log finely: {log}"
    );
    canaries.assert_absent("the broker's log", log.as_bytes());
    canaries.assert_absent_around("broker run", broker.process().pid());
    let (_, metrics) = look::get(broker.http, "/metrics").unwrap();
    canaries.assert_absent("metrics", metrics.as_bytes());
}

#[test]
fn secrets_are_found_in_every_form() {
    let mut canaries = Canaries::default();
    let secret: Vec<u8> = (100..132).collect();
    canaries.add("a secret", &secret);
    let shown = [
        format!("key {}", HEXLOWER.encode(&secret)),
        format!("key={}", BASE64.encode(&secret)),
        format!("SigningKey({secret:?})"),
        format!("{}...", &BASE64URL_NOPAD.encode(&secret)[..30]),
    ];
    for text in shown {
        assert_eq!(canaries.find(text.as_bytes()), Some("a secret"), "{text}");
    }
    assert_eq!(canaries.find(b"nothing of the kind"), None);
}

#[test]
fn no_secret_is_shown_by_a_join_whichever_way_the_token_comes() {
    let (mesh, mut canaries) = talkative();
    for (number, way) in ["file", "stdin", "environment"].into_iter().enumerate() {
        let prefix = format!("10.{number}.0.0/16");
        let token = token(&mesh, &mut canaries, way, &prefix);
        let mut command = finest(join_command(&mesh.node(way), way));
        let input = match way {
            "file" => {
                let path = mesh.path().join("token");
                fs::write(&path, &token).unwrap();
                command.arg("--token-file").arg(path);
                None
            }
            "stdin" => Some(token.as_str()),
            _ => {
                command.env("CAUSEWAY_TOKEN", &token);
                None
            }
        };
        let said = command::run(command, input).unwrap();
        let said = said.expect_success().unwrap();
        canaries.assert_absent_in(&said);
        let node = mesh.node(way).join("node");
        for key in ["identity.key", "wireguard.key"] {
            canaries.add_file(&node.join(key));
        }
        canaries.assert_absent_in(&said);
        let again = finest(join_command(&mesh.node(way), way));
        canaries.assert_absent_in(&command::run(again, Some(&token)).unwrap());
        let mut used = finest(join_command(&mesh.node("late"), "late"));
        used.env("CAUSEWAY_TOKEN", &token);
        let used = command::run(used, None).unwrap();
        used.assert_refused(&["used"]);
        canaries.assert_absent_in(&used);
    }
    check_broker(&mesh, &canaries);
    let mut leave = finest(causeway());
    leave.arg("leave").arg("--state-dir").arg(mesh.node("file"));
    let said = command::run(leave, None).unwrap();
    canaries.assert_absent_in(&said.expect_success().unwrap());
    check_broker(&mesh, &canaries);
}

/// The broker is stopped, so that the join hangs and can be looked at.
#[test]
fn no_secret_is_around_a_join_while_it_runs() {
    let (mesh, mut canaries) = talkative();
    let token = token(&mesh, &mut canaries, "paris", "10.1.0.0/16");
    let broker = mesh.brokers[0].process();
    broker.signal(Signal::SIGSTOP).unwrap();
    let mut command = finest(join_command(&mesh.node("a"), "a"));
    command.env("CAUSEWAY_TOKEN", &token);
    let log = mesh.path().join("join.log");
    let join = Process::spawn(command, log).unwrap();
    wait_for("the join has left its environment behind", ENOUGH, || {
        let (arguments, environment) = look::arguments_and_environment(join.pid());
        let shown = environment.windows(5).any(|window| window == b"cwy1.");
        !arguments.is_empty() && !shown
    })
    .unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(join.is_running(), "{}", join.output());
    canaries.assert_absent_around("join", join.pid());
    broker.signal(Signal::SIGCONT).unwrap();
    let status = join.wait_timeout(ENOUGH).unwrap();
    assert!(status.success(), "{}", join.output());
    canaries.assert_absent("the words of join", join.output().as_bytes());
}

#[test]
fn no_secret_is_in_what_is_said_of_broken_tokens() {
    let (mesh, mut canaries) = talkative();
    let token = token(&mesh, &mut canaries, "paris", "10.1.0.0/16");
    let tail = &token[token.len() - 60..];
    let broken = [
        token[..token.len() - 1].to_owned(),
        token[1..].to_owned(),
        format!("{token}AAAA"),
        tail.to_owned(),
        token.replacen("cwy1.", "cwy9.", 1),
        format!("cwy1.{tail}"),
    ];
    for text in &broken {
        let command = finest(join_command(&mesh.node("a"), "a"));
        let said = command::run(command, Some(text)).unwrap();
        said.assert_refused(&["token"]);
        canaries.assert_absent_in(&said);
    }
    // On the command line it is refused, and the refusal does not repeat it.
    let mut command = finest(join_command(&mesh.node("a"), "a"));
    command.arg(&token);
    let said = command::run(command, None).unwrap();
    assert!(!said.success());
    canaries.assert_absent("words", said.err.as_bytes());
    check_broker(&mesh, &canaries);
}
