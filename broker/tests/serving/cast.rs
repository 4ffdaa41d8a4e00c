//! A mesh for one test: its authority, its brokers on threads of this process, its nodes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use broker::directory::{self, About, New, StoreUrl};
use broker::run::{self, Error, Options, Serving};
use broker::store::Store;
use broker::store::etcd::AccessFiles;
use proto::entry::{Body, Broker, Entry, Grant, GrantRole, Role, SignedEntry, StoreId, Uses};
use proto::key::{Hash, MeshId, PublicKey, SigningKey, WireguardKey};
use proto::ledger::Ledger;
use proto::record::{Capabilities, Member, NodeState, Presence, Record};
use tokio::sync::oneshot;

use crate::client::Client;

pub(crate) const STORE: StoreId = StoreId([3; 16]);

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}

pub(crate) fn random() -> [u8; 32] {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).unwrap();
    seed
}

pub(crate) struct Authority {
    pub(crate) key: SigningKey,
    pub(crate) recovery: SigningKey,
    pub(crate) entries: Vec<SignedEntry>,
}

/// A grant and what joins with it.
pub(crate) struct Ticket {
    pub(crate) entry: SignedEntry,
    pub(crate) join_key: SigningKey,
}

/// Of a grant, to be changed by the test.
pub(crate) struct Terms {
    pub(crate) site: &'static str,
    pub(crate) role: GrantRole,
    pub(crate) uses: Uses,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) store: StoreId,
}

impl Terms {
    pub(crate) fn site(site: &'static str) -> Terms {
        Terms {
            site,
            role: GrantRole::Any,
            uses: Uses::AtMost(1),
            not_before: now() - 60,
            not_after: now() + 3600,
            store: STORE,
        }
    }
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let key = SigningKey::from_seed(&random());
        let recovery = SigningKey::from_seed(&random());
        let genesis = Ledger::genesis(now(), key.public(), &recovery.public()).sign(&key);
        Authority {
            key,
            recovery,
            entries: vec![genesis],
        }
    }

    pub(crate) fn mesh(&self) -> MeshId {
        self.entries[0].hash()
    }

    pub(crate) fn next(&self, body: Body) -> Entry {
        let last = self.entries.last().unwrap();
        Entry {
            number: last.entry().number + 1,
            previous: last.hash(),
            issued: now(),
            body,
        }
    }

    /// Signed and kept; given to nobody.
    pub(crate) fn sign(&mut self, body: Body) -> SignedEntry {
        let entry = self.next(body).sign(&self.key);
        self.entries.push(entry.clone());
        entry
    }

    pub(crate) fn name_broker(&mut self, key: PublicKey, address: &str) {
        self.name_broker_of(STORE, key, address);
    }

    fn name_broker_of(&mut self, store: StoreId, key: PublicKey, address: &str) {
        self.sign(Body::Broker(Broker {
            key,
            store,
            addresses: vec![address.to_owned()],
        }));
    }

    pub(crate) fn grant(&mut self, terms: Terms) -> Ticket {
        let join_key = SigningKey::from_seed(&random());
        let entry = self.sign(Body::Grant(Grant {
            site: terms.site.parse().unwrap(),
            prefixes: Vec::new(),
            service_prefixes: Vec::new(),
            role: terms.role,
            not_before: terms.not_before,
            not_after: terms.not_after,
            uses: terms.uses,
            join_key: join_key.public(),
            store: terms.store,
        }));
        Ticket { entry, join_key }
    }

    pub(crate) fn revoke(&mut self, key: PublicKey) -> SignedEntry {
        self.sign(Body::Revocation {
            keys: vec![key],
            closings: Vec::new(),
        })
    }
}

pub(crate) struct Host {
    pub(crate) serving: Serving,
    pub(crate) pin: PublicKey,
    pub(crate) mesh: MeshId,
    pub(crate) state: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Host {
    /// A broker that has all of the authority's entries and is named by them.
    pub(crate) fn start(authority: &mut Authority) -> Host {
        Host::start_on(authority, None)
    }

    pub(crate) fn start_on(authority: &mut Authority, store: Option<Arc<dyn Store>>) -> Host {
        let key = SigningKey::from_seed(&random());
        authority.name_broker(key.public(), "192.0.2.1:7800");
        let entries = authority.entries.clone();
        let mesh = authority.mesh();
        let about = about(Some(mesh), authority);
        Host::run(
            New {
                key,
                about,
                entries,
            },
            store,
            mesh,
        )
    }

    /// One of several on a store in etcd.
    pub(crate) fn start_sharing(authority: &mut Authority, url: &StoreUrl) -> Host {
        let store_id = directory::claim_store(url).unwrap();
        let key = SigningKey::from_seed(&random());
        authority.name_broker_of(store_id, key.public(), "192.0.2.1:7800");
        let mesh = authority.mesh();
        let about = About {
            store_id,
            store: url.clone(),
            ..about(Some(mesh), authority)
        };
        let entries = authority.entries.clone();
        let new = New {
            key,
            about,
            entries,
        };
        Host::run(new, None, mesh)
    }

    /// One made with `--mesh`.
    pub(crate) fn start_waiting(authority: &Authority) -> Host {
        let new = New {
            key: SigningKey::from_seed(&random()),
            about: about(None, authority),
            entries: Vec::new(),
        };
        Host::run(new, None, authority.mesh())
    }

    fn run(new: New, store: Option<Arc<dyn Store>>, mesh: MeshId) -> Host {
        let name = format!("causeway-serving-{}", Hash(random()).short());
        let state = std::env::temp_dir().join(name);
        let pin = new.key.public();
        directory::init(&state, &new).unwrap();
        let (serving, stop, thread) = spawn(&state, store);
        Host {
            serving,
            pin,
            mesh,
            state,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Stops it in good order and starts it again.
    pub(crate) fn restart(&mut self) {
        self.stop().unwrap();
        self.start_again();
    }

    pub(crate) fn start_again(&mut self) {
        let (serving, stop, thread) = spawn(&self.state, None);
        self.serving = serving;
        self.stop = Some(stop);
        self.thread = Some(thread);
    }

    pub(crate) fn stop(&mut self) -> Result<(), Error> {
        drop(self.stop.take());
        self.wait()
    }

    /// For a broker that ends by itself.
    pub(crate) fn wait(&mut self) -> Result<(), Error> {
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.serving.listen, self.pin, self.mesh).await
    }

    /// As the authority, to whom the entries are given.
    pub(crate) async fn push(&self, authority: &Authority) {
        let mut client = self.connect().await;
        client.authenticate_authority(&authority.key).await.unwrap();
        client.put(&authority.entries).await.unwrap();
    }

    /// The value of one metric.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = crate::client::get(self.serving.http.unwrap(), "/metrics").await;
        let name = format!("causeway_broker_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(0, |value| value.parse().unwrap())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(std::fs::remove_dir_all(&self.state));
    }
}

pub(crate) fn about(mesh: Option<MeshId>, authority: &Authority) -> About {
    About {
        mesh,
        authority: authority.key.public(),
        store_id: STORE,
        store: StoreUrl::Redb,
        authority_directory: None,
    }
}

type Spawned = (Serving, oneshot::Sender<()>, JoinHandle<Result<(), Error>>);

fn spawn(state: &std::path::Path, store: Option<Arc<dyn Store>>) -> Spawned {
    let options = Options {
        state_directory: state.to_owned(),
        runtime_directory: state.join("run"),
        listen: "127.0.0.1:0".parse().unwrap(),
        store: None,
        etcd: AccessFiles::default(),
        http: Some("127.0.0.1:0".parse().unwrap()),
        relay: true,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let ready = |serving: &Serving| tell.send(serving.clone()).unwrap();
        run::serve_on(options, store, ready, async {
            drop(stopped.await);
        })
    });
    match told.recv() {
        Ok(serving) => (serving, stop, thread),
        Err(_) => panic!("{:?}", thread.join().unwrap()),
    }
}

fn wireguard() -> WireguardKey {
    let mut key = random();
    // Keys have one form: below the prime.
    key[31] &= 0x3f;
    WireguardKey::new(key).unwrap()
}

/// A node that is simulated.
pub(crate) struct Actor {
    pub(crate) identity: SigningKey,
    pub(crate) site: &'static str,
    pub(crate) node: &'static str,
    pub(crate) role: Role,
    pub(crate) enrolment: Vec<u8>,
    pub(crate) sequence: u64,
    pub(crate) mesh: MeshId,
}

impl Actor {
    pub(crate) fn new(mesh: MeshId, site: &'static str, node: &'static str) -> Actor {
        Actor {
            identity: SigningKey::from_seed(&random()),
            site,
            node,
            role: Role::Gateway,
            enrolment: Vec::new(),
            sequence: 0,
            mesh,
        }
    }

    /// Joins and stays connected.
    pub(crate) async fn join(host: &Host, ticket: &Ticket, node: &'static str) -> (Actor, Client) {
        let site: &str = ticket.entry.grant().unwrap().site.as_str();
        let site: &'static str = site.to_owned().leak();
        let mut actor = Actor::new(host.mesh, site, node);
        let mut client = host.connect().await;
        actor.enrolment = client.enrol(ticket, &actor.identity).await.unwrap();
        (actor, client)
    }

    /// The next record.
    pub(crate) fn member(&mut self) -> Vec<u8> {
        let state = NodeState::Present(Presence {
            wireguard: wireguard(),
            next_wireguard: None,
            candidates: Vec::new(),
            lan_address: None,
            region: String::new(),
            zone: String::new(),
            capabilities: Capabilities::default(),
        });
        self.member_in(state)
    }

    pub(crate) fn goodbye(&mut self) -> Vec<u8> {
        self.member_in(NodeState::Withdrawn)
    }

    fn member_in(&mut self, state: NodeState) -> Vec<u8> {
        self.sequence += 1;
        let record = Record {
            mesh: self.mesh,
            site: self.site.parse().unwrap(),
            node: self.node.parse().unwrap(),
            role: self.role,
            identity: self.identity.public(),
            sequence: self.sequence,
            issued: now(),
            state,
        };
        Member {
            enrolment: self.enrolment.clone(),
            record: record.sign(&self.identity).bytes().to_vec(),
        }
        .write()
    }

    pub(crate) async fn authenticate(&self, host: &Host) -> Client {
        let mut client = host.connect().await;
        client
            .authenticate(&self.identity, &self.enrolment)
            .await
            .unwrap();
        client
    }
}
