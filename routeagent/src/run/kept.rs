//! The mode that was found out, kept for the next start: it is true as long as this node and its
//! gateways are who and where they were.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use proto::key::PublicKey;
use serde::{Deserialize, Serialize};

use crate::facts::Mode;

const VERSION: u32 = 1;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    version: u32,
    mode: Kept,
    lan: Option<IpAddr>,
    /// Addresses by key.
    gateways: BTreeMap<String, IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kept {
    Direct,
    Vxlan,
}

/// What a mode is true for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) lan: Option<IpAddr>,
    pub(super) gateways: BTreeMap<PublicKey, IpAddr>,
}

pub(super) struct Memory {
    path: PathBuf,
    last: Option<File>,
}

impl Memory {
    /// What cannot be read is found out anew.
    pub(super) fn open(path: PathBuf) -> Memory {
        let last = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .filter(|file: &File| file.version == VERSION);
        Memory { path, last }
    }

    /// The mode of an earlier run; gateways that came or went since say nothing against it, as long
    /// as one is where it was.
    pub(super) fn mode(&self, setting: &Setting) -> Option<Mode> {
        let last = self.last.as_ref()?;
        let now = file(Mode::Direct, setting);
        let is_there = |(key, address)| now.gateways.get(key) == Some(address);
        let is_known = last.gateways.iter().any(is_there);
        (last.lan == now.lan && is_known).then_some(match last.mode {
            Kept::Direct => Mode::Direct,
            Kept::Vxlan => Mode::Vxlan,
        })
    }

    /// Only what has changed is written.
    pub(super) fn keep(&mut self, mode: Mode, setting: &Setting) {
        let file = file(mode, setting);
        if self.last.as_ref() == Some(&file) {
            return;
        }
        if let Err(error) = write(&self.path, &file) {
            tracing::warn!(
                path = %self.path.display(), %error,
                "the mode cannot be kept for the next start; make room, or the directory writable"
            );
        }
        self.last = Some(file);
    }
}

fn file(mode: Mode, setting: &Setting) -> File {
    let gateways = setting.gateways.iter();
    File {
        version: VERSION,
        mode: match mode {
            Mode::Direct => Kept::Direct,
            Mode::Vxlan => Kept::Vxlan,
        },
        lan: setting.lan,
        gateways: gateways
            .map(|(key, address)| (key.to_string(), *address))
            .collect(),
    }
}

fn write(path: &Path, file: &File) -> io::Result<()> {
    let staged = path.with_extension("new");
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&staged)?;
    out.write_all(&serde_json::to_vec(file)?)?;
    drop(out);
    fs::rename(&staged, path)
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    fn setting(lan: &str, gateways: &[(u8, &str)]) -> Setting {
        let key = |seed: u8| SigningKey::from_seed(&[seed; 32]).public();
        let gateways = gateways.iter();
        Setting {
            lan: lan.parse().ok(),
            gateways: gateways
                .map(|(seed, address)| (key(*seed), address.parse().unwrap()))
                .collect(),
        }
    }

    #[test]
    fn a_mode_is_kept_for_the_place_it_was_found_in() {
        let directory = std::env::temp_dir().join(format!("causeway-mode-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("mode.json");
        let here = setting("10.1.0.5", &[(1, "10.1.0.1"), (2, "10.1.0.2")]);
        let mut memory = Memory::open(path.clone());
        assert_eq!(memory.mode(&here), None);
        memory.keep(Mode::Vxlan, &here);
        let memory = Memory::open(path.clone());
        assert_eq!(memory.mode(&here), Some(Mode::Vxlan));
        let one_left = setting("10.1.0.5", &[(2, "10.1.0.2"), (3, "10.1.0.3")]);
        assert_eq!(memory.mode(&one_left), Some(Mode::Vxlan));
        for elsewhere in [
            setting("10.1.0.6", &[(1, "10.1.0.1")]),
            setting("10.1.0.5", &[(1, "10.1.0.9")]),
            setting("10.1.0.5", &[]),
        ] {
            assert_eq!(memory.mode(&elsewhere), None, "{elsewhere:?}");
        }
        fs::write(&path, b"{ no json").unwrap();
        assert_eq!(Memory::open(path).mode(&here), None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
