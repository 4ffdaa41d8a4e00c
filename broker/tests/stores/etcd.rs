//! The store in real etcd: by one broker, by two, and while etcd fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use broker::store::Store;
use broker::store::etcd::EtcdStore;

use crate::conformance::{Handles, conforms};
use crate::given::STORE;
use crate::support_etcd::Etcd;

/// As short as etcd allows with its usual election time.
const TIME_TO_LIVE: Duration = Duration::from_secs(2);

async fn connect(etcd: &Etcd, prefix: &str) -> EtcdStore {
    let location = etcd.url(prefix).parse().unwrap();
    EtcdStore::ensure(&location, STORE).await.unwrap();
    EtcdStore::connect_with(location, STORE, TIME_TO_LIVE)
        .await
        .unwrap()
}

async fn conforms_with(handles: usize) {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let count = AtomicU32::new(0);
    conforms(async || -> Handles {
        let prefix = format!("case/{}", count.fetch_add(1, Ordering::Relaxed));
        let mut stores: Handles = Vec::new();
        for _ in 0..handles {
            let store: Arc<dyn Store> = Arc::new(connect(&etcd, &prefix).await);
            stores.push(store);
        }
        stores
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms_with_one_broker() {
    conforms_with(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms_with_two_brokers() {
    conforms_with(2).await;
}
