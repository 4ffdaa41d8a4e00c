//! The brokers that an operator's command can reach: what they have, and telling them what is new.
//! One that cannot be reached is a word to the operator, never an error by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use node::session::{Failure, Session, Ways, Why};
use proto::entry::{SignedEntry, StoreId};
use proto::hello::Welcome;
use proto::key::{Hash, MeshId, PublicKey, SigningKey};
use proto::ledger::{Charter, Ledger};
use proto::message::{GrantUse, NodeStatus, Refusal};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::command::Directories;
use crate::print;

/// Waiting this long needs no word.
const QUIET: Duration = Duration::from_secs(1);

pub(crate) struct Brokers {
    runtime: Runtime,
    reached: Vec<Session>,
    /// Of those reached by TLS, and of the local one if its directory tells.
    keys: BTreeSet<PublicKey>,
    /// The local one answers, and nothing readable here says which one it is.
    is_stranger_here: bool,
    failures: Vec<String>,
}

/// As whom a command calls. The local socket asks nobody.
#[derive(Clone, Copy)]
pub(crate) enum Caller<'a> {
    Authority(&'a SigningKey),
    Node {
        identity: &'a SigningKey,
        enrolment: &'a [u8],
        ways: &'a Ways,
    },
    /// Whoever may open the local socket.
    Local,
}

impl Caller<'_> {
    fn ways(&self) -> Ways {
        match self {
            Caller::Node { ways, .. } => Ways::clone(ways),
            Caller::Authority(_) | Caller::Local => Ways::default(),
        }
    }
}

/// A broker as the ledger or a node's membership names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) pin: PublicKey,
}

/// What came of handing over.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) by: Vec<String>,
    pub(crate) refused: Vec<String>,
}

/// While connections are opened.
#[derive(Default)]
struct Found {
    reached: Vec<Session>,
    keys: BTreeSet<PublicKey>,
    is_stranger_here: bool,
    failures: Vec<String>,
}

impl Brokers {
    pub(crate) fn none() -> anyhow::Result<Brokers> {
        Ok(Brokers {
            runtime: runtime()?,
            reached: Vec::new(),
            keys: BTreeSet::new(),
            is_stranger_here: false,
            failures: Vec::new(),
        })
    }

    /// The one on this machine, and those of `places`.
    pub(crate) fn reach(
        directories: &Directories,
        places: Vec<Place>,
        mesh: MeshId,
        caller: Caller<'_>,
    ) -> anyhow::Result<Brokers> {
        let socket = directories.broker_socket();
        let mut brokers = Brokers::none()?;
        let mut found = Found::default();
        let places = if matches!(caller, Caller::Local) {
            Vec::new()
        } else {
            places
        };
        let has_socket = socket.exists();
        if !has_socket && matches!(caller, Caller::Local) {
            found.failures.push(format!(
                "{}: there is no such socket; is the broker running, and is --runtime-dir the one it was given?",
                socket.display()
            ));
        }
        let mut asked: Vec<String> = places.iter().map(|place| place.address.clone()).collect();
        if has_socket {
            asked.insert(0, socket.display().to_string());
        }
        let asked = print::list(&asked);
        brokers.runtime.block_on(patiently(&asked, async {
            if !has_socket {
                return found.connect(places, mesh, caller).await;
            }
            let mut local = pin!(Session::connect_local(&socket, mesh));
            // One that hangs must not keep the others waiting for their turn.
            let Ok(opened) = timeout(QUIET, &mut local).await else {
                let (opened, ()) = tokio::join!(local, found.connect(places, mesh, caller));
                return found.take_local(opened, directories);
            };
            found.take_local(opened, directories);
            found.connect(places, mesh, caller).await;
        }));
        brokers.reached = found.reached;
        brokers.keys = found.keys;
        brokers.is_stranger_here = found.is_stranger_here;
        brokers.failures = found.failures;
        Ok(brokers)
    }

    /// Whether a broker of this mesh answers on the local socket that cannot be told by its key.
    pub(crate) fn is_stranger_here(&self) -> bool {
        self.is_stranger_here
    }

    pub(crate) fn is_any(&self) -> bool {
        !self.reached.is_empty()
    }

    pub(crate) fn has_reached(&self, broker: &PublicKey) -> bool {
        self.keys.contains(broker)
    }

    /// Whether one was asked that counts for this store: others know nothing of its uses.
    pub(crate) fn knows_store(&self, charter: &Charter, store: &StoreId) -> bool {
        let mut counting = charter
            .brokers
            .iter()
            .filter(|broker| broker.store == *store);
        counting.any(|broker| self.keys.contains(&broker.key))
    }

    /// Why which could not be reached.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// What brokers have of this ledger's mesh and it lacks. Nothing of it is verified.
    pub(crate) fn fetch(&mut self, ledger: &Ledger) -> Vec<SignedEntry> {
        let heads = ledger.heads();
        let mut found = Vec::new();
        for session in &mut self.reached {
            match self.runtime.block_on(session.fetch_ledger(&heads)) {
                Ok(fetched) => {
                    for bytes in fetched.entries {
                        match SignedEntry::read(&bytes) {
                            Ok(entry) => found.push(entry),
                            Err(why) => self.failures.push(format!(
                                "{}: it sent a ledger entry that cannot be read: {why}",
                                session.address()
                            )),
                        }
                    }
                }
                Err(failure) if is_empty(&failure) => {}
                Err(failure) => self.failures.push(failure.to_string()),
            }
        }
        found
    }

    /// Hands each what it lacks.
    pub(crate) fn tell(&mut self, ledger: &Ledger) -> Told {
        let mut told = Told::default();
        for session in &mut self.reached {
            let address = session.address().to_owned();
            let done = self.runtime.block_on(hand_over(session, ledger));
            match done {
                Ok(()) => told.by.push(address),
                Err(failure) => told.refused.push(failure.to_string()),
            }
        }
        told
    }

    /// All uses of grants that any of them lists, in order and without repetition. Nothing of it
    /// is verified, and one may come with several proofs.
    pub(crate) fn uses(&mut self) -> Vec<GrantUse> {
        let mut found: BTreeSet<GrantUse> = BTreeSet::new();
        for session in &mut self.reached {
            match self.runtime.block_on(session.list_uses()) {
                Ok(uses) => found.extend(uses),
                Err(failure) => self.failures.push(failure.to_string()),
            }
        }
        found.into_iter().collect()
    }

    /// All that any of them lists. A node may come twice, from two stores.
    pub(crate) fn nodes(&mut self) -> Vec<NodeStatus> {
        let mut found = Vec::new();
        for session in &mut self.reached {
            match self.runtime.block_on(session.list_nodes()) {
                Ok(nodes) => found.extend(nodes),
                Err(failure) => self.failures.push(failure.to_string()),
            }
        }
        found
    }
}

impl Found {
    fn take_local(
        &mut self,
        opened: Result<(Session, Welcome), Failure>,
        directories: &Directories,
    ) {
        match opened {
            Ok((session, _)) => {
                self.reached.push(session);
                match directories.local_broker() {
                    Some(local) => drop(self.keys.insert(local.key().public())),
                    None => self.is_stranger_here = true,
                }
            }
            Err(failure) => self.failures.push(failure.to_string()),
        }
    }

    /// To all at once; of several addresses of one broker the first that works is kept.
    async fn connect(&mut self, places: Vec<Place>, mesh: MeshId, caller: Caller<'_>) {
        let mut opening = JoinSet::new();
        // Its own host may not reach a broker by the address that others use.
        let places = places
            .into_iter()
            .filter(|place| !self.keys.contains(&place.pin));
        for Place { address, pin } in places {
            let ways = caller.ways();
            opening.spawn(async move {
                let connected = Session::connect_by(&address, pin, mesh, &ways);
                (pin, connected.await)
            });
        }
        let mut failed: BTreeMap<PublicKey, Vec<String>> = BTreeMap::new();
        while let Some(opened) = opening.join_next().await {
            // A task neither panics nor is it ended from outside.
            let Ok((pin, opened)) = opened else { continue };
            if self.keys.contains(&pin) {
                continue;
            }
            match opened {
                Ok((session, _)) => match authenticate(session, caller).await {
                    Ok(session) => {
                        self.reached.push(session);
                        self.keys.insert(pin);
                    }
                    Err(failure) => failed.entry(pin).or_default().push(failure.to_string()),
                },
                Err(failure) => failed.entry(pin).or_default().push(failure.to_string()),
            }
        }
        failed.retain(|pin, _| !self.keys.contains(pin));
        self.failures.extend(failed.into_values().flatten());
    }
}

/// Says what one is waiting for once it takes longer than a breath.
async fn patiently(asked: &str, work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    if timeout(QUIET, &mut work).await.is_err() {
        eprintln!("causeway: waiting for brokers to answer ({asked}); --offline does without");
        work.await;
    }
}

/// The mesh of the broker whose socket this user may open: it is told by the kernel that it is
/// the right one, and everything it says is judged by the mesh.
pub(crate) fn mesh_of_local(directories: &Directories) -> Option<MeshId> {
    let socket = directories.broker_socket();
    if !socket.exists() {
        return None;
    }
    let unknown = Hash([0; 32]);
    let asked = runtime()
        .ok()?
        .block_on(Session::connect_local(&socket, unknown));
    match asked {
        Ok((_, welcome)) => Some(welcome.mesh),
        Err(failure) => {
            if let Why::OtherMesh(mesh) = failure.why {
                Some(mesh)
            } else {
                None
            }
        }
    }
    .filter(|mesh| *mesh != unknown)
}

/// Where the ledger says that brokers are.
pub(crate) fn places(ledger: &Ledger) -> Vec<Place> {
    let brokers = ledger.charter().brokers.iter();
    brokers
        .flat_map(|broker| {
            broker.addresses.iter().map(|address| Place {
                address: address.clone(),
                pin: broker.key,
            })
        })
        .collect()
}

async fn authenticate(mut session: Session, caller: Caller<'_>) -> Result<Session, Failure> {
    match caller {
        Caller::Authority(key) => session.authenticate_authority(key).await?,
        Caller::Node {
            identity,
            enrolment,
            ..
        } => session.authenticate_node(identity, enrolment).await?,
        Caller::Local => {}
    }
    Ok(session)
}

async fn hand_over(session: &mut Session, ledger: &Ledger) -> Result<(), Failure> {
    let heads: Vec<Hash> = match session.fetch_ledger(&ledger.heads()).await {
        Ok(fetched) => fetched.heads,
        Err(failure) if is_empty(&failure) => Vec::new(),
        Err(failure) => return Err(failure),
    };
    let missing = ledger.missing(&heads);
    if !missing.is_empty() {
        session.put_ledger(missing).await?;
    }
    Ok(())
}

/// A broker that waits for its ledger has none to give.
fn is_empty(failure: &Failure) -> bool {
    failure.refusal() == Some(&Refusal::NotReady)
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start what talks to brokers")
}
