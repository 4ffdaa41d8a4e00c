//! The laboratory: network namespaces, the wires between them, and the processes inside.
//!
//! Everything a lab makes carries the pid of its maker in its name, so that labs run side by side,
//! and what a killed run left behind is known and swept by the next.

mod namespace;
mod ping;
mod process;

pub use namespace::Namespace;
pub use process::Process;

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use process::Running;

const NAMESPACES: &str = "/run/netns";
const PREFIX: &str = "cwy-";

/// Counts labs and interfaces of this process; names must differ over the whole machine.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Namespaces and processes of one test; all of them end with it, also when the test panics.
pub struct Lab {
    prefix: String,
    /// Logs of the processes; removed with the lab.
    directory: PathBuf,
    shared: Arc<Shared>,
}

/// What namespaces add to and the lab ends.
#[derive(Default)]
struct Shared {
    namespaces: Mutex<Vec<String>>,
    processes: Mutex<Vec<Arc<Running>>>,
}

impl Lab {
    /// An empty lab. `tag` only helps a person who looks at `ip netns` meanwhile.
    pub fn new(tag: &str) -> Result<Lab> {
        sweep();
        let pid = std::process::id();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{pid}-{number}-{tag}");
        let directory = std::env::temp_dir().join(&prefix);
        // A killed process with our pid may have left one.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Lab {
            prefix,
            directory,
            shared: Arc::default(),
        })
    }

    /// A new namespace with its loopback up.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        let full = format!("{}-{name}", self.prefix);
        {
            // `ip netns add` prepares /run/netns on first use, and two at once trip over each other.
            let lock = File::create("/run/causeway-lab.lock").context("cannot lock /run/netns")?;
            lock.lock().context("cannot lock /run/netns")?;
            process::run("ip", &["netns", "add", &full])?;
        }
        locked(&self.shared.namespaces).push(full.clone());
        let namespace = Namespace::new(full, self.directory.clone(), Arc::clone(&self.shared));
        namespace.run("ip", &["link", "set", "lo", "up"])?;
        // Lets `Namespace::ping` use the kernel's own echo sockets.
        namespace.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
        // A router asks for its neighbours from its link-local address, which would otherwise not
        // be usable before a second or two: longer than a mesh takes to come up.
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        Ok(namespace)
    }

    /// A wire between two namespaces, both ends up.
    pub fn veth(
        &self,
        left: &Namespace,
        left_interface: &str,
        right: &Namespace,
        right_interface: &str,
    ) -> Result<()> {
        let (left_name, right_name) = (left.name(), right.name());
        let pair = [
            &[
                "link",
                "add",
                left_interface,
                "netns",
                left_name,
                "type",
                "veth",
            ][..],
            &["peer", "name", right_interface, "netns", right_name][..],
        ]
        .concat();
        process::run("ip", &pair)?;
        left.run("ip", &["link", "set", left_interface, "up"])?;
        right.run("ip", &["link", "set", right_interface, "up"])?;
        Ok(())
    }

    /// An interface name no other lab uses. Configuration sockets live in /var/run/wireguard, which
    /// namespaces do not isolate, so WireGuard interfaces need one.
    pub fn interface(&self) -> String {
        interface_name()
    }

    /// A place for files of this test, removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for process in locked(&self.shared.processes).drain(..) {
            process.end();
        }
        for name in locked(&self.shared.namespaces).drain(..) {
            remove_namespace(&name);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// An interface name unique over the machine, at most 15 bytes long.
pub(crate) fn interface_name() -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("cw{:x}n{number:x}", std::process::id())
}

/// Whether a test must stop because this machine lacks root or one of `programs`.
///
/// Lacking something fails the test, unless `CAUSEWAY_SKIP_PRIVILEGED=1` asks to skip it by name.
pub fn skip(test: &str, programs: &[&str]) -> bool {
    match missing(programs) {
        None => false,
        Some(why) => skip_or_fail(test, &why),
    }
}

/// Skips `test` where skipping is allowed and fails it where it is not.
pub fn skip_or_fail(test: &str, why: &str) -> bool {
    assert!(
        std::env::var_os("CAUSEWAY_SKIP_PRIVILEGED").is_some_and(|value| value == "1"),
        "{test} cannot run here: {why} (CAUSEWAY_SKIP_PRIVILEGED=1 skips such tests)"
    );
    eprintln!("SKIPPED {test}: {why}");
    true
}

fn missing(programs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("it needs root to make network namespaces".to_owned());
    }
    ["ip"]
        .iter()
        .chain(programs)
        .find(|program| find_program(program).is_none())
        .map(|program| format!("the program {program} is not on PATH"))
}

/// Where `name` is on PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// On every node: nothing leaves with its own source by any interface, forwarded packets need a
/// connection that is known, and sources are checked everywhere, on interfaces to come too.
pub const HOSTILE: &str = "set -e; \
    for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done; \
    nft 'add table inet host; \
    add chain inet host post { type nat hook postrouting priority srcnat; }; \
    add rule inet host post oifname != lo masquerade; \
    add chain inet host forward { type filter hook forward priority filter; }; \
    add rule inet host forward ct state invalid drop'; \
    iptables -t nat -A POSTROUTING ! -o lo -j MASQUERADE";

/// Polls until `reached` holds; the error names what did not come.
pub fn wait_for(what: &str, limit: Duration, mut reached: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !reached() {
        if begin.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Ends what is left in a namespace of ours, daemons included, and removes it.
fn remove_namespace(name: &str) {
    if let Ok(pids) = process::run("ip", &["netns", "pids", name]) {
        for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
            process::kill(pid);
        }
    }
    if let Err(error) = process::run("ip", &["netns", "del", name])
        && Path::new(NAMESPACES).join(name).exists()
    {
        eprintln!("namespace {name} stays behind: {error:#}");
    }
}

/// Removes what labs left whose process is gone: a signal runs no destructor.
fn sweep() {
    for name in orphans(Path::new(NAMESPACES)) {
        remove_namespace(&name);
    }
    let directories = std::env::temp_dir();
    for name in orphans(&directories) {
        let _ = fs::remove_dir_all(directories.join(name));
    }
}

fn orphans(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| is_orphan(name)).collect()
}

fn is_orphan(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let Some(owner) = rest
        .split('-')
        .next()
        .and_then(|pid| pid.parse::<u32>().ok())
    else {
        return false;
    };
    // A process that nobody has reaped yet still has an entry, but no command line.
    let line = fs::read(format!("/proc/{owner}/cmdline"));
    line.is_ok_and(|line| line.is_empty()) || !Path::new(&format!("/proc/{owner}")).exists()
}

/// A test that panicked while holding a lock must not keep the lab from cleaning up.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labs_of_dead_processes_are_orphans() {
        let own = format!("{PREFIX}{}-0-x", std::process::id());
        assert!(!is_orphan(&own));
        assert!(is_orphan("cwy-4294967295-0-x"));
        assert!(!is_orphan("cwy-notapid-x"));
        assert!(!is_orphan("production"));
    }

    #[test]
    fn interface_names_fit_the_kernel_and_differ() {
        let (first, second) = (interface_name(), interface_name());
        assert!(first.len() <= 15, "{first}");
        assert_ne!(first, second);
    }

    #[test]
    fn waiting_names_what_did_not_come() {
        let error = wait_for("the moon", Duration::ZERO, || false).unwrap_err();
        assert!(error.to_string().starts_with("the moon"), "{error}");
        wait_for("now", Duration::ZERO, || true).unwrap();
    }
}
