//! The built binary on a machine of its own: a scratch directory with state and runtime
//! directories, and brokers that end with the test.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_causeway");
/// Far more than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Machine {
    path: PathBuf,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) struct Broker {
    child: Child,
    pub(crate) address: String,
}

impl Machine {
    pub(crate) fn new() -> Machine {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("causeway-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Machine { path }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path(name);
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        path
    }

    /// The command of these words, with this machine's directories.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(line.split_whitespace())
            .current_dir(&self.path)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CAUSEWAY_STATE_DIR", self.state())
            .env("CAUSEWAY_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Done {
        self.finish(self.command(line))
    }

    pub(crate) fn run_with_input(&self, line: &str, input: &str) -> Done {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn().unwrap();
        // A command that refuses before it reads closes its end; that is its right.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Done::of(child)
    }

    pub(crate) fn finish(&self, mut command: Command) -> Done {
        Done::of(command.spawn().unwrap())
    }

    /// Runs what must succeed; its standard output.
    pub(crate) fn ok(&self, line: &str) -> String {
        let done = self.run(line);
        assert_eq!(done.code, Some(0), "{line}\n{}{}", done.out, done.err);
        done.out
    }

    pub(crate) fn json(&self, line: &str) -> serde_json::Value {
        let text = self.ok(&format!("{line} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}\n{text}"))
    }

    /// A mesh whose broker will be at the address that is returned.
    pub(crate) fn init(&self) -> String {
        let address = free_address();
        self.ok(&format!("broker init --address {address}"));
        address
    }

    /// Serves once this returns.
    pub(crate) fn start_broker(&self, address: &str) -> Broker {
        let mut command = self.command(&format!("broker run --listen {address} --http off"));
        let log = fs::File::create(self.path("broker.log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut broker = Broker {
            child: command.spawn().unwrap(),
            address: address.to_owned(),
        };
        let socket = self.path("run/broker.sock");
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let ended = broker.child.try_wait().unwrap();
            let waited = started.elapsed();
            assert!(
                ended.is_none() && waited < PATIENCE,
                "the broker does not serve: {}",
                self.text("broker.log")
            );
            thread::sleep(Duration::from_millis(20));
        }
        broker
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Done {
    fn of(child: Child) -> Done {
        let output = child.wait_with_output().unwrap();
        Done {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Failed with this code, said these words, and printed no data.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is missing: {}", self.err);
        }
    }
}

impl Broker {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends in good order.
    pub(crate) fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of loopback that nobody has at the moment, below those that the kernel gives to callers,
/// so that none takes it before the broker does.
pub(crate) fn free_address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let start = u64::from(std::process::id()) * 101;
    loop {
        let number = start + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", 20_000 + number % 12_000);
        let tcp = TcpListener::bind(&address);
        if tcp.is_ok() && UdpSocket::bind(&address).is_ok() {
            return address;
        }
    }
}

pub(crate) fn read(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    fs::File::open(path)
        .unwrap()
        .read_to_end(&mut content)
        .unwrap();
    content
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
