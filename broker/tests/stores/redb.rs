//! The store in a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use broker::store::Store;
use broker::store::redb::RedbStore;

use crate::conformance::{Handles, conforms};
use crate::given::STORE;

/// A directory that goes when the test ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = std::env::temp_dir().join(format!(
            "causeway-stores-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn new_store(path: &Path) -> RedbStore {
    RedbStore::create(path, STORE).unwrap();
    RedbStore::open(path, STORE).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_store_conforms() {
    let scratch = Scratch::new();
    let count = AtomicU32::new(0);
    conforms(async || -> Handles {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let store: Arc<dyn Store> = Arc::new(new_store(&scratch.join(&format!("{number}.redb"))));
        vec![store]
    })
    .await;
}
