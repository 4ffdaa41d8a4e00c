//! Who holds what overlaps a prefix, found without looking at all of them: a mesh has thousands.

use std::collections::BTreeMap;

use ip_network::IpNetwork;

use crate::name::Name;

/// Ordered so that all that lies in a prefix follows it: family, first address, length.
type Span = (u8, u128, u8);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans(BTreeMap<Span, Vec<Holder>>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// Of the entry that gave it.
    pub(super) number: u64,
    pub(super) site: Name,
    pub(super) prefix: IpNetwork,
}

impl Spans {
    pub(super) fn insert(&mut self, holder: Holder) {
        let holders = self.0.entry(span(holder.prefix)).or_default();
        holders.push(holder);
    }

    pub(super) fn remove(&mut self, prefix: IpNetwork, site: &Name) {
        let span = span(prefix);
        if let Some(holders) = self.0.get_mut(&span) {
            holders.retain(|holder| holder.site != *site);
            if holders.is_empty() {
                self.0.remove(&span);
            }
        }
    }

    pub(super) fn holds(&self, prefix: IpNetwork, site: &Name) -> bool {
        self.0
            .get(&span(prefix))
            .is_some_and(|holders| holders.iter().any(|holder| holder.site == *site))
    }

    /// The earliest of other sites' that overlaps, among those given before entry `number`.
    pub(super) fn earliest_overlapping(
        &self,
        prefix: IpNetwork,
        except: &Name,
        number: u64,
    ) -> Option<&Holder> {
        let (family, first, length) = span(prefix);
        let around = (0..length).filter_map(move |shorter| {
            self.0
                .get(&(family, first & mask(family, shorter), shorter))
        });
        let last = first | !mask(family, length) & mask(family, bits(family));
        let within = self
            .0
            .range((family, first, length)..=(family, last, u8::MAX))
            .map(|(_, holders)| holders);
        around
            .chain(within)
            .flatten()
            .filter(|holder| holder.site != *except && holder.number < number)
            .min_by_key(|holder| (holder.number, span(holder.prefix)))
    }
}

fn span(prefix: IpNetwork) -> Span {
    match prefix {
        IpNetwork::V4(prefix) => {
            // In the top bits, so that one mask serves both families.
            let first = u128::from(u32::from(prefix.network_address())) << 96;
            (4, first, prefix.netmask())
        }
        IpNetwork::V6(prefix) => (6, u128::from(prefix.network_address()), prefix.netmask()),
    }
}

const fn bits(family: u8) -> u8 {
    if family == 4 { 32 } else { 128 }
}

/// The top `length` bits, of at most those the family has.
fn mask(family: u8, length: u8) -> u128 {
    let length = length.min(bits(family));
    if length == 0 {
        0
    } else {
        u128::MAX << (128 - u32::from(length))
    }
}
