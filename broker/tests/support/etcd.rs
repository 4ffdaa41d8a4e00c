//! Real etcd for tests: one or three members on free loopback ports, with their data in a
//! temporary directory. All of it goes when the value is dropped.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) struct Etcd {
    directory: PathBuf,
    members: Vec<Member>,
    /// What makes it speak TLS, on a port beside the plain one.
    tls: Vec<String>,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    tls_port: u16,
    process: Option<Child>,
}

impl Etcd {
    /// None, said loudly, where the program is missing. Waits until the members have a leader.
    pub(crate) fn start(count: usize) -> Option<Etcd> {
        Etcd::start_with(count, Vec::new())
    }

    /// With `server` of the certificates; a client CA makes it ask for certificates.
    pub(crate) fn start_with_tls(
        certificate: &Path,
        key: &Path,
        ca: Option<&Path>,
    ) -> Option<Etcd> {
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let mut tls = vec![flag("cert-file", certificate), flag("key-file", key)];
        if let Some(ca) = ca {
            tls.extend([flag("trusted-ca-file", ca), "--client-cert-auth".to_owned()]);
        }
        Etcd::start_with(1, tls)
    }

    fn start_with(count: usize, tls: Vec<String>) -> Option<Etcd> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("SKIPPED: this test needs etcd; install it with tests/setup.sh");
            assert!(
                std::env::var_os("CI").is_none(),
                "etcd is missing where every test must run"
            );
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = std::env::temp_dir().join(format!(
            "causeway-etcd-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&directory).unwrap();
        let ports = free_ports(3 * count);
        let mut etcd = Etcd {
            directory,
            members: ports
                .chunks(3)
                .map(|ports| Member {
                    client_port: ports[0],
                    peer_port: ports[1],
                    tls_port: ports[2],
                    process: None,
                })
                .collect(),
            tls,
        };
        for member in 0..count {
            etcd.start_member(member);
        }
        etcd.wait_for_leader();
        Some(etcd)
    }

    /// A store's address with this prefix.
    pub(crate) fn url(&self, prefix: &str) -> String {
        let endpoints: Vec<_> = (0..self.members.len()).map(|n| self.endpoint(n)).collect();
        format!("etcd://{}/{prefix}", endpoints.join(","))
    }

    /// The same over TLS.
    pub(crate) fn tls_url(&self, prefix: &str) -> String {
        format!("etcds://{}/{prefix}", self.tls_endpoint())
    }

    pub(crate) fn tls_endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.members[0].tls_port)
    }

    pub(crate) fn endpoint(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].client_port)
    }

    /// Again after [`Etcd::kill_member`], on the same data.
    pub(crate) fn start_member(&mut self, number: usize) {
        let cluster: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(n, member)| format!("m{n}=http://127.0.0.1:{}", member.peer_port))
            .collect();
        let member = &self.members[number];
        let mut client = format!("http://127.0.0.1:{}", member.client_port);
        if !self.tls.is_empty() {
            client += &format!(",https://127.0.0.1:{}", member.tls_port);
        }
        let peer = format!("http://127.0.0.1:{}", member.peer_port);
        let log = File::create(self.directory.join(format!("m{number}.log"))).unwrap();
        let process = Command::new("etcd")
            .arg("--name")
            .arg(format!("m{number}"))
            .arg("--data-dir")
            .arg(self.directory.join(format!("m{number}")))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-state", "new", "--logger", "zap"])
            .args(&self.tls)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[number].process = Some(process);
    }

    pub(crate) fn kill_member(&mut self, number: usize) {
        if let Some(mut process) = self.members[number].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn signal_member(&self, number: usize, signal: Signal) {
        let process = self.members[number].process.as_ref().unwrap();
        kill(Pid::from_raw(process.id().try_into().unwrap()), signal).unwrap();
    }

    pub(crate) fn wait_for_leader(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.leader().is_none() {
            assert!(Instant::now() < deadline, "etcd elects no leader");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The member that says it leads.
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|number| {
            let Some(status) = self.ask(*number, "maintenance/status", "{}") else {
                return false;
            };
            let field = |text: &str, name: &str| -> Option<String> {
                let rest = &text[text.find(&format!("\"{name}\":\""))? + name.len() + 4..];
                Some(rest[..rest.find('"')?].to_owned())
            };
            let leader = field(&status, "leader");
            leader.is_some() && leader == field(&status, "member_id")
        })
    }

    /// From now on it asks for a login: there are root and, with all keys below the prefix,
    /// `causeway`, each with its name as password.
    pub(crate) fn ask_for_logins(&self, prefix: &str) {
        let base64 = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
        let permission = format!(
            r#"{{"permType":"READWRITE","key":"{}","range_end":"{}"}}"#,
            base64(&format!("{prefix}/")),
            base64(&format!("{prefix}0"))
        );
        for name in ["root", "causeway"] {
            let user = format!(r#"{{"name":"{name}","password":"{name}"}}"#);
            assert!(self.ask(0, "auth/user/add", &user).is_some());
            let role = format!(r#"{{"name":"{name}"}}"#);
            assert!(self.ask(0, "auth/role/add", &role).is_some());
            let granted = format!(r#"{{"user":"{name}","role":"{name}"}}"#);
            assert!(self.ask(0, "auth/user/grant", &granted).is_some());
        }
        let granted = format!(r#"{{"name":"causeway","perm":{permission}}}"#);
        assert!(self.ask(0, "auth/role/grant", &granted).is_some());
        assert!(self.ask(0, "auth/enable", "{}").is_some());
    }

    /// One request to the gateway of one member, answered within a second or not at all.
    pub(crate) fn ask(&self, number: usize, path: &str, body: &str) -> Option<String> {
        use std::io::{Read, Write};
        let address = self.endpoint(number).parse().unwrap();
        let second = Duration::from_secs(1);
        let mut stream = std::net::TcpStream::connect_timeout(&address, second).ok()?;
        stream.set_read_timeout(Some(second)).ok()?;
        write!(
            stream,
            "POST /v3/{path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.0 200").then_some(answer)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            self.kill_member(number);
        }
        if std::thread::panicking() {
            eprintln!("etcd's logs stay in {}", self.directory.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// All held at once while they are chosen, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}
