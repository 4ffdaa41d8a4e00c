//! One entry of the ledger: what the authority has said, as signed bytes and as a value.
//!
//! Whether an entry belongs into a ledger, and what holds because of it, is `ledger`'s matter.

use std::fmt;
use std::net::Ipv6Addr;

use ip_network::IpNetwork;
use thiserror::Error;

use crate::blob::{BlobError, MAX_TEXT, Reader, Writer};
use crate::key::{BadSignature, Domain, Hash, PublicKey, Signature, SigningKey};
use crate::name::Name;

const VERSION: u8 = 1;
const SIGNATURE: usize = 64;
pub const MAX_PREFIXES: usize = 256;
pub const MAX_BROKER_ADDRESSES: usize = 8;
/// Of a revocation, and of those that stay under a closed grant.
pub const MAX_KEYS: usize = 4096;
const MAX_CLOSINGS: usize = 256;
/// As written. Not 0, which must never read as more than none.
const UNLIMITED: u32 = u32::MAX;
/// In bytes, with its signature. Several fit a frame, with room for what is around them.
pub const MAX_ENTRY: usize = 160 * 1024;

/// Which store judges a grant's window and uses. Brokers that share a store share its id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub [u8; 16]);

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Gateway,
    Agent,
}

/// What a grant lets its nodes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrantRole {
    Gateway,
    Agent,
    Any,
}

/// How often a grant may be used to enrol a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Uses {
    AtMost(u32),
    Unlimited,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub number: u64,
    /// The entry before it; all zeros in entry 0.
    pub previous: Hash,
    /// Unix seconds by the signer's clock; for people, nothing is decided by it.
    pub issued: u64,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Genesis {
        authority: PublicKey,
        /// [`Domain::RecoveryKey`] hash of the key that may change the authority.
        recovery: Hash,
    },
    Grant(Grant),
    /// Prefixes given to and taken from a site.
    Prefixes {
        site: Name,
        added: Vec<IpNetwork>,
        added_service: Vec<IpNetwork>,
        removed: Vec<IpNetwork>,
    },
    Revocation {
        keys: Vec<PublicKey>,
        closings: Vec<Closing>,
    },
    SiteRevoked {
        site: Name,
    },
    /// A broker, or new addresses of one.
    Broker(Broker),
    BrokerRemoved {
        key: PublicKey,
    },
    /// Signed by the recovery key, which it shows.
    Authority {
        recovery: PublicKey,
        authority: PublicKey,
        next_recovery: Hash,
    },
    /// Ends a fork: the branch of `previous` goes on, that of `other` keeps its revocations only.
    /// Numbered one above the higher of the two.
    Settlement {
        other: Hash,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub site: Name,
    pub prefixes: Vec<IpNetwork>,
    pub service_prefixes: Vec<IpNetwork>,
    pub role: GrantRole,
    /// Unix seconds; judged by the store's broker alone.
    pub not_before: u64,
    pub not_after: u64,
    pub uses: Uses,
    pub join_key: PublicKey,
    pub store: StoreId,
}

/// A grant that takes no more nodes, and those of its nodes that stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    pub grant: Hash,
    pub stay: Vec<PublicKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// TLS key and signing key in one: the pin.
    pub key: PublicKey,
    pub store: StoreId,
    /// `host:port`; may be empty where only tokens name the address.
    pub addresses: Vec<String>,
}

/// An entry as its bytes: payload, then signature. What is kept, sent and hashed.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedEntry {
    bytes: Vec<u8>,
    entry: Entry,
    hash: Hash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    #[error("the ledger entry cannot be read: {0}")]
    Form(#[from] BlobError),
    #[error("the ledger entry is not signed by the key it needs")]
    Signature(#[from] BadSignature),
}

impl Entry {
    /// Signs with the authority's key; with the recovery key for [`Body::Authority`].
    pub fn sign(self, key: &SigningKey) -> SignedEntry {
        let mut bytes = self.payload();
        let signature = key.sign(self.domain(), &bytes);
        let hash = Hash::of(Domain::Entry, &bytes);
        bytes.extend_from_slice(&signature.0);
        SignedEntry {
            bytes,
            entry: self,
            hash,
        }
    }

    fn domain(&self) -> Domain {
        if matches!(self.body, Body::Authority { .. }) {
            Domain::Recovery
        } else {
            Domain::Entry
        }
    }

    fn payload(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION)
            .u64(self.number)
            .hash(&self.previous)
            .u64(self.issued);
        self.body.write(&mut out);
        out.finish()
    }

    /// Whether others could read it once it is signed.
    pub(crate) fn check_form(&self) -> Result<(), BlobError> {
        self.body.check_lengths()?;
        let payload = self.payload();
        if payload.len() + SIGNATURE > MAX_ENTRY {
            return Err(BlobError::Long);
        }
        if Entry::read(&payload)? == *self {
            Ok(())
        } else {
            Err(BlobError::Field("form"))
        }
    }

    fn read(payload: &[u8]) -> Result<Entry, BlobError> {
        let mut from = Reader::new(payload);
        match from.u8()? {
            VERSION => {}
            other => return Err(BlobError::Version(other)),
        }
        let entry = Entry {
            number: from.u64()?,
            previous: from.hash()?,
            issued: from.u64()?,
            body: Body::read(&mut from)?,
        };
        from.finish()?;
        Ok(entry)
    }
}

impl Body {
    /// The head that a settlement gives up.
    pub fn settled(&self) -> Option<&Hash> {
        match self {
            Body::Settlement { other } => Some(other),
            Body::Genesis { .. }
            | Body::Grant(_)
            | Body::Prefixes { .. }
            | Body::Revocation { .. }
            | Body::SiteRevoked { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. }
            | Body::Authority { .. } => None,
        }
    }

    /// A longer list could not even be written.
    fn check_lengths(&self) -> Result<(), BlobError> {
        let fits = match self {
            Body::Grant(grant) => {
                grant.prefixes.len() <= MAX_PREFIXES && grant.service_prefixes.len() <= MAX_PREFIXES
            }
            Body::Prefixes {
                added,
                added_service,
                removed,
                ..
            } => [added, added_service, removed]
                .iter()
                .all(|prefixes| prefixes.len() <= MAX_PREFIXES),
            Body::Revocation { keys, closings } => {
                keys.len() <= MAX_KEYS
                    && closings.len() <= MAX_CLOSINGS
                    && closings
                        .iter()
                        .all(|closing| closing.stay.len() <= MAX_KEYS)
            }
            Body::Broker(broker) => {
                if !broker
                    .addresses
                    .iter()
                    .all(|address| is_broker_address(address))
                {
                    return Err(BlobError::Field("broker address"));
                }
                broker.addresses.len() <= MAX_BROKER_ADDRESSES
            }
            Body::Genesis { .. }
            | Body::SiteRevoked { .. }
            | Body::BrokerRemoved { .. }
            | Body::Authority { .. }
            | Body::Settlement { .. } => true,
        };
        if fits { Ok(()) } else { Err(BlobError::Long) }
    }

    fn write(&self, out: &mut Writer) {
        match self {
            Body::Genesis {
                authority,
                recovery,
            } => out.u8(0).key(authority).hash(recovery),
            Body::Grant(grant) => grant.write(out.u8(1)),
            Body::Prefixes {
                site,
                added,
                added_service,
                removed,
            } => {
                out.u8(2).name(site);
                write_prefixes(out, added);
                write_prefixes(out, added_service);
                write_prefixes(out, removed)
            }
            Body::Revocation { keys, closings } => {
                write_keys(out.u8(3), keys).list(closings, |out, closing| {
                    write_keys(out.hash(&closing.grant), &closing.stay);
                })
            }
            Body::SiteRevoked { site } => out.u8(4).name(site),
            Body::Broker(broker) => out.u8(5).key(&broker.key).raw(&broker.store.0).list(
                &broker.addresses,
                |out, address| {
                    out.text(address);
                },
            ),
            Body::BrokerRemoved { key } => out.u8(6).key(key),
            Body::Authority {
                recovery,
                authority,
                next_recovery,
            } => out.u8(7).key(recovery).key(authority).hash(next_recovery),
            Body::Settlement { other } => out.u8(8).hash(other),
        };
    }

    fn read(from: &mut Reader<'_>) -> Result<Body, BlobError> {
        Ok(match from.u8()? {
            0 => Body::Genesis {
                authority: from.key("authority key")?,
                recovery: from.hash()?,
            },
            1 => Body::Grant(Grant::read(from)?),
            2 => Body::Prefixes {
                site: from.name("site name")?,
                added: read_prefixes(from)?,
                added_service: read_prefixes(from)?,
                removed: read_prefixes(from)?,
            },
            3 => Body::Revocation {
                keys: read_keys(from)?,
                closings: from.list("closings", MAX_CLOSINGS, |from| {
                    Ok(Closing {
                        grant: from.hash()?,
                        stay: read_keys(from)?,
                    })
                })?,
            },
            4 => Body::SiteRevoked {
                site: from.name("site name")?,
            },
            5 => Body::Broker(Broker {
                key: from.key("broker key")?,
                store: StoreId(from.array()?),
                addresses: from.list("broker addresses", MAX_BROKER_ADDRESSES, |from| {
                    read_broker_address(from)
                })?,
            }),
            6 => Body::BrokerRemoved {
                key: from.key("broker key")?,
            },
            7 => Body::Authority {
                recovery: from.key("recovery key")?,
                authority: from.key("authority key")?,
                next_recovery: from.hash()?,
            },
            8 => Body::Settlement {
                other: from.hash()?,
            },
            _ => return Err(BlobError::Field("kind")),
        })
    }
}

impl Grant {
    fn write<'a>(&self, out: &'a mut Writer) -> &'a mut Writer {
        out.name(&self.site);
        write_prefixes(out, &self.prefixes);
        write_prefixes(out, &self.service_prefixes);
        out.u8(match self.role {
            GrantRole::Gateway => 0,
            GrantRole::Agent => 1,
            GrantRole::Any => 2,
        })
        .u64(self.not_before)
        .u64(self.not_after)
        .u32(match self.uses {
            Uses::AtMost(uses) => uses,
            Uses::Unlimited => UNLIMITED,
        })
        .key(&self.join_key)
        .raw(&self.store.0)
    }

    fn read(from: &mut Reader<'_>) -> Result<Grant, BlobError> {
        Ok(Grant {
            site: from.name("site name")?,
            prefixes: read_prefixes(from)?,
            service_prefixes: read_prefixes(from)?,
            role: match from.u8()? {
                0 => GrantRole::Gateway,
                1 => GrantRole::Agent,
                2 => GrantRole::Any,
                _ => return Err(BlobError::Field("role")),
            },
            not_before: from.u64()?,
            not_after: from.u64()?,
            uses: match from.u32()? {
                0 => return Err(BlobError::Field("number of uses")),
                UNLIMITED => Uses::Unlimited,
                uses => Uses::AtMost(uses),
            },
            join_key: from.key("join key")?,
            store: StoreId(from.array()?),
        })
    }
}

impl GrantRole {
    pub fn allows(self, role: Role) -> bool {
        match self {
            GrantRole::Any => true,
            GrantRole::Gateway => role == Role::Gateway,
            GrantRole::Agent => role == Role::Agent,
        }
    }
}

impl SignedEntry {
    /// Reads the form only; [`SignedEntry::verify`] says whether it was signed.
    pub fn read(bytes: &[u8]) -> Result<SignedEntry, BlobError> {
        if bytes.len() > MAX_ENTRY {
            return Err(BlobError::Long);
        }
        let length = bytes.len().checked_sub(SIGNATURE).ok_or(BlobError::Short)?;
        let (payload, _) = bytes.split_at(length);
        Ok(SignedEntry {
            entry: Entry::read(payload)?,
            hash: Hash::of(Domain::Entry, payload),
            bytes: bytes.to_owned(),
        })
    }

    /// Checks the signature by the authority in force, or by the recovery key an entry shows,
    /// which the ledger compares with the hash it committed to.
    pub fn verify(&self, authority: &PublicKey) -> Result<(), BadSignature> {
        let signer = match &self.entry.body {
            Body::Authority { recovery, .. } => recovery,
            Body::Genesis { authority, .. } => authority,
            Body::Grant(_)
            | Body::Prefixes { .. }
            | Body::Revocation { .. }
            | Body::SiteRevoked { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. }
            | Body::Settlement { .. } => authority,
        };
        let (payload, signature) = self.bytes.split_at(self.bytes.len() - SIGNATURE);
        let signature = Signature(signature.try_into().map_err(|_| BadSignature)?);
        signer.verify(self.entry.domain(), payload, &signature)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Of the payload: a second signature under the same payload is the same entry.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    pub fn grant(&self) -> Option<&Grant> {
        match &self.entry.body {
            Body::Grant(grant) => Some(grant),
            Body::Genesis { .. }
            | Body::Prefixes { .. }
            | Body::Revocation { .. }
            | Body::SiteRevoked { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. }
            | Body::Authority { .. }
            | Body::Settlement { .. } => None,
        }
    }
}

/// `host:port` with a port that can be dialled; the host a name or an address, IPv6 in brackets.
pub fn is_broker_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let host_fits = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        }
    };
    text.len() <= MAX_TEXT
        && host_fits
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

pub(crate) fn read_broker_address(from: &mut Reader<'_>) -> Result<String, BlobError> {
    let address = from.text("broker address")?;
    if is_broker_address(&address) {
        Ok(address)
    } else {
        Err(BlobError::Field("broker address"))
    }
}

fn write_prefixes<'a>(out: &'a mut Writer, prefixes: &[IpNetwork]) -> &'a mut Writer {
    out.list(prefixes, |out, prefix| {
        out.prefix(*prefix);
    })
}

fn read_prefixes(from: &mut Reader<'_>) -> Result<Vec<IpNetwork>, BlobError> {
    from.list("prefixes", MAX_PREFIXES, |from| from.prefix("prefix"))
}

fn write_keys<'a>(out: &'a mut Writer, keys: &[PublicKey]) -> &'a mut Writer {
    out.list(keys, |out, key| {
        out.key(key);
    })
}

fn read_keys(from: &mut Reader<'_>) -> Result<Vec<PublicKey>, BlobError> {
    from.list("keys", MAX_KEYS, |from| from.key("key"))
}

impl fmt::Display for StoreId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Debug for SignedEntry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entry.fmt(out)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Role::Gateway => "gateway",
            Role::Agent => "agent",
        })
    }
}

impl fmt::Display for GrantRole {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            GrantRole::Gateway => "gateway",
            GrantRole::Agent => "agent",
            GrantRole::Any => "any",
        })
    }
}

impl fmt::Display for Uses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uses::AtMost(uses) => uses.fmt(out),
            Uses::Unlimited => out.pad("unlimited"),
        }
    }
}

#[cfg(test)]
mod tests;
