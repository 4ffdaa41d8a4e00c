//! Who signs: the authority, its broker, and the nodes, all made from small numbers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proto::enrolment::JoinProof;
use proto::entry::{Body, Broker, Entry, Grant, GrantRole, Role, SignedEntry, StoreId, Uses};
use proto::key::{MeshId, PublicKey, SigningKey, WireguardKey};
use proto::ledger::Ledger;
use proto::name::Name;
use proto::record::{Capabilities, Member, NodeState, Presence, Record};

const STORE: StoreId = StoreId([1; 16]);
const AUTHORITY: u32 = 1;
const RECOVERY: u32 = 2;
const BROKER: u32 = 3;
const FIRST_NODE: u32 = 10_000;

pub struct Authority {
    pub mesh: MeshId,
    pub entries: Vec<SignedEntry>,
    /// Every record that a node of the mesh has signed.
    pub signed: BTreeSet<Vec<u8>>,
    uses: u32,
}

/// What a node keeps on its disk about itself.
#[derive(Clone)]
pub struct Actor {
    number: u32,
    pub identity: PublicKey,
    pub site: Name,
    pub name: Name,
    pub wireguard: WireguardKey,
    pub sequence: u64,
    mesh: MeshId,
    enrolment: Vec<u8>,
}

fn key(number: u32) -> SigningKey {
    let mut seed = [0x55; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_seed(&seed)
}

impl Authority {
    pub fn new() -> Authority {
        let genesis = Ledger::genesis(0, key(AUTHORITY).public(), &key(RECOVERY).public());
        let genesis = genesis.sign(&key(AUTHORITY));
        let mut authority = Authority {
            mesh: genesis.hash(),
            entries: vec![genesis],
            signed: BTreeSet::new(),
            uses: 0,
        };
        authority.append(Body::Broker(Broker {
            key: key(BROKER).public(),
            store: STORE,
            addresses: Vec::new(),
        }));
        authority
    }

    pub fn append(&mut self, body: Body) {
        let entry = self.next(body).sign(&key(AUTHORITY));
        self.entries.push(entry);
    }

    fn next(&self, body: Body) -> Entry {
        let last = self.entries.last().expect("entry 0 is there");
        Entry {
            number: last.entry().number + 1,
            previous: last.hash(),
            issued: 0,
            body,
        }
    }

    /// What a broker without the authority's key can make of it.
    pub fn forged(&self, body: Body) -> Vec<u8> {
        self.next(body).sign(&key(BROKER)).bytes().to_vec()
    }

    /// A grant for a site, and the node that uses it.
    pub fn enrol(&mut self, site: &str, prefix: &str) -> Actor {
        self.uses += 1;
        let number = FIRST_NODE + self.uses;
        let join_key = key(number + FIRST_NODE);
        let is_first = !self.has_site(site);
        self.append(Body::Grant(Grant {
            site: name(site),
            prefixes: if is_first {
                vec![prefix.parse().expect("a prefix")]
            } else {
                Vec::new()
            },
            service_prefixes: Vec::new(),
            role: GrantRole::Any,
            not_before: 0,
            not_after: 1,
            uses: Uses::AtMost(1),
            join_key: join_key.public(),
            store: STORE,
        }));
        let grant = self.entries.last().expect("just appended").hash();
        let proof = JoinProof::sign(self.mesh, grant, &join_key, &key(number));
        Actor {
            number,
            identity: key(number).public(),
            site: name(site),
            name: name(&format!("n{}", self.uses)),
            wireguard: wireguard(number),
            sequence: 0,
            mesh: self.mesh,
            enrolment: proof.enrol(0, &key(BROKER)).write(),
        }
    }

    fn has_site(&self, site: &str) -> bool {
        let mut grants = self.entries.iter().filter_map(SignedEntry::grant);
        grants.any(|grant| grant.site == name(site))
    }

    /// The node's next record.
    pub fn publish(
        &mut self,
        actor: &mut Actor,
        candidates: Vec<SocketAddr>,
        lan: IpAddr,
    ) -> Member {
        self.sign(
            actor,
            NodeState::Present(Presence {
                wireguard: actor.wireguard,
                next_wireguard: None,
                candidates,
                lan_address: Some(lan),
                region: String::new(),
                zone: String::new(),
                capabilities: Capabilities::RELAY,
            }),
        )
    }

    pub fn withdraw(&mut self, actor: &mut Actor) -> Member {
        self.sign(actor, NodeState::Withdrawn)
    }

    fn sign(&mut self, actor: &mut Actor, state: NodeState) -> Member {
        actor.sequence += 1;
        let member = actor.member(actor.identity, actor.sequence, state);
        self.signed.insert(member.record.clone());
        member
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

impl Actor {
    pub fn key(&self) -> SigningKey {
        key(self.number)
    }

    /// A new WireGuard key; the next record tells it.
    pub fn rotate(&mut self, turn: u32) {
        self.wireguard = wireguard(self.number + turn * 7 * FIRST_NODE);
    }

    /// A record in the name of `identity`, whoever that is, signed by this node.
    fn member(&self, identity: PublicKey, sequence: u64, state: NodeState) -> Member {
        let record = Record {
            mesh: self.mesh,
            site: self.site.clone(),
            node: self.name.clone(),
            role: Role::Gateway,
            identity: self.identity,
            sequence,
            issued: 0,
            state,
        };
        let mut bytes = record.sign(&self.key()).bytes().to_vec();
        if identity != self.identity {
            let own = self.identity.as_bytes();
            let at = bytes.windows(32).position(|window| window == own);
            if let Some(at) = at {
                bytes[at..at + 32].copy_from_slice(identity.as_bytes());
            }
        }
        Member {
            enrolment: self.enrolment.clone(),
            record: bytes,
        }
    }

    /// What a broker with this node's key could say of another one.
    pub fn impersonate(&self, other: &Member, identity: PublicKey, state: NodeState) -> Member {
        Member {
            enrolment: other.enrolment.clone(),
            record: self.member(identity, u64::MAX / 2, state).record,
        }
    }
}

fn wireguard(number: u32) -> WireguardKey {
    let mut bytes = [0x42; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    WireguardKey::new(bytes).expect("not of low order")
}

pub fn name(text: &str) -> Name {
    text.parse().expect("a name")
}
