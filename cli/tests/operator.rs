//! What an operator meets who has never seen this program: words that say what to do next.

#[path = "causeway/machine.rs"]
#[expect(dead_code, reason = "the tests of the authority use the rest")]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod machine;
#[path = "causeway/member.rs"]
#[expect(dead_code, reason = "the tests of the mesh use the rest")]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod member;

use std::fs;

use machine::Machine;
use member::publish;
use proto::entry::Role;

const CREATE: &str = "token create --site berlin --cidr 10.1.0.0/16";

#[test]
fn a_used_up_token_is_not_counted_as_open() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(CREATE);
    machine.ok("token create --site berlin --uses 2");
    assert_eq!(machine.json("site list")[0]["open_tokens"], 2);
    let done = machine.run_with_input("join --state-dir a --node a", &token);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(machine.json("site list")[0]["open_tokens"], 1);
    assert_eq!(machine.json("site show berlin")["open_tokens"], 1);
}

#[test]
fn a_node_that_joined_and_never_ran_is_listed_and_revoked_by_its_key() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(&format!("{CREATE} --uses 2"));
    for name in ["a", "b"] {
        let line = format!("join --state-dir {name} --node {name}");
        let done = machine.run_with_input(&line, &token);
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    publish(&machine.path("a"), Role::Gateway).unwrap();
    let nodes = machine.json("node list");
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
    assert_eq!(nodes[0]["node"], "a");
    assert_eq!(nodes[1]["node"], serde_json::Value::Null);
    assert_eq!(nodes[1]["site"], "berlin");
    assert_eq!(nodes[1]["state"], "joined, not started");
    let key = nodes[1]["identity"].as_str().unwrap();
    let done = machine.run("node list");
    assert!(done.out.contains(key), "{}", done.out);
    assert!(done.err.contains("node revoke KEY"), "{}", done.err);

    let revoked = machine.json(&format!("node revoke {key} --yes"));
    assert_eq!(revoked["identity"], key);
    assert_eq!(revoked["stay"][0], nodes[0]["identity"]);
    assert_eq!(machine.json("node list").as_array().unwrap().len(), 1);
    let again = machine.json(&format!("node revoke {key} --yes"));
    assert_eq!(again["entry"], serde_json::Value::Null);
}

#[test]
fn a_broker_without_an_address_is_answering_and_says_how_to_add_one() {
    let machine = Machine::new();
    machine.ok("broker init");
    machine.run(CREATE).failed(
        2,
        &["causeway broker add", "--address", "--broker HOST:PORT"],
    );
    let address = machine::free_address();
    let broker = machine.start_broker(&address);
    let brokers = machine.json("broker list");
    assert_eq!(brokers[0]["answers"], true);
    let key = brokers[0]["key"].as_str().unwrap();
    let done = machine.run("broker list");
    let add = format!("causeway broker add {key} --address");
    assert!(done.err.contains(&add), "{}", done.err);
    machine.ok(&format!("broker add {key} --address {address}"));
    let done = machine.run("broker list");
    assert_eq!(done.err, "");
    machine.ok(CREATE);
    broker.stop();
    let done = machine.run("broker list");
    assert!(done.out.contains(" no\n"), "{}", done.out);
    assert!(done.err.contains("is the broker running?"), "{}", done.err);
}

#[test]
fn a_further_broker_without_entries_of_its_own_is_no_damaged_ledger() {
    let machine = Machine::new();
    let made = machine.json("broker init");
    let key = made["authority_key"].as_str().unwrap();
    machine.ok(&format!("broker init --state-dir second --mesh {key}"));
    let done = machine.run("site list --state-dir second");
    done.failed(1, &["none answers on", "start it"]);
    assert!(!done.err.contains("damaged"), "{}", done.err);
    let address = machine::free_address();
    let line = format!("broker run --state-dir second --listen {address} --http off");
    let mut waiting = machine.command(&line).spawn().unwrap();
    let socket = machine.path("run/broker.sock");
    for _ in 0..500 {
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let done = machine.run("site list --state-dir second");
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    done.failed(1, &["waits for its ledger", "broker add"]);
}

#[test]
fn a_broker_that_is_not_running_is_named_by_its_socket() {
    let machine = Machine::new();
    machine.init();
    fs::rename(machine.path("state/authority"), machine.path("elsewhere")).unwrap();
    machine
        .run("node list")
        .failed(1, &["broker.sock", "is the broker running"]);
}

#[test]
fn a_gateway_to_join_by_is_not_needed_where_the_broker_is_reached() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let token = machine.ok(CREATE);
    let done = machine.run_with_input("join --state-dir a --node a --via 127.0.0.1", &token);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.err.contains("or: causeway routeagent run"),
        "{}",
        done.err
    );
}

#[test]
fn a_second_broker_on_a_state_directory_is_told_to_stop_the_first() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let done = machine.run("broker run --no-relay --listen 127.0.0.1:0");
    done.failed(1, &["stop that one"]);
}

#[test]
fn a_join_that_fails_gives_each_reason_once() {
    let machine = Machine::new();
    machine.init();
    let token = machine.ok(CREATE);
    let done = machine.run_with_input("join --state-dir a --node a", &token);
    done.failed(1, &["run the same command again"]);
    let told = done.err.matches("is the broker running?").count();
    assert_eq!(told, 1, "{}", done.err);
}

#[test]
fn a_taken_port_is_named_before_the_advice() {
    let machine = Machine::new();
    machine.init();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let done = machine.run(&format!("broker run --listen {address} --http off"));
    done.failed(1, &["ss -lntup", "--listen"]);
    let what = done.err.find(&format!("cannot listen on {address}"));
    assert!(what.unwrap() < done.err.find("ss -lntup").unwrap());
}

#[test]
fn a_prefix_that_is_there_already_is_not_signed_again() {
    let machine = Machine::new();
    machine.init();
    machine.ok(CREATE);
    let before = machine.text("state/authority/ledger");
    let done = machine.run("site add-prefix berlin 10.1.0.0/16");
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("nothing was signed"), "{}", done.err);
    assert_eq!(machine.text("state/authority/ledger"), before);
}

#[test]
fn a_lost_ledger_is_fetched_from_the_broker_of_this_machine() {
    let machine = Machine::new();
    let address = machine.init();
    let broker = machine.start_broker(&address);
    machine.ok(CREATE);
    let ledger = machine.path("state/authority/ledger");
    fs::rename(&ledger, machine.path("copy")).unwrap();
    machine
        .run("site list")
        .failed(1, &["causeway ledger restore"]);
    machine.ok("ledger restore");
    assert_eq!(machine.text("copy"), machine.text("state/authority/ledger"));
    broker.stop();
    fs::remove_file(&ledger).unwrap();
    machine
        .run("ledger restore")
        .failed(2, &["broker.sock", "--mesh-id", "--file"]);
}

#[test]
fn the_first_commands_to_run_fit_the_address_that_was_given() {
    let machine = Machine::new();
    let done = machine.run("broker init --address b.example.org:9000");
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("--listen [::]:9000"), "{}", done.err);
    let done = machine.run("broker init --state-dir two --address b.example.org:7800");
    assert!(!done.err.contains("--listen"), "{}", done.err);
}

#[test]
fn a_store_that_cannot_be_reached_leaves_nothing_behind() {
    let machine = Machine::new();
    machine
        .run("broker init --store etcd://127.0.0.1:1/x")
        .failed(1, &["nothing was made", "127.0.0.1:1"]);
    assert!(!machine.state().exists());
}

#[test]
fn who_could_not_be_told_is_named_beside_who_was() {
    let machine = Machine::new();
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    let other = machine.json("broker init --state-dir other");
    let (key, store) = (&other["broker_key"], &other["store_id"]);
    let (key, store) = (key.as_str().unwrap(), store.as_str().unwrap());
    let nobody = machine::free_address();
    machine.ok(&format!(
        "broker add {key} --store-id {store} --address {nobody}"
    ));
    let done = machine.run(CREATE);
    assert_eq!(done.code, Some(0), "{done:?}");
    for words in ["Told: ", &format!("not told: {nobody}"), "ledger push"] {
        assert!(done.err.contains(words), "{words}: {}", done.err);
    }
    let token = machine.ok(&format!(
        "token create --site berlin --broker {nobody},{address}"
    ));
    let done = machine.run_with_input("join --state-dir a --node a", &token);
    done.failed(1, &["is the broker running?"]);
    let reason = format!("{nobody}: the connection was refused");
    assert_eq!(done.err.matches(&reason).count(), 1, "{}", done.err);
}

#[test]
fn an_address_to_listen_on_that_cannot_be_is_refused_with_one_that_can() {
    let machine = Machine::new();
    machine.init();
    machine
        .run("broker run --listen broker.example.org:7800")
        .failed(2, &["[::]:7800", "a name is not enough"]);
    machine
        .run("broker run --http off --listen 192.0.2.1:7800")
        .failed(1, &["cannot listen on 192.0.2.1:7800", "ip address"]);
}
