//! The broker's directory `D/broker`: its key, what it is a broker of, and the ledger entries that
//! the operator's commands on this host leave for it. The authority's directory is not its matter.

mod files;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use proto::entry::{SignedEntry, StoreId};
use proto::key::{MeshId, PublicKey, SigningKey};
use proto::ledger_file;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::store::StoreError;
use crate::store::etcd::{Access, AccessError, AccessFiles, BadLocation, EtcdStore, Location};
use crate::store::redb::RedbStore;

use files::{Staged, failed};

const VERSION: u32 = 1;
const KEY: &str = "broker.key";
const ABOUT: &str = "broker.json";
const LEDGER: &str = "ledger";
const STORE: &str = "store.redb";

#[derive(Debug, Error)]
pub enum DirectoryError {
    #[error("cannot {doing} {}: {error}", .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(
        "{} exists: this is a broker already. Run it with `causeway broker run`, or use another \
         --state-dir",
        .path.display()
    )]
    Exists { path: PathBuf },
    #[error("there is no broker in {}: make one with `causeway broker init`", .path.display())]
    Missing { path: PathBuf },
    #[error(
        "{} can be read or written by others (mode {mode:o}): `chmod {wanted:o} {}`",
        .path.display(), .path.display()
    )]
    Loose {
        path: PathBuf,
        mode: u32,
        wanted: u32,
    },
    #[error("{} is a symbolic link: put what it leads to in its place", .path.display())]
    Link { path: PathBuf },
    #[error(
        "{} belongs to user {owner}, this process is user {us}: run it as that user, or \
         `chown -R {us} {}`",
        .path.display(), .path.display()
    )]
    Owner { path: PathBuf, owner: u32, us: u32 },
    #[error("{} is damaged: {why}. Restore it from a copy; it is not made anew", .path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} was written by a newer Causeway (version {version}); upgrade this one", .path.display())]
    Newer { path: PathBuf, version: u32 },
    #[error(
        "the authority's directory {} must lie outside {}, which the broker can read: choose \
         another --authority",
        .authority.display(), .path.display()
    )]
    Inside { authority: PathBuf, path: PathBuf },
    #[error("the store cannot be used: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Access(#[from] AccessError),
    #[error("{} cannot name a path that is not UTF-8: choose other names", .path.display())]
    PathText { path: PathBuf },
    #[error("the store {0} cannot be used: give `redb`, or an etcd. {1}")]
    StoreUrl(String, BadLocation),
}

/// Where a broker keeps what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// One file in the broker's directory.
    Redb,
    /// `etcds://HOST:PORT,HOST:PORT/PREFIX`, and what etcd asks for besides.
    Etcd(Location),
}

/// What a broker is, as `broker.json` holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// `None` until a broker made with `--mesh` has its ledger.
    pub mesh: Option<MeshId>,
    /// Of the mesh when the broker was made.
    pub authority: PublicKey,
    pub store_id: StoreId,
    pub store: StoreUrl,
    /// Where `broker init` put the authority, if it did; only to warn that it is on this host.
    pub authority_directory: Option<PathBuf>,
}

/// What `broker init` puts into a new directory.
pub struct New {
    pub key: SigningKey,
    pub about: About,
    /// Entry 0 and those that name this broker; empty with `--mesh`.
    pub entries: Vec<SignedEntry>,
}

/// A complete directory that has no name yet. Dropped, it leaves nothing behind.
pub struct Prepared {
    staged: Staged,
    wanted: PathBuf,
}

/// An opened directory.
pub struct Directory {
    path: PathBuf,
    key: SigningKey,
    about: About,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    mesh: Option<String>,
    authority: String,
    store_id: String,
    store: String,
    /// Names of files, never what is in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etcd: Option<AccessFiles>,
    authority_directory: Option<PathBuf>,
}

/// Makes everything under another name, so that [`Prepared::commit`] is one rename.
pub fn prepare(state_directory: &Path, new: &New) -> Result<Prepared, DirectoryError> {
    let wanted = state_directory.join("broker");
    if fs::symlink_metadata(&wanted).is_ok() {
        return Err(DirectoryError::Exists { path: wanted });
    }
    if let Some(authority) = &new.about.authority_directory
        && authority.starts_with(&wanted)
    {
        return Err(DirectoryError::Inside {
            authority: authority.clone(),
            path: wanted,
        });
    }
    let path = state_directory.join("broker.new");
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &path)(error));
        }
        Ok(()) | Err(_) => {}
    }
    files::make_directory(&path)?;
    let staged = Staged { path, kept: false };
    fill(&staged.path, new)?;
    files::sync_directory(&staged.path)?;
    Ok(Prepared { staged, wanted })
}

fn fill(path: &Path, new: &New) -> Result<(), DirectoryError> {
    let seed = new.key.seed();
    let key = Zeroizing::new(data_encoding::BASE64URL_NOPAD.encode(&*seed) + "\n");
    files::write_new(&path.join(KEY), key.as_bytes())?;
    files::write_new(&path.join(ABOUT), &new.about.write(&path.join(ABOUT))?)?;
    let ledger = ledger_file::text(&new.entries);
    files::write_new(&path.join(LEDGER), ledger.as_bytes())?;
    match new.about.store {
        StoreUrl::Redb => Ok(RedbStore::create(&path.join(STORE), new.about.store_id)?),
        StoreUrl::Etcd(_) => Ok(()),
    }
}

impl Prepared {
    /// Gives the directory its name.
    pub fn commit(mut self) -> Result<(), DirectoryError> {
        fs::rename(&self.staged.path, &self.wanted).map_err(failed("name", &self.wanted))?;
        self.staged.kept = true;
        files::sync_directory(self.wanted.parent().unwrap_or(&self.wanted))
    }
}

/// Makes `D/broker`, complete or not at all.
pub fn init(state_directory: &Path, new: &New) -> Result<(), DirectoryError> {
    prepare(state_directory, new)?.commit()
}

/// Opens `D/broker`, checking that nobody else can read it.
pub fn open(state_directory: &Path) -> Result<Directory, DirectoryError> {
    let path = state_directory.join("broker");
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DirectoryError::Missing { path });
        }
        Ok(_) | Err(_) => {}
    }
    files::check_private(&path)?;
    let key = read_key(&path.join(KEY))?;
    let about_path = path.join(ABOUT);
    let about = About::read(&files::read_private(&about_path)?, &about_path)?;
    Ok(Directory { path, key, about })
}

/// The id for a new broker's store: a new one, or the one that other brokers of it have. Waits
/// for the store if it is not in this directory.
pub fn claim_store(store: &StoreUrl) -> Result<StoreId, DirectoryError> {
    let mut fresh = [0; 16];
    getrandom::fill(&mut fresh)
        .map_err(|error| failed("read", Path::new("the random generator"))(error.into()))?;
    match store {
        StoreUrl::Redb => Ok(StoreId(fresh)),
        StoreUrl::Etcd(location) => claim_etcd(location, StoreId(fresh)),
    }
}

/// On a thread of its own, since the caller may or may not be within a runtime.
fn claim_etcd(location: &Location, fresh: StoreId) -> Result<StoreId, DirectoryError> {
    let access = Access::read(location)?;
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(failed("start", Path::new("a runtime")))?;
            Ok(runtime.block_on(EtcdStore::ensure(location, &access, fresh))?)
        });
        asked
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Directory {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    pub fn store_path(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// A broker that waited for its ledger has got it.
    pub fn set_mesh(&mut self, mesh: MeshId) -> Result<(), DirectoryError> {
        let about = About {
            mesh: Some(mesh),
            ..self.about.clone()
        };
        let written = about.write(&self.path.join(ABOUT))?;
        files::replace(&self.path.join(ABOUT), &written)?;
        self.about = about;
        Ok(())
    }

    /// The entries that commands on this host have left here.
    pub fn ledger(&self) -> Result<Vec<SignedEntry>, DirectoryError> {
        let path = self.path.join(LEDGER);
        let text = files::read_private(&path)?;
        let parsed = ledger_file::parse(&text).map_err(|why| DirectoryError::Damaged {
            path,
            why: why.to_string(),
        })?;
        Ok(parsed.entries)
    }

    /// Leaves entries for the next start of the broker; those already there are left out. Durable
    /// when this returns.
    pub fn append(&self, entries: &[SignedEntry]) -> Result<(), DirectoryError> {
        let path = self.path.join(LEDGER);
        files::check_private(&path)?;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        let mut file = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed("lock", &path)(errno.into()))?;
        let known = self.ledger()?;
        let (kept, mut lines) = mend(&files::read_private(&path)?, known.len());
        file.set_len(kept).map_err(failed("repair", &path))?;
        let is_new = |entry: &&SignedEntry| known.iter().all(|old| old.hash() != entry.hash());
        lines.extend(entries.iter().filter(is_new).map(ledger_file::line));
        file.write_all(lines.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &path))
    }
}

/// How much of the file to keep, and what to begin with, if whoever wrote last crashed within a
/// line: one that holds a whole entry gets its end, any other goes.
fn mend(text: &[u8], entries: usize) -> (u64, String) {
    let whole_lines = text.iter().filter(|byte| **byte == b'\n').count();
    let whole = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let length = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    // The first line is no entry.
    if entries + 1 > whole_lines {
        (length(text.len()), "\n".to_owned())
    } else {
        (length(whole), String::new())
    }
}

impl About {
    fn write(&self, path: &Path) -> Result<Vec<u8>, DirectoryError> {
        let written = Written {
            version: VERSION,
            mesh: self.mesh.map(|mesh| mesh.to_string()),
            authority: self.authority.to_string(),
            store_id: self.store_id.to_string(),
            store: self.store.to_string(),
            etcd: match &self.store {
                StoreUrl::Redb => None,
                StoreUrl::Etcd(location) => Some(location.access.clone()),
            },
            authority_directory: self.authority_directory.clone(),
        };
        let mut text =
            serde_json::to_vec_pretty(&written).map_err(|_| DirectoryError::PathText {
                path: path.to_owned(),
            })?;
        text.push(b'\n');
        Ok(text)
    }

    fn read(text: &[u8], path: &Path) -> Result<About, DirectoryError> {
        let damaged = |why: String| DirectoryError::Damaged {
            path: path.to_owned(),
            why,
        };
        let any: serde_json::Value =
            serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        let version = any.get("version").and_then(serde_json::Value::as_u64);
        match version.and_then(|version| u32::try_from(version).ok()) {
            Some(VERSION) => {}
            Some(version) if version > VERSION => {
                return Err(DirectoryError::Newer {
                    path: path.to_owned(),
                    version,
                });
            }
            Some(_) | None => return Err(damaged("it names no version".to_owned())),
        }
        let written: Written =
            serde_json::from_value(any).map_err(|error| damaged(error.to_string()))?;
        About::parse(&written).map_err(damaged)
    }

    fn parse(written: &Written) -> Result<About, String> {
        let mesh = written.mesh.as_deref().map(str::parse).transpose();
        let store_id = data_encoding::HEXLOWER
            .decode(written.store_id.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or("its store_id is not 32 hexadecimal digits")?;
        Ok(About {
            mesh: mesh.map_err(|_| "its mesh is not 64 hexadecimal digits")?,
            authority: written
                .authority
                .parse()
                .map_err(|error| format!("its authority is no key: {error}"))?,
            store_id: StoreId(store_id),
            store: written.store()?,
            authority_directory: written.authority_directory.clone(),
        })
    }
}

impl Written {
    fn store(&self) -> Result<StoreUrl, String> {
        let store: StoreUrl = self.store.parse().map_err(|error| format!("{error}"))?;
        store
            .with(self.etcd.clone().unwrap_or_default())
            .map_err(|error| error.to_string())
    }
}

impl StoreUrl {
    /// With what etcd asks for besides, where it is given; the rest stays.
    pub fn with(self, access: AccessFiles) -> Result<StoreUrl, AccessError> {
        match self {
            StoreUrl::Redb => access.check_empty().map(|()| StoreUrl::Redb),
            StoreUrl::Etcd(mut location) => {
                location.access = access.absolute()?.or(location.access);
                Ok(StoreUrl::Etcd(location))
            }
        }
    }
}

impl FromStr for StoreUrl {
    type Err = DirectoryError;

    fn from_str(text: &str) -> Result<StoreUrl, DirectoryError> {
        if text == "redb" {
            return Ok(StoreUrl::Redb);
        }
        text.parse()
            .map(StoreUrl::Etcd)
            .map_err(|why| DirectoryError::StoreUrl(text.to_owned(), why))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Redb => out.pad("redb"),
            StoreUrl::Etcd(location) => location.fmt(out),
        }
    }
}

fn read_key(path: &Path) -> Result<SigningKey, DirectoryError> {
    let text = Zeroizing::new(files::read_private(path)?);
    let damaged = |why: &str| DirectoryError::Damaged {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let line = text.strip_suffix(b"\n").unwrap_or(&text);
    let mut seed = Zeroizing::new([0; 32]);
    match data_encoding::BASE64URL_NOPAD.decode_len(line.len()) {
        Ok(32) => {}
        Ok(_) | Err(_) => return Err(damaged("a key is 43 characters of base64url")),
    }
    data_encoding::BASE64URL_NOPAD
        .decode_mut(line, &mut *seed)
        .map_err(|_| damaged("a key is 43 characters of base64url"))?;
    Ok(SigningKey::from_seed(&seed))
}
