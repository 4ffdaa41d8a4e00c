//! Any user-space WireGuard as an interface inside a namespace, configured through `wg`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::lab::{self, Namespace, Process, find_program, wait_for};

const SOCKETS: &str = "/var/run/wireguard";

/// The default inner MTU: 1500 less outer IPv6, UDP and WireGuard.
pub const MTU: u16 = 1420;

/// The programs that can stand at either end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Implementation {
    Causeway,
    WireguardGo,
    BoringtunCli,
    Gotatun,
}

impl Implementation {
    pub const ALL: [Implementation; 4] = [
        Implementation::Causeway,
        Implementation::WireguardGo,
        Implementation::BoringtunCli,
        Implementation::Gotatun,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Implementation::Causeway => "causeway",
            Implementation::WireguardGo => "wireguard-go",
            Implementation::BoringtunCli => "boringtun-cli",
            Implementation::Gotatun => "gotatun",
        }
    }

    /// The environment variable that names the program to use.
    pub fn variable(self) -> &'static str {
        match self {
            Implementation::Causeway => "CAUSEWAY_BIN",
            Implementation::WireguardGo => "WIREGUARD_GO",
            Implementation::BoringtunCli => "BORINGTUN_CLI",
            Implementation::Gotatun => "GOTATUN",
        }
    }

    /// The program: the one its variable names, else the one that is built or lies beside the
    /// project, else the one on PATH.
    pub fn locate(self) -> Result<PathBuf> {
        if let Some(path) = std::env::var_os(self.variable()).filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            if !path.is_file() {
                bail!("{}={} is no file", self.variable(), path.display());
            }
            return Ok(path);
        }
        match self {
            Implementation::Causeway => built_causeway(),
            Implementation::WireguardGo => match packaged_wireguard_go()? {
                Some(path) => Ok(path),
                None => self.on_path(),
            },
            Implementation::BoringtunCli | Implementation::Gotatun => self.on_path(),
        }
    }

    fn on_path(self) -> Result<PathBuf> {
        find_program(self.name()).with_context(|| {
            format!(
                "{} is not on PATH; {} can name it",
                self.name(),
                self.variable()
            )
        })
    }
}

/// Whether a test must stop because one of `implementations`, root or `wg` is missing.
pub fn skip(test: &str, implementations: &[Implementation]) -> bool {
    if lab::skip(test, &["wg"]) {
        return true;
    }
    let missing = implementations
        .iter()
        .find_map(|implementation| implementation.locate().err());
    missing.is_some_and(|why| lab::skip_or_fail(test, &format!("{why:#}")))
}

/// A found implementation.
#[derive(Clone, Debug)]
pub struct Program {
    pub implementation: Implementation,
    pub path: PathBuf,
    /// What follows the arguments that every device needs.
    pub arguments: Vec<String>,
}

impl Program {
    /// The program that [`Implementation::locate`] finds.
    pub fn find(implementation: Implementation) -> Result<Program> {
        let path = implementation.locate()?;
        Ok(Program {
            implementation,
            path,
            arguments: Vec::new(),
        })
    }

    /// How it is started in the foreground as `interface`.
    fn command(&self, namespace: &Namespace, interface: &str) -> Command {
        let mut command = namespace.command(&self.path);
        match self.implementation {
            Implementation::Causeway => command.args(["wg", interface, "-f"]),
            Implementation::WireguardGo => command.args(["-f", interface]),
            Implementation::BoringtunCli | Implementation::Gotatun => {
                // They drop root by default, and then neither the TUN nor the socket can be made.
                command.args(["--disable-drop-privileges", "-f", interface])
            }
        };
        command.args(&self.arguments);
        command
    }
}

/// A key pair as `wg` prints it.
#[derive(Clone)]
pub struct Keys {
    pub private: String,
    pub public: String,
}

impl Keys {
    pub fn generate(namespace: &Namespace) -> Result<Keys> {
        let private = namespace.run("wg", &["genkey"])?.trim().to_owned();
        let public = namespace
            .run_with_input("wg", &["pubkey"], &private)?
            .trim()
            .to_owned();
        Ok(Keys { private, public })
    }
}

/// A running WireGuard interface.
pub struct Device {
    namespace: Namespace,
    interface: String,
    keys: Keys,
    process: Process,
}

impl Device {
    /// Starts `implementation` in `namespace` with fresh keys, listening on `port`.
    pub fn start(
        namespace: &Namespace,
        implementation: Implementation,
        port: u16,
    ) -> Result<Device> {
        let keys = Keys::generate(namespace)?;
        Device::start_with_keys(namespace, implementation, port, keys)
    }

    /// The same with given keys, for restarts.
    pub fn start_with_keys(
        namespace: &Namespace,
        implementation: Implementation,
        port: u16,
        keys: Keys,
    ) -> Result<Device> {
        Device::launch(namespace, &Program::find(implementation)?, port, keys)
    }

    /// The same for a program that has been located.
    pub fn launch(
        namespace: &Namespace,
        program: &Program,
        port: u16,
        keys: Keys,
    ) -> Result<Device> {
        let interface = lab::interface_name();
        let process = namespace.spawn(program.command(namespace, &interface))?;
        let device = Device {
            namespace: namespace.clone(),
            interface,
            keys,
            process,
        };
        device.wait_until_configurable()?;
        device.configure(&format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {port}\n",
            device.keys.private
        ))?;
        Ok(device)
    }

    fn wait_until_configurable(&self) -> Result<()> {
        let what = format!("the configuration socket of {}", self.interface);
        let outcome = wait_for(&what, Duration::from_secs(5), || {
            !self.process.is_running()
                || (self.socket().exists() && self.wg(&["show", &self.interface]).is_ok())
        });
        if outcome.is_err() || !self.process.is_running() {
            bail!(
                "{what} did not come up; the program wrote: {}",
                self.process.output()
            );
        }
        Ok(())
    }

    pub fn interface(&self) -> &str {
        &self.interface
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Where its configuration socket is.
    pub fn socket(&self) -> PathBuf {
        Path::new(SOCKETS).join(format!("{}.sock", self.interface))
    }

    /// Adds to its configuration, in the format of `wg addconf`.
    pub fn configure(&self, configuration: &str) -> Result<()> {
        let arguments = ["addconf", &self.interface, "/dev/stdin"];
        self.namespace
            .run_with_input("wg", &arguments, configuration)
            .map(drop)
    }

    /// `wg set IFNAME ...`
    pub fn set(&self, arguments: &[&str]) -> Result<()> {
        self.wg(&[&["set", &self.interface], arguments].concat())
            .map(drop)
    }

    /// `wg show IFNAME WHAT`
    pub fn show(&self, what: &str) -> Result<String> {
        self.wg(&["show", &self.interface, what])
    }

    fn wg(&self, arguments: &[&str]) -> Result<String> {
        self.namespace.run("wg", arguments)
    }

    /// Adds `other` as a peer.
    pub fn peer(
        &self,
        other: &Device,
        endpoint: Option<SocketAddr>,
        allowed_ips: &str,
    ) -> Result<()> {
        let endpoint = endpoint.map(|address| address.to_string());
        let mut arguments = vec![
            "peer",
            other.keys.public.as_str(),
            "allowed-ips",
            allowed_ips,
        ];
        if let Some(endpoint) = &endpoint {
            arguments.extend(["endpoint", endpoint]);
        }
        self.set(&arguments)
    }

    /// Gives the interface an address.
    pub fn address(&self, address: &str) -> Result<()> {
        self.namespace.address(&self.interface, address)
    }

    /// Sets the inner MTU and brings the interface up.
    pub fn up(&self, mtu: u16) -> Result<()> {
        let mtu = mtu.to_string();
        let arguments = ["link", "set", &self.interface, "mtu", &mtu, "up"];
        self.namespace.run("ip", &arguments).map(drop)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.process.kill();
        // A killed program leaves its socket behind, outside every namespace.
        let _ = fs::remove_file(self.socket());
    }
}

/// The release binary beside this build, brought up to date: a stale one would prove nothing.
fn built_causeway() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build_causeway().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn build_causeway() -> Result<PathBuf> {
    let target = target_directory()?;
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(project_root())
        .args(["build", "--quiet", "--release", "-p", "cli", "--target-dir"])
        .arg(&target)
        .output()
        .context("cannot start cargo to build causeway; CAUSEWAY_BIN can name a built one")?;
    if !output.status.success() {
        bail!(
            "causeway does not build: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(target.join("release/causeway"))
}

/// wireguard-go from the package that lies beside the project, where there is one.
///
/// It comes before PATH because a distribution's own is often from before its offloads.
fn packaged_wireguard_go() -> Result<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(project_root().join("../shared/peers")) else {
        return Ok(None);
    };
    let package = entries.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("wireguard-go") && name.ends_with(".deb")
    });
    let Some(package) = package else {
        return Ok(None);
    };
    let unpacked = target_directory()?
        .join("peers")
        .join(package.file_stem().unwrap_or_default());
    let program = unpacked.join("usr/bin/wireguard-go");
    if !program.is_file() {
        unpack(&package, &unpacked)?;
    }
    Ok(Some(program))
}

/// Unpacks aside and renames, so that tests which run at once never see half of it.
fn unpack(package: &Path, into: &Path) -> Result<()> {
    let aside = into.with_extension(format!("{}.part", std::process::id()));
    fs::create_dir_all(&aside).with_context(|| format!("cannot make {}", aside.display()))?;
    let output = Command::new("dpkg-deb")
        .arg("-x")
        .args([package, &aside])
        .output()
        .context("cannot start dpkg-deb")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("cannot unpack {}: {complaint}", package.display());
    }
    if fs::rename(&aside, into).is_err() {
        // Another process was faster; its copy is as good.
        let _ = fs::remove_dir_all(&aside);
    }
    Ok(())
}

fn project_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The target directory this program was built into.
fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let profile = program.ancestors().find(|path| {
        path.file_name()
            .is_some_and(|name| name == "release" || name == "debug")
    });
    let target = profile.and_then(Path::parent);
    Ok(target.map_or_else(|| project_root().join("target"), Path::to_path_buf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    /// Two gateways on one wire, joined by `implementation`, ping each other through the tunnel.
    fn two_ends_ping(implementation: Implementation, test: &str) {
        if skip(test, &[implementation]) {
            return;
        }
        let lab = Lab::new("pair").unwrap();
        let (left, right) = (lab.namespace("a").unwrap(), lab.namespace("b").unwrap());
        lab.veth(&left, "eth0", &right, "eth0").unwrap();
        left.address("eth0", "192.0.2.1/24").unwrap();
        right.address("eth0", "192.0.2.2/24").unwrap();
        let near = Device::start(&left, implementation, 51820).unwrap();
        let far = Device::start(&right, implementation, 51820).unwrap();
        near.peer(
            &far,
            Some("192.0.2.2:51820".parse().unwrap()),
            "10.9.0.2/32,fd09::2/128",
        )
        .unwrap();
        far.peer(&near, None, "10.9.0.1/32,fd09::1/128").unwrap();
        for (device, host) in [(&near, 1), (&far, 2)] {
            device.up(MTU).unwrap();
            device.address(&format!("10.9.0.{host}/24")).unwrap();
            device.address(&format!("fd09::{host}/64")).unwrap();
        }
        left.wait_for_ping("10.9.0.2".parse().unwrap(), Duration::from_secs(5))
            .unwrap();
        left.ping("fd09::2".parse().unwrap()).unwrap();
        assert!(
            right.ping("10.9.0.77".parse().unwrap()).is_err(),
            "nobody has this address"
        );
        assert!(
            far.show("latest-handshakes")
                .unwrap()
                .contains(&near.keys().public)
        );
    }

    #[test]
    fn two_wireguard_go_ping_through_their_tunnel() {
        two_ends_ping(
            Implementation::WireguardGo,
            "two_wireguard_go_ping_through_their_tunnel",
        );
    }

    #[test]
    fn two_boringtun_ping_through_their_tunnel() {
        two_ends_ping(
            Implementation::BoringtunCli,
            "two_boringtun_ping_through_their_tunnel",
        );
    }

    #[test]
    fn two_gotatun_ping_through_their_tunnel() {
        two_ends_ping(
            Implementation::Gotatun,
            "two_gotatun_ping_through_their_tunnel",
        );
    }

    #[test]
    fn a_lab_leaves_no_namespace_and_no_process_when_its_test_panics() {
        if lab::skip(
            "a_lab_leaves_no_namespace_and_no_process_when_its_test_panics",
            &[],
        ) {
            return;
        }
        let seen = std::sync::Mutex::new(None);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let lab = Lab::new("panic").unwrap();
            let namespace = lab.namespace("a").unwrap();
            let mut command = namespace.command("sleep");
            command.arg("1000");
            let process = namespace.spawn(command).unwrap();
            let pid = process.pid();
            // A guard that was lost, and a daemon that no guard holds.
            std::mem::forget(process);
            namespace
                .sh("setsid sleep 1000 </dev/null >/dev/null 2>&1 &")
                .unwrap();
            *seen.lock().unwrap() = Some((namespace.name().to_owned(), pid));
            panic!("as planned");
        }));
        assert!(panic.is_err());
        let (name, pid) = seen.lock().unwrap().clone().unwrap();
        assert!(!Path::new("/run/netns").join(name).exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
