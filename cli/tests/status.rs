//! `causeway status` and `ping` against a socket that answers as a gateway does, state by state.

#[path = "causeway/machine.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod machine;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use machine::{Done, Machine};
use serde_json::{Value, json};

/// Serves until the test ends: what it returns for a path is status line and body.
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
fn serve(machine: &Machine, answer: impl Fn(&str) -> (u16, String) + Send + 'static) {
    fs::create_dir_all(machine.path("run")).unwrap();
    let listener = UnixListener::bind(machine.path("run/gateway.sock")).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let (code, body) = answer(path);
            let length = body.len();
            // Whoever asked may have gone.
            let _ = write!(
                stream,
                "HTTP/1.1 {code} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
}

/// A machine whose gateway always tells this.
fn telling(status: &Value) -> Machine {
    let machine = Machine::new();
    let body = status.to_string();
    serve(&machine, move |_| (200, body.clone()));
    machine
}

fn link(gateway: &str) -> Value {
    json!({
        "site": "berlin", "gateway": gateway, "identity": "k", "sibling": false, "state": "up",
        "path": "direct", "path_kind": "record", "endpoint": "192.0.2.2:51820",
        "datapath": "wireguard", "lanes": 0, "rtt_ms": 12.34, "jitter_ms": 0.5, "loss": 0.0,
        "mtu": 1420, "tx_bytes": 1_468_006, "rx_bytes": 900, "last_handshake_s": 41,
        "held_down": false, "carries": true, "failovers": 0, "down_ms": 0, "candidates": [],
    })
}

/// Everything is up.
fn well() -> Value {
    json!({
        "mesh": "MESHKEY", "site": "amsterdam", "node": "gate-a", "role": "gateway",
        "identity": "k", "version": "0.1.0", "uptime_s": 3700, "ready": true,
        "broker": {"state": "connected", "address": "broker:7800", "last_sync_s": 3, "reasons": []},
        "tun": "causeway0", "listen_port": 51820, "lan_address": "10.1.0.1",
        "addresses": [{"address": "192.0.2.1:51820", "from": "configured"}],
        "links": [link("gate-b")],
        "prefixes": [
            {"prefix": "10.1.0.0/16", "site": "amsterdam", "state": "local", "gateways": [], "by_siblings": false, "mtu": null},
            {"prefix": "10.2.0.0/16", "site": "berlin", "state": "reachable", "gateways": ["gate-b"], "by_siblings": false, "mtu": 1420},
        ],
        "drops": {}, "problems": [],
    })
}

fn status(told: &Value) -> Done {
    telling(told).run("status")
}

const WELL: &str = "\
gateway gate-a of site amsterdam, causeway 0.1.0, ready, up for 1 hour 1 minute
mesh    MESHKEY
place   -
broker  connected to broker:7800
tunnel  causeway0, UDP port 51820, others call 192.0.2.1:51820 (configured)

SITE    PLACE  GATEWAY  STATE  PATH    ENDPOINT         DATAPATH   RTT      LOSS   MTU   SENT     RECEIVED  HANDSHAKE
berlin  -      gate-b   up     direct  192.0.2.2:51820  wireguard  12.3 ms  0.0 %  1420  1.4 MiB  900 B     41 s ago

PREFIX       SITE       STATE      THROUGH  MTU
10.1.0.0/16  amsterdam  local      -        -
10.2.0.0/16  berlin     reachable  gate-b   1420

All is well: 1 link is up, and every prefix is reachable.
";

#[test]
fn a_gateway_whose_links_are_up_is_well() {
    let done = status(&well());
    assert_eq!(done.out, WELL);
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
}

const DOWN: &str = "\
gateway gate-a of site amsterdam, causeway 0.1.0, ready, up for 1 hour 1 minute
mesh    MESHKEY
place   -
broker  none connected, the mesh is known from the cache, last in step 2 h ago
tunnel  causeway0, UDP port 51820, no address that others could call
dropped no_site 4, udp_replay 1

SITE       PLACE  GATEWAY  STATE           PATH          ENDPOINT          DATAPATH   RTT      LOSS    MTU   SENT     RECEIVED  HANDSHAKE
berlin     -      gate-b   down (silent)   direct        192.0.2.2:51820   wireguard  -        12.5 %  1420  1.4 MiB  900 B     -
berlin     -      gate-c   up (held down)  relay         through a broker  wireguard  12.3 ms  0.0 %   1200  1.4 MiB  900 B     41 s ago
amsterdam  -      gate-d   up              direct (lan)  10.1.0.2:51820    wireguard  12.3 ms  0.0 %   1420  1.4 MiB  900 B     41 s ago

PREFIX       SITE    STATE        THROUGH                MTU
10.2.0.0/16  berlin  reachable    gate-d (of this site)  1200
10.3.0.0/16  cork    unreachable  -                      -

PROBLEM gateway gate-b of site berlin is not connected: nothing of it arrives any more
  What to do: see whether it runs

PROBLEM no broker can be reached: broker:7800: refused
  What to do: see whether the broker runs
";

fn down() -> Value {
    let mut told = well();
    told["broker"] = json!({"state": "cached", "address": null, "last_sync_s": 7300, "reasons": ["broker:7800: refused"]});
    told["addresses"] = json!([]);
    told["drops"] = json!({"udp_replay": 1, "no_site": 4});
    let mut silent = link("gate-b");
    silent["state"] = "down".into();
    silent["why"] = "silent".into();
    silent["rtt_ms"] = Value::Null;
    silent["loss"] = 0.125.into();
    silent["last_handshake_s"] = Value::Null;
    let mut relayed = link("gate-c");
    relayed["path"] = "relay".into();
    relayed["path_kind"] = "relay".into();
    relayed["endpoint"] = "127.0.0.1:40001".into();
    relayed["held_down"] = true.into();
    relayed["mtu"] = 1200.into();
    let mut sibling = link("gate-d");
    sibling["site"] = "amsterdam".into();
    sibling["endpoint"] = "10.1.0.2:51820".into();
    sibling["path_kind"] = "lan".into();
    told["links"] = json!([silent, relayed, sibling]);
    told["prefixes"] = json!([
        {"prefix": "10.2.0.0/16", "site": "berlin", "state": "reachable", "gateways": ["gate-d"], "by_siblings": true, "mtu": 1200},
        {"prefix": "10.3.0.0/16", "site": "cork", "state": "unreachable", "gateways": [], "by_siblings": false, "mtu": null},
    ]);
    told["problems"] = json!([
        {"what": "gateway gate-b of site berlin is not connected: nothing of it arrives any more", "next": "see whether it runs"},
        {"what": "no broker can be reached: broker:7800: refused", "next": "see whether the broker runs"},
    ]);
    told
}

#[test]
fn what_is_down_is_told_with_what_to_do_and_is_exit_code_one() {
    let done = status(&down());
    assert_eq!(done.out, DOWN);
    assert_eq!(done.code, Some(1));
}

#[test]
fn a_gateway_that_starts_and_one_that_is_alone_say_so() {
    let mut told = well();
    told["ready"] = false.into();
    told["links"][0]["state"] = "connecting".into();
    assert!(status(&told).out.contains(", not ready, "));
    told["uptime_s"] = 1.into();
    let done = status(&told);
    assert!(done.out.contains(", starting, "), "{}", done.out);
    let last = done.out.lines().last().unwrap_or_default();
    assert_eq!(
        last,
        "It is starting: 0 of 1 link up. `causeway status --wait` waits for it."
    );
    assert_eq!(done.code, Some(1));
    told = well();
    told["links"] = json!([]);
    let done = status(&told);
    assert!(
        done.out.contains("No other gateway is known here"),
        "{}",
        done.out
    );
    assert_eq!(done.code, Some(0));
}

#[test]
fn a_site_that_nobody_has_joined_is_a_note_and_all_is_well() {
    let mut told = well();
    told["prefixes"][1]["state"] = "no_gateway".into();
    told["prefixes"][1]["gateways"] = json!([]);
    told["remarks"] =
        json!([{"what": "site berlin has no gateway", "next": "join one", "stops": false}]);
    let done = status(&told);
    let end = "
10.2.0.0/16  berlin     no gateway  -        1420

NOTE site berlin has no gateway
  What to do: join one

All is well: 1 link is up, and every prefix that has a gateway is reachable.
";
    assert!(done.out.ends_with(end), "{}", done.out);
    assert_eq!(done.code, Some(0));
}

#[test]
fn only_a_problem_that_stops_traffic_is_exit_code_one() {
    for stops in [false, true] {
        let mut told = well();
        told["problems"] = json!([{"what": "the nft chain x drops", "next": "", "stops": stops}]);
        let done = status(&told);
        assert!(done.out.ends_with("\nPROBLEM the nft chain x drops\n"));
        assert_eq!(done.code, Some(i32::from(stops)));
    }
}

#[test]
fn json_has_all_that_was_told_even_what_is_new() {
    let mut told = well();
    told["of_a_later_version"] = json!({"x": 1});
    let machine = telling(&told);
    assert_eq!(machine.json("status"), told);
}

#[test]
fn fields_that_an_older_gateway_lacks_do_no_harm() {
    let done = status(&json!({"node": "gate-a", "ready": true, "links": [{"gateway": "gate-b"}]}));
    assert!(done.out.contains("gate-b"), "{done:?}");
    assert_eq!(done.code, Some(1));
}

#[test]
fn no_word_of_others_reaches_the_terminal_as_a_command() {
    let bad = "x\u{1b}]0;owned\u{7}\nline\u{9b}2J\u{202e}";
    let mut told = well();
    told["node"] = bad.into();
    told["broker"] = json!({"state": bad, "reasons": [bad]});
    told["links"][0]["gateway"] = bad.into();
    told["links"][0]["endpoint"] = bad.into();
    told["prefixes"][1]["gateways"] = json!([bad]);
    told["drops"] = json!({bad: 1});
    told["problems"] = json!([{"what": bad, "next": bad}]);
    let machine = telling(&told);
    for line in ["status", "status --json"] {
        let done = machine.run(line);
        let found = done.out.contains(|letter: char| {
            (letter.is_control() && letter != '\n') || letter == '\u{202e}'
        });
        assert!(!found, "{line}: {:?}", done.out);
        assert!(done.out.contains("owned"), "{line}");
    }
    let text = machine.run("status").out;
    assert!(
        !text.lines().any(|line| line.starts_with("line")),
        "{text:?}"
    );
    let done = pinging(Machine::new(), bad);
    let lines = done
        .out
        .contains(|letter: char| letter.is_control() && letter != '\n');
    assert!(!lines, "{:?}", done.out);
}

#[test]
fn without_a_gateway_it_says_what_to_do() {
    let machine = Machine::new();
    for line in ["status", "status --json", "ping berlin"] {
        machine.run(line).failed(
            1,
            &[
                "no gateway runs here",
                "causeway gateway run",
                "--runtime-dir",
            ],
        );
    }
    let address = machine.init();
    let _broker = machine.start_broker(&address);
    machine.run("status").failed(1, &["A broker runs here"]);
}

#[test]
fn a_socket_left_by_a_killed_gateway_is_told_from_none() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("run")).unwrap();
    drop(UnixListener::bind(machine.path("run/gateway.sock")).unwrap());
    machine
        .run("status")
        .failed(1, &["left by one that was killed", "gateway run"]);
}

#[test]
fn what_is_no_gateway_is_not_believed() {
    for body in ["", "{", "[]", "\"x\"", "{\"links\": 7}"] {
        let machine = Machine::new();
        serve(&machine, move |_| (200, body.to_owned()));
        machine.run("status").failed(1, &["cannot be read"]);
    }
    let machine = Machine::new();
    serve(&machine, |_| (404, "nothing".to_owned()));
    machine
        .run("status")
        .failed(1, &["served by something else"]);
}

#[test]
fn waiting_ends_when_the_gateway_is_ready() {
    let machine = Machine::new();
    let begun = Instant::now();
    serve(&machine, move |_| {
        let mut told = down();
        told["ready"] = (begun.elapsed() > Duration::from_millis(700)).into();
        (200, told.to_string())
    });
    let done = machine.run("status --wait --timeout 60s");
    assert_eq!(done.code, Some(0), "ready is what was waited for: {done:?}");
    assert_eq!(done.out, DOWN);
    assert_eq!(done.err, "waiting: 2 of 3 links up\n");
}

#[test]
fn waiting_has_an_end() {
    let machine = Machine::new();
    machine.run("status --wait --timeout 1s").failed(
        1,
        &["waiting: no gateway runs here", "not ready after 1 second"],
    );
    machine.run("status --wait --watch").failed(2, &["--watch"]);
}

#[test]
fn watching_shows_it_again_and_without_a_terminal_draws_nothing() {
    let machine = telling(&well());
    let mut child = machine.command("status --watch").spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let wanted = format!("{WELL}\n{WELL}");
    let mut found = vec![0; wanted.len()];
    out.read_exact(&mut found).unwrap();
    assert_eq!(String::from_utf8_lossy(&found), wanted);
    drop(out);
    assert!(child.wait().unwrap().success(), "it ends when nobody reads");
}

/// Two gateways: the first answers in so many milliseconds as the rounds so far, the second never.
fn pinging(machine: Machine, first: &str) -> Done {
    let first = first.to_owned();
    let rounds = std::sync::atomic::AtomicU32::new(0);
    serve(&machine, move |path| {
        assert_eq!(path, "/ping?site=berlin&count=1");
        let round = 1 + rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let pong = json!({"site": "berlin", "gateway": first, "number": 1, "rtt_ms": round, "path": "direct", "endpoint": "192.0.2.2:51820"});
        let none = json!({"site": "berlin", "gateway": "gate-c", "number": 1, "rtt_ms": null, "path": null, "endpoint": null});
        (200, format!("{pong}\n{none}\n"))
    });
    machine.run("ping berlin --count 2 --interval 0.2")
}

#[test]
fn a_ping_shows_each_answer_and_what_was_lost() {
    let done = pinging(Machine::new(), "gate-b");
    let wanted = "\
gate-b 1: 1.000 ms, direct to 192.0.2.2:51820
gate-c 1: no answer, no path
gate-b 2: 2.000 ms, direct to 192.0.2.2:51820
gate-c 2: no answer, no path

gate-b: 2 of 2 answered, 0 % lost, round trip 1.000 to 2.000 ms, 1.500 ms on average
gate-c: 0 of 2 answered, 100 % lost
";
    assert_eq!(done.out, wanted);
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
}

#[test]
fn a_ping_without_any_answer_fails_after_saying_so() {
    let machine = Machine::new();
    serve(&machine, |_| {
        let none = json!({"site": "berlin", "gateway": "gate-c", "number": 1, "rtt_ms": null, "path": "relay", "endpoint": "127.0.0.1:4"});
        (200, format!("{none}\n"))
    });
    let done = machine.run("ping berlin --count 1");
    assert_eq!(done.code, Some(1));
    assert!(
        done.out
            .starts_with("gate-c 1: no answer, relay through a broker\n"),
        "{}",
        done.out
    );
    assert!(
        done.err.contains("no gateway of site berlin answers"),
        "{}",
        done.err
    );
    let done = machine.run("ping berlin --count 1 --json");
    assert_eq!(done.code, Some(1));
    let shown: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(shown["gateways"][0]["loss"], 1.0);
    assert_eq!(shown["answers"][0]["number"], 1);
}

#[test]
fn a_site_that_is_not_there_is_answered_with_those_that_are() {
    let machine = Machine::new();
    serve(&machine, |path| {
        if path == "/status" {
            return (200, well().to_string());
        }
        let refusal = json!({"what": "no gateway of a site oslo is known here", "next": "look"});
        (404, refusal.to_string())
    });
    machine.run("ping oslo").failed(
        1,
        &["no gateway of a site oslo is known here", "known of berlin"],
    );
    machine.run("ping Os/lo").failed(2, &["SITE"]);
}
