//! What a person should look at: each with what it is and what to do next.

use std::fmt;
use std::net::IpAddr;

use ip_network::IpNetwork;

use crate::key::{Hash, PublicKey, WireguardKey};
use crate::ledger::Head;
use crate::name::Name;
use crate::prefix::RefusedPrefix;

use super::owners::RefusedAddress;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Two entries of the ledger follow the same one.
    Fork {
        split: Head,
        heads: Vec<Head>,
    },
    PrefixQuarantined {
        site: Name,
        prefix: IpNetwork,
    },
    /// The later of two overlapping prefixes, or one that overlaps the receiver's own site.
    PrefixOverlaps {
        site: Name,
        prefix: IpNetwork,
        with_site: Name,
        with_prefix: IpNetwork,
    },
    PrefixRefused {
        site: Name,
        prefix: IpNetwork,
        why: RefusedPrefix,
    },
    /// Proof against the brokers that signed them.
    TwoForOneUse {
        grant: Hash,
        use_number: u32,
        identities: Vec<PublicKey>,
        brokers: Vec<PublicKey>,
        taken: Option<PublicKey>,
    },
    TwoForOneName {
        site: Name,
        node: Name,
        identities: Vec<PublicKey>,
    },
    CopiedWireguardKey {
        key: WireguardKey,
        nodes: Vec<(Name, Name, PublicKey)>,
    },
    /// Two records of one identity with one sequence number.
    TwoOfOneIdentity {
        site: Name,
        node: Name,
        identity: PublicKey,
        sequence: u64,
    },
    AddressRefused {
        site: Name,
        node: Name,
        address: IpAddr,
        why: RefusedAddress,
    },
}

/// What the problem is.
impl fmt::Display for Problem {
    #[expect(
        clippy::too_many_lines,
        reason = "one sentence for each, nothing to decide"
    )]
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Fork { split, heads } => {
                let heads: Vec<String> = heads
                    .iter()
                    .map(|head| format!("{} (entry {})", head.hash.short(), head.number))
                    .collect();
                write!(
                    out,
                    "the ledger is forked after entry {}: its heads are {}",
                    split.number,
                    heads.join(" and ")
                )
            }
            Problem::PrefixQuarantined { site, prefix } => write!(
                out,
                "prefix {prefix} of site {site} is quarantined until the ledger's fork is settled"
            ),
            Problem::PrefixOverlaps {
                site,
                prefix,
                with_site,
                with_prefix,
            } => write!(
                out,
                "prefix {prefix} of site {site} is not used: it overlaps {with_prefix} of site \
                 {with_site}"
            ),
            Problem::PrefixRefused { site, prefix, why } => {
                write!(out, "prefix {prefix} of site {site} is not used: {why}")
            }
            Problem::TwoForOneUse { .. } => self.write_two_for_one_use(out),
            Problem::TwoForOneName {
                site,
                node,
                identities,
            } => write!(
                out,
                "node name {node} of site {site} is used by {} identities: {}",
                identities.len(),
                listed(identities)
            ),
            Problem::CopiedWireguardKey { key, nodes } => {
                let nodes: Vec<String> = nodes
                    .iter()
                    .map(|(site, node, identity)| format!("{site}/{node} ({identity})"))
                    .collect();
                write!(
                    out,
                    "WireGuard key {key} is in the records of {}",
                    nodes.join(" and ")
                )
            }
            Problem::TwoOfOneIdentity {
                site,
                node,
                identity,
                sequence,
            } => write!(
                out,
                "node {site}/{node} ({identity}) has signed two records with sequence number \
                 {sequence}"
            ),
            Problem::AddressRefused {
                site,
                node,
                address,
                why,
            } => write!(
                out,
                "address {address} in the record of node {site}/{node} is not used: {why}"
            ),
        }
    }
}

impl Problem {
    fn write_two_for_one_use(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem::TwoForOneUse {
            grant,
            use_number,
            identities,
            brokers,
            taken,
        } = self
        else {
            return Ok(());
        };
        write!(
            out,
            "use {use_number} of grant {} was given to {} identities: {}; signed by broker {}; ",
            grant.short(),
            identities.len(),
            listed(identities),
            listed(brokers)
        )?;
        match taken {
            Some(identity) => write!(out, "{identity}, known before, is kept"),
            None => out.write_str("none of them is taken"),
        }
    }

    /// What to do next.
    pub fn next(&self) -> String {
        match self {
            Problem::Fork { heads, .. } => {
                let shown: Vec<String> = heads.iter().map(|head| head.hash.to_string()).collect();
                format!(
                    "find out who signed beside whom, then run `causeway ledger settle` where the \
                     authority's key is and choose the head that goes on: {}; if the key was \
                     stolen, `causeway ledger recover`",
                    shown.join(" or ")
                )
            }
            Problem::PrefixQuarantined { .. } => {
                "settle the ledger's fork with `causeway ledger settle`".to_owned()
            }
            Problem::PrefixOverlaps { site, prefix, .. }
            | Problem::PrefixRefused { site, prefix, .. } => {
                format!("take it from the site with `causeway site remove-prefix {site} {prefix}`")
            }
            Problem::TwoForOneUse { grant, .. } => format!(
                "do not trust that broker: revoke the identity that is not yours with `causeway \
                 node revoke KEY`, or close the grant with `causeway token revoke {}`",
                grant.short()
            ),
            Problem::TwoForOneName { .. } => {
                "rename one of them, or revoke the one that is not yours with `causeway node \
                 revoke KEY`"
                    .to_owned()
            }
            Problem::CopiedWireguardKey { .. } => {
                "no link comes up with the one that does not hold the key; find out which copied \
                 it and revoke that one with `causeway node revoke KEY`"
                    .to_owned()
            }
            Problem::TwoOfOneIdentity { .. } => {
                "two machines run from copies of one state directory: on one of them move the \
                 directory away and join again with a new token"
                    .to_owned()
            }
            Problem::AddressRefused { .. } => {
                "on that node name an address that is reachable from outside with `--endpoint`, or \
                 correct the prefixes of the sites"
                    .to_owned()
            }
        }
    }
}

fn listed(keys: &[PublicKey]) -> String {
    let keys: Vec<String> = keys.iter().map(PublicKey::to_string).collect();
    keys.join(" and ")
}
