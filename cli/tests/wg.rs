//! The binary as wg-quick and operators use it, in namespaces that end with each test.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_causeway");

/// Runs a script as root of namespaces of its own, with an empty /run. `$C` is the program, and
/// whatever stays in the background dies with the script. `None` where that cannot be.
fn run(script: &str) -> Option<Output> {
    let has_tun = Path::new("/dev/net/tun").exists();
    if !has_tun || !in_namespaces("wg --version").is_ok_and(|output| output.status.success()) {
        let missing = "unshare, ip, wg or /dev/net/tun is missing, or namespaces may not be made";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("SKIPPED: {missing}");
        return None;
    }
    in_namespaces(script).ok()
}

fn in_namespaces(script: &str) -> io::Result<Output> {
    // In a user namespace even root lacks rights that count only in the first one.
    let is_root = fs::metadata("/proc/self")?.uid() == 0;
    let rights = if is_root {
        &[][..]
    } else {
        &["--map-root-user"]
    };
    Command::new("unshare")
        .args(rights)
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["sh", "-c", &format!("{PRELUDE}{FUNCTIONS}{script}")])
        .env("C", PROGRAM)
        .env_remove("CAUSEWAY_LOG")
        .env_remove("LOG_LEVEL")
        .output()
}

const PRELUDE: &str = "mount -t tmpfs none /run && mkdir /run/scratch && ip link set lo up && cd /run/scratch || exit 1\n";

/// `gone` waits until every thread of that process is dead, the first one a zombie for want of a
/// parent that asks: only then its files are closed.
const FUNCTIONS: &str = r#"
pid() { for p in /proc/[0-9]*; do
    case $(readlink $p/exe) in */causeway) echo ${p#/proc/};; esac
done; }
gone() { for i in $(seq 100); do
    case "$(cat /proc/$1/task/*/stat 2>/dev/null | sed 's/.*) //; s/ .*//')" in Z|X|'') return 0;; esac
    sleep 0.1
done; echo still running; return 1; }
"#;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_returns_once_the_interface_can_be_configured() {
    let Some(output) =
        run("$C wg wgt0 && test -S /var/run/wireguard/wgt0.sock && wg show interfaces")
    else {
        return;
    };
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(0), "wgt0\n"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn in_the_background_nothing_holds_the_terminal() {
    let script = r#"$C wg wgt0 || exit 1
        p=$(pid)
        for fd in 0 1 2; do readlink /proc/$p/fd/$fd; done
        readlink /proc/$p/cwd
        session=$(cut -d ' ' -f 6 /proc/$p/stat)
        [ "$session" = "$p" ] && echo leads its session"#;
    let Some(output) = run(script) else { return };
    assert_eq!(
        stdout(&output),
        "/dev/null\n/dev/null\n/dev/null\n/\nleads its session\n",
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_pipe_around_it_sees_its_end() {
    // Command substitution waits for every holder of the pipe, as service managers do.
    let Some(output) = run("x=$($C wg wgt0 2>&1); echo ended $?") else {
        return;
    };
    assert_eq!(stdout(&output), "ended 0\n");
}

#[test]
fn what_keeps_it_from_starting_is_said_before_it_returns() {
    let Some(output) = run("$C wg wgt0 2>/dev/null; $C wg wgt0; echo code $?") else {
        return;
    };
    assert_eq!(stdout(&output), "code 1\n");
    let words = stderr(&output);
    assert!(
        words.starts_with("causeway: interface wgt0: ")
            || words.contains("\ncauseway: interface wgt0: "),
        "{words}"
    );
}

#[test]
fn words_go_to_the_log_file_from_the_directory_it_was_started_in() {
    let script = r#"$C wg wgt0 --log-file words.log || exit 1
        ls -l words.log | cut -c 1-10
        p=$(pid); rm /var/run/wireguard/wgt0.sock; gone $p && grep -c 'socket file is gone' words.log"#;
    let Some(output) = run(script) else { return };
    assert_eq!(stdout(&output), "-rw-------\n1\n", "{}", stderr(&output));
}

#[test]
fn a_log_file_that_cannot_be_opened_is_an_error() {
    for flag in ["", "-f"] {
        let Some(output) = run(&format!("$C wg wgt0 {flag} --log-file /nowhere/words.log")) else {
            return;
        };
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("/nowhere/words.log"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn deleting_the_socket_ends_it() {
    let script = "$C wg wgt0 || exit 1; p=$(pid); rm /var/run/wireguard/wgt0.sock; gone $p && echo gone; $C wg wgt0 && echo again";
    let Some(output) = run(script) else { return };
    assert_eq!(stdout(&output), "gone\nagain\n", "{}", stderr(&output));
}

#[test]
fn a_signal_ends_it_and_takes_interface_and_socket_along() {
    for signal in ["TERM", "INT"] {
        let script = "$C wg wgt0 || exit 1; p=$(pid); kill -SIGNAL $p; gone $p && ls /var/run/wireguard /sys/class/net/wgt0";
        let Some(output) = run(&script.replace("SIGNAL", signal)) else {
            return;
        };
        assert_eq!(
            stdout(&output),
            "/var/run/wireguard:\n",
            "{}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains("wgt0"),
            "the interface is still there"
        );
    }
}

#[test]
fn a_socket_left_by_a_killed_process_is_no_obstacle() {
    let script = "$C wg wgt0 || exit 1; p=$(pid); kill -9 $p; gone $p && test -S /var/run/wireguard/wgt0.sock && $C wg wgt0 && wg show interfaces";
    let Some(output) = run(script) else { return };
    assert_eq!(stdout(&output), "wgt0\n", "{}", stderr(&output));
}

#[test]
fn under_the_name_causeway_wg_it_is_what_wg_quick_starts() {
    let Some(output) = run("ln -s $C causeway-wg; ./causeway-wg wgt0 && wg show interfaces") else {
        return;
    };
    assert_eq!(stdout(&output), "wgt0\n", "{}", stderr(&output));
}

#[test]
fn drops_are_data_and_their_absence_is_an_error() {
    let script = "$C wg wgt0 || exit 1; $C drops wgt0 --json; $C drops wgt1; echo code $?";
    let Some(output) = run(script) else { return };
    let printed = stdout(&output);
    let (json, code) = printed.split_once('\n').expect("two lines");
    assert!(
        json.starts_with("{\"tun_vnet_header\":") && json.ends_with('}'),
        "{json}"
    );
    assert_eq!(code, "code 1\n");
    assert!(
        stderr(&output).contains("causeway wg"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn wrong_usage_is_code_two_and_leaves_standard_output_clean() {
    for arguments in [
        &["wg", "much-too-long-name"][..],
        &["wg", "a/b"],
        &["wg"],
        &["drops"],
        &["fly"],
        &[],
    ] {
        let output = Command::new(PROGRAM)
            .args(arguments)
            .output()
            .expect("the program runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}
