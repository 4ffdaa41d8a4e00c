//! The broker shuts itself out of every file it does not need, above all out of the authority's
//! directory. Holds for threads that are started later, so it goes up before any is.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};
use tracing::{info, warn};

/// What looking up host names and loading what that needs takes; read only.
const SYSTEM: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/run/systemd/resolve",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/share/zoneinfo",
    "/dev/null",
    "/dev/urandom",
    "/proc/self",
];

/// What stands in the way of the promise that a broker has no key but its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fenced {
    Fully,
    Partly,
    /// The kernel has no Landlock.
    Not,
}

/// The directories below which the broker reads and writes.
pub(crate) fn put_up(own: &[&Path]) -> Result<Fenced, RulesetError> {
    // What a later kernel can do besides is left out where the kernel is older.
    let abi = ABI::V5;
    let all = AccessFs::from_all(abi);
    let status = Ruleset::default()
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, AccessFs::from_read(abi)))?
        .add_rules(path_beneath_rules(own, all))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Fenced::Fully,
        RulesetStatus::PartiallyEnforced => Fenced::Partly,
        RulesetStatus::NotEnforced => Fenced::Not,
    })
}

/// Says what the fence is worth here; `authority_near` as [`authority_near`] found it before.
pub(crate) fn report(fenced: Fenced, authority_near: Option<&Path>) {
    match fenced {
        Fenced::Fully => info!("landlock: this process is shut out of all files but its own"),
        Fenced::Partly => info!(
            "landlock: this process is shut out of files but its own, as far as this kernel can"
        ),
        Fenced::Not => warn!(
            "this kernel has no landlock: run the broker as a user of its own that cannot read the authority's directory"
        ),
    }
    if let Some(path) = authority_near {
        warn!(
            "the authority's key is on this host, in {}: whoever takes this host takes the mesh; move the directory to another machine",
            path.display()
        );
    }
}

/// The authority's directory if its key is on this host: where `broker init` put it, or where it
/// puts it by default. Looks at the name only.
pub(crate) fn authority_near(made: Option<&Path>, state_directory: &Path) -> Option<PathBuf> {
    made.map(Path::to_owned)
        .into_iter()
        .chain([state_directory.join("authority")])
        .find(|directory| fs::symlink_metadata(directory.join("authority.key")).is_ok())
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::thread;

    use super::*;

    #[test]
    fn behind_the_fence_only_own_directories_are_open() {
        let name = format!("causeway-fence-{}", std::process::id());
        let scratch = env::temp_dir().join(name);
        let (own, authority) = (scratch.join("broker"), scratch.join("authority"));
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(&authority).unwrap();
        fs::write(authority.join("authority.key"), "key").unwrap();
        let (inside, outside) = (own.clone(), authority.clone());
        // The fence stays with the thread, so it is put up in one of its own.
        let seen = thread::spawn(move || {
            let fenced = put_up(&[&inside]).unwrap();
            fs::write(inside.join("file"), "content").unwrap();
            (fenced, fs::read(outside.join("authority.key")))
        })
        .join()
        .unwrap();
        let elsewhere = Path::new("/nowhere");
        let found = authority_near(Some(&authority), elsewhere);
        assert_eq!(found, Some(authority.clone()));
        assert_eq!(authority_near(None, &scratch), Some(authority.clone()));
        fs::remove_dir_all(&scratch).unwrap();
        match seen {
            (Fenced::Fully | Fenced::Partly, read) => assert!(read.is_err()),
            (Fenced::Not, _) => eprintln!("SKIPPED: this kernel has no landlock"),
        }
    }

    #[test]
    fn an_authority_elsewhere_is_not_near() {
        let nowhere = Path::new("/nowhere");
        assert_eq!(authority_near(None, nowhere), None);
        assert_eq!(authority_near(Some(nowhere), nowhere), None);
    }
}
