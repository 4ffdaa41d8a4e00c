//! The store of several brokers at once, in etcd.
//!
//! Every read is linearizable. A revision is etcd's. Liveness of a broker is its lease.

mod access;
mod client;
mod dial;
mod keys;
mod lease;
mod login;
mod reading;
mod watch;
mod wire;
mod writing;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::entry::{SignedEntry, StoreId};
use proto::key::{Hash, PublicKey, SigningKey};

pub use self::access::{Access, AccessError, AccessFiles};
use self::client::{CallError, Client};
pub use self::keys::{BadLocation, Location};
use self::lease::{Connections, Keeper};
use self::watch::Watch;
use self::wire::{Txn, TxnAnswer};
use super::{
    Batch, Claim, Contents, Doing, Enrolled, Heard, Publication, Published, Store, StoreError,
};

/// After this a broker's nodes count as not connected when the broker is gone.
const TIME_TO_LIVE: Duration = Duration::from_secs(10);
/// Joins with one grant wait for each other, so that they race only with other brokers.
const TURNS: usize = 64;

#[derive(Debug)]
pub struct EtcdStore {
    location: Location,
    store: StoreId,
    client: Arc<Client>,
    connections: Arc<Connections>,
    turns: Vec<tokio::sync::Mutex<()>>,
    /// Where the last caller of `changes` stopped.
    watch: Mutex<Option<Watch>>,
    _keeper: Keeper,
}

impl EtcdStore {
    /// Makes the store there if there is none; returns the id of the one that is there.
    pub async fn ensure(
        location: &Location,
        access: &Access,
        proposed: StoreId,
    ) -> Result<StoreId, StoreError> {
        let client = Client::new(location, access);
        let mut epoch = [0; 16];
        getrandom::fill(&mut epoch).map_err(|error| {
            StoreError::Down(format!("the system gives no random numbers: {error}"))
        })?;
        let mut txn = Txn::new();
        txn.unchanged(&location.store(), 0)
            .put(&location.store(), proposed.0)
            .put(&location.epoch(), epoch);
        let made: Result<TxnAnswer, CallError> = client.call("/v3/kv/txn", &txn.request()).await;
        made.map_err(|error| not_made(location, error))?;
        find_store(location, &client).await?.ok_or_else(|| {
            StoreError::Down(format!(
                "{location} lost what was just written; see to etcd"
            ))
        })
    }

    /// The store that [`EtcdStore::ensure`] found or made. Needs a runtime, as long as it lives.
    pub async fn connect(
        location: Location,
        access: &Access,
        store: StoreId,
    ) -> Result<EtcdStore, StoreError> {
        EtcdStore::connect_with(location, access, store, TIME_TO_LIVE).await
    }

    /// etcd gives no lease shorter than one and a half election times.
    pub async fn connect_with(
        location: Location,
        access: &Access,
        store: StoreId,
        time_to_live: Duration,
    ) -> Result<EtcdStore, StoreError> {
        let client = Arc::new(Client::new(&location, access));
        let connections = Arc::new(Connections::new(
            Arc::clone(&client),
            location.clone(),
            time_to_live,
        ));
        let connected = EtcdStore {
            _keeper: connections.keep(),
            location,
            store,
            client,
            connections,
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::new(())).collect(),
            watch: Mutex::new(None),
        };
        match find_store(&connected.location, &connected.client).await? {
            Some(found) if found == store => Ok(connected),
            Some(found) => Err(connected.is_another(found)),
            None => Err(connected.is_empty()),
        }
    }

    fn is_empty(&self) -> StoreError {
        StoreError::Damaged(format!(
            "{} holds no store, and this broker's was there; put etcd back from a backup, or look \
             whether the address is right. Without a backup make a new broker in another state \
             directory (causeway broker init --mesh AUTHORITY_KEY --store URL), enter it with \
             `causeway broker add`, remove this one with `causeway broker remove`, and create \
             unused tokens anew: nodes that have joined publish there again by themselves",
            self.location
        ))
    }

    fn is_another(&self, found: StoreId) -> StoreError {
        StoreError::Damaged(format!(
            "{} holds store {found}, and this broker's is {}; put the address right, or make a \
             new broker for that store with: causeway broker init --store URL",
            self.location, self.store
        ))
    }

    fn turn(&self, grant: &Hash) -> &tokio::sync::Mutex<()> {
        &self.turns[usize::from(grant.0[0]) % self.turns.len()]
    }

    fn take_watch(&self, after: u64) -> Option<Watch> {
        self.watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(|watch| watch.position == after)
    }

    fn keep_watch(&self, watch: Watch) {
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
    }
}

impl Store for EtcdStore {
    fn load(&self) -> Doing<'_, Contents> {
        Box::pin(self.read_all())
    }

    fn changes(&self, after: u64) -> Doing<'_, Batch> {
        Box::pin(self.follow(after))
    }

    fn append(&self, entries: Vec<SignedEntry>) -> Doing<'_, u64> {
        Box::pin(async move { self.append_all(&entries).await })
    }

    fn enrol(&self, claim: Claim, broker: Arc<SigningKey>) -> Doing<'_, Enrolled> {
        Box::pin(async move {
            let _turn = self.turn(&claim.grant).lock().await;
            self.enrol_one(&claim, &broker).await
        })
    }

    fn publish(&self, publication: Publication) -> Doing<'_, Published> {
        Box::pin(async move { self.publish_one(&publication).await })
    }

    fn forget(&self, identities: Vec<PublicKey>) -> Doing<'_, u64> {
        Box::pin(async move {
            let mut revision = None;
            for identity in &identities {
                revision = Some(self.forget_one(identity).await?);
            }
            match revision {
                Some(revision) => Ok(revision),
                None => self.current_revision().await,
            }
        })
    }

    fn heard(&self, heard: Vec<(PublicKey, Heard)>) -> Doing<'_, ()> {
        Box::pin(async move { self.connections.say(&heard).await })
    }
}

/// Nobody tries it again by themselves.
fn not_made(location: &Location, error: CallError) -> StoreError {
    let reason = match error {
        CallError::Down(reasons) => reasons,
        CallError::Refused(failure) => failure.message,
    };
    StoreError::Down(format!(
        "{location} cannot be used: {reason}. Put it right and repeat the command"
    ))
}

async fn find_store(location: &Location, client: &Client) -> Result<Option<StoreId>, StoreError> {
    let txn = Txn::new().get(&location.store()).request();
    let found: TxnAnswer = client.call("/v3/kv/txn", &txn).await?;
    match found.pairs(0).first() {
        None => Ok(None),
        Some(pair) => match pair.value.0.as_slice().try_into() {
            Ok(id) => Ok(Some(StoreId(id))),
            Err(_) => Err(StoreError::Damaged(format!(
                "{location} holds something that is no store of Causeway; choose another prefix"
            ))),
        },
    }
}
