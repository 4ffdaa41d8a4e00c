//! A store that cannot write, one that has failed, and a stop in good order.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use broker::run::Error;
use broker::store::redb::RedbStore;
use broker::store::{
    Batch, Claim, Contents, Doing, Enrolled, Heard, Publication, Published, Store, StoreError,
};
use proto::entry::SignedEntry;
use proto::key::{Hash, PublicKey, SigningKey};
use proto::message::{Refusal, Reply, Request};
use tokio::net::TcpStream;

use crate::cast::{Actor, Authority, Host, STORE, Terms, random};
use crate::client::get;

/// A store whose writes fail when told to.
struct Frail {
    inner: RedbStore,
    fails: Arc<Mutex<Option<StoreError>>>,
    directory: std::path::PathBuf,
}

impl Frail {
    fn new() -> (Arc<Frail>, Arc<Mutex<Option<StoreError>>>) {
        let name = format!("causeway-frail-{}", Hash(random()).short());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("store.redb");
        RedbStore::create(&path, STORE).unwrap();
        let fails = Arc::new(Mutex::new(None));
        let store = Frail {
            inner: RedbStore::open(&path, STORE).unwrap(),
            fails: Arc::clone(&fails),
            directory,
        };
        (Arc::new(store), fails)
    }

    fn write<'a, T: 'a>(&self, doing: Doing<'a, T>) -> Doing<'a, T> {
        match self.fails.lock().unwrap().clone() {
            Some(error) => Box::pin(async move { Err(error) }),
            None => doing,
        }
    }
}

impl Drop for Frail {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

impl Store for Frail {
    fn load(&self) -> Doing<'_, Contents> {
        self.inner.load()
    }

    fn changes(&self, after: u64) -> Doing<'_, Batch> {
        self.inner.changes(after)
    }

    fn append(&self, entries: Vec<SignedEntry>) -> Doing<'_, u64> {
        self.write(self.inner.append(entries))
    }

    fn enrol(&self, claim: Claim, broker: Arc<SigningKey>) -> Doing<'_, Enrolled> {
        self.write(self.inner.enrol(claim, broker))
    }

    fn publish(&self, publication: Publication) -> Doing<'_, Published> {
        self.write(self.inner.publish(publication))
    }

    fn forget(&self, identities: Vec<PublicKey>) -> Doing<'_, u64> {
        self.write(self.inner.forget(identities))
    }

    fn heard(&self, heard: Vec<(PublicKey, Heard)>) -> Doing<'_, ()> {
        self.write(self.inner.heard(heard))
    }
}

#[tokio::test]
async fn a_broker_that_cannot_write_says_so_and_goes_on_reading() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let (store, fails) = Frail::new();
    let host = Host::start_on(&mut authority, Some(store));
    let (mut actor, mut client) = Actor::join(&host, &ticket, "gate").await;
    client.publish(actor.member()).await.unwrap();

    *fails.lock().unwrap() = Some(StoreError::Down("the disk is full".to_owned()));
    let refusal = client.publish(actor.member()).await;
    let why = "the disk is full".to_owned();
    assert_eq!(refusal, Err(Refusal::StoreDown { why }));
    assert_eq!(client.watch(None, Vec::new()).await.members.len(), 1);
    let list = client.call(Request::ListNodes { after: None }).await;
    assert!(matches!(list, Ok(Reply::Nodes(nodes)) if nodes.len() == 1));
    let health = get(host.serving.http.unwrap(), "/healthz").await;
    assert!(health.contains("503") && health.contains("the disk is full"));

    *fails.lock().unwrap() = None;
    client.publish(actor.member()).await.unwrap();
    let health = get(host.serving.http.unwrap(), "/healthz").await;
    assert!(health.ends_with("ok\n"), "{health}");
}

#[tokio::test]
async fn a_store_that_does_not_know_what_is_on_the_disk_ends_the_process() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let (store, fails) = Frail::new();
    let mut host = Host::start_on(&mut authority, Some(store));
    let (mut actor, mut client) = Actor::join(&host, &ticket, "gate").await;
    *fails.lock().unwrap() = Some(StoreError::Fatal("fsync failed".to_owned()));
    let member = actor.member();
    let refused = client.try_call(Request::Publish { member }).await;
    assert!(!matches!(refused, Some(Ok(_))));
    let ended = tokio::task::spawn_blocking(move || host.wait()).await;
    assert!(matches!(ended.unwrap(), Err(Error::Failed(why)) if why == "fsync failed"));
}

#[tokio::test]
async fn a_broker_that_stops_hangs_up_in_good_order_and_frees_everything() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let mut host = Host::start(&mut authority);
    let (mut actor, mut client) = Actor::join(&host, &ticket, "gate").await;
    client.publish(actor.member()).await.unwrap();
    client.watch(None, Vec::new()).await;
    let socket = host.serving.socket.clone();
    // Who has not even begun to speak delays nothing.
    let silent = TcpStream::connect(host.serving.listen).await.unwrap();
    let begun = Instant::now();
    let mut host = tokio::task::spawn_blocking(move || {
        host.stop().unwrap();
        host
    })
    .await
    .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4));
    drop(silent);
    client.wait_until_cut().await;
    assert!(!socket.exists());

    // A second start finds the file free, the record there, and the node not connected.
    host = tokio::task::spawn_blocking(move || {
        host.start_again();
        host
    })
    .await
    .unwrap();
    let path = host.serving.socket.clone();
    let mut local = crate::client::Client::connect_local(&path, host.mesh).await;
    let Ok(Reply::Nodes(nodes)) = local.call(Request::ListNodes { after: None }).await else {
        panic!("no list");
    };
    assert_eq!(nodes.len(), 1);
    assert!(!nodes[0].connected && nodes[0].heard > 0);
}
