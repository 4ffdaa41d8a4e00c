//! Joining, from pasted token to directory, and what can go wrong on the way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use node::join::{JoinError, Joined, Options, Step, join};
use node::state::{StateDir, StateError};
use proto::entry::Uses;
use proto::key::SigningKey;
use proto::message::Refusal;
use proto::token::TokenError;
use zeroize::Zeroizing;

use crate::double::{Double, Script};
use crate::scratch::{Scratch, listing};
use crate::world::{World, name};

async fn run(
    state: &Path,
    token: Option<&Zeroizing<String>>,
) -> (Result<Joined, JoinError>, Vec<Step>) {
    let options = Options {
        token: token.cloned(),
        state_dir: state.to_owned(),
        node: Some(name("here")),
        region: "north".to_owned(),
        zone: String::new(),
        via: None,
    };
    let mut steps = Vec::new();
    let joined = join(options, &mut |step| steps.push(step)).await;
    (joined, steps)
}

#[tokio::test]
async fn a_join_tells_its_steps_and_leaves_a_whole_directory() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    let (joined, steps) = run(&scratch.state(), Some(&token)).await;
    let joined = joined.unwrap();
    assert_eq!(joined.site, name("berlin"));
    assert!(!joined.already);
    let told: Vec<String> = steps.iter().map(ToString::to_string).collect();
    for (told, wanted) in told
        .iter()
        .zip(["pinned", "token proven", "ledger", "stored", "next: "])
    {
        assert!(told.contains(wanted), "{told:?} lacks {wanted:?}");
    }
    assert_eq!(told.len(), 5);
    let node = StateDir::open(&scratch.state()).unwrap().joined().unwrap();
    assert_eq!(node.identity_key(), joined.identity);
    assert_eq!(node.membership.mesh, world.mesh());
    assert!(!scratch.state().join("node.joining").exists());
    // Owner only, and the token's secret is nowhere.
    let secret = data_encoding::BASE64URL_NOPAD.encode(&*granted.join_key.seed());
    for (path, mode, content) in listing(&scratch.state()) {
        assert_eq!(mode & 0o077, 0, "{}", path.display());
        assert!(
            !String::from_utf8_lossy(&content).contains(&secret),
            "{}",
            path.display()
        );
    }
}

#[tokio::test]
async fn a_second_join_needs_neither_network_nor_token_but_not_another_meshs() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    run(&scratch.state(), Some(&token)).await.0.unwrap();
    drop(broker);
    let before = listing(&scratch.state());
    assert!(run(&scratch.state(), None).await.0.unwrap().already);
    assert!(run(&scratch.state(), Some(&token)).await.0.unwrap().already);
    let mut foreign = World::seeded(2);
    let other = foreign.grant("paris", "10.2.0.0/16", Uses::AtMost(1));
    let other = foreign.token(&other, &[("127.0.0.1:1", foreign.broker.public())]);
    let refused = run(&scratch.state(), Some(&other)).await.0.unwrap_err();
    assert!(matches!(refused, JoinError::OtherMesh { .. }), "{refused}");
    assert_eq!(listing(&scratch.state()), before);
}

#[tokio::test]
async fn a_bad_token_is_refused_before_anything_else() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    let cut = Zeroizing::new(token[..token.len() - 7].to_owned());
    let error = run(&scratch.state(), Some(&cut)).await.0.unwrap_err();
    assert!(
        matches!(error, JoinError::Token(TokenError::Damaged)),
        "{error}"
    );
    assert!(matches!(
        run(&scratch.state(), None).await.0,
        Err(JoinError::NoToken)
    ));
    assert_eq!(broker.seen(|seen| seen.connections), 0);
    assert!(!scratch.state().exists());
}

fn refusals() -> Vec<(Refusal, &'static str)> {
    let holder = *SigningKey::from_seed(&[8; 32]).public().as_bytes();
    let now = node::now();
    let not_after = now - 600;
    let not_before = now + 600;
    let holder = Some(holder);
    let mesh = [3; 32];
    let what = "gateways".to_owned();
    let brokers = Vec::new();
    vec![
        (Refusal::TokenExpired { not_after, now }, "10 minutes ago"),
        (Refusal::TokenNotYet { not_before, now }, "not valid yet"),
        (Refusal::TokenUsed { uses: 1, holder }, "already used"),
        (
            Refusal::TokenUsed {
                uses: 3,
                holder: None,
            },
            "all 3 uses",
        ),
        (Refusal::TokenClosed, "was revoked"),
        (Refusal::SiteRevoked, "site was revoked"),
        (Refusal::GrantUnknown, "ledger lacks"),
        (Refusal::WrongMesh { mesh }, "another mesh"),
        (Refusal::WrongStore { brokers }, "another broker's store"),
        (Refusal::BadProof, "signatures"),
        (Refusal::TooOften { retry_s: 12 }, "in 12 s"),
        (Refusal::NotReady, "no ledger yet"),
        (Refusal::Quota { what, most: 16 }, "as many gateways"),
    ]
}

#[tokio::test]
async fn each_refusal_has_its_own_sentence_and_leaves_no_trace() {
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    let mut sentences = Vec::new();
    for (refusal, wanted) in refusals() {
        let scratch = Scratch::new();
        broker.script(|script| script.refuse_enrol = Some(refusal.clone()));
        let (joined, _) = run(&scratch.state(), Some(&token)).await;
        let sentence = joined.unwrap_err().to_string();
        assert!(sentence.contains(wanted), "{refusal:?}: {sentence}");
        assert!(!scratch.state().exists(), "{refusal:?}: it left something");
        sentences.push(sentence);
    }
    sentences.sort();
    sentences.dedup();
    assert_eq!(sentences.len(), 13);
}

#[tokio::test]
async fn a_clock_that_is_off_is_said_with_the_window() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    let theirs = node::now() + 3 * 3600;
    let expired = Refusal::TokenExpired {
        not_after: theirs - 60,
        now: theirs,
    };
    broker.script(|script| script.refuse_enrol = Some(expired));
    let sentence = run(&scratch.state(), Some(&token))
        .await
        .0
        .unwrap_err()
        .to_string();
    assert!(sentence.contains("hours behind the broker's"), "{sentence}");
}

#[tokio::test]
async fn all_brokers_that_cannot_be_reached_are_named_with_their_reasons() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let impostor = Double::start(
        &SigningKey::from_seed(&[77; 32]),
        Script::honest(&world.ledger),
    )
    .await;
    let foreign = World::seeded(2);
    let other_mesh = Double::start(&world.broker, Script::honest(&foreign.ledger)).await;
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let pin = world.broker.public();
    let brokers = [
        (closed.as_str(), pin),
        (&impostor.at(), pin),
        (&other_mesh.at(), pin),
        ("no-such-host.invalid:7800", pin),
    ];
    let token = world.token(&granted, &brokers);
    let (joined, _) = run(&scratch.state(), Some(&token)).await;
    let JoinError::NoBroker { tried, again } = joined.unwrap_err() else {
        panic!("another error");
    };
    let wanted = [
        "nothing listens",
        "instead of the pinned",
        "another mesh",
        "resolved",
    ];
    for (tried, wanted) in tried.iter().zip(wanted) {
        assert!(tried.why.contains(wanted), "{tried}");
    }
    assert_eq!(tried.len(), 4);
    assert!(!again);
    assert_eq!(impostor.seen(|seen| seen.enrolled.len()), 0);
    assert!(!scratch.state().exists());
}

#[tokio::test]
async fn a_winner_that_never_heard_the_answer_retries_with_the_same_identity() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    broker.script(|script| script.close_after_enrol = true);
    for _ in 0..2 {
        let error = run(&scratch.state(), Some(&token)).await.0.unwrap_err();
        assert!(error.to_string().contains("same identity"), "{error}");
        assert!(
            StateDir::open(&scratch.state())
                .unwrap()
                .node()
                .unwrap()
                .is_none()
        );
    }
    broker.script(|script| script.close_after_enrol = false);
    let joined = run(&scratch.state(), Some(&token)).await.0.unwrap();
    let enrolled = broker.seen(|seen| seen.enrolled.clone());
    assert!(enrolled.len() > 2, "each run asks more than once");
    assert!(enrolled.iter().all(|identity| *identity == joined.identity));
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status();
    assert!(status.unwrap().success());
}

/// The directory as a crash could leave it: before each step that was told, and in the middle of
/// what happens between two of them.
fn crashes(before_rename: &Path, scratch: &Path) -> Vec<PathBuf> {
    let grant = fs::read_dir(before_rename.join("node.joining"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .file_name();
    let mut made = Vec::new();
    let mut crash = |name: &str, change: &dyn Fn(&Path)| {
        let path = scratch.join(name);
        copy(before_rename, &path);
        change(&path.join("node.joining").join(&grant));
        made.push(path);
    };
    crash("half-written-membership", &|grant| {
        fs::write(grant.join("keys/membership.new"), b"{").unwrap();
    });
    crash("half-written-cache", &|grant| {
        fs::write(grant.join("keys/membership.json"), b"{}").unwrap();
        fs::write(grant.join("keys/cache.new"), b"0").unwrap();
    });
    made
}

#[tokio::test]
async fn a_crash_at_any_step_after_the_use_is_taken_goes_on_as_the_same_node() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    let (state, crashed) = (scratch.state(), scratch.path().join("crashed"));
    fs::create_dir(&crashed).unwrap();
    let options = Options {
        token: Some(token.clone()),
        state_dir: state.clone(),
        node: None,
        region: String::new(),
        zone: String::new(),
        via: None,
    };
    let mut copies: Vec<PathBuf> = Vec::new();
    let mut keep = |step: Step| {
        if matches!(step, Step::Reached { .. }) {
            return;
        }
        let path = crashed.join(copies.len().to_string());
        copy(&state, &path);
        copies.push(path);
    };
    let joined = join(options, &mut keep).await.unwrap();
    assert_eq!(copies.len(), 4);
    copies.extend(crashes(&copies[1], &crashed));
    for copy in copies {
        let again = run(&copy, Some(&token)).await.0.unwrap();
        assert_eq!(again.identity, joined.identity, "{}", copy.display());
        assert!(!copy.join("node.joining").exists(), "{}", copy.display());
        assert!(run(&copy, None).await.0.unwrap().already);
    }
    assert_eq!(broker.seen(|seen| seen.uses.len()), 1);
}

#[tokio::test]
async fn keys_that_were_half_made_when_it_crashed_were_never_shown_and_are_made_anew() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    let half = scratch
        .path()
        .join("state/node.joining")
        .join(granted.entry.hash().short());
    fs::create_dir_all(half.join("new")).unwrap();
    fs::write(half.join("new/identity.key"), b"").unwrap();
    for path in [
        scratch.state(),
        scratch.path().join("state/node.joining"),
        half,
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    run(&scratch.state(), Some(&token)).await.0.unwrap();
}

#[tokio::test]
async fn an_earlier_join_with_another_token_is_neither_used_nor_lost_by_a_failing_one() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let first = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let second = world.grant("oslo", "10.2.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let tokens =
        [first, second].map(|granted| world.token(&granted, &[(&broker.at(), broker.key)]));
    broker.script(|script| script.close_after_enrol = true);
    run(&scratch.state(), Some(&tokens[0])).await.0.unwrap_err();
    let before = listing(&scratch.state());
    broker.script(|script| script.refuse_enrol = Some(Refusal::TokenClosed));
    run(&scratch.state(), Some(&tokens[1])).await.0.unwrap_err();
    assert_eq!(listing(&scratch.state()), before);
    broker.script(|script| {
        script.refuse_enrol = None;
        script.close_after_enrol = false;
    });
    run(&scratch.state(), Some(&tokens[0])).await.0.unwrap();
    assert_eq!(broker.seen(|seen| seen.uses.len()), 1);
}

#[tokio::test]
async fn a_directory_of_another_user_is_refused_with_the_line_that_mends_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: giving a directory to another user needs root");
        return;
    }
    let scratch = Scratch::new();
    let other = Some(nix::unistd::Uid::from_raw(1));
    nix::unistd::chown(scratch.path(), other, None).unwrap();
    let error = run(scratch.path(), None).await.0.unwrap_err().to_string();
    assert!(
        error.contains(&format!("chown 0 {}", scratch.path().display())),
        "{error}"
    );
}

#[tokio::test]
async fn a_broker_of_another_store_sends_the_joiner_on() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let right = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let wrong_key = SigningKey::from_seed(&[61; 32]);
    let wrong = Double::start(&wrong_key, Script::honest(&world.ledger)).await;
    let to = vec![(right.at(), *right.key.as_bytes())];
    wrong.script(|script| script.refuse_enrol = Some(Refusal::WrongStore { brokers: to }));
    let token = world.token(&granted, &[(&wrong.at(), wrong.key)]);
    let (joined, steps) = run(&scratch.state(), Some(&token)).await;
    joined.unwrap();
    assert!(steps.iter().any(|step| matches!(step, Step::SentOn { .. })));
}

#[tokio::test]
async fn a_broker_that_only_another_broker_vouches_for_counts_nothing() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    // Not in the ledger, and it counts.
    let own = Double::start(
        &SigningKey::from_seed(&[62; 32]),
        Script::honest(&world.ledger),
    )
    .await;
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let to = vec![(own.at(), *own.key.as_bytes())];
    broker.script(|script| script.refuse_enrol = Some(Refusal::WrongStore { brokers: to }));
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    let error = run(&scratch.state(), Some(&token)).await.0.unwrap_err();
    assert!(error.to_string().contains("does not name"), "{error}");
    assert!(
        StateDir::open(&scratch.state())
            .unwrap()
            .node()
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn an_enrolment_that_is_not_the_one_asked_for_is_refused() {
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(2));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    let others = world.other(&granted, 1, "gate").enrolment.write();
    for (answer, wanted) in [(others, "not asked for"), (vec![1, 2, 3], "cut off")] {
        let scratch = Scratch::new();
        broker.script(|script| script.enrol_with = Some(answer));
        let error = run(&scratch.state(), Some(&token)).await.0.unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        let state = StateDir::open(&scratch.state()).unwrap();
        assert!(state.node().unwrap().is_none());
    }
}

#[tokio::test]
async fn a_broker_that_hangs_up_on_some_is_asked_again() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    broker.script(|script| script.hang_up = 2);
    let (joined, steps) = run(&scratch.state(), Some(&token)).await;
    joined.unwrap();
    let waits = steps.iter().filter(|step| matches!(step, Step::Waiting(_)));
    assert_eq!(waits.count(), 2, "{steps:?}");
}

#[tokio::test]
async fn a_hung_broker_costs_seconds_and_the_next_one_is_asked() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let hung = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    hung.script(|script| script.hung = true);
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(
        &granted,
        &[(&hung.at(), hung.key), (&broker.at(), broker.key)],
    );
    let (joined, steps) = run(&scratch.state(), Some(&token)).await;
    joined.unwrap();
    let Step::Failed(tried) = &steps[0] else {
        panic!("the hung one comes first: {steps:?}");
    };
    assert!(
        tried.why.contains("did not finish the TLS handshake"),
        "{tried}"
    );
}

#[tokio::test]
async fn a_ledger_that_is_forged_foreign_or_cut_before_the_grant_is_refused() {
    let mut world = World::new();
    let short = world.entries();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let foreign = World::seeded(2).entries();
    let mut forged = world.entries();
    let last = forged.len() - 1;
    let end = forged[last].len() - 1;
    forged[last][end] ^= 1;
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    for (ledger, wanted) in [
        (short, "does not contain the token's grant"),
        (foreign, "another mesh"),
        (forged, "not signed by the authority"),
        (Vec::new(), "never had the authority"),
    ] {
        let scratch = Scratch::new();
        broker.script(|script| script.ledger = ledger);
        let error = run(&scratch.state(), Some(&token))
            .await
            .0
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(
            StateDir::open(&scratch.state())
                .unwrap()
                .node()
                .unwrap()
                .is_none()
        );
    }
}

#[tokio::test]
async fn loose_permissions_are_refused_with_the_line_that_mends_them() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    run(&scratch.state(), Some(&token)).await.0.unwrap();
    let identity = scratch.state().join("node/identity.key");
    for (path, loose, wanted) in [
        (scratch.state(), 0o755, "chmod 0700"),
        (scratch.state().join("node"), 0o750, "chmod 0700"),
        (identity.clone(), 0o640, "chmod 0600"),
    ] {
        let right = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(loose)).unwrap();
        let error = run(&scratch.state(), None).await.0.unwrap_err().to_string();
        assert!(
            error.contains(&format!("{wanted} {}", path.display())),
            "{error}"
        );
        fs::set_permissions(&path, right).unwrap();
    }
}

#[tokio::test]
async fn keys_are_never_replaced_because_they_cannot_be_read() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("berlin", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
    let token = world.token(&granted, &[(&broker.at(), broker.key)]);
    run(&scratch.state(), Some(&token)).await.0.unwrap();
    for file in ["identity.key", "wireguard.key", "membership.json"] {
        let path = scratch.state().join("node").join(file);
        let whole = fs::read(&path).unwrap();
        for broken in [&b"\xff\xfe"[..], b"", &whole[..whole.len() / 2]] {
            fs::write(&path, broken).unwrap();
            let error = run(&scratch.state(), Some(&token)).await.0.unwrap_err();
            assert!(
                matches!(error, JoinError::State(StateError::Damaged { .. })),
                "{file}: {error}"
            );
            assert_eq!(fs::read(&path).unwrap(), broken);
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(run(&scratch.state(), None).await.0.unwrap().already);
}
