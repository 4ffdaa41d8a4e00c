//! The whole life of a mesh by the built binary, on loopback: brokers, joins, lists, revocations.

#[path = "causeway/machine.rs"]
#[expect(dead_code, reason = "the tests of the authority use the rest")]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod machine;
#[path = "causeway/member.rs"]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod member;

use std::fs;
use std::thread;
use std::time::Duration;

use machine::Machine;
use member::publish;
use proto::entry::Role;

const CREATE: &str = "token create --site berlin --cidr 10.1.0.0/16";

/// Joins a state directory of this name; its identity.
#[track_caller]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
fn join(machine: &Machine, name: &str, token: &str) -> String {
    let line = format!("join --state-dir {name} --node {name} --json");
    let done = machine.run_with_input(&line, token);
    assert_eq!(done.code, Some(0), "{done:?}");
    let joined: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    joined["identity"].as_str().unwrap().to_owned()
}

#[test]
fn a_machine_joins_once_and_again_without_network_or_token() {
    let machine = Machine::new();
    let address = machine.init();
    let broker = machine.start_broker(&address);
    let done = machine.run(CREATE);
    assert!(done.err.contains("Told: "), "{}", done.err);
    machine.write("token", &done.out);
    let join = "join --state-dir a --token-file token --node a";
    let done = machine.run(join);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(done.out, "", "steps are words, not data");
    for step in [&address, "pinned", "token proven", "identity", "next: "] {
        assert!(done.err.contains(step), "{step}: {}", done.err);
    }
    let identity = machine::read(&machine.path("a/node/identity.key"));
    assert_eq!(machine.json("token list")[0]["state"], "used");
    assert_eq!(machine.json("token list")[0]["taken"], 1);
    broker.stop();
    fs::remove_file(machine.path("token")).unwrap();
    for line in [join, "join --state-dir a"] {
        let done = machine.run(line);
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(
            done.err.contains("already part of the mesh"),
            "{}",
            done.err
        );
    }
    assert_eq!(
        machine::read(&machine.path("a/node/identity.key")),
        identity
    );
}

#[test]
fn a_used_token_names_its_holder_and_the_loser_is_left_untouched() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(CREATE);
    let holder = join(&machine, "a", &token);
    let done = machine.run_with_input("join --state-dir b", &token);
    done.failed(1, &["already used", &holder, "token create"]);
    assert!(!machine.path("b").exists());
}

#[test]
fn a_token_out_of_its_time_says_which_way() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let late = machine.ok(&format!("{CREATE} --ttl 1s"));
    let early = machine.ok(&format!("{CREATE} --starts-in 1h"));
    thread::sleep(Duration::from_millis(2100));
    machine
        .run_with_input("join --state-dir a", &late)
        .failed(1, &["expired", "token create"]);
    machine
        .run_with_input("join --state-dir a", &early)
        .failed(1, &["not valid yet"]);
    assert!(!machine.path("a").exists());
    let states: Vec<String> = machine
        .json("token list")
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["expired", "not yet valid"]);
}

#[test]
fn a_revoked_token_takes_nobody_and_its_nodes_stay() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let made = machine.json(&format!("{CREATE} --uses 3"));
    let (token, id) = (
        made["token"].as_str().unwrap(),
        made["id"].as_str().unwrap(),
    );
    let key = join(&machine, "a", token);
    let silent = join(&machine, "silent", token);
    publish(&machine.path("a"), Role::Gateway).unwrap();
    let named = ["2 nodes", &key, "berlin/a", &silent, "(no record)"];
    let advice = ["do not know", "node revoke KEY", "--with-nodes", "--yes"];
    let done = machine.run(&format!("token revoke {id}"));
    done.failed(2, &[&named[..], &advice[..]].concat());
    assert_eq!(
        machine.json("token list")[0]["state"],
        "open",
        "nothing was signed"
    );
    let done = machine.run(&format!("token revoke {id} --yes"));
    assert_eq!(done.code, Some(0), "{done:?}");
    for word in named {
        assert!(done.err.contains(word), "{word}: {}", done.err);
    }
    machine
        .run_with_input("join --state-dir b", token)
        .failed(1, &["revoked"]);
    assert!(
        machine
            .run(&format!("token revoke {id}"))
            .err
            .contains("already")
    );
    publish(&machine.path("a"), Role::Gateway).unwrap();
    machine.ok(&format!("token revoke {id} --with-nodes"));
    let refused = publish(&machine.path("a"), Role::Gateway).unwrap_err();
    assert!(!refused.is_empty());
    let nodes = machine.json("node list");
    assert!(nodes[0].is_null() || nodes[0]["state"].as_str().unwrap().contains("refused"));
}

#[test]
fn a_token_that_nobody_used_is_revoked_without_a_question() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let made = machine.json(CREATE);
    let id = made["id"].as_str().unwrap();
    let done = machine.run(&format!("token revoke {id}"));
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("No node that joined"), "{}", done.err);
    assert_eq!(machine.json("token list")[0]["state"], "revoked");
}

#[test]
fn a_node_of_a_shared_token_is_revoked_after_showing_who_stays() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(&format!("{CREATE} --uses unlimited"));
    let bad = join(&machine, "bad", &token);
    let good = join(&machine, "good", &token);
    let silent = join(&machine, "silent", &token);
    publish(&machine.path("bad"), Role::Gateway).unwrap();
    publish(&machine.path("good"), Role::Agent).unwrap();
    let done = machine.run("node revoke bad");
    done.failed(2, &["--yes", &good, "berlin/good", &silent]);
    assert_eq!(
        machine.json("token list")[0]["state"],
        "open",
        "nothing was signed"
    );
    let revoked = machine.json("node revoke berlin/bad --yes");
    assert_eq!(revoked["identity"], bad.as_str());
    assert_eq!(revoked["stay"].as_array().unwrap().len(), 2);
    machine
        .run_with_input("join --state-dir again", &token)
        .failed(1, &["revoked"]);
    publish(&machine.path("bad"), Role::Gateway).unwrap_err();
    publish(&machine.path("good"), Role::Agent).unwrap();
    assert!(
        machine
            .run("node revoke berlin/nobody --yes")
            .err
            .contains("no broker knows")
    );
    assert!(
        machine
            .run(&format!("node revoke {bad} --yes"))
            .err
            .contains("already")
    );
}

#[test]
fn revoking_the_node_of_a_token_of_one_use_closes_nothing_else() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.write("token", &machine.ok(CREATE));
    machine::chmod(&token, 0o644);
    let done = machine.run("join --state-dir a --node a --token-file token");
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("chmod 600"), "{}", done.err);
    publish(&machine.path("a"), Role::Gateway).unwrap();
    let revoked = machine.json("node revoke a --yes");
    assert!(revoked["closed"].is_null(), "{revoked}");
    publish(&machine.path("a"), Role::Gateway).unwrap_err();
    // Its name is free for another key.
    let token = machine.ok(CREATE);
    let line = "join --state-dir b --node a";
    assert_eq!(machine.run_with_input(line, &token).code, Some(0));
    publish(&machine.path("b"), Role::Gateway).unwrap();
}

#[test]
fn lists_name_nodes_as_they_are() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(&format!("{CREATE} --uses 2"));
    join(&machine, "a", &token);
    join(&machine, "b", &token);
    publish(&machine.path("a"), Role::Gateway).unwrap();
    publish(&machine.path("b"), Role::Agent).unwrap();
    let nodes = machine.json("node list");
    let names: Vec<&str> = (0..2)
        .map(|at| nodes[at]["node"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(nodes[0]["role"], "gateway");
    assert_eq!(machine.json("site list")[0]["gateways"], 1);
    assert_eq!(machine.json("site list")[0]["agents"], 1);
    // The same over nothing but the broker's socket.
    let by_socket = machine.json("node list --state-dir nobody");
    assert_eq!(by_socket, nodes);
    // The same by a node's own right, without the authority and the broker's socket.
    let by_node = machine.json("node list --state-dir a --runtime-dir elsewhere");
    assert_eq!(by_node[1]["identity"], nodes[1]["identity"]);
    assert_eq!(machine.json("broker list")[0]["answers"], true);
    machine.ok("leave --state-dir b");
    assert!(!machine.path("b/node").exists());
    let nodes = machine.json("node list --site berlin");
    assert_eq!(nodes[1]["state"], "left");
    machine.run("leave --state-dir b").failed(1, &["join"]);
    assert_eq!(
        machine.json("node list --site paris"),
        serde_json::json!([])
    );
}

#[test]
fn a_token_of_another_mesh_or_broker_is_told_apart() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(&format!("{CREATE} --uses 2"));
    let stranger = Machine::new();
    stranger.init();
    // Their key, our address: whoever answers there does not have the pin.
    let elsewhere = stranger.ok(&format!("{CREATE} --broker {address}"));
    machine
        .run_with_input("join --state-dir a", &elsewhere)
        .failed(1, &[&address, "instead of the pinned"]);
    // Our key and address, another mesh.
    let other_mesh = member::with_other_mesh(&token);
    machine
        .run_with_input("join --state-dir a", &other_mesh)
        .failed(1, &["another mesh"]);
    machine
        .run_with_input("join --state-dir a", &member::forged(&token))
        .failed(1, &["forged"]);
    assert!(!machine.path("a").exists());
    join(&machine, "a", &token);
    machine.write("theirs", &elsewhere);
    machine
        .run("join --state-dir a --token-file theirs")
        .failed(1, &["is part of the mesh", "--state-dir"]);
}

#[test]
fn a_role_that_the_token_does_not_give_is_refused() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(&format!("{CREATE} --role agent"));
    join(&machine, "a", &token);
    let refused = publish(&machine.path("a"), Role::Gateway).unwrap_err();
    assert!(refused.contains("role"), "{refused}");
    publish(&machine.path("a"), Role::Agent).unwrap();
}

#[test]
fn a_further_broker_is_added_and_sends_joiners_to_the_store_that_counts() {
    let machine = Machine::new();
    let first = machine.init();
    let one = machine.start_broker(&first);
    let mesh = machine.json("ledger show");
    let authority = mesh["authority"].as_str().unwrap();
    let further = Machine::new();
    let second = machine::free_address();
    let made = further.json(&format!(
        "broker init --mesh {authority} --address {second}"
    ));
    let two = further.start_broker(&second);
    let key = made["broker_key"].as_str().unwrap();
    machine
        .run(&format!("broker add {key} --address {second}"))
        .failed(2, &["--store-id"]);
    let store = made["store_id"].as_str().unwrap();
    let done = machine.run(&format!(
        "broker add {key} --store-id {store} --address {second}"
    ));
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains(&second), "it was told: {}", done.err);
    let brokers = machine.json("broker list");
    assert_eq!(brokers.as_array().unwrap().len(), 2);
    assert!((0..2).all(|at| brokers[at]["answers"] == true), "{brokers}");
    // A token that the first store counts, shown to the second broker alone.
    let token = machine.ok(&format!("{CREATE} --broker {first}"));
    let token = member::with_broker(&token, &second, key);
    let line = "join --state-dir a --json";
    let done = machine.run_with_input(line, &token);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains(&first), "{}", done.err);
    // The other store's broker cannot say who joined with it, so it closes nothing.
    let id = machine.json("token list")[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    drop(one);
    machine
        .run(&format!("token revoke {id}"))
        .failed(1, &["counts the uses", "--with-nodes"]);
    assert!(machine.json("token list")[0]["taken"].is_null());
    let one = machine.start_broker(&first);
    let closed = machine.json(&format!("token revoke {id} --yes"));
    assert_eq!(closed["stay"].as_array().unwrap().len(), 1);
    drop((one, two));
    let done = machine.run(&format!("broker remove {second}"));
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(machine.json("broker list").as_array().unwrap().len(), 1);
    machine
        .run("broker remove nobody")
        .failed(1, &["there is no broker"]);
}

#[test]
fn what_was_signed_with_the_broker_down_is_there_when_it_starts() {
    let machine = Machine::new();
    let address = machine.init();
    let token = machine.ok(CREATE);
    let broker = machine.start_broker(&address);
    join(&machine, "a", &token);
    broker.stop();
    machine.ok("site revoke berlin --yes");
    let _broker = machine.start_broker(&address);
    let refused = publish(&machine.path("a"), Role::Gateway).unwrap_err();
    assert!(refused.contains("revoked"), "{refused}");
}

#[test]
fn an_authority_elsewhere_catches_up_forks_are_reported_and_settled() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    // A copy of the authority from before the next entry: merely behind, so it catches up.
    member::copy(&machine.state().join("authority"), &machine.path("copy"));
    machine.ok(CREATE);
    let create = "token create --site paris --cidr 10.2.0.0/16 --authority copy";
    let done = machine.run(create);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("was behind"), "{}", done.err);
    // Signed in two places that could not hear of each other.
    member::copy(&machine.state().join("authority"), &machine.path("late"));
    machine.ok("token create --site rome --cidr 10.3.0.0/16 --offline");
    machine.ok(
        "token create --site oslo --cidr 10.4.0.0/16 --offline --authority late --state-dir nobody",
    );
    let done = machine.run("token create --site bern --cidr 10.5.0.0/16 --authority late");
    done.failed(1, &["forked", "causeway ledger settle"]);
    machine
        .run("ledger settle --yes --authority late")
        .failed(2, &["--keep"]);
    let shown = machine.json("ledger show --authority late");
    assert_eq!(shown["forked"], true);
    let keep = shown["heads"][0].as_str().unwrap();
    machine.ok(&format!(
        "ledger settle --keep {keep} --yes --authority late"
    ));
    assert_eq!(machine.json("ledger show")["forked"], false);
    machine.ok("token create --site bern --cidr 10.5.0.0/16");
}

#[test]
fn entries_are_carried_by_hand_where_no_broker_can_be_reached() {
    let machine = Machine::new();
    let address = machine.init();
    let broker = machine.start_broker(&address);
    // The authority on a machine that reaches nothing.
    fs::rename(machine.state().join("authority"), machine.path("vault")).unwrap();
    let away = "--authority vault --state-dir nobody --runtime-dir nowhere --offline";
    let done = machine.run(&format!("{CREATE} {away}"));
    assert!(done.err.contains("ledger push --file"), "{}", done.err);
    machine.ok("ledger push --file vault/ledger");
    assert_eq!(machine.json("site list")[0]["site"], "berlin");
    broker.stop();
    machine
        .run("ledger push --authority vault --state-dir nobody")
        .failed(1, &["no broker could be told", &address]);
}

#[test]
fn what_is_in_the_way_of_a_broker_is_named() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let done = machine.run(&format!(
        "broker run --listen {} --http off --runtime-dir run2",
        machine::free_address()
    ));
    done.failed(1, &["broker"]);
    assert!(
        done.err.contains("another") || done.err.contains("in use"),
        "{}",
        done.err
    );
    let other = Machine::new();
    other.init();
    other
        .run(&format!("broker run --listen {address} --http off"))
        .failed(1, &[&address, "ss -lntup", "--listen"]);
    machine::chmod(&other.state().join("broker/broker.key"), 0o644);
    other
        .run(&format!(
            "broker run --listen {} --http off",
            machine::free_address()
        ))
        .failed(1, &["broker.key", "chmod 600"]);
}

#[test]
fn the_token_of_the_environment_does_not_stay_there() {
    let machine = Machine::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    machine.init();
    let token = machine.ok(&format!("{CREATE} --broker {address}"));
    let mut command = machine.command("join --state-dir a");
    command.env("CAUSEWAY_TOKEN", token.trim());
    let mut child = command.spawn().unwrap();
    // It talks to the broker now, so it has the token; this one never answers.
    let (_silent, _) = listener.accept().unwrap();
    for file in ["environ", "cmdline"] {
        let shown = machine::read(format!("/proc/{}/{file}", child.id()).as_ref());
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(
            !shown.contains("CAUSEWAY_TOKEN") && !shown.contains("cwy1."),
            "{shown}"
        );
        assert!(
            file == "cmdline" || shown.contains("CAUSEWAY_STATE_DIR"),
            "{shown}"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn no_secret_reaches_a_log_or_a_list() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(&format!("{CREATE} --uses 2"));
    let mut command = machine.command("join --state-dir a");
    command
        .env("CAUSEWAY_TOKEN", token.trim())
        .env("CAUSEWAY_LOG", "debug");
    let joined = machine.finish(command);
    assert_eq!(joined.code, Some(0), "{joined:?}");
    publish(&machine.path("a"), Role::Gateway).unwrap();
    let mut shown = joined.out + &joined.err + &machine.text("broker.log");
    for list in [
        "token list",
        "node list",
        "ledger show",
        "site list",
        "broker list",
    ] {
        shown += &machine.ok(list);
        shown += &machine.ok(&format!("{list} --json"));
    }
    for secret in member::secrets(&token, &machine.state(), &machine.path("a")) {
        assert!(!shown.contains(&secret), "a secret is shown");
    }
}

#[test]
fn an_authority_of_which_only_the_key_is_left_gets_its_ledger_back() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    machine.ok(CREATE);
    let shown = machine.json("ledger show");
    let pin = machine.json("broker list")[0]["key"]
        .as_str()
        .unwrap()
        .to_owned();
    let exported = machine.ok("ledger show --export");
    let ledger = machine.state().join("authority/ledger");
    assert_eq!(exported.as_bytes(), machine::read(&ledger));
    machine
        .run("ledger restore --file x")
        .failed(1, &["never replaced"]);
    fs::rename(&ledger, machine.path("lost")).unwrap();
    let mesh = shown["mesh"].as_str().unwrap();
    let restore = format!("ledger restore --mesh-id {mesh} --runtime-dir nowhere");
    machine
        .run(&format!("{restore} --broker {address}"))
        .failed(1, &["=PIN"]);
    machine.run(&restore).failed(1, &["--broker"]);
    machine.ok(&format!("{restore} --broker {address}={pin}"));
    assert_eq!(machine::read(&ledger), exported.as_bytes());
    machine.ok("token create --site paris --cidr 10.2.0.0/16");
}

#[test]
fn a_recovered_authority_is_known_to_a_broker_elsewhere() {
    let machine = Machine::new();
    let address = machine::free_address();
    let made = machine.json(&format!("broker init --address {address}"));
    let _broker = machine.start_broker(&address);
    machine.write("recovery", made["recovery_key"].as_str().unwrap());
    fs::rename(machine.state().join("authority"), machine.path("vault")).unwrap();
    let away = "--authority vault --state-dir nobody --runtime-dir nowhere";
    let recover = format!("ledger recover --recovery-file recovery {away}");
    machine.run(&recover).failed(2, &["--yes"]);
    let recovered = machine.json(&format!("{recover} --yes"));
    let done = machine.run(&format!("{CREATE} {away}"));
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.err.contains(&format!("Told: {address}")),
        "{}",
        done.err
    );
    let shown = machine.json("ledger show");
    assert_eq!(shown["authority"], recovered["authority_key"]);
    join(&machine, "a", &done.out);
}

#[test]
fn what_a_thief_of_the_authority_signed_is_void_after_a_recovery() {
    let machine = Machine::new();
    let address = machine::free_address();
    let made = machine.json(&format!("broker init --address {address}"));
    let _broker = machine.start_broker(&address);
    machine.write("recovery", made["recovery_key"].as_str().unwrap());
    let mine = machine.ok(CREATE);
    let shown = machine.json("ledger show");
    let entries = shown["entries"].as_array().unwrap();
    let last = entries.last().unwrap()["id"].as_str().unwrap();
    member::copy(&machine.state().join("authority"), &machine.path("thief"));
    let theirs = machine.ok("token create --site evil --cidr 10.66.0.0/16 --authority thief");
    let after = format!("ledger recover --yes --recovery-file recovery --after {last}");
    let done = machine.run(&after);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.err.contains("1 entry"),
        "it says what becomes void: {}",
        done.err
    );
    assert_eq!(machine.json("site list").as_array().unwrap().len(), 1);
    let done = machine.run_with_input("join --state-dir evil", &theirs);
    assert_eq!(done.code, Some(1), "{done:?}");
    machine
        .run("token create --site evil --cidr 10.66.0.0/16 --authority thief")
        .failed(1, &["not the authority in force"]);
    join(&machine, "a", &mine);
    machine.ok("token create --site paris --cidr 10.2.0.0/16");
}
