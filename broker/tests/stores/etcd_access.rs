//! etcd that speaks TLS and asks who comes, and what people are told when it does not let them in.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use broker::directory::StoreUrl;
use broker::store::etcd::{Access, AccessError, AccessFiles, EtcdStore, Location};
use broker::store::{Store, StoreError};

use crate::conformance::{Handles, conforms};
use crate::given::{STORE, done, heard, identity, publication};
use crate::support_certificates::Certificates;
use crate::support_etcd::Etcd;

const PREFIX: &str = "mesh";

/// With a CA and nothing else.
fn trusting(certificates: &Certificates, ca: &str) -> AccessFiles {
    AccessFiles {
        ca: Some(certificates.certificate(ca)),
        ..AccessFiles::default()
    }
}

fn showing(certificates: &Certificates, client: &str) -> AccessFiles {
    AccessFiles {
        certificate: Some(certificates.certificate(client)),
        key: Some(certificates.key(client)),
        ..trusting(certificates, "ca")
    }
}

fn as_user(files: AccessFiles, password: &Path) -> AccessFiles {
    AccessFiles {
        user: Some("causeway".to_owned()),
        password: Some(password.to_owned()),
        ..files
    }
}

fn location(url: &str, files: AccessFiles) -> Location {
    let mut location: Location = url.parse().unwrap();
    location.access = files;
    location
}

async fn connect(location: &Location) -> Result<EtcdStore, StoreError> {
    let access = Access::read(location).unwrap();
    EtcdStore::ensure(location, &access, STORE).await?;
    let lease = Duration::from_secs(2);
    EtcdStore::connect_with(location.clone(), &access, STORE, lease).await
}

/// Why there is no store there.
async fn refusal(url: &str, files: AccessFiles) -> String {
    match connect(&location(url, files)).await {
        Err(StoreError::Down(text)) => text,
        other => panic!("{:?}", other.map(drop)),
    }
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms_over_tls_with_a_certificate_and_a_login() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let ca = certificates.certificate("ca");
    let (server, key) = (
        certificates.certificate("server"),
        certificates.key("server"),
    );
    let Some(etcd) = Etcd::start_with_tls(&server, &key, Some(&ca)) else {
        return;
    };
    etcd.ask_for_logins(PREFIX);
    let password = certificates.write("password", "causeway\n");
    let named = as_user(showing(&certificates, "named"), &password);
    let text = refusal(&etcd.tls_url(PREFIX), named).await;
    says(&text, &["common name", "--etcd-cert"]);
    let files = as_user(showing(&certificates, "client"), &password);
    let count = AtomicU32::new(0);
    conforms(async || -> Handles {
        let case = count.fetch_add(1, Ordering::Relaxed);
        let url = etcd.tls_url(&format!("{PREFIX}/{case}"));
        let store: Arc<dyn Store> =
            Arc::new(connect(&location(&url, files.clone())).await.unwrap());
        vec![store]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_etcd_has_forgotten_is_renewed() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let Some(mut etcd) = Etcd::start(1) else {
        return;
    };
    etcd.ask_for_logins(PREFIX);
    let password = certificates.write("password", "causeway");
    let files = as_user(AccessFiles::default(), &password);
    let store = connect(&location(&etcd.url(PREFIX), files)).await.unwrap();
    let start = store.load().await.unwrap().revision;
    let first = done(store.publish(publication(1, "a", 1)).await.unwrap());
    assert_eq!(store.changes(start).await.unwrap().revision, first);
    // Tokens are in the memory of a member only; the watch goes with it too.
    etcd.kill_member(0);
    etcd.start_member(0);
    etcd.wait_for_leader();
    let watched = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match store.changes(first).await {
                Err(StoreError::Down(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                other => break other.unwrap(),
            }
        }
    });
    let written = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let second = done(store.publish(publication(1, "a", 2)).await.unwrap());
        store
            .heard(vec![(identity(1), heard(5, true))])
            .await
            .unwrap();
        second
    };
    let (watched, written) = tokio::join!(watched, written);
    assert_eq!(watched.unwrap().revision, written);
}

#[tokio::test]
async fn who_is_not_who_etcd_wants_is_told_what_it_wants() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let (url, right) = (etcd.url(PREFIX), certificates.write("right", "causeway"));
    let nobody = AccessFiles::default();
    // A login that nobody asks for does no harm, also once it is asked for.
    let login = as_user(nobody.clone(), &right);
    let early = connect(&location(&url, login.clone())).await.unwrap();
    etcd.ask_for_logins(PREFIX);
    done(early.publish(publication(1, "a", 1)).await.unwrap());

    let text = refusal(&url, nobody.clone()).await;
    says(
        &text,
        &[
            &url,
            "asks for a login",
            "--etcd-user",
            "--etcd-password-file",
        ],
    );

    let wrong = certificates.write("wrong", "opensesame");
    let text = refusal(&url, as_user(nobody, &wrong)).await;
    says(
        &text,
        &[
            "login of user causeway is refused",
            &wrong.display().to_string(),
        ],
    );
    assert!(!text.contains("opensesame"), "{text}");

    let text = refusal(&etcd.url("elsewhere"), login).await;
    says(&text, &["user causeway", "elsewhere/", "grant-permission"]);
}

#[tokio::test]
async fn a_watch_without_a_login_says_so_too() {
    let Some(etcd) = Etcd::start(1) else {
        return;
    };
    let location = location(&etcd.url(PREFIX), AccessFiles::default());
    let store = connect(&location).await.unwrap();
    let revision = store.load().await.unwrap().revision;
    etcd.ask_for_logins(PREFIX);
    let Err(StoreError::Down(text)) = store.changes(revision).await else {
        panic!("etcd lets everybody watch");
    };
    says(&text, &["asks for a login"]);
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_named_with_the_reason() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let (server, key) = (
        certificates.certificate("server"),
        certificates.key("server"),
    );
    let Some(etcd) = Etcd::start_with_tls(&server, &key, None) else {
        return;
    };
    let url = etcd.tls_url(PREFIX);
    connect(&location(&url, trusting(&certificates, "ca")))
        .await
        .unwrap();

    let other = trusting(&certificates, "other-ca");
    let ca = other.ca.clone().unwrap();
    let text = refusal(&url, other).await;
    says(
        &text,
        &[
            &etcd.tls_endpoint(),
            "not trusted",
            &ca.display().to_string(),
        ],
    );

    let plain = url.replace("etcds://", "etcd://");
    says(
        &refusal(&plain, AccessFiles::default()).await,
        &["write etcds://"],
    );
    let tls = etcd.url(PREFIX).replace("etcd://", "etcds://");
    let text = refusal(&tls, trusting(&certificates, "ca")).await;
    says(&text, &["without", "write etcd://"]);

    let (server, key) = (
        certificates.certificate("elsewhere"),
        certificates.key("elsewhere"),
    );
    let etcd = Etcd::start_with_tls(&server, &key, None).unwrap();
    let text = refusal(&etcd.tls_url(PREFIX), trusting(&certificates, "ca")).await;
    says(
        &text,
        &[
            "not trusted",
            "not made out for this host",
            "etcd.example.org",
        ],
    );
}

#[tokio::test]
async fn who_shows_no_certificate_or_a_strangers_is_told() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let ca = certificates.certificate("ca");
    let (server, key) = (
        certificates.certificate("server"),
        certificates.key("server"),
    );
    let Some(etcd) = Etcd::start_with_tls(&server, &key, Some(&ca)) else {
        return;
    };
    let url = etcd.tls_url(PREFIX);
    let text = refusal(&url, trusting(&certificates, "ca")).await;
    says(&text, &["asks for a client certificate", "--etcd-cert"]);
    let text = refusal(&url, showing(&certificates, "stranger")).await;
    let shown = certificates.certificate("stranger").display().to_string();
    says(&text, &["does not accept the client certificate", &shown]);
}

fn unread(url: &str, files: AccessFiles) -> String {
    Access::read(&location(url, files)).unwrap_err().to_string()
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_flag() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let (tls, plain) = ("etcds://h:1/x", "etcd://h:1/x");
    let good = trusting(&certificates, "ca");
    let junk = certificates.write("junk", "no certificate");
    let with_ca = |path: &Path| AccessFiles {
        ca: Some(path.to_owned()),
        ..AccessFiles::default()
    };
    let missing = junk.with_file_name("missing");

    says(&unread(tls, AccessFiles::default()), &["--etcd-ca", tls]);
    says(&unread(tls, with_ca(&missing)), &["missing", "--etcd-ca"]);
    says(
        &unread(tls, with_ca(&junk)),
        &["junk", "no certificate", "--etcd-ca"],
    );
    says(
        &unread(plain, good.clone()),
        &["--etcd-ca", "write etcds://"],
    );

    let mut half = showing(&certificates, "client");
    half.key = None;
    says(
        &unread(tls, half.clone()),
        &["--etcd-cert is given", "--etcd-key"],
    );
    half.key = Some(certificates.key("server"));
    says(&unread(tls, half.clone()), &["does not go with the key"]);
    half.key = Some(junk.clone());
    says(&unread(tls, half), &["junk", "no private key"]);

    let password = certificates.write("password", "opensesame\n");
    let login = as_user(AccessFiles::default(), &password);
    says(&unread(plain, login.clone()), &["without TLS", "etcds://"]);
    assert!(Access::read(&location("etcd://[::1]:1,127.0.0.1:2/x", login.clone())).is_ok());
    let half = AccessFiles {
        user: None,
        ..login
    };
    says(&unread(tls, half.or(good.clone())), &["--etcd-user"]);
    let two = certificates.write("two", "one\ntwo\n");
    says(&unread(tls, as_user(good.clone(), &two)), &["one line"]);

    let read = Access::read(&location(tls, as_user(good, &password))).unwrap();
    assert!(!format!("{read:?}").contains("opensesame"), "{read:?}");
}

#[test]
fn what_is_for_etcd_is_refused_for_a_file() {
    let files = as_user(AccessFiles::default(), Path::new("p"));
    let refused = StoreUrl::Redb.with(files.clone());
    assert!(
        matches!(refused, Err(AccessError::NotEtcd("--etcd-user"))),
        "{refused:?}"
    );
    let url: StoreUrl = "etcds://h:1/x".parse().unwrap();
    let StoreUrl::Etcd(location) = url.with(files).unwrap() else {
        panic!("another store");
    };
    assert!(location.access.password.unwrap().is_absolute());
}
