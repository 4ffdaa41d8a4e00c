//! `causeway demo`: that it shows what it says, as root and as anyone else, and leaves nothing.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, chroot};
use tests::broker::Directory;
use tests::lab::{skip, wait_for};
use tests::wireguard::Implementation;

/// Whoever has no rights on any system.
const NOBODY: u32 = 65534;
const ENOUGH: Duration = Duration::from_secs(60);
/// In the environment of a demo and of all it starts.
const MARK: &str = "DEMO_OF_TEST";
const DEVICES: &str = "/dev/net";

static NEXT: AtomicU32 = AtomicU32::new(0);
/// Whole demos run beside each other, since that must do no harm; the many short ones after them.
static TURN: RwLock<()> = RwLock::new(());

/// What this machine offers to a demo.
#[derive(Clone, Copy)]
struct Host {
    /// Rights of /dev/net/tun, if it is there.
    tun: Option<u32>,
    user: u32,
    /// Within a chroot the kernel makes no user namespaces.
    chroot: bool,
}

const USUAL: Host = Host {
    tun: Some(0o666),
    user: 0,
    chroot: false,
};

/// One demo, and what it must not leave.
struct Demo {
    mark: String,
    temporary: Directory,
    host: Host,
}

impl Demo {
    fn on(host: Host) -> Demo {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = Directory::new("demo").unwrap();
        fs::set_permissions(temporary.path(), Permissions::from_mode(0o777)).unwrap();
        Demo {
            mark: format!("{MARK}={}-{number}", std::process::id()),
            temporary,
            host,
        }
    }

    fn start(&self, words: &[&str]) -> Child {
        let program = Implementation::Causeway.locate().unwrap();
        let (name, value) = self.mark.split_once('=').unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.host.prepare(&program);
                let mut command = Command::new(Path::new(DEVICES).join("causeway"));
                for (name, _) in std::env::vars_os() {
                    if name.to_string_lossy().starts_with("CAUSEWAY_") {
                        command.env_remove(name);
                    }
                }
                command
                    .arg("demo")
                    .args(words)
                    .env(name, value)
                    .env("TMPDIR", self.temporary.path())
                    .current_dir("/")
                    .uid(self.host.user)
                    .gid(self.host.user)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            });
            thread.join().unwrap()
        })
    }

    fn run(&self, words: &[&str]) -> Output {
        self.start(words).wait_with_output().unwrap()
    }

    /// Processes of it that are there.
    fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids =
            entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
        let marked = pids.filter(|entry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|one| one == self.mark.as_bytes())
        });
        let lines = marked.map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ")
        });
        lines.collect()
    }

    /// The kernel may take a moment for those it kills.
    #[track_caller]
    fn assert_gone(&self) {
        let gone = wait_for("the demo is gone", ENOUGH, || self.processes().is_empty());
        assert!(gone.is_ok(), "still there: {:?}", self.processes());
        let files: Vec<_> = fs::read_dir(self.temporary.path()).unwrap().collect();
        assert!(files.is_empty(), "{files:?}");
        for place in ["/run/causeway-demo", "/run/netns/aws-frankfurt-gateway-1"] {
            assert!(!Path::new(place).exists(), "{place} is there");
        }
    }
}

impl Host {
    /// Gives the calling thread, and what it starts, files of its own, with the program among them,
    /// where whoever may not look into our directories finds it.
    fn prepare(self, program: &Path) {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        fs::create_dir_all(DEVICES).unwrap();
        let devices = Path::new(DEVICES);
        mount(
            none,
            devices,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755"),
        )
        .unwrap();
        if let Some(rights) = self.tun {
            let tun = devices.join("tun");
            mknod(&tun, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(10, 200)).unwrap();
            fs::set_permissions(&tun, Permissions::from_mode(rights)).unwrap();
        }
        let here = devices.join("causeway");
        File::create(&here).unwrap();
        mount(Some(program), &here, none, MsFlags::MS_BIND, none).unwrap();
        if self.chroot {
            let root = devices.join("root");
            fs::create_dir(&root).unwrap();
            let whole = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some("/"), &root, none, whole, none).unwrap();
            chroot(&root).unwrap();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads until `word` was said.
fn read_until(child: &mut Child, word: &str) {
    let mut out = child.stdout.take().unwrap();
    let (mut said, mut buffer) = (String::new(), [0; 4096]);
    while !said.contains(word) {
        let len = out.read(&mut buffer).unwrap();
        assert!(len > 0, "it ended before it said {word:?}: {said}");
        said.push_str(&text(&buffer[..len]));
    }
    // What it says on is not read, and need not be.
    child.stdout = Some(out);
}

#[track_caller]
fn assert_refused(host: Host, words: &[&str]) {
    let demo = Demo::on(host);
    let output = demo.run(&[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not said: {said}");
    }
    assert!(output.stdout.is_empty());
    demo.assert_gone();
}

#[test]
fn three_sites_are_joined_and_measured_and_nothing_is_left() {
    if skip(
        "three_sites_are_joined_and_measured_and_nothing_is_left",
        &[],
    ) {
        return;
    }
    let _turn = TURN.read();
    let demo = Demo::on(USUAL);
    let output = demo.run(&["--json"]);
    let words = text(&output.stderr);
    assert!(output.status.success(), "{words}");
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{figures:#}");
    assert_eq!(figures["pings"], 2 * 12 * 11, "{figures}");
    assert_eq!(figures["pings_unanswered"], 0, "{figures}");
    assert_eq!(figures["links"], 15, "{figures}");
    assert_eq!(figures["source_kept"], true, "{figures}");
    for speed in ["tunnelled_gbit_s", "untunnelled_gbit_s"] {
        assert!(figures[speed].as_f64().unwrap() > 0.0, "{figures}");
    }
    // The bars are 1 s and 60 s; a machine that does much else is given more.
    assert!(
        figures["kill"]["gap_ms"].as_f64().unwrap() < 10_000.0,
        "{figures}"
    );
    assert!(figures["took_s"].as_f64().unwrap() < 180.0, "{figures}");
    demo.assert_gone();
}

#[test]
fn a_user_without_rights_sees_it_too_and_looks_around_in_what_is_kept() {
    if skip(
        "a_user_without_rights_sees_it_too_and_looks_around_in_what_is_kept",
        &[],
    ) {
        return;
    }
    let host = Host {
        user: NOBODY,
        ..USUAL
    };
    let _turn = TURN.read();
    let demo = Demo::on(host);
    let output = demo.run(&["--keep"]);
    let (said, how) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{how}");
    // Lines end where the columns do.
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "$ causeway token create --site gcp-zurich",
        "all 15 links",
        "132 of 132 pings",
        "Gbit/s through the mesh",
        "is killed",
        "agent worker-1 of site aws-frankfurt",
    ] {
        assert!(flat.contains(words), "{words:?} is not said: {said}{how}");
    }
    let line = how.lines().find(|line| line.contains("demo stop")).unwrap();
    let number = line.split_whitespace().last().unwrap();
    let within = |words: &[&str]| {
        let all = [&["enter", "--demo", number], words].concat();
        demo.run(&all)
    };
    let status = within(&["azure-dublin-gateway-2", "causeway", "status", "--json"]);
    assert!(status.status.success(), "{}", text(&status.stderr));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["site"], "azure-dublin");
    let code = within(&["broker", "sh", "-c", "exit 7"]).status.code();
    assert_eq!(code, Some(7));
    let nowhere = within(&["atlantis"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("gcp-zurich-worker-2"));
    let stopped = demo.run(&["stop", "--demo", number]);
    assert!(stopped.status.success(), "{}", text(&stopped.stderr));
    demo.assert_gone();
    let again = demo.run(&["stop", "--demo", number]);
    assert_eq!(again.status.code(), Some(1));
}

#[test]
fn one_that_is_interrupted_or_killed_in_the_middle_leaves_nothing() {
    if skip(
        "one_that_is_interrupted_or_killed_in_the_middle_leaves_nothing",
        &[],
    ) {
        return;
    }
    let _turn = TURN.write();
    for (signal, code, user) in [
        (Signal::SIGINT, Some(130), 0),
        (Signal::SIGTERM, Some(143), NOBODY),
        (Signal::SIGKILL, None, 0),
        (Signal::SIGKILL, None, NOBODY),
    ] {
        let demo = Demo::on(Host { user, ..USUAL });
        let mut child = demo.start(&[]);
        read_until(&mut child, "Each machine joins");
        assert!(demo.processes().len() > 2, "{:?}", demo.processes());
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), code, "{signal}: {said}");
        assert_eq!(
            said.contains("everything the demo had made is gone"),
            code.is_some(),
            "{signal}: {said}"
        );
        demo.assert_gone();
    }
}

#[test]
fn what_is_missing_is_said_with_the_way_out() {
    if skip("what_is_missing_is_said_with_the_way_out", &[]) {
        return;
    }
    let (nobody, none) = (NOBODY, None);
    let missing = ["/dev/net/tun is missing", "sudo modprobe tun"];
    let closed = [
        "/dev/net/tun cannot be opened by this user",
        "sudo /dev/net/causeway demo",
    ];
    let no_user = [
        "this user may not make user namespaces",
        "sudo /dev/net/causeway demo",
    ];
    let host = |tun, user, chroot| Host { tun, user, chroot };
    assert_refused(host(none, 0, false), &missing);
    assert_refused(host(none, nobody, false), &missing);
    assert_refused(host(Some(0o600), nobody, false), &closed);
    assert_refused(host(Some(0o666), nobody, true), &no_user);
    assert_refused(host(Some(0o600), nobody, true), &[closed, no_user].concat());
}
