//! A mesh with its authority, brokers and nodes, made from small numbers.

use crate::enrolment::{Enrolment, JoinProof};
use crate::entry::{
    Body, Broker, Closing, Entry, Grant, GrantRole, Role, SignedEntry, StoreId, Uses,
};
use crate::key::{Domain, Hash, MeshId, PublicKey, SigningKey, WireguardKey};
use crate::ledger::Ledger;
use crate::mesh::{Event, Mesh};
use crate::record::{Member, NodeState, Presence, Record};

pub(super) const STORE: StoreId = StoreId([1; 16]);
pub(super) const OTHER_STORE: StoreId = StoreId([2; 16]);

pub(super) struct Scene {
    pub(super) mesh: MeshId,
    pub(super) entries: Vec<SignedEntry>,
}

/// A grant in the ledger and the secret of its token.
pub(super) struct Granted {
    pub(super) id: Hash,
    pub(super) site: &'static str,
    join_key: u32,
}

pub(super) fn key(number: u32) -> SigningKey {
    let mut seed = [0x55; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_seed(&seed)
}

pub(super) fn node(number: u32) -> SigningKey {
    key(100_000 + number)
}

pub(super) fn authority() -> SigningKey {
    key(1)
}

pub(super) fn recovery() -> SigningKey {
    key(2)
}

pub(super) fn broker() -> SigningKey {
    key(3)
}

/// Of the other store.
pub(super) fn other_broker() -> SigningKey {
    key(4)
}

impl Scene {
    /// Entry 0 and a broker for each of two stores.
    pub(super) fn new() -> Scene {
        let genesis = Ledger::genesis(0, authority().public(), &recovery().public());
        let genesis = genesis.sign(&authority());
        let mut scene = Scene {
            mesh: genesis.hash(),
            entries: vec![genesis],
        };
        scene.add_broker(&broker(), STORE);
        scene.add_broker(&other_broker(), OTHER_STORE);
        scene
    }

    pub(super) fn add_broker(&mut self, key: &SigningKey, store: StoreId) {
        self.append(Body::Broker(Broker {
            key: key.public(),
            store,
            addresses: vec![],
        }));
    }

    pub(super) fn append(&mut self, body: Body) -> Hash {
        let entry = self.after(self.entries.last().unwrap(), body);
        let hash = entry.hash();
        self.entries.push(entry);
        hash
    }

    /// Signed by the authority of the beginning, not appended.
    pub(super) fn after(&self, parent: &SignedEntry, body: Body) -> SignedEntry {
        Entry {
            number: parent.entry().number + 1,
            previous: parent.hash(),
            issued: 0,
            body,
        }
        .sign(&authority())
    }

    pub(super) fn grant(&mut self, site: &'static str, uses: Uses) -> Granted {
        self.grant_as(site, uses, GrantRole::Any, &[])
    }

    pub(super) fn grant_as(
        &mut self,
        site: &'static str,
        uses: Uses,
        role: GrantRole,
        prefixes: &[&str],
    ) -> Granted {
        let join_key = 1_000 + u32::try_from(self.entries.len()).unwrap();
        let mut grant = grant_for(site, uses, join_key);
        grant.role = role;
        grant.prefixes = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        let id = self.append(Body::Grant(grant));
        Granted { id, site, join_key }
    }

    pub(super) fn revoke(&mut self, keys: &[PublicKey]) -> Hash {
        self.append(revocation(keys))
    }

    pub(super) fn close(&mut self, grant: &Granted, stay: &[PublicKey]) -> Hash {
        self.append(closing(grant, stay))
    }

    pub(super) fn enrol(&self, grant: &Granted, use_number: u32, node: &SigningKey) -> Enrolment {
        self.enrol_at(&broker(), grant, use_number, node)
    }

    pub(super) fn enrol_at(
        &self,
        broker: &SigningKey,
        grant: &Granted,
        use_number: u32,
        node: &SigningKey,
    ) -> Enrolment {
        let join_key = key(grant.join_key);
        JoinProof::sign(self.mesh, grant.id, &join_key, node).enrol(use_number, broker)
    }

    pub(super) fn record(&self, site: &str, node: &SigningKey, sequence: u64) -> Record {
        let public = node.public();
        Record {
            mesh: self.mesh,
            site: site.parse().unwrap(),
            node: format!("n{}", Hash::of(Domain::Verified, public.as_bytes()).short())
                .parse()
                .unwrap(),
            role: Role::Gateway,
            identity: public,
            sequence,
            issued: 0,
            state: NodeState::Present(presence(&public)),
        }
    }

    /// The node's first record under this use.
    pub(super) fn member(&self, grant: &Granted, use_number: u32, node: &SigningKey) -> Member {
        self.member_at(grant, use_number, node, 1)
    }

    pub(super) fn member_at(
        &self,
        grant: &Granted,
        use_number: u32,
        node: &SigningKey,
        sequence: u64,
    ) -> Member {
        let record = self.record(grant.site, node, sequence);
        member(&self.enrol(grant, use_number, node), record, node)
    }

    /// A receiver with the whole ledger.
    pub(super) fn receiver(&self) -> Mesh {
        let mut mesh = Mesh::new(self.mesh, None);
        for entry in &self.entries {
            mesh.handle_entry(entry.bytes()).unwrap();
        }
        events(&mut mesh);
        mesh
    }

    /// Shows the receiver the entry that was appended last.
    pub(super) fn tell(&self, mesh: &mut Mesh) {
        mesh.handle_entry(self.entries.last().unwrap().bytes())
            .unwrap();
    }
}

pub(super) fn grant_for(site: &str, uses: Uses, join_key: u32) -> Grant {
    Grant {
        site: site.parse().unwrap(),
        prefixes: vec![],
        service_prefixes: vec![],
        role: GrantRole::Any,
        not_before: 0,
        not_after: 1,
        uses,
        join_key: key(join_key).public(),
        store: STORE,
    }
}

pub(super) fn revocation(keys: &[PublicKey]) -> Body {
    Body::Revocation {
        keys: keys.to_vec(),
        closings: vec![],
    }
}

pub(super) fn closing(grant: &Granted, stay: &[PublicKey]) -> Body {
    Body::Revocation {
        keys: vec![],
        closings: vec![Closing {
            grant: grant.id,
            stay: stay.to_vec(),
        }],
    }
}

pub(super) fn wireguard(of: &PublicKey) -> WireguardKey {
    let mut bytes = *of.as_bytes();
    bytes[31] = 0x42;
    WireguardKey::new(bytes).unwrap()
}

pub(super) fn presence(of: &PublicKey) -> Presence {
    Presence {
        wireguard: wireguard(of),
        next_wireguard: None,
        candidates: vec!["198.51.100.7:51820".parse().unwrap()],
        lan_address: Some("10.0.0.7".parse().unwrap()),
        region: "r".to_owned(),
        zone: String::new(),
        capabilities: Default::default(),
    }
}

pub(super) fn member(enrolment: &Enrolment, record: Record, node: &SigningKey) -> Member {
    Member {
        enrolment: enrolment.write(),
        record: record.sign(node).bytes().to_vec(),
    }
}

pub(super) fn events(mesh: &mut Mesh) -> Vec<Event> {
    std::iter::from_fn(|| mesh.poll_event()).collect()
}

pub(super) fn identities(mesh: &Mesh) -> Vec<PublicKey> {
    mesh.nodes().map(|node| node.identity).collect()
}
