//! The authority's and the nodes' work done in this process: a thousand sites are signed faster
//! than a thousand commands run, and a test can sign what no command would.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use ip_network::IpNetwork;
use node::state::StateDir;
use proto::entry::{Body, Entry, Grant, GrantRole, Role, SignedEntry, StoreId, Uses};
use proto::key::{Hash, MeshId, SigningKey, WireguardKey};
use proto::ledger_file;
use proto::name::Name;
use proto::record::{Capabilities, Member, NodeState, Presence, Record};
use proto::token::{Token, TokenBroker};
use zeroize::Zeroizing;

use super::client::Target;
use super::{Broker, Mesh};

const HOUR: u64 = 3600;

/// The authority of a [`Mesh`], its key in this process's hands.
pub struct Authority {
    pub key: SigningKey,
    pub mesh: MeshId,
    /// That of the first broker.
    pub store: StoreId,
    files: Vec<PathBuf>,
    head: (u64, Hash),
}

/// A grant and the key that uses it: what a token holds beside the brokers.
pub struct Ticket {
    pub entry: SignedEntry,
    seed: Zeroizing<[u8; 32]>,
}

/// A node that is simulated.
pub struct Actor {
    pub site: Name,
    pub node: Name,
    pub role: Role,
    pub identity: SigningKey,
    /// Empty until it has enrolled.
    pub enrolment: Vec<u8>,
    pub sequence: u64,
    mesh: MeshId,
}

impl Authority {
    /// Reads key and ledger of a mesh. What is signed afterwards goes into the ledger's file, and
    /// into the first broker's, which takes it up when it starts.
    pub fn of(mesh: &Mesh) -> Result<Authority> {
        let directory = mesh.authority();
        let key = SigningKey::from_seed(&*read_seed(&directory.join("authority.key"))?);
        let ledger = directory.join("ledger");
        let entries = read_ledger(&ledger)?;
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            bail!("{} is empty", ledger.display());
        };
        let store = entries.iter().find_map(|entry| {
            if let Body::Broker(broker) = &entry.entry().body {
                Some(broker.store)
            } else {
                None
            }
        });
        Ok(Authority {
            key,
            mesh: first.hash(),
            store: store.context("the ledger names no broker")?,
            files: vec![ledger, mesh.brokers[0].state.join("broker/ledger")],
            head: (last.entry().number, last.hash()),
        })
    }

    /// Signs the next entry, whatever it says; nobody has it yet.
    pub fn sign(&mut self, body: Body) -> SignedEntry {
        let entry = Entry {
            number: self.head.0 + 1,
            previous: self.head.1,
            issued: now(),
            body,
        };
        let entry = entry.sign(&self.key);
        self.head = (entry.entry().number, entry.hash());
        entry
    }

    /// A grant from now on for an hour.
    pub fn grant(&mut self, site: &str, prefix: &str, uses: Uses) -> Result<Ticket> {
        self.grant_between(site, prefix, uses, (now() - 60, now() + HOUR))
    }

    pub fn grant_between(
        &mut self,
        site: &str,
        prefix: &str,
        uses: Uses,
        (not_before, not_after): (u64, u64),
    ) -> Result<Ticket> {
        let seed = random();
        let prefix: IpNetwork = prefix.parse().context("a prefix")?;
        let entry = self.sign(Body::Grant(Grant {
            site: site.parse()?,
            prefixes: vec![prefix],
            service_prefixes: Vec::new(),
            role: GrantRole::Any,
            not_before,
            not_after,
            uses,
            join_key: SigningKey::from_seed(&seed).public(),
            store: self.store,
        }));
        Ok(Ticket { entry, seed })
    }

    /// Appends entries to the files, as the commands do.
    pub fn save<'a>(&self, entries: impl Iterator<Item = &'a SignedEntry>) -> Result<()> {
        let lines: String = entries.map(ledger_file::line).collect();
        for path in &self.files {
            let file = OpenOptions::new().append(true).open(path);
            let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
            file.write_all(lines.as_bytes())?;
        }
        Ok(())
    }

    pub fn token(&self, ticket: &Ticket, brokers: &[&Broker]) -> Result<String> {
        let mut named = Vec::new();
        for broker in brokers {
            named.push(TokenBroker {
                address: broker.address.to_string(),
                key: broker.key.parse()?,
            });
        }
        let seed = ticket.seed.clone();
        let token = Token::new(
            self.mesh,
            self.key.public(),
            named,
            ticket.entry.clone(),
            seed,
        )?;
        Ok(token.encode().to_string())
    }

    pub fn target(&self, broker: &Broker) -> Result<Target> {
        Ok(Target {
            address: broker.address,
            pin: broker.key.parse()?,
            mesh: self.mesh,
        })
    }
}

impl Ticket {
    /// Of a token that a command has made.
    pub fn of(token: &str) -> Result<Ticket> {
        let token = Token::decode(token)?;
        Ok(Ticket {
            entry: token.grant_entry().clone(),
            seed: token.join_key().seed(),
        })
    }

    pub fn join_key(&self) -> SigningKey {
        SigningKey::from_seed(&self.seed)
    }
}

impl Actor {
    pub fn new(mesh: MeshId, site: &str, node: &str) -> Result<Actor> {
        Ok(Actor {
            site: site.parse()?,
            node: node.parse()?,
            role: Role::Gateway,
            identity: SigningKey::from_seed(&random()),
            enrolment: Vec::new(),
            sequence: 0,
            mesh,
        })
    }

    /// A node that `causeway join` has made; it has said nothing so far.
    pub fn joined(state: &Path) -> Result<Actor> {
        let node = StateDir::open(state)?.joined()?;
        Ok(Actor {
            site: node.membership.site().clone(),
            node: node.membership.node.clone(),
            role: Role::Gateway,
            enrolment: node.membership.enrolment().to_owned(),
            sequence: 0,
            mesh: node.membership.mesh,
            identity: node.identity,
        })
    }

    /// Its next record, with its enrolment, as it is published. The zone tells records apart.
    pub fn next_member(&mut self, zone: &str) -> Vec<u8> {
        self.member(NodeState::Present(presence(zone)))
    }

    pub const fn mesh(&self) -> MeshId {
        self.mesh
    }

    pub fn withdrawal(&mut self) -> Vec<u8> {
        self.member(NodeState::Withdrawn)
    }

    /// Its next record, whatever it says, with its enrolment.
    pub fn member(&mut self, state: NodeState) -> Vec<u8> {
        self.sequence += 1;
        let record = Record {
            mesh: self.mesh,
            site: self.site.clone(),
            node: self.node.clone(),
            role: self.role,
            identity: self.identity.public(),
            sequence: self.sequence,
            issued: now(),
            state,
        };
        let member = Member {
            enrolment: self.enrolment.clone(),
            record: record.sign(&self.identity).bytes().to_owned(),
        };
        member.write()
    }
}

/// What a gateway could say of itself. The zone tells records apart.
pub fn presence(zone: &str) -> Presence {
    let mut key = *random();
    // Without the bit that no public key has.
    key[31] &= 0x7f;
    Presence {
        wireguard: WireguardKey::new(key).expect("a random key is hardly of low order"),
        next_wireguard: None,
        candidates: vec!["192.0.2.1:51820".parse().expect("an endpoint")],
        lan_address: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
        region: "somewhere".to_owned(),
        zone: zone.to_owned(),
        capabilities: Capabilities::LANES,
    }
}

/// Unix seconds.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("the clock is past 1970").as_secs()
}

pub fn random() -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).expect("the kernel has randomness");
    bytes
}

/// The entries of a ledger's file.
pub fn read_ledger(path: &Path) -> Result<Vec<SignedEntry>> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(ledger_file::parse(text)?.entries)
}

/// A 32-byte secret in a file, raw or in any of the encodings in use here.
pub fn read_seed(path: &Path) -> Result<Zeroizing<[u8; 32]>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = bytes.trim_ascii();
    let last = text
        .rsplit(|&byte| byte == b'\n' || byte == b' ')
        .next()
        .unwrap_or(text);
    let decoded = [BASE64URL_NOPAD, BASE64, HEXLOWER]
        .into_iter()
        .filter_map(|encoding| encoding.decode(last).ok());
    std::iter::once(bytes.clone())
        .chain(decoded)
        .find_map(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .map(Zeroizing::new)
        .with_context(|| format!("{} holds no key that this test can read", path.display()))
}
