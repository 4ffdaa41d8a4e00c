//! Certificates for etcd's TLS, made by the program `openssl` in a temporary directory, which goes
//! with the value.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// None, said loudly, where the program is missing. There are the CAs `ca` and `other-ca`;
    /// `server`, for 127.0.0.1 and localhost, and `elsewhere`, for another host; and `client`, all
    /// three by the first CA, and `stranger`, by the other. `named` is like `client` and has a
    /// common name, which the others do not have.
    pub(crate) fn make() -> Option<Certificates> {
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("SKIPPED: this test needs openssl; install it with tests/setup.sh");
            assert!(
                std::env::var_os("CI").is_none(),
                "openssl is missing where every test must run"
            );
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "causeway-certificates-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let made = Certificates { directory };
        made.make_ca("ca");
        made.make_ca("other-ca");
        // etcd's gateway comes to etcd itself with the server's certificate.
        let both = "serverAuth,clientAuth";
        made.sign(
            "server",
            "ca",
            &format!("IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={both}"),
        );
        made.sign(
            "elsewhere",
            "ca",
            &format!("DNS:etcd.example.org\nextendedKeyUsage={both}"),
        );
        made.sign("client", "ca", "DNS:broker\nextendedKeyUsage=clientAuth");
        made.sign("named", "ca", "DNS:broker\nextendedKeyUsage=clientAuth");
        made.sign(
            "stranger",
            "other-ca",
            "DNS:broker\nextendedKeyUsage=clientAuth",
        );
        Some(made)
    }

    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.pem"))
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.key"))
    }

    /// A further file there.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn make_ca(&self, name: &str) {
        let line = format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -addext basicConstraints=critical,CA:TRUE -keyout {name}.key -out {name}.pem"
        );
        openssl(&self.directory, &line);
    }

    fn sign(&self, name: &str, ca: &str, names: &str) {
        self.write(
            &format!("{name}.extensions"),
            &format!("subjectAltName={names}\n"),
        );
        let subject = if name == "named" {
            "/CN=named"
        } else {
            "/O=test"
        };
        let request = format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj {subject} \
             -keyout {name}.key -out {name}.request"
        );
        openssl(&self.directory, &request);
        let sign = format!(
            "x509 -req -in {name}.request -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -days 2 \
             -extfile {name}.extensions -out {name}.pem"
        );
        openssl(&self.directory, &sign);
    }
}

fn openssl(directory: &Path, line: &str) {
    let done = Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "openssl {line}: {told}");
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
