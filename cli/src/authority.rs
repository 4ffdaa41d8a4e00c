//! The authority's directory: its key, and the ledger it has signed. Nothing that runs as a daemon
//! ever opens it.

pub(crate) mod ledger_file;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use data_encoding::BASE64URL_NOPAD;
use proto::entry::{Body, Entry, SignedEntry};
use proto::key::{Hash, SigningKey};
use proto::ledger::Ledger;
use zeroize::Zeroizing;

use crate::authority::ledger_file::{LedgerFile, Taken};
use crate::private;

const KEY: &str = "authority.key";
const LEDGER: &str = "ledger";
/// The first line of a key file, so that a later form can be told from this one.
const KEY_HEADER: &str = "causeway authority key 1";

/// Open for signing; locked, so that no two commands sign at once.
pub(crate) struct Authority {
    directory: PathBuf,
    key: SigningKey,
    file: LedgerFile,
}

impl Authority {
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Authority> {
        if !private::is_there(directory)? {
            bail!(
                "there is no authority in {}; give its directory with --authority, or make a mesh with `causeway broker init`",
                directory.display()
            );
        }
        private::check_directory(directory)?;
        let key = read_key(&directory.join(KEY))?;
        refuse_lost_ledger(directory)?;
        let file = LedgerFile::open(&directory.join(LEDGER))?;
        let authority = Authority {
            directory: directory.to_owned(),
            key,
            file,
        };
        authority.check_in_force()?;
        Ok(authority)
    }

    /// Asked again once the ledger has grown: it may hold a change of authority.
    pub(crate) fn check_in_force(&self) -> anyhow::Result<()> {
        if self.ledger().charter().authority == Some(self.key.public()) {
            return Ok(());
        }
        bail!(
            "the key in {} is not the authority in force: the authority was changed; use the directory that `causeway ledger recover` made",
            self.directory.join(KEY).display(),
        );
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn key(&self) -> &SigningKey {
        &self.key
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        self.file.ledger()
    }

    /// Signs what follows and has it on disk before anybody hears of it.
    pub(crate) fn sign(&mut self, now: u64, body: Body) -> anyhow::Result<SignedEntry> {
        let entry = self.ledger().next(now, body)?;
        self.append(entry)
    }

    /// The same on a chosen branch of a fork.
    pub(crate) fn sign_after(
        &mut self,
        previous: Hash,
        now: u64,
        body: Body,
    ) -> anyhow::Result<SignedEntry> {
        let entry = self.ledger().next_after(previous, now, body)?;
        self.append(entry)
    }

    fn append(&mut self, entry: Entry) -> anyhow::Result<SignedEntry> {
        let signed = entry.sign(&self.key);
        self.file.append(&signed)?;
        Ok(signed)
    }

    /// Takes entries that others have and this ledger lacks.
    pub(crate) fn take(&mut self, entries: &[SignedEntry]) -> anyhow::Result<Taken> {
        self.file.take(entries)
    }
}

/// Key and ledger for looking only: takes no lock and repairs nothing.
pub(crate) fn read(directory: &Path) -> anyhow::Result<(SigningKey, Ledger)> {
    private::check_directory(directory)?;
    let key = read_key(&directory.join(KEY))?;
    refuse_lost_ledger(directory)?;
    Ok((key, ledger_file::read(&directory.join(LEDGER))?))
}

fn refuse_lost_ledger(directory: &Path) -> anyhow::Result<()> {
    if private::is_there(&directory.join(LEDGER))? {
        return Ok(());
    }
    bail!(
        "the authority in {} has lost its ledger; fetch it from a broker with `causeway ledger restore`, or put a copy back",
        directory.display()
    );
}

/// Of a directory that has lost its ledger.
pub(crate) fn read_key_alone(directory: &Path) -> anyhow::Result<SigningKey> {
    private::check_directory(directory)?;
    let ledger = directory.join(LEDGER);
    if ledger.exists() {
        bail!(
            "there is a ledger in {}; it is never replaced. If it is damaged move it away first",
            directory.display()
        );
    }
    read_key(&directory.join(KEY))
}

/// Complete or not at all; only what this key rules.
pub(crate) fn write_ledger(
    directory: &Path,
    key: &SigningKey,
    ledger: &Ledger,
) -> anyhow::Result<()> {
    if ledger.charter().authority != Some(key.public()) {
        bail!(
            "the key in {} is not the authority in force of this mesh; nothing was written",
            directory.join(KEY).display()
        );
    }
    let path = directory.join(LEDGER);
    let staged = beside(&path, ".making")?;
    let text = proto::ledger_file::text(ledger.entries());
    if staged.exists() {
        fs::remove_file(&staged).map_err(|error| private::explain(error, "remove", &staged))?;
    }
    private::write_new(&staged, text.as_bytes())?;
    fs::rename(&staged, &path).map_err(|error| private::explain(error, "write", &path))?;
    private::sync_directory(directory)
}

/// "entry 7 (3fa9…)"
pub(crate) fn entry_name(entry: &SignedEntry) -> String {
    format!("entry {} ({})", entry.entry().number, entry.hash().short())
}

/// An authority's directory with all its entries, on disk but without its name yet.
pub(crate) struct Staged {
    path: PathBuf,
    directory: PathBuf,
}

pub(crate) fn stage(
    directory: &Path,
    key: &SigningKey,
    entries: &[SignedEntry],
) -> anyhow::Result<Staged> {
    let path = staging(directory)?;
    if path.exists() {
        // Left by a command that was cut off before its key was ever in use.
        fs::remove_dir_all(&path).map_err(|error| private::explain(error, "remove", &path))?;
    }
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent)
            .map_err(|error| private::explain(error, "make the directory", parent))?;
    }
    private::make_directory(&path)?;
    private::write_new(&path.join(KEY), key_text(key).as_bytes())?;
    let text = proto::ledger_file::text(entries);
    private::write_new(&path.join(LEDGER), text.as_bytes())?;
    private::sync_directory(&path)?;
    Ok(Staged {
        path,
        directory: directory.to_owned(),
    })
}

impl Staged {
    /// Complete or not at all; an authority that is there already stays.
    pub(crate) fn create(self) -> anyhow::Result<()> {
        if self.directory.exists() {
            bail!(
                "{} exists already; an authority is never replaced. Give another directory with --authority",
                self.directory.display()
            );
        }
        self.name()
    }

    /// Takes the place of the one that is there, which is kept under the name returned.
    pub(crate) fn replace(self) -> anyhow::Result<Option<PathBuf>> {
        if !self.directory.exists() {
            return self.name().map(|()| None);
        }
        let old = (1..)
            .map(|number| beside(&self.directory, &format!(".replaced-{number}")))
            .find(|old| old.as_ref().is_ok_and(|old| !old.exists()))
            .context("there is no free name for the old authority")??;
        fs::rename(&self.directory, &old)
            .map_err(|error| private::explain(error, "move away", &self.directory))?;
        self.name().map(|()| Some(old))
    }

    fn name(mut self) -> anyhow::Result<()> {
        fs::rename(&self.path, &self.directory)
            .map_err(|error| private::explain(error, "make the directory", &self.directory))?;
        self.path.clear();
        match self.directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => private::sync_directory(parent),
            Some(_) | None => private::sync_directory(Path::new(".")),
        }
    }
}

/// What was not named in the end goes.
impl Drop for Staged {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _gone = fs::remove_dir_all(&self.path);
        }
    }
}

/// Where a directory is filled before it gets its name.
fn staging(directory: &Path) -> anyhow::Result<PathBuf> {
    beside(directory, ".making")
}

fn beside(directory: &Path, ending: &str) -> anyhow::Result<PathBuf> {
    let name = directory
        .file_name()
        .with_context(|| format!("{} is no directory to make", directory.display()))?;
    let mut name = name.to_owned();
    name.push(ending);
    Ok(directory.with_file_name(name))
}

fn key_text(key: &SigningKey) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(128));
    text.push_str(KEY_HEADER);
    text.push('\n');
    BASE64URL_NOPAD.encode_append(&*key.seed(), &mut text);
    text.push('\n');
    text
}

fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = private::read_secret(path)?;
    let seed = text
        .strip_prefix(KEY_HEADER)
        .and_then(|rest| decode_seed(rest.trim()));
    match seed {
        Some(seed) => Ok(SigningKey::from_seed(&seed)),
        None => bail!(
            "{} holds no authority key, or a damaged one; restore it from a copy, or replace the authority with `causeway ledger recover`",
            path.display()
        ),
    }
}

/// 32 bytes in base64url.
pub(crate) fn decode_seed(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?);
    let mut seed = Zeroizing::new([0; 32]);
    if bytes.len() != seed.len() {
        return None;
    }
    seed.copy_from_slice(&bytes);
    Some(seed)
}

/// A new key from the kernel's random generator.
pub(crate) fn new_seed() -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed)
        .map_err(|error| anyhow::anyhow!("the kernel gives no random numbers: {error}"))?;
    Ok(seed)
}
