//! Where in etcd everything lies, and where etcd is.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use proto::key::{Hash, PublicKey};
use proto::name::Name;
use thiserror::Error;

use super::access::AccessFiles;

/// `etcds://HOST:PORT,HOST:PORT/PREFIX` with TLS, `etcd://HOST:PORT,HOST:PORT/PREFIX` without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub(super) is_tls: bool,
    pub(super) endpoints: Vec<String>,
    pub(super) prefix: String,
    /// What etcd asks for besides; not shown with the address.
    pub access: AccessFiles,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a store in etcd is named etcds://HOST:PORT,HOST:PORT/PREFIX (with TLS) or \
     etcd://HOST:PORT,HOST:PORT/PREFIX (without), the prefix of letters, digits, -, _, . and /; a \
     login is given with --etcd-user and --etcd-password-file, never here"
)]
pub struct BadLocation;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Store,
    Epoch,
    Forgotten,
    Entry,
    Member(PublicKey),
    Use {
        grant: Hash,
        use_number: u32,
    },
    Heard(PublicKey),
    Live(PublicKey),
    /// Names, marks and joins, which only the stores look at; and what is not ours.
    Other,
}

impl FromStr for Location {
    type Err = BadLocation;

    fn from_str(text: &str) -> Result<Location, BadLocation> {
        let (is_tls, rest) = match text.split_once("://") {
            Some(("etcd", rest)) => (false, rest),
            Some(("etcds", rest)) => (true, rest),
            Some(_) | None => return Err(BadLocation),
        };
        let (hosts, prefix) = rest.split_once('/').ok_or(BadLocation)?;
        let prefix = prefix.trim_matches('/');
        let is_prefix = !prefix.is_empty()
            && prefix.bytes().all(|byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/')
            });
        let endpoints: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let are_endpoints = endpoints
            .iter()
            .all(|endpoint| proto::entry::is_broker_address(endpoint));
        if !is_prefix || !are_endpoints {
            return Err(BadLocation);
        }
        Ok(Location {
            is_tls,
            endpoints,
            prefix: prefix.to_owned(),
            access: AccessFiles::default(),
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "etcds" } else { "etcd" };
        let endpoints = self.endpoints.join(",");
        write!(out, "{scheme}://{endpoints}/{}", self.prefix)
    }
}

impl Location {
    /// The beginning of every key.
    pub(super) fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    pub(super) fn store(&self) -> String {
        format!("{}/store", self.prefix)
    }

    pub(super) fn epoch(&self) -> String {
        format!("{}/epoch", self.prefix)
    }

    /// Its revision is that of the last time anything was forgotten.
    pub(super) fn forgotten(&self) -> String {
        format!("{}/forgotten", self.prefix)
    }

    /// By number, then hash: parents come before what follows them.
    pub(super) fn entry(&self, number: u64, hash: &Hash) -> String {
        format!("{}/entries/{number:020}/{hash}", self.prefix)
    }

    pub(super) fn member(&self, identity: &PublicKey) -> String {
        format!("{}/members/{}", self.prefix, hex(identity))
    }

    pub(super) fn name(&self, site: &Name, node: &Name) -> String {
        format!("{}/names/{site}/{node}", self.prefix)
    }

    pub(super) fn mark(&self, identity: &PublicKey) -> String {
        format!("{}/marks/{}", self.prefix, hex(identity))
    }

    pub(super) fn uses(&self, grant: &Hash) -> String {
        format!("{}/uses/{grant}/", self.prefix)
    }

    pub(super) fn one_use(&self, grant: &Hash, number: u32) -> String {
        format!("{}/uses/{grant}/{number:010}", self.prefix)
    }

    pub(super) fn joined(&self, grant: &Hash, identity: &PublicKey) -> String {
        format!("{}/joined/{grant}/{}", self.prefix, hex(identity))
    }

    pub(super) fn heard(&self, identity: &PublicKey) -> String {
        format!("{}/heard/{}", self.prefix, hex(identity))
    }

    /// There while a broker holds a connection of the node; goes with the broker's lease.
    pub(super) fn live(&self, identity: &PublicKey) -> String {
        format!("{}/live/{}", self.prefix, hex(identity))
    }

    pub(super) fn place(&self, key: &[u8]) -> Place {
        self.try_place(key).unwrap_or(Place::Other)
    }

    fn try_place(&self, key: &[u8]) -> Option<Place> {
        let rest = std::str::from_utf8(key)
            .ok()?
            .strip_prefix(&self.prefix)?
            .strip_prefix('/')?;
        let parts: Vec<&str> = rest.split('/').collect();
        Some(match parts.as_slice() {
            ["store"] => Place::Store,
            ["epoch"] => Place::Epoch,
            ["forgotten"] => Place::Forgotten,
            ["entries", _, _] => Place::Entry,
            ["members", identity] => Place::Member(unhex(identity)?),
            ["heard", identity] => Place::Heard(unhex(identity)?),
            ["live", identity] => Place::Live(unhex(identity)?),
            ["uses", grant, number] => Place::Use {
                grant: grant.parse().ok()?,
                use_number: number.parse().ok()?,
            },
            _ => Place::Other,
        })
    }
}

fn hex(identity: &PublicKey) -> String {
    HEXLOWER.encode(identity.as_bytes())
}

pub(super) fn unhex(text: &str) -> Option<PublicKey> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
    PublicKey::new(bytes.try_into().ok()?).ok()
}
