//! The store in a file.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use broker::store::redb::RedbStore;
use broker::store::{Store, StoreError};

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

fn text(refused: Result<RedbStore, StoreError>) -> String {
    match refused {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_missing_file_is_never_made_anew() {
    let scratch = Scratch::new();
    let path = scratch.join("store.redb");
    let said = text(RedbStore::open(&path, STORE));
    assert!(
        said.contains("missing") && said.contains("causeway broker init"),
        "{said}"
    );
    assert!(!path.exists());
}

#[test]
fn a_store_is_not_made_over_another() {
    let scratch = Scratch::new();
    let path = scratch.join("store.redb");
    RedbStore::create(&path, STORE).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(RedbStore::create(&path, STORE).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_second_broker_on_the_file_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.join("store.redb");
    let store = new_store(&path);
    let second = RedbStore::open(&path, STORE);
    assert!(matches!(second, Err(StoreError::Locked(_))), "{second:?}");
    assert!(text(second).contains("in use by another broker"));
    drop(store);
    RedbStore::open(&path, STORE).unwrap();
}

#[test]
fn a_file_that_others_could_touch_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.join("store.redb");
    drop(new_store(&path));
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    for mode in [0o644, 0o660, 0o400] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let said = text(RedbStore::open(&path, STORE));
        assert!(said.contains("chmod 600"), "{said}");
    }
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let link = scratch.join("link.redb");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(text(RedbStore::open(&link, STORE)).contains("no regular file"));
    assert!(text(RedbStore::open(&scratch.join("."), STORE)).contains("no regular file"));
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        let said = text(RedbStore::open(&path, STORE));
        assert!(said.contains("belongs to user 65534"), "{said}");
    } else {
        eprintln!("SKIPPED: only root can give a file to another user");
    }
}
