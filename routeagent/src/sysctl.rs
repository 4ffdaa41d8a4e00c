//! Kernel settings that forwarding needs: checked, set where allowed, and what they were before kept
//! for `cleanup`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};
use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::wanted::Sysctl;

/// The same whatever directories a daemon was given, so that cleaning up needs to know none.
const DIRECTORY: &str = "/run/causeway/kernel";
const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";
/// What only gateways need.
pub(crate) const FORWARDING: [&str; 2] = [FORWARD_V4, FORWARD_V6];

/// What was there before us, in the order in which it is put back.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    kept: Vec<Kept>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) key: String,
    pub(crate) before: String,
    pub(crate) set: String,
}

impl Memory {
    /// Of this network namespace: daemons in several of them share one /run.
    pub(crate) fn open() -> io::Result<Memory> {
        let boot = read("kernel/random/boot_id")?;
        Memory::open_in(Path::new(DIRECTORY), &boot, &namespace()?)
    }

    /// A kernel numbers its namespaces anew after a boot, and has forgotten what was set.
    fn open_in(directory: &Path, boot: &str, namespace: &str) -> io::Result<Memory> {
        let path = directory
            .join(boot)
            .join(format!("sysctl-{namespace}.json"));
        let kept = match fs::read(&path) {
            // What cannot be read is not believed.
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            Err(error) => return Err(error),
        };
        Ok(Memory { path, kept })
    }

    /// Written before anything is changed: a crash in between must not lose it.
    fn keep(&mut self, new: Vec<Kept>) -> io::Result<()> {
        for kept in new {
            match self.kept.iter_mut().find(|old| old.key == kept.key) {
                // What it was before the first start counts, unless somebody else has changed it since.
                Some(old) if old.set == kept.before => {}
                Some(old) => *old = kept,
                None => self.kept.push(kept),
            }
        }
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
            forget_other_boots(directory);
        }
        let text = serde_json::to_vec(&self.kept).map_err(io::Error::other)?;
        let draft = self.path.with_extension("new");
        fs::write(&draft, text)?;
        fs::rename(&draft, &self.path)
    }

    /// What [`Memory::restore`] would change: those that are still as we set them.
    pub(crate) fn to_restore(&self) -> Vec<&Kept> {
        let still = |kept: &&Kept| read(&kept.key).is_ok_and(|now| now == kept.set);
        let changed = |kept: &&Kept| kept.before != kept.set;
        self.kept.iter().filter(changed).filter(still).collect()
    }

    pub(crate) fn restore(&self) -> io::Result<Vec<Kept>> {
        let restored: Vec<Kept> = self.to_restore().into_iter().cloned().collect();
        // Forwarding for all interfaces changes what each of them has: those follow.
        let along = |kept: &&Kept| kept.before == kept.set || restored.contains(kept);
        let all = self.kept.iter().filter(along);
        for kept in all.filter(|_| !restored.is_empty()) {
            match write(&kept.key, &kept.before) {
                // An interface that is gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(restored),
        }
    }
}

// What no other network namespace of this boot ever has.
sockopt_impl!(
    NamespaceCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// A name for the network namespace of the caller. The number of its file is given to the next
/// namespace once it is gone, and what was noted of the one must not be put back in the other.
fn namespace() -> io::Result<String> {
    match getsockopt(&UnixDatagram::unbound()?, NamespaceCookie) {
        Ok(cookie) => Ok(format!("cookie-{cookie}")),
        // Before Linux 5.14.
        Err(Errno::ENOPROTOOPT) => {
            let inode = fs::metadata("/proc/thread-self/ns/net")?.ino();
            Ok(inode.to_string())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Where /run outlives a boot, and nobody cleans up, they would become more and more.
fn forget_other_boots(ours: &Path) {
    let all = ours.parent().map(fs::read_dir);
    for entry in all.into_iter().flatten().flatten().flatten() {
        let path = entry.path();
        if path != ours {
            // It is looked at again at the next start.
            let _kept = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
}

fn path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}

fn read(key: &str) -> io::Result<String> {
    fs::read_to_string(path(key)).map(|text| text.trim().to_owned())
}

fn write(key: &str, value: &str) -> io::Result<()> {
    fs::write(path(key), value)
}

/// Makes them fine where allowed; otherwise says which command does.
pub(crate) fn check(
    wanted: &BTreeSet<Sysctl>,
    may_set: bool,
    memory: &mut Memory,
    ours: &[&str],
) -> Vec<Problem> {
    let mut problems = vec![];
    for sysctl in wanted {
        // An interface that is not there yet, or a kernel without IPv6.
        let Ok(now) = read(&sysctl.key) else {
            continue;
        };
        if sysctl.fine.contains(&in_force(&sysctl.key, &now).as_str()) {
            continue;
        }
        let done = if may_set {
            set(sysctl, &now, memory, ours)
        } else {
            Err(io::Error::other("changing it is switched off"))
        };
        if let Err(error) = done {
            if sysctl.optional {
                tracing::debug!(key = sysctl.dotted(), %error, "an optional sysctl stays as it is");
                continue;
            }
            let problem = Problem::new(
                format!(
                    "{} is {now}, and the mesh needs {}: {error}",
                    sysctl.dotted(),
                    sysctl.fine.join(" or ")
                ),
                format!("sysctl -w {}={}", sysctl.dotted(), sysctl.set),
            );
            problems.push(problem.that_stops_traffic());
        } else {
            tracing::info!(key = sysctl.dotted(), before = now, "set a sysctl");
        }
    }
    problems
}

/// Of `rp_filter` the kernel takes the larger, of all interfaces or of the one.
fn in_force(key: &str, now: &str) -> String {
    let all = match key.strip_suffix("/rp_filter") {
        Some(_) => read("net/ipv4/conf/all/rp_filter").unwrap_or_default(),
        None => String::new(),
    };
    all.max(now.to_owned())
}

fn set(sysctl: &Sysctl, now: &str, memory: &mut Memory, ours: &[&str]) -> io::Result<()> {
    // What is of our interfaces goes with them.
    let is_ours = |name: &&str| sysctl.key.contains(&format!("/conf/{name}/"));
    if !ours.iter().any(is_ours) {
        let mut keep = vec![Kept {
            key: sysctl.key.clone(),
            before: now.to_owned(),
            set: sysctl.set.to_owned(),
        }];
        keep.extend(side_effects(&sysctl.key, ours));
        memory.keep(keep)?;
    }
    if sysctl.key == FORWARD_V6 {
        keep_router_advertisements(memory, ours)?;
    }
    write(&sysctl.key, sysctl.set)
}

/// What the kernel changes along with forwarding.
fn side_effects(key: &str, ours: &[&str]) -> Vec<Kept> {
    let (family, extra) = match key {
        FORWARD_V4 => ("ipv4", Some("net/ipv4/conf/all/accept_redirects")),
        FORWARD_V6 => ("ipv6", None),
        _ => return vec![],
    };
    let mut keys: Vec<String> = extra.into_iter().map(str::to_owned).collect();
    let directory = format!("net/{family}/conf");
    let mut names = interfaces(&directory);
    names.retain(|name| name != "all" && !ours.contains(&name.as_str()));
    keys.extend(
        names
            .into_iter()
            .map(|name| format!("{directory}/{name}/forwarding")),
    );
    keys.into_iter()
        .filter_map(|key| {
            let before = read(&key).ok()?;
            let set = before.clone();
            Some(Kept { key, before, set })
        })
        .collect()
}

/// A kernel that forwards stops listening to routers, and forgets the default route it has from one,
/// unless told to go on.
fn keep_router_advertisements(memory: &mut Memory, ours: &[&str]) -> io::Result<()> {
    for name in interfaces("net/ipv6/conf") {
        let key = format!("net/ipv6/conf/{name}/accept_ra");
        if name == "all" || name == "default" || ours.contains(&name.as_str()) || read(&key)? != "1"
        {
            continue;
        }
        memory.keep(vec![Kept {
            key: key.clone(),
            before: "1".to_owned(),
            set: "2".to_owned(),
        }])?;
        write(&key, "2")?;
    }
    Ok(())
}

fn interfaces(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(path(directory))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_of_one_namespace_and_goes_with_the_boot() {
        let directory = std::env::temp_dir().join(format!("causeway-kept-{}", std::process::id()));
        let kept = || {
            vec![Kept {
                key: FORWARD_V4.to_owned(),
                before: "0".to_owned(),
                set: "1".to_owned(),
            }]
        };
        let open =
            |namespace: &str, boot: &str| Memory::open_in(&directory, boot, namespace).unwrap();
        open("cookie-1", "one").keep(kept()).unwrap();
        assert_eq!(open("cookie-1", "one").kept, kept());
        assert_eq!(open("cookie-2", "one").kept, []);
        open("cookie-2", "one").keep(kept()).unwrap();
        assert_eq!(open("cookie-1", "one").kept, kept());
        assert_eq!(open("cookie-1", "two").kept, []);
        open("cookie-3", "two").keep(kept()).unwrap();
        assert_eq!(open("cookie-1", "one").kept, []);
        fs::write(open("cookie-3", "two").path, "damaged").unwrap();
        assert_eq!(open("cookie-3", "two").kept, []);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_namespace_is_known_by_what_is_never_given_to_another() {
        let name = namespace().unwrap();
        assert_eq!(namespace().unwrap(), name);
        let old = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        // Kernels that lack the cookie are older than any that tests run on.
        assert!(name.starts_with("cookie-") && !name.ends_with(&format!("-{old}")));
    }
}
