use arc_swap::ArcSwap;
use proto::key::{SigningKey, WireguardKey};

use super::*;
use crate::data::mailbox::{ControlInbox, Mailbox};
use crate::data::snapshot::Mesh;

const BEGIN: Duration = Duration::from_secs(100);
/// A moment longer than any turn.
const TURN: Duration = Duration::from_secs(6);

fn identity(number: u8) -> PublicKey {
    SigningKey::from_seed(&[number; 32]).public()
}

fn claim(number: u8, key: u8) -> NewLink {
    NewLink {
        identity: identity(number),
        wireguard: WireguardKey::new([key; 32]).unwrap(),
        site: "berlin".parse().unwrap(),
        shared: Arc::default(),
    }
}

fn own() -> OwnKey {
    let private = x25519::StaticSecret::from([7; 32]);
    let public = x25519::PublicKey::from(&private);
    OwnKey {
        private,
        limiter: Arc::new(RateLimiter::new(&public, 100)),
    }
}

struct Scene {
    links: PlacedLinks,
    shared: Shared,
}

/// The copier comes first; `REAL` has the private key.
const COPIER: u8 = 1;
const REAL: u8 = 2;
const KEY: u8 = 9;

impl Scene {
    fn new() -> Scene {
        let mut scene = Scene {
            links: PlacedLinks::new(1),
            shared: Shared {
                snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::mesh(Mesh::default()))),
                mailboxes: Arc::new([Mailbox::new().unwrap()]),
                control: Arc::new(ControlInbox::for_mesh().unwrap()),
            },
        };
        assert!(scene.add(COPIER));
        assert!(!scene.add(REAL));
        scene
    }

    fn add(&mut self, number: u8) -> bool {
        self.links
            .add(claim(number, KEY), own(), &self.shared, BEGIN)
    }

    fn turn(&mut self, now: Duration) -> bool {
        self.links.take_turns(&self.shared, now)
    }

    fn proven(&mut self, number: u8, now: Duration) -> bool {
        let identity = identity(number);
        self.links.handle_proven(&identity, &self.shared, now)
    }

    fn remove(&mut self, number: u8) -> bool {
        self.links.remove(&identity(number), &self.shared, BEGIN)
    }

    /// Who has the place, if anybody; of all who claim the key, one at most.
    fn holder(&self) -> Option<u8> {
        let placed = |number: &u8| self.links.place_of(&identity(*number)).is_some();
        let holders: Vec<u8> = (1..=9).filter(placed).collect();
        assert!(holders.len() <= 1, "{holders:?}");
        let place = self.links.place_of_key(&keys::PublicKey([KEY; 32]));
        let at = place.and_then(|place| self.links.at(place));
        let holder = holders.first().copied();
        assert_eq!(at, holder.map(identity));
        holder
    }
}

#[test]
fn who_copied_a_key_gives_way_and_who_proves_it_stays() {
    let mut scene = Scene::new();
    assert_eq!(scene.holder(), Some(COPIER));
    assert!(!scene.turn(BEGIN + SESSION_WITHIN / 2));
    assert!(scene.turn(BEGIN + TURN));
    assert_eq!(scene.holder(), Some(REAL));
    assert!(scene.proven(REAL, BEGIN + TURN));
    assert_eq!(scene.links.due(), None);
    assert!(!scene.turn(BEGIN + 100 * TURN));
    assert_eq!(scene.holder(), Some(REAL));
}

#[test]
fn claimants_of_one_key_take_turns_until_one_proves_it() {
    let mut scene = Scene::new();
    assert!(!scene.add(3));
    let mut holders = Vec::new();
    for turn in 1..=5 {
        assert!(scene.turn(BEGIN + turn * TURN));
        holders.extend(scene.holder());
    }
    assert_eq!(holders, [REAL, 3, COPIER, REAL, 3]);
}

#[test]
fn a_session_gives_time_for_the_proof_once() {
    let mut scene = Scene::new();
    let (copier, source) = (identity(COPIER), "192.0.2.1:51820".parse().unwrap());
    let late = BEGIN + SESSION_WITHIN - Duration::from_millis(1);
    scene.links.handle_session(&copier, source, late);
    scene
        .links
        .handle_session(&copier, source, late + PROOF_WITHIN / 2);
    assert!(!scene.turn(BEGIN + SESSION_WITHIN));
    assert!(scene.turn(late + PROOF_WITHIN));
    assert_eq!(scene.holder(), Some(REAL));
}

#[test]
fn a_proof_that_comes_after_the_turn_still_counts() {
    let mut scene = Scene::new();
    scene.turn(BEGIN + TURN);
    scene.turn(BEGIN + 2 * TURN);
    assert_eq!(scene.holder(), Some(COPIER));
    assert!(scene.proven(REAL, BEGIN + 2 * TURN));
    assert_eq!(scene.holder(), Some(REAL));
    assert!(!scene.proven(COPIER, BEGIN + 2 * TURN));
    assert_eq!(scene.holder(), Some(REAL));
}

#[test]
fn when_the_copier_goes_the_real_one_is_placed() {
    let mut scene = Scene::new();
    assert!(scene.remove(COPIER));
    assert_eq!(scene.holder(), Some(REAL));
    assert_eq!(scene.links.due(), None);
    assert!(scene.remove(REAL));
    assert_eq!(scene.holder(), None);
    assert!(scene.links.contests.is_empty() && scene.links.holders.is_empty());
}

#[test]
fn one_that_waits_and_goes_takes_no_turn() {
    let mut scene = Scene::new();
    assert!(!scene.remove(REAL));
    assert!(!scene.turn(BEGIN + TURN));
    assert_eq!(scene.holder(), Some(COPIER));
}
