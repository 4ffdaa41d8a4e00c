//! Tokens and joins against a real broker on redb: races, crashes, repeats.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proto::entry::Uses;
use tests::broker::cast::{Authority, Ticket};
use tests::broker::command::{self, Said};
use tests::broker::race::race;
use tests::broker::{Mesh, join, join_command};
use tests::dice::Dice;
use tests::lab::Process;

const RACERS: usize = 100;
const ROUNDS: usize = 30;
const JOINED_WITHIN: Duration = Duration::from_secs(3);

/// Every file below a directory with its content.
fn snapshot(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(snapshot(&path));
        } else {
            let content = fs::read(&path).unwrap();
            found.push((path.display().to_string(), content));
        }
    }
    found.sort();
    found
}

/// How many uses of it are taken, as the operator's list shows it.
fn uses_of(mesh: &Mesh, token: &str) -> usize {
    let mut list = mesh.operator(&["token", "list"]);
    list.arg("--json");
    let told = command::json(list).unwrap();
    let id = Ticket::of(token).unwrap().entry.hash().to_string();
    let tokens = told.as_array().unwrap();
    let listed = tokens.iter().find(|entry| entry["grant"] == id);
    let listed = listed.unwrap_or_else(|| panic!("{id} is not listed: {told}"));
    usize::try_from(listed["taken"].as_u64().unwrap()).unwrap()
}

#[test]
fn of_a_hundred_clients_that_race_for_one_use_exactly_one_wins_thirty_times() {
    let mut mesh = Mesh::at_rest("race").unwrap();
    let mut authority = Authority::of(&mesh).unwrap();
    let tickets: Vec<Ticket> = (0..ROUNDS)
        .map(|round| {
            let (site, prefix) = (format!("site-{round}"), format!("10.1.{round}.0/24"));
            authority.grant(&site, &prefix, Uses::AtMost(1)).unwrap()
        })
        .collect();
    authority
        .save(tickets.iter().map(|ticket| &ticket.entry))
        .unwrap();
    mesh.brokers[0].start().unwrap();
    let target = authority.target(&mesh.brokers[0]).unwrap();
    for (round, ticket) in tickets.into_iter().enumerate() {
        let outcome = race(std::slice::from_ref(&target), ticket, RACERS)
            .unwrap_or_else(|why| panic!("round {round}: {why:#}\n{}", mesh.brokers[0].log()));
        assert_eq!(outcome.losers.len(), RACERS - 1, "round {round}");
        let log = mesh.brokers[0].log();
        let (winner, losers) = (outcome.winner.to_string(), &outcome.losers);
        let named = losers.iter().filter(|loser| {
            let loser = loser.to_string();
            log.lines()
                .any(|line| line.contains(&winner) && line.contains(&loser))
        });
        assert_eq!(
            named.count(),
            RACERS - 1,
            "round {round}: not every refusal names both keys in one line of the log"
        );
    }
}

#[test]
fn of_a_hundred_processes_that_race_for_one_use_exactly_one_wins() {
    let mesh = Mesh::new("processes").unwrap();
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    let said: Vec<Said> = thread::scope(|scope| {
        let joins: Vec<_> = (0..RACERS)
            .map(|number| {
                let (mesh, token) = (&mesh, &token);
                scope.spawn(move || mesh.join(&format!("n{number}"), token).unwrap())
            })
            .collect();
        joins.into_iter().map(|join| join.join().unwrap()).collect()
    });
    let winners = said.iter().filter(|said| said.success()).count();
    assert_eq!(winners, 1, "{said:#?}");
    for loser in said.iter().filter(|said| !said.success()) {
        loser.assert_refused(&["used"]);
    }
    for (number, said) in said.iter().enumerate() {
        let state = mesh.node(&format!("n{number}"));
        assert_eq!(
            state.join("node").exists(),
            said.success(),
            "who lost has no identity, and who won has"
        );
    }
    assert_eq!(uses_of(&mesh, &token), 1);
}

#[test]
fn from_making_a_token_to_having_joined_it_takes_less_than_three_seconds() {
    let mesh = Mesh::new("quick").unwrap();
    let begin = Instant::now();
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    let said = mesh.join("a", &token).unwrap().expect_success().unwrap();
    assert!(begin.elapsed() <= JOINED_WITHIN, "{:?}", begin.elapsed());
    let words = said.err.to_lowercase();
    for word in ["pin", "token", "identity", "gateway run"] {
        assert!(words.contains(word), "join does not tell {word:?}: {words}");
    }
}

#[test]
fn a_token_is_alone_on_standard_output_and_the_words_are_beside_it() {
    let mesh = Mesh::new("stdout").unwrap();
    let said = command::run(mesh.token_command("paris", "10.1.0.0/16", &[]), None).unwrap();
    let said = said.expect_success().unwrap();
    assert_eq!(said.out.lines().count(), 1, "{}", said.out);
    assert!(said.out.starts_with("cwy1."), "{}", said.out);
    assert!(!said.err.contains("cwy1."), "{}", said.err);
    for word in ["paris", "10.1.0.0/16", "causeway join"] {
        assert!(said.err.contains(word), "no {word:?} in {}", said.err);
    }
}

#[test]
fn a_token_is_made_while_the_broker_is_down_and_works_once_it_is_up() {
    let mut mesh = Mesh::at_rest("down").unwrap();
    let said = command::run(mesh.token_command("paris", "10.1.0.0/16", &[]), None).unwrap();
    let token = said.expect_success().unwrap().out.trim().to_owned();
    let refused = mesh.join("a", &token).unwrap();
    refused.assert_refused(&[&mesh.brokers[0].address.to_string(), "refused"]);
    assert!(!mesh.node("a").join("node").exists());
    mesh.brokers[0].start().unwrap();
    mesh.join("a", &token).unwrap().expect_success().unwrap();
}

#[test]
fn joining_again_needs_neither_network_nor_token_and_changes_nothing() {
    let mut mesh = Mesh::new("again").unwrap();
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    mesh.join("a", &token).unwrap().expect_success().unwrap();
    mesh.brokers[0].kill();
    let before = snapshot(&mesh.node("a"));
    let without_token = command::run(join_command(&mesh.node("a"), "a"), None).unwrap();
    without_token.expect_success().unwrap();
    let with_token = mesh.join("a", &token).unwrap();
    with_token.expect_success().unwrap();
    assert_eq!(before, snapshot(&mesh.node("a")));
}

#[test]
fn a_join_killed_anywhere_and_repeated_ends_complete_with_one_identity_and_one_use() {
    const ROUNDS: usize = 40;
    let mut dice = Dice::new("join killed");
    let mesh = Mesh::new("crash").unwrap();
    let uses = (ROUNDS * 2).to_string();
    let token = mesh
        .token("paris", "10.1.0.0/16", &["--uses", &uses])
        .unwrap();
    let file = mesh.path().join("token");
    fs::write(&file, &token).unwrap();
    let took = {
        let said = mesh.join("calibrate", &token).unwrap();
        said.expect_success().unwrap().took
    };
    let mut killed = 0;
    for round in 0..ROUNDS {
        let name = format!("n{round}");
        let state = mesh.node(&name);
        loop {
            let mut command = join_command(&state, &name);
            command.arg("--token-file").arg(&file);
            let log = mesh.path().join(format!("join-{round}.log"));
            let process = Process::spawn(command, log).unwrap();
            let micros = u64::try_from(took.as_micros()).unwrap();
            thread::sleep(Duration::from_micros(dice.below(micros * 5 / 4)));
            if process.is_running() {
                process.kill();
                killed += 1;
            }
            if state.join("node").exists() {
                break;
            }
        }
        // Whatever the last one left behind, the next says that all is done.
        join(&state, &name, &token)
            .unwrap()
            .expect_success()
            .unwrap();
        assert!(!state.join("node.joining").exists(), "round {round}");
        assert_eq!(uses_of(&mesh, &token), round + 2, "round {round}");
    }
    assert!(killed > ROUNDS / 4, "only {killed} were killed half way");
}

#[test]
fn a_stopped_broker_is_given_up_in_words_and_the_state_directory_stays_untouched() {
    let mesh = Mesh::new("stop").unwrap();
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    let process = mesh.brokers[0].process();
    process.signal(Signal::SIGSTOP).unwrap();
    let said = mesh.join("a", &token).unwrap();
    process.signal(Signal::SIGCONT).unwrap();
    said.assert_refused(&[&mesh.brokers[0].address.to_string()]);
    assert!(said.took < Duration::from_secs(30), "{:?}", said.took);
    assert!(!mesh.node("a").join("node").exists());
    mesh.join("a", &token).unwrap().expect_success().unwrap();
}
