//! What a node knows of the mesh it joined, as JSON: enough to prove itself and to find brokers.

use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use proto::enrolment::Enrolment;
use proto::entry::{Grant, Role, SignedEntry, is_broker_address};
use proto::key::{MeshId, PublicKey};
use proto::name::Name;
use proto::token::TokenBroker;
use serde::{Deserialize, Serialize};

use super::{MEMBERSHIP, StateError, check, failed};
use crate::{contacts, durable};

const VERSION: u32 = 1;

#[derive(Clone, Debug)]
pub struct Membership {
    pub mesh: MeshId,
    /// The authority that the token named.
    pub authority: PublicKey,
    /// Of the token; the ledger names those of now.
    pub brokers: Vec<TokenBroker>,
    pub node: Name,
    pub region: String,
    pub zone: String,
    /// The gateway through which this node reaches brokers, if it was named.
    pub via: Option<String>,
    /// Unix seconds.
    pub joined: u64,
    grant: SignedEntry,
    enrolment: Vec<u8>,
    identity: PublicKey,
}

/// What [`Membership`] is made of besides the signed parts.
pub(crate) struct Chosen {
    pub(crate) authority: PublicKey,
    pub(crate) brokers: Vec<TokenBroker>,
    pub(crate) node: Name,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) via: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    mesh: String,
    authority: String,
    site: String,
    node: String,
    role: String,
    region: String,
    zone: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    via: Option<String>,
    joined: u64,
    brokers: Vec<FileBroker>,
    grant: String,
    enrolment: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBroker {
    address: String,
    key: String,
}

impl Membership {
    /// Checks that the enrolment is of this grant; whether the ledger has it is the caller's to
    /// know.
    pub(crate) fn new(
        chosen: Chosen,
        grant: SignedEntry,
        enrolment: &Enrolment,
        joined: u64,
    ) -> Result<Membership, String> {
        let terms = grant.grant().ok_or("its grant is none")?;
        enrolment.verify(terms).map_err(|error| error.to_string())?;
        if enrolment.proof.grant != grant.hash() {
            return Err("its enrolment is of another grant".to_owned());
        }
        Ok(Membership {
            mesh: enrolment.proof.mesh,
            authority: chosen.authority,
            brokers: chosen.brokers,
            node: chosen.node,
            region: chosen.region,
            zone: chosen.zone,
            via: chosen.via,
            joined,
            enrolment: enrolment.write(),
            identity: enrolment.proof.identity,
            grant,
        })
    }

    pub fn grant(&self) -> &Grant {
        self.grant.grant().expect("checked when it was made")
    }

    /// The gateway that the node joined through, as `host:port`.
    pub(crate) fn gateway(&self) -> Option<String> {
        self.via.as_deref().and_then(contacts::gateway)
    }

    pub fn grant_entry(&self) -> &SignedEntry {
        &self.grant
    }

    pub fn site(&self) -> &Name {
        &self.grant().site
    }

    /// The bytes of an [`Enrolment`].
    pub fn enrolment(&self) -> &[u8] {
        &self.enrolment
    }

    /// A role that the grant allows; where it allows both, a withdrawal may name either.
    pub(crate) fn first_role(&self) -> Role {
        if self.grant().role.allows(Role::Gateway) {
            Role::Gateway
        } else {
            Role::Agent
        }
    }

    pub fn identity(&self) -> PublicKey {
        self.identity
    }

    fn to_file(&self) -> File {
        File {
            version: VERSION,
            mesh: self.mesh.to_string(),
            authority: self.authority.to_string(),
            site: self.site().to_string(),
            node: self.node.to_string(),
            role: self.grant().role.to_string(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            via: self.via.clone(),
            joined: self.joined,
            brokers: self
                .brokers
                .iter()
                .map(|broker| FileBroker {
                    address: broker.address.clone(),
                    key: broker.key.to_string(),
                })
                .collect(),
            grant: BASE64URL_NOPAD.encode(self.grant.bytes()),
            enrolment: BASE64URL_NOPAD.encode(&self.enrolment),
        }
    }

    fn from_file(file: File) -> Result<Membership, String> {
        if file.version != VERSION {
            return Err(format!(
                "its version {} is not known here; a newer Causeway made it",
                file.version
            ));
        }
        let grant = SignedEntry::read(&decode(&file.grant)?).map_err(|error| error.to_string())?;
        let enrolment =
            Enrolment::read(&decode(&file.enrolment)?).map_err(|error| error.to_string())?;
        let chosen = Chosen {
            authority: file
                .authority
                .parse()
                .map_err(|error| format!("its authority: {error}"))?,
            brokers: file
                .brokers
                .into_iter()
                .map(broker)
                .collect::<Result<_, _>>()?,
            node: file
                .node
                .parse()
                .map_err(|error| format!("its node: {error}"))?,
            region: text(file.region)?,
            zone: text(file.zone)?,
            via: file.via.map(text).transpose()?,
        };
        let membership = Membership::new(chosen, grant, &enrolment, file.joined)?;
        if membership.mesh.to_string() == file.mesh && membership.site().as_str() == file.site {
            Ok(membership)
        } else {
            Err("its mesh or site is not the one of its enrolment".to_owned())
        }
    }
}

pub(super) fn write(directory: &Path, membership: &Membership) -> Result<(), StateError> {
    let path = directory.join(MEMBERSHIP);
    let mut content = serde_json::to_vec_pretty(&membership.to_file())
        .map_err(|error| failed(&path, error.into()))?;
    content.push(b'\n');
    durable::replace(&path, &content).map_err(|error| failed(&path, error))
}

pub(super) fn read(directory: &Path) -> Result<Membership, StateError> {
    let path = directory.join(MEMBERSHIP);
    let damaged = |why: String| StateError::Damaged {
        path: path.clone(),
        why,
        directory: directory.to_owned(),
    };
    let content = check::read(&path)?.ok_or_else(|| damaged("it is missing".to_owned()))?;
    let file: File =
        serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
    Membership::from_file(file).map_err(damaged)
}

fn broker(file: FileBroker) -> Result<TokenBroker, String> {
    if !is_broker_address(&file.address) {
        return Err(format!("{:?} is no address of a broker", file.address));
    }
    Ok(TokenBroker {
        address: file.address,
        key: file
            .key
            .parse()
            .map_err(|error| format!("a broker's key: {error}"))?,
    })
}

fn text(text: String) -> Result<String, String> {
    if proto::blob::is_plain(&text) {
        Ok(text)
    } else {
        Err(format!("{text:?} is not plain text"))
    }
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| "a part of it is not base64".to_owned())
}
