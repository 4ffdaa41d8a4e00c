//! A broker whose store is in an etcd with TLS and logins, as an operator sets it up.

#[path = "causeway/machine.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod machine;
#[path = "../../broker/tests/support/certificates.rs"]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod support_certificates;
#[path = "../../broker/tests/support/etcd.rs"]
#[expect(dead_code, reason = "the tests of the stores use the rest")]
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
mod support_etcd;

use machine::{Machine, free_address};
use support_certificates::Certificates;
use support_etcd::Etcd;

const JOIN: &str = "join --state-dir a --node a --token-file token";

#[test]
fn a_broker_finds_its_etcd_by_name_behind_the_fence_and_keeps_the_password_to_itself() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let (server, key) = (
        certificates.certificate("server"),
        certificates.key("server"),
    );
    let Some(etcd) = Etcd::start_with_tls(&server, &key, None) else {
        return;
    };
    etcd.ask_for_logins("mesh");
    let machine = Machine::new();
    // The password of that user.
    machine.write("secret", "causeway\n");
    let ca = certificates.certificate("ca");
    let address = free_address();
    let url = etcd.tls_url("mesh").replace("127.0.0.1", "localhost");
    let init = format!("broker init --address {address} --store {url}");
    let login = "--etcd-user causeway --etcd-password-file secret";

    let refused = machine.run(&format!("{init} {login}"));
    refused.failed(1, &["--etcd-ca"]);
    let ca = ca.display();
    let refused = machine.run(&format!("{init} --etcd-ca {ca}"));
    refused.failed(1, &["asks for a login", "--etcd-user"]);

    // What is given to `init` is remembered for `run`, by names that hold anywhere.
    machine.write(
        "causeway.toml",
        &format!("[broker.init]\netcd-ca = \"{ca}\"\n"),
    );
    machine.ok(&format!("--config causeway.toml {init} {login}"));
    let about = machine.text("state/broker/broker.json");
    assert!(about.contains(&machine.path("secret").display().to_string()));
    assert!(!about.contains("\"causeway\\n"), "{about}");

    let broker = machine.start_broker(&address);
    let token = machine.ok("token create --site berlin --cidr 10.1.0.0/16");
    machine.write("token", &token);
    machine.ok(JOIN);
    broker.stop();
    // The store is in etcd: there is no file.
    assert!(!machine.path("state/broker/store.redb").exists());
    let broker = machine.start_broker(&address);
    assert_eq!(machine.json("token list")[0]["state"], "used");
    broker.stop();

    machine.write("secret", "opensesame\n");
    let log = wait_for_refusal(&machine);
    assert!(log.contains("login of user causeway is refused"), "{log}");
    assert!(!log.contains("opensesame"), "{log}");
}

/// What a broker that etcd does not let in says before it is ended.
#[expect(clippy::unwrap_used, reason = "a test fails where its machine does")]
fn wait_for_refusal(machine: &Machine) -> String {
    let mut command = machine.command("broker run --listen 127.0.0.1:0 --http off");
    let log = std::fs::File::create(machine.path("refused.log")).unwrap();
    let mut broker = command.stderr(log).spawn().unwrap();
    let mut told = String::new();
    for _ in 0..600 {
        told = machine.text("refused.log");
        if told.contains("trying again") || broker.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    broker.kill().unwrap();
    broker.wait().unwrap();
    told
}
