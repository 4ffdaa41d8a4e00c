//! What works with the authority alone, no broker running: making a mesh and tokens, and refusing
//! what must not be signed.

#[path = "causeway/machine.rs"]
#[expect(dead_code, reason = "the tests with brokers use the rest")]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod machine;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use machine::{Machine, PROGRAM, chmod};
use proto::token::Token;

#[test]
fn a_mesh_is_made_once_and_its_keys_are_private() {
    let machine = Machine::new();
    let made = machine.json("broker init --address 127.0.0.1:7800");
    for key in [
        "mesh",
        "authority_key",
        "broker_key",
        "store_id",
        "recovery_key",
    ] {
        assert!(made[key].is_string(), "{key}");
    }
    for file in [
        "authority/authority.key",
        "authority/ledger",
        "broker/broker.key",
    ] {
        let mode = fs::metadata(machine.state().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let before = machine::read(&machine.state().join("authority/authority.key"));
    machine
        .run("broker init")
        .failed(1, &["already", "--state-dir"]);
    let elsewhere = machine.path("other").display().to_string();
    let authority = machine.state().join("authority").display().to_string();
    machine
        .run(&format!(
            "broker init --state-dir {elsewhere} --authority {authority}"
        ))
        .failed(1, &["there is an authority", "--mesh"]);
    assert!(!machine.path("other/broker").exists());
    assert_eq!(
        machine::read(&machine.state().join("authority/authority.key")),
        before
    );
}

#[test]
fn a_mesh_whose_recovery_key_cannot_be_shown_is_not_made() {
    let machine = Machine::new();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = machine.command("broker init");
    command.stdout(full);
    machine.finish(command).failed(1, &["standard output"]);
    let left = fs::read_dir(machine.state()).unwrap().count();
    assert_eq!(left, 0, "nothing is half made");
    machine.ok("broker init");
}

#[test]
fn a_token_is_all_that_is_printed_and_the_rest_is_explained() {
    let machine = Machine::new();
    machine.init();
    let done = machine.run("token create --site berlin --cidr 10.1.0.0/16,fd00:1::/48 --ttl 2h");
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(done.out.lines().count(), 1);
    assert!(done.out.ends_with('\n'));
    let token = Token::decode(&done.out).unwrap();
    assert_eq!(token.grant().site.as_str(), "berlin");
    assert_eq!(token.grant().prefixes.len(), 2);
    for word in [
        "berlin",
        "10.1.0.0/16",
        "fd00:1::/48",
        "in 2 hours",
        "UTC",
        "works once",
        "--token-file",
        "No broker could be told",
    ] {
        assert!(done.err.contains(word), "{word}: {}", done.err);
    }
    assert!(
        !done.err.contains("cwy1."),
        "the token is no word for people"
    );
}

#[test]
fn a_token_of_many_uses_says_what_that_means() {
    let machine = Machine::new();
    machine.init();
    for uses in ["3", "unlimited"] {
        let done = machine.run(&format!(
            "token create --site a --cidr 10.1.0.0/16 --uses {uses}"
        ));
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.err.contains("like a password"), "{}", done.err);
        assert!(done.err.contains("causeway token revoke"), "{}", done.err);
    }
}

#[test]
fn what_must_not_be_signed_is_refused_with_the_reason() {
    let machine = Machine::new();
    machine.init();
    machine.ok("token create --site berlin --cidr 10.1.0.0/16");
    let ledger = machine::read(&machine.state().join("authority/ledger"));
    for (arguments, code, words) in [
        (
            "--site paris --cidr 10.1.2.0/24",
            1,
            &["berlin", "10.1.0.0/16", "overlaps"][..],
        ),
        ("--site paris --cidr 10.2.3.4/16", 2, &["10.2.0.0/16"]),
        ("--site paris --cidr 0.0.0.0/0", 2, &["default route"]),
        ("--site paris --cidr 127.0.0.0/8", 2, &["loopback"]),
        ("--site paris --cidr fe80::/64", 2, &["link-local"]),
        ("--site paris --cidr 224.0.0.0/4", 2, &["multicast"]),
        (
            "--site Paris --cidr 10.2.0.0/16",
            2,
            &["a-z", "paris would do"],
        ),
        ("--site paris", 2, &["no prefix yet", "--cidr"]),
        (
            "--site paris --cidr 10.2.0.0/16 --ttl 1",
            2,
            &["unit", "1h"],
        ),
        (
            "--site paris --cidr 10.2.0.0/16 --uses 0",
            2,
            &["unlimited"],
        ),
        (
            "--site paris --cidr 10.2.0.0/16 --role king",
            2,
            &["gateway"],
        ),
        (
            "--site paris --cidr 10.2.0.0/16 --broker nowhere",
            2,
            &["host:port"],
        ),
        ("--cidr 10.2.0.0/16", 2, &["--site"]),
    ] {
        machine
            .run(&format!("token create {arguments}"))
            .failed(code, words);
    }
    assert_eq!(
        machine::read(&machine.state().join("authority/ledger")),
        ledger
    );
    machine.ok("token create --site berlin");
}

#[test]
fn lists_show_what_the_ledger_has_and_say_what_they_cannot_know() {
    let machine = Machine::new();
    machine.init();
    machine.ok("token create --site berlin --cidr 10.1.0.0/16 --service-cidr 10.9.0.0/24");
    machine.ok("site add-prefix berlin 10.3.0.0/16");
    machine.ok("site remove-prefix berlin 10.1.0.0/16");
    let tokens = machine.json("token list");
    assert_eq!(tokens[0]["site"], "berlin");
    assert_eq!(tokens[0]["state"], "open");
    assert_eq!(tokens[0]["taken"], serde_json::Value::Null);
    let done = machine.run("token list");
    assert!(done.out.contains("?/1") && done.err.contains("no broker could be asked"));
    let site = machine.json("site show berlin");
    let prefixes: Vec<&str> = site["prefixes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prefix| prefix["prefix"].as_str().unwrap())
        .collect();
    assert_eq!(prefixes, ["10.9.0.0/24", "10.3.0.0/16"]);
    assert_eq!(site["prefixes"][0]["service"], true);
    machine
        .run("site show paris")
        .failed(1, &["there is no site paris"]);
    machine
        .run("node list")
        .failed(1, &["no broker could be asked", "nothing listens"]);
    assert_eq!(
        machine.json("ledger show")["entries"]
            .as_array()
            .unwrap()
            .len(),
        5
    );
}

#[test]
fn a_site_is_revoked_only_by_someone_who_is_sure() {
    let machine = Machine::new();
    machine.init();
    machine.ok("token create --site berlin --cidr 10.1.0.0/16");
    machine.run("site revoke berlin").failed(2, &["--yes"]);
    machine.ok("site revoke berlin --yes");
    assert_eq!(machine.json("site list"), serde_json::json!([]));
    assert_eq!(machine.json("token list")[0]["state"], "site revoked");
    machine.ok("token create --site paris --cidr 10.1.0.0/16");
}

#[test]
fn a_token_is_not_closed_without_knowing_who_stays() {
    let machine = Machine::new();
    machine.init();
    let made = machine.json("token create --site berlin --cidr 10.1.0.0/16");
    let id = made["id"].as_str().unwrap();
    machine.run(&format!("token revoke {id}")).failed(
        1,
        &[
            "no broker could be asked",
            "nothing listens",
            "--with-nodes",
        ],
    );
    machine.ok(&format!("token revoke {id} --with-nodes"));
    assert_eq!(machine.json("token list")[0]["state"], "revoked");
    machine
        .run("token revoke 0000")
        .failed(1, &["there is no token 0000"]);
    machine
        .run("token revoke cwy1.abcdef")
        .failed(2, &["it is not the token"]);
}

#[test]
fn a_torn_last_line_is_named_and_repaired() {
    let machine = Machine::new();
    machine.init();
    machine.ok("token create --site berlin --cidr 10.1.0.0/16");
    let path = machine.state().join("authority/ledger");
    let whole = machine::read(&path);
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(&whole[whole.len() - 100..whole.len() - 40])
        .unwrap();
    let done = machine.run("token create --site paris --cidr 10.2.0.0/16");
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("was cut off"), "{}", done.err);
    let repaired = machine::read(&path);
    assert!(repaired.starts_with(&whole) && repaired.len() > whole.len());
    let quiet = machine.run("token create --site rome --cidr 10.3.0.0/16");
    assert!(!quiet.err.contains("cut off"), "{}", quiet.err);
}

#[test]
fn a_damaged_ledger_is_refused_and_left_alone() {
    let machine = Machine::new();
    machine.init();
    let path = machine.state().join("authority/ledger");
    let mut content = machine::read(&path);
    let middle = content.len() / 2;
    content[middle] = if content[middle] == b'A' { b'B' } else { b'A' };
    fs::write(&path, &content).unwrap();
    machine
        .run("token create --site berlin --cidr 10.1.0.0/16")
        .failed(1, &["is damaged", "restore"]);
    assert_eq!(machine::read(&path), content);
}

#[test]
fn loose_permissions_are_refused_with_the_command_that_helps() {
    let machine = Machine::new();
    machine.init();
    let create = "token create --site berlin --cidr 10.1.0.0/16";
    let key = machine.state().join("authority/authority.key");
    chmod(&key, 0o644);
    machine.run(create).failed(1, &["0644", "chmod 600"]);
    chmod(&key, 0o600);
    chmod(&machine.state().join("authority"), 0o750);
    machine.run(create).failed(1, &["0750", "chmod 700"]);
    chmod(&machine.state().join("authority"), 0o700);
    let token = machine.ok(create);
    let open = machine.path("open");
    fs::create_dir(&open).unwrap();
    chmod(&open, 0o755);
    machine
        .run_with_input("join --state-dir open", &token)
        .failed(1, &["0755", "chmod 0700"]);
    assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
}

#[test]
fn a_directory_of_somebody_else_is_not_said_to_be_missing() {
    let machine = Machine::new();
    machine.init();
    chmod(&machine.path(""), 0o755);
    let owner = fs::metadata("/proc/self").unwrap().uid();
    // Root sees everything and must become somebody else; others lock themselves out.
    let mut command = if owner == 0 {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", PROGRAM]);
        command
    } else {
        chmod(&machine.state(), 0);
        Command::new(PROGRAM)
    };
    let done = command
        .args([
            "token",
            "create",
            "--site",
            "berlin",
            "--cidr",
            "10.1.0.0/16",
        ])
        .env("CAUSEWAY_STATE_DIR", machine.state())
        .output();
    if owner != 0 {
        chmod(&machine.state(), 0o700);
    }
    if !done
        .as_ref()
        .is_ok_and(|done| done.status.code() == Some(1))
    {
        let missing = "setpriv is missing, or others cannot reach the built program";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let words = String::from_utf8_lossy(&done.unwrap().stderr).into_owned();
    assert!(
        words.contains("Permission denied") && words.contains("as root"),
        "{words}"
    );
}

#[test]
fn a_directory_that_is_not_there_is_said_to_be_missing() {
    let machine = Machine::new();
    machine
        .run("token create --site berlin --cidr 10.1.0.0/16")
        .failed(1, &["there is no authority", "broker init"]);
    machine.run("broker run").failed(1, &["broker init"]);
    machine.run("site list").failed(1, &["--state-dir"]);
    machine.run("leave").failed(1, &["does not exist"]);
}

#[test]
fn a_read_only_directory_is_named_and_nothing_is_half_made() {
    let machine = Machine::new();
    let script = "mkdir disk && mount -t tmpfs -o ro none disk && exec \"$C\" broker init --state-dir disk/state";
    let done = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script])
        .current_dir(machine.path(""))
        .env("C", PROGRAM)
        .output();
    let Some(done) = done.ok().filter(|done| done.status.code() != Some(126)) else {
        assert!(std::env::var_os("CI").is_none(), "unshare is missing");
        eprintln!("SKIPPED: unshare is missing");
        return;
    };
    let words = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{words}");
    assert!(
        words.contains("disk/state") && words.contains("read-only"),
        "{words}"
    );
    assert!(done.stdout.is_empty());
}

#[test]
fn a_token_on_the_command_line_is_refused_and_not_repeated() {
    let machine = Machine::new();
    machine.init();
    let token = machine.ok("token create --site berlin --cidr 10.1.0.0/16");
    for line in [format!("join {token}"), format!("join --token {token}")] {
        let done = machine.run(&line);
        done.failed(2, &["command line", "(ps)", "--token-file", "token revoke"]);
        assert!(!done.err.contains(token.trim()), "{}", done.err);
    }
}

#[test]
fn a_token_that_is_none_gets_a_sentence_of_its_own() {
    let machine = Machine::new();
    machine.init();
    let token = machine.ok("token create --site berlin --cidr 10.1.0.0/16");
    let token = token.trim();
    let join = "join --state-dir joiner";
    machine
        .run_with_input(join, &token[..token.len() - 10])
        .failed(1, &["cut off or damaged"]);
    machine
        .run_with_input(join, "hello")
        .failed(1, &["no Causeway token"]);
    machine
        .run_with_input(join, "cwy2.abc")
        .failed(1, &["newer Causeway"]);
    machine
        .run_with_input(join, "")
        .failed(1, &["standard input is empty", "--token-file"]);
    machine
        .run("join --state-dir joiner --token-file nowhere")
        .failed(1, &["nowhere"]);
    assert!(!machine.path("joiner").exists(), "nothing was made");
}

#[test]
fn an_unreachable_broker_is_named_with_every_address_and_its_reason() {
    let machine = Machine::new();
    machine.init();
    let (one, two) = (machine::free_address(), machine::free_address());
    let token = machine.ok(&format!(
        "token create --site berlin --cidr 10.1.0.0/16 --broker {one},{two}"
    ));
    let done = machine.run_with_input("join --state-dir joiner", &token);
    done.failed(1, &[&one, &two, "nothing listens there"]);
    assert!(!machine.path("joiner").exists(), "nothing was made");
}

#[test]
fn a_configuration_file_stands_behind_environment_and_flags() {
    let machine = Machine::new();
    machine.init();
    let config = machine.write(
        "c.toml",
        "site = \"berlin\"\ncidr = [\"10.1.0.0/16\"]\nuses = 3\n",
    );
    let config = config.display();
    let done = machine.run(&format!("token create --config {config} --uses 4"));
    assert_eq!(done.code, Some(0), "{done:?}");
    let mut command = machine.command(&format!("token create --json --config {config}"));
    command.env("CAUSEWAY_USES", "5");
    let done = machine.finish(command);
    assert_eq!(done.code, Some(0), "{done:?}");
    let tokens = machine.json("token list");
    assert_eq!(tokens[0]["uses"], 4);
    assert_eq!(tokens[1]["uses"], 5);
    machine.write("bad.toml", "sites = 1\n");
    machine
        .run("token list --config bad.toml")
        .failed(2, &["bad.toml", "--sites"]);
    machine
        .run("token list --config missing.toml")
        .failed(2, &["missing.toml"]);
}

#[test]
fn the_recovery_key_makes_another_authority_and_the_old_key_signs_no_more() {
    let machine = Machine::new();
    let made = machine.json("broker init --address 127.0.0.1:7800");
    let create = "token create --site berlin --cidr 10.1.0.0/16";
    machine.ok(create);
    let recovery = made["recovery_key"].as_str().unwrap();
    let wrong = "cwyr1.AAAA";
    machine
        .run_with_input("ledger recover --yes", wrong)
        .failed(1, &["recovery key"]);
    machine.write("recovery", recovery);
    let recovered = machine.json("ledger recover --yes --recovery-file recovery");
    assert_eq!(recovered["mesh"], made["mesh"]);
    assert_ne!(recovered["authority_key"], made["authority_key"]);
    let next = recovered["recovery_key"].as_str().unwrap();
    assert_ne!(next, recovery);
    machine.ok("token create --site paris --cidr 10.2.0.0/16");
    let old = machine.state().join("authority.replaced-1");
    machine
        .run(&format!("{create} --authority {}", old.display()))
        .failed(1, &["not the authority in force"]);
    // The first recovery key has had its day, the next one works.
    machine
        .run("ledger recover --yes --recovery-file recovery")
        .failed(1, &["recovery key"]);
    machine.write("recovery", next);
    machine.ok("ledger recover --yes --recovery-file recovery");
}

#[test]
fn a_full_disk_leaves_the_ledger_as_it_was() {
    let machine = Machine::new();
    let script = r#"mkdir disk && mount -t tmpfs -o size=256k none disk || exit 126
        "$C" broker init --state-dir state --authority disk/a --address 127.0.0.1:1 > /dev/null || exit 3
        dd if=/dev/zero of=disk/fill bs=4k 2> /dev/null
        cp disk/a/ledger before
        for prefix in $(seq 0 200); do p="$p,fd00:$prefix::/64"; done
        "$C" token create --offline --authority disk/a --site berlin --cidr "${p#,}" && exit 4
        cmp before disk/a/ledger || exit 5
        rm disk/fill
        "$C" token create --offline --authority disk/a --site berlin --cidr "${p#,}""#;
    let done = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script])
        .current_dir(machine.path(""))
        .env("C", PROGRAM)
        .env("CAUSEWAY_STATE_DIR", "state")
        .output();
    let Some(done) = done.ok().filter(|done| done.status.code() != Some(126)) else {
        assert!(std::env::var_os("CI").is_none(), "unshare is missing");
        eprintln!("SKIPPED: unshare is missing");
        return;
    };
    let words = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{words}");
    assert!(
        words.contains("disk/a/ledger") && words.contains("make room"),
        "{words}"
    );
    assert_eq!(String::from_utf8_lossy(&done.stdout).lines().count(), 1);
}

#[test]
fn commands_that_sign_at_once_take_turns() {
    let machine = Machine::new();
    machine.init();
    let children: Vec<_> = (0..6)
        .map(|site| {
            let line = format!("token create --offline --site s{site} --cidr 10.{site}.0.0/16");
            machine.command(&line).spawn().unwrap()
        })
        .collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let shown = machine.json("ledger show --offline");
    assert_eq!(shown["forked"], false);
    assert_eq!(shown["entries"].as_array().unwrap().len(), 8);
}
