//! How a command signs: it learns what the brokers know, signs nothing behind that, has the entry
//! on disk, and hands it over.

use anyhow::Context;
use proto::entry::{Body, SignedEntry};
use proto::key::Hash;
use proto::ledger::{Charter, Ledger};

use crate::authority::Authority;
use crate::authority::ledger_file::LedgerFile;
use crate::brokers::{self, Brokers, Caller};
use crate::command::{Directories, Signing};
use crate::print;
use crate::time;

/// Where one sits down to sign: the authority, and the brokers that can be reached.
pub(crate) struct Desk {
    authority: Authority,
    brokers: Brokers,
    directories: Directories,
    is_offline: bool,
}

impl Desk {
    pub(crate) fn open(arguments: &Signing) -> anyhow::Result<Desk> {
        let authority = Authority::open(&arguments.authority())?;
        let brokers = if arguments.offline {
            Brokers::none()?
        } else {
            reach(&authority, &arguments.directories)?
        };
        let mut desk = Desk {
            authority,
            brokers,
            directories: arguments.directories.clone(),
            is_offline: arguments.offline,
        };
        desk.catch_up()?;
        Ok(desk)
    }

    /// A ledger that is behind would sign a second entry with one number.
    fn catch_up(&mut self) -> anyhow::Result<()> {
        let mut found = self.brokers.fetch(self.authority.ledger());
        if let Some(local) = self.local_ledger()? {
            found.extend(local.ledger().entries().cloned());
        }
        let taken = self.authority.take(&found)?;
        for (name, why) in &taken.refused {
            eprintln!("causeway: a broker has {name}, which this ledger refuses: {why}");
        }
        if taken.new > 0 {
            eprintln!(
                "causeway: this ledger was behind; {} came from where they were known",
                print::count(taken.new, "entry", "entries")
            );
        }
        self.authority.check_in_force()?;
        Ok(())
    }

    /// Of this mesh's broker on this machine, if there is one.
    fn local_ledger(&self) -> anyhow::Result<Option<LedgerFile>> {
        let path = self.directories.broker_ledger();
        if !path.exists() {
            return Ok(None);
        }
        let broker = broker::directory::open(&self.directories.state_dir)?;
        let about = broker.about();
        // A broker of another mesh may live here as well.
        let is_ours = match about.mesh {
            Some(mesh) => mesh == self.ledger().mesh(),
            None => self.charter().authorities.contains(&about.authority),
        };
        if !is_ours {
            return Ok(None);
        }
        LedgerFile::open_for(&path, self.ledger().mesh()).map(Some)
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        self.authority.ledger()
    }

    pub(crate) fn charter(&self) -> &Charter {
        self.authority.ledger().charter()
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn brokers(&mut self) -> &mut Brokers {
        &mut self.brokers
    }

    /// Whether a broker was asked that counts the uses of this grant.
    pub(crate) fn knows_uses_of(&self, grant: &Hash) -> bool {
        let charter = self.charter();
        charter
            .grant(grant)
            .is_some_and(|standing| self.brokers.knows_store(charter, &standing.grant.store))
    }

    /// After an entry that changes which brokers there are.
    pub(crate) fn reach_again(&mut self) -> anyhow::Result<()> {
        if !self.is_offline {
            self.brokers = reach(&self.authority, &self.directories)?;
        }
        Ok(())
    }

    pub(crate) fn sign(&mut self, body: Body) -> anyhow::Result<SignedEntry> {
        self.authority.sign(time::now(), body)
    }

    pub(crate) fn sign_after(&mut self, previous: Hash, body: Body) -> anyhow::Result<SignedEntry> {
        self.authority.sign_after(previous, time::now(), body)
    }

    /// To every broker that can be reached, and to the ledger of the one on this machine. What was
    /// signed stands whatever comes of this, so it only speaks.
    pub(crate) fn hand_over(&mut self) {
        // Here, since what a fork forbids has failed before and says so itself.
        if self.charter().fork.is_some() {
            eprintln!(
                "causeway: the ledger is forked: its key has signed two entries with one number. `causeway ledger show` shows them, `causeway ledger settle` ends it"
            );
        }
        let kept = self.keep_locally();
        if let Err(error) = &kept {
            eprintln!(
                "causeway: the broker on this machine was not told: {}",
                print::error(error)
            );
        }
        let told = self.brokers.tell(self.authority.ledger());
        for refusal in &told.refused {
            eprintln!("causeway: {refusal}");
        }
        if !told.by.is_empty() {
            eprintln!("Told: {}.", print::list(&told.by));
            self.say_who_was_not_told();
            return;
        }
        let ledger = self.authority.directory().join("ledger");
        for why in self.brokers.failures() {
            eprintln!("causeway: {why}");
        }
        let untold = if self.is_offline {
            "was told, as you asked"
        } else {
            "could be told"
        };
        if matches!(kept, Ok(true)) {
            eprintln!(
                "No broker {untold}. The one on this machine reads it when it is started next; a running one, and others, learn of it by `causeway ledger push`."
            );
        } else {
            eprintln!(
                "No broker {untold}: it takes effect once one is. Run `causeway ledger push` when one can be reached, or carry {} to a broker's machine and run `causeway ledger push --file` there.",
                ledger.display()
            );
        }
    }

    fn say_who_was_not_told(&self) {
        let failures = self.brokers.failures();
        for why in failures {
            eprintln!("causeway: not told: {why}");
        }
        if !failures.is_empty() {
            eprintln!(
                "Nodes that know of it tell the others; to be sure, run `causeway ledger push` once those brokers can be reached."
            );
        }
    }

    /// Whether there is a broker here at all.
    fn keep_locally(&self) -> anyhow::Result<bool> {
        let Some(mut file) = self.local_ledger()? else {
            return Ok(false);
        };
        let entries: Vec<SignedEntry> = self.ledger().entries().cloned().collect();
        file.take(&entries)
            .context("its ledger cannot be written")?;
        Ok(true)
    }
}

/// The one on this machine, and all of the ledger.
fn reach(authority: &Authority, directories: &Directories) -> anyhow::Result<Brokers> {
    let ledger = authority.ledger();
    Brokers::reach(
        directories,
        brokers::places(ledger),
        ledger.mesh(),
        Caller::Authority(authority.key()),
    )
}
