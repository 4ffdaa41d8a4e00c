//! The directory as `init` makes it, and as nobody should find it: loose, foreign, cut, newer.

use std::os::unix::fs::PermissionsExt;

use proto::entry::{Body, Broker, Entry};
use proto::key::{Domain, Hash};

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let mut name = [0; 8];
        getrandom::fill(&mut name).unwrap();
        let name = format!("causeway-directory-{:016x}", u64::from_be_bytes(name));
        Scratch(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn authority() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn genesis() -> SignedEntry {
    Entry {
        number: 0,
        previous: Hash([0; 32]),
        issued: 0,
        body: Body::Genesis {
            authority: authority().public(),
            recovery: Hash::of(Domain::RecoveryKey, b"none"),
        },
    }
    .sign(&authority())
}

fn named() -> SignedEntry {
    Entry {
        number: 1,
        previous: genesis().hash(),
        issued: 0,
        body: Body::Broker(Broker {
            key: SigningKey::from_seed(&[2; 32]).public(),
            store: StoreId([3; 16]),
            addresses: Vec::new(),
        }),
    }
    .sign(&authority())
}

fn new() -> New {
    New {
        key: SigningKey::from_seed(&[2; 32]),
        about: About {
            mesh: Some(genesis().hash()),
            authority: authority().public(),
            store_id: StoreId([3; 16]),
            store: StoreUrl::Redb,
            authority_directory: None,
        },
        entries: vec![genesis()],
    }
}

#[test]
fn what_init_wrote_open_reads() {
    let scratch = Scratch::new();
    init(&scratch.0, &new()).unwrap();
    let directory = open(&scratch.0).unwrap();
    assert_eq!(directory.key().public(), new().key.public());
    assert_eq!(*directory.about(), new().about);
    assert_eq!(directory.ledger().unwrap(), [genesis()]);
}

#[test]
fn a_directory_that_was_only_prepared_leaves_nothing() {
    let scratch = Scratch::new();
    drop(prepare(&scratch.0, &new()).unwrap());
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
    assert!(matches!(
        open(&scratch.0),
        Err(DirectoryError::Missing { .. })
    ));
}

#[test]
fn what_a_crashed_init_left_does_not_hinder_the_next() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.0.join("broker.new/broker.key")).unwrap();
    init(&scratch.0, &new()).unwrap();
    assert!(open(&scratch.0).is_ok());
}

#[test]
fn a_second_init_is_refused_and_changes_nothing() {
    let scratch = Scratch::new();
    init(&scratch.0, &new()).unwrap();
    let other = New {
        key: SigningKey::from_seed(&[9; 32]),
        ..new()
    };
    assert!(matches!(
        init(&scratch.0, &other),
        Err(DirectoryError::Exists { .. })
    ));
    assert_eq!(open(&scratch.0).unwrap().key().public(), new().key.public());
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_helps() {
    let scratch = Scratch::new();
    init(&scratch.0, &new()).unwrap();
    let key = scratch.0.join("broker/broker.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = open(&scratch.0).err().unwrap().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn a_damaged_key_is_named_without_what_it_holds() {
    let scratch = Scratch::new();
    init(&scratch.0, &new()).unwrap();
    fs::write(scratch.0.join("broker/broker.key"), "c2VjcmV0\n").unwrap();
    let error = open(&scratch.0).err().unwrap().to_string();
    assert!(error.contains("broker.key"), "{error}");
    assert!(!error.contains("c2Vj"), "{error}");
}

#[test]
fn entries_appended_after_a_torn_line_are_whole() {
    let scratch = Scratch::new();
    init(&scratch.0, &new()).unwrap();
    let path = scratch.0.join("broker/ledger");
    let mut text = fs::read(&path).unwrap();
    text.extend_from_slice(b"dG9ybg");
    fs::write(&path, text).unwrap();
    let directory = open(&scratch.0).unwrap();
    assert_eq!(directory.ledger().unwrap(), [genesis()]);
    directory.append(&[named()]).unwrap();
    directory.append(&[named()]).unwrap();
    assert_eq!(directory.ledger().unwrap(), [genesis(), named()]);
}

#[test]
fn an_entry_whose_line_lacks_only_its_end_is_kept() {
    let scratch = Scratch::new();
    init(&scratch.0, &new()).unwrap();
    let path = scratch.0.join("broker/ledger");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() - 1]).unwrap();
    let directory = open(&scratch.0).unwrap();
    directory.append(&[named()]).unwrap();
    assert_eq!(directory.ledger().unwrap(), [genesis(), named()]);
}

#[test]
fn a_waiting_broker_keeps_the_mesh_it_was_told() {
    let scratch = Scratch::new();
    let mut waiting = new();
    waiting.about.mesh = None;
    init(&scratch.0, &waiting).unwrap();
    let mut directory = open(&scratch.0).unwrap();
    assert_eq!(directory.about().mesh, None);
    directory.set_mesh(genesis().hash()).unwrap();
    assert_eq!(
        open(&scratch.0).unwrap().about().mesh,
        Some(genesis().hash())
    );
}

#[test]
fn an_authority_within_reach_of_the_broker_is_refused() {
    let scratch = Scratch::new();
    let mut inside = new();
    inside.about.authority_directory = Some(scratch.0.join("broker/authority"));
    assert!(matches!(
        init(&scratch.0, &inside),
        Err(DirectoryError::Inside { .. })
    ));
}

#[test]
fn stores_are_named_in_one_of_two_ways() {
    for good in [
        "redb",
        "etcd://a:2379/mesh",
        "etcd://10.0.0.1:1,[::1]:2/a/b",
    ] {
        assert_eq!(good.parse::<StoreUrl>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "sqlite",
        "etcd://",
        "etcd://a:1",
        "etcd://a:1/",
        "etcd://a,b:1/x",
    ] {
        assert!(bad.parse::<StoreUrl>().is_err(), "{bad}");
    }
}

#[test]
fn a_path_that_is_no_text_is_refused_and_leaves_nothing() {
    use std::os::unix::ffi::OsStrExt;

    let scratch = Scratch::new();
    let mut new = new();
    let odd = std::ffi::OsStr::from_bytes(b"/elsewhere/\xff");
    new.about.authority_directory = Some(odd.into());
    let refused = init(&scratch.0, &new).unwrap_err();
    assert!(refused.to_string().contains("UTF-8"), "{refused}");
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
}

#[test]
fn a_link_in_place_of_a_file_is_called_one() {
    let scratch = Scratch::new();
    init(&scratch.0, &new()).unwrap();
    let key = scratch.0.join("broker/broker.key");
    let moved = scratch.0.join("elsewhere.key");
    fs::rename(&key, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &key).unwrap();
    let refused = open(&scratch.0).err().unwrap();
    assert!(refused.to_string().contains("symbolic link"), "{refused}");
}
