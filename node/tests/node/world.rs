//! A mesh with its authority's key at hand, to sign what a test needs.

use std::net::SocketAddr;

use ip_network::IpNetwork;
use proto::enrolment::{Enrolment, JoinProof};
use proto::entry::{Body, Broker, Closing, Grant, GrantRole, Role, SignedEntry, StoreId, Uses};
use proto::key::{Hash, MeshId, PublicKey, SigningKey, WireguardKey};
use proto::ledger::Ledger;
use proto::name::Name;
use proto::record::{Capabilities, Member, NodeState, Presence, Record};
use proto::token::{Token, TokenBroker};
use zeroize::Zeroizing;

pub(crate) const STORE: StoreId = StoreId([5; 16]);
const ISSUED: u64 = 1_800_000_000;

pub(crate) struct World {
    pub(crate) authority: SigningKey,
    pub(crate) broker: SigningKey,
    pub(crate) ledger: Ledger,
}

/// A node of another machine: all that it would have.
pub(crate) struct Other {
    pub(crate) identity: SigningKey,
    pub(crate) enrolment: Enrolment,
    pub(crate) site: Name,
    pub(crate) node: Name,
    pub(crate) role: Role,
    pub(crate) mesh: MeshId,
    pub(crate) wireguard: WireguardKey,
    pub(crate) candidates: Vec<SocketAddr>,
}

pub(crate) struct Granted {
    pub(crate) entry: SignedEntry,
    pub(crate) join_key: SigningKey,
    seed: [u8; 32],
}

impl World {
    /// Entry 0 and one broker.
    pub(crate) fn new() -> World {
        World::seeded(1)
    }

    /// Another mesh for another number.
    pub(crate) fn seeded(number: u8) -> World {
        let authority = SigningKey::from_seed(&[number; 32]);
        let recovery = SigningKey::from_seed(&[number.wrapping_add(100); 32]);
        let broker = SigningKey::from_seed(&[number.wrapping_add(50); 32]);
        let genesis =
            Ledger::genesis(ISSUED, authority.public(), &recovery.public()).sign(&authority);
        let mut ledger = Ledger::new(genesis.hash());
        ledger.insert(genesis).unwrap();
        let mut world = World {
            authority,
            broker,
            ledger,
        };
        world.add_broker(world.broker.public(), Vec::new());
        world
    }

    pub(crate) fn mesh(&self) -> MeshId {
        self.ledger.mesh()
    }

    pub(crate) fn sign(&mut self, body: Body) -> SignedEntry {
        let entry = self
            .ledger
            .next(ISSUED, body)
            .unwrap()
            .sign(&self.authority);
        self.ledger.insert(entry.clone()).unwrap();
        entry
    }

    pub(crate) fn add_broker(&mut self, key: PublicKey, addresses: Vec<String>) -> SignedEntry {
        self.add_broker_of(STORE, key, addresses)
    }

    pub(crate) fn add_broker_of(
        &mut self,
        store: StoreId,
        key: PublicKey,
        addresses: Vec<String>,
    ) -> SignedEntry {
        self.sign(Body::Broker(Broker {
            key,
            store,
            addresses,
        }))
    }

    pub(crate) fn grant(&mut self, site: &str, prefix: &str, uses: Uses) -> Granted {
        self.grant_role(site, prefix, uses, GrantRole::Any)
    }

    pub(crate) fn grant_role(
        &mut self,
        site: &str,
        prefix: &str,
        uses: Uses,
        role: GrantRole,
    ) -> Granted {
        let (site, prefix) = (name(site), prefix.parse::<IpNetwork>().unwrap());
        self.grant_of(STORE, (site, prefix), uses, role)
    }

    /// Counted by a store of the caller's choice.
    pub(crate) fn grant_of(
        &mut self,
        store: StoreId,
        (site, prefix): (Name, IpNetwork),
        uses: Uses,
        role: GrantRole,
    ) -> Granted {
        let mut seed = [self.mesh().0[0]; 32];
        seed[..8].copy_from_slice(&self.ledger.len().to_be_bytes());
        seed[31] = 0xee;
        let join_key = SigningKey::from_seed(&seed);
        let grant = Grant {
            site,
            prefixes: vec![prefix],
            service_prefixes: Vec::new(),
            role,
            not_before: 0,
            not_after: u64::MAX,
            uses,
            join_key: join_key.public(),
            store,
        };
        let entry = self.sign(Body::Grant(grant));
        Granted {
            entry,
            join_key,
            seed,
        }
    }

    pub(crate) fn token(
        &self,
        granted: &Granted,
        brokers: &[(&str, PublicKey)],
    ) -> Zeroizing<String> {
        let brokers = brokers
            .iter()
            .map(|(address, key)| TokenBroker {
                address: (*address).to_owned(),
                key: *key,
            })
            .collect();
        let seed = Zeroizing::new(granted.seed);
        Token::new(
            self.mesh(),
            self.authority.public(),
            brokers,
            granted.entry.clone(),
            seed,
        )
        .unwrap()
        .encode()
    }

    /// A gateway with one candidate address.
    pub(crate) fn other(&self, granted: &Granted, use_number: u32, node: &str) -> Other {
        let terms = granted.entry.grant().unwrap();
        let mut seed = [0x33; 32];
        seed[..8].copy_from_slice(&granted.entry.hash().0[..8]);
        seed[8..12].copy_from_slice(&use_number.to_be_bytes());
        seed[12..12 + node.len().min(20)].copy_from_slice(&node.as_bytes()[..node.len().min(20)]);
        let identity = SigningKey::from_seed(&seed);
        let proof = JoinProof::sign(
            self.mesh(),
            granted.entry.hash(),
            &granted.join_key,
            &identity,
        );
        Other {
            enrolment: proof.enrol(use_number, &self.broker),
            site: terms.site.clone(),
            node: name(node),
            role: Role::Gateway,
            mesh: self.mesh(),
            wireguard: wireguard(*identity.public().as_bytes()),
            candidates: vec!["192.0.2.7:51820".parse().unwrap()],
            identity,
        }
    }

    pub(crate) fn revoke(&mut self, keys: Vec<PublicKey>) -> SignedEntry {
        self.sign(Body::Revocation {
            keys,
            closings: Vec::new(),
        })
    }

    pub(crate) fn close(&mut self, grant: Hash, stay: Vec<PublicKey>) -> SignedEntry {
        self.sign(Body::Revocation {
            keys: Vec::new(),
            closings: vec![Closing { grant, stay }],
        })
    }

    pub(crate) fn entries(&self) -> Vec<Vec<u8>> {
        self.ledger
            .entries()
            .map(|entry| entry.bytes().to_vec())
            .collect()
    }
}

impl Granted {
    pub(crate) fn site(&self) -> &str {
        self.entry.grant().unwrap().site.as_str()
    }

    /// The same grant with a join key that it does not name.
    pub(crate) fn with_key(&self, join_key: SigningKey) -> Granted {
        Granted {
            entry: self.entry.clone(),
            join_key,
            seed: self.seed,
        }
    }
}

impl Other {
    pub(crate) fn key(&self) -> PublicKey {
        self.identity.public()
    }

    pub(crate) fn record(&self, sequence: u64) -> Record {
        Record {
            mesh: self.mesh,
            site: self.site.clone(),
            node: self.node.clone(),
            role: self.role,
            identity: self.key(),
            sequence,
            issued: ISSUED,
            state: NodeState::Present(presence(self.wireguard, self.candidates.clone())),
        }
    }

    pub(crate) fn member(&self, sequence: u64) -> Vec<u8> {
        self.member_of(self.record(sequence))
    }

    pub(crate) fn withdrawal(&self, sequence: u64) -> Vec<u8> {
        let mut record = self.record(sequence);
        record.state = NodeState::Withdrawn;
        self.member_of(record)
    }

    pub(crate) fn member_of(&self, record: Record) -> Vec<u8> {
        member(&self.enrolment, record.sign(&self.identity).bytes())
    }
}

pub(crate) fn member(enrolment: &Enrolment, record: &[u8]) -> Vec<u8> {
    let member = Member {
        enrolment: enrolment.write(),
        record: record.to_vec(),
    };
    member.write()
}

pub(crate) fn presence(wireguard: WireguardKey, candidates: Vec<SocketAddr>) -> Presence {
    Presence {
        wireguard,
        next_wireguard: None,
        candidates,
        lan_address: None,
        region: "north".to_owned(),
        zone: String::new(),
        capabilities: Capabilities::LANES,
    }
}

/// A key that nobody has the secret of.
pub(crate) fn wireguard(mut bytes: [u8; 32]) -> WireguardKey {
    bytes[31] &= 0x3f;
    WireguardKey::new(bytes).unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}
