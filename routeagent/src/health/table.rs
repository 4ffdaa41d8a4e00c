//! The table of sites of one gateway, put together from parts. Bounded whatever is sent: one table
//! in use and one that is collected, of at most [`MAX_PARTS`] parts.

use std::collections::BTreeMap;

use proto::lan::{MAX_PARTS, Site, SiteHash, Sites};

#[derive(Default)]
pub(super) struct Table {
    /// What the gateway has; 0 if nothing is known.
    version: u64,
    has: u64,
    of: Option<u8>,
    parts: BTreeMap<u8, Vec<Site>>,
    complete: Option<BTreeMap<SiteHash, Site>>,
}

impl Table {
    /// Another process speaks: what was said before does not count.
    pub(super) fn handle_boot(&mut self) {
        *self = Table::default();
    }

    /// The gateway says which version it has; that before stays in use until the new one is whole.
    pub(super) fn handle_version(&mut self, version: u64) {
        if version != self.version {
            self.version = version;
            self.has = 0;
            self.of = None;
            self.parts.clear();
        }
    }

    /// Whether the table in use is another now.
    pub(super) fn handle_part(&mut self, sites: Sites) -> bool {
        let fits = sites.table == self.version
            && self.version != 0
            && self.of.is_none_or(|of| of == sites.of)
            && usize::from(sites.of) <= MAX_PARTS
            && sites.part < sites.of;
        if !fits || self.has & 1 << sites.part != 0 {
            return false;
        }
        self.of = Some(sites.of);
        self.has |= 1 << sites.part;
        self.parts.insert(sites.part, sites.sites);
        if self.parts.len() < usize::from(sites.of) {
            return false;
        }
        let all = std::mem::take(&mut self.parts).into_values().flatten();
        let whole: BTreeMap<_, _> = all.map(|site| (site.hash, site)).collect();
        let is_new = self.complete.as_ref() != Some(&whole);
        self.complete = Some(whole);
        is_new
    }

    /// The version that is in use or collected, and which parts of it are there.
    pub(super) const fn asked(&self) -> (u64, u64) {
        (self.version, self.has)
    }

    /// Whether parts of it are missing.
    pub(super) const fn is_collected(&self) -> bool {
        let of = match self.of {
            Some(of) => of as u32,
            None => u32::MAX,
        };
        self.version != 0 && self.has.count_ones() < of
    }

    pub(super) const fn sites(&self) -> Option<&BTreeMap<SiteHash, Site>> {
        self.complete.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(table: u64, part: u8, of: u8, sites: &[u8]) -> Sites {
        let site = |number: &u8| Site {
            hash: [*number; 8],
            mtu: 1420,
            by_sibling: false,
        };
        Sites {
            boot: 1,
            table,
            part,
            of,
            sites: sites.iter().map(site).collect(),
        }
    }

    fn shown(table: &Table) -> Option<Vec<u8>> {
        let sites = table.sites()?;
        Some(sites.keys().map(|hash| hash[0]).collect())
    }

    #[test]
    fn it_is_used_when_all_parts_are_there_in_whatever_order() {
        let mut table = Table::default();
        table.handle_version(7);
        assert!(!table.handle_part(part(7, 2, 3, &[5])));
        assert!(!table.handle_part(part(7, 0, 3, &[1, 2])));
        assert!(!table.handle_part(part(7, 0, 3, &[9])), "the first counts");
        assert_eq!((table.asked(), shown(&table)), ((7, 0b101), None));
        assert!(table.handle_part(part(7, 1, 3, &[3])));
        assert_eq!(shown(&table), Some(vec![1, 2, 3, 5]));
    }

    #[test]
    fn the_former_table_counts_until_the_next_is_whole() {
        let mut table = Table::default();
        table.handle_version(1);
        table.handle_part(part(1, 0, 1, &[1]));
        table.handle_version(2);
        table.handle_part(part(2, 0, 2, &[2]));
        assert_eq!(shown(&table), Some(vec![1]));
        assert!(!table.handle_part(part(1, 0, 1, &[4])), "of a former one");
        assert!(!table.handle_part(part(2, 1, 3, &[4])), "not of this one");
        assert!(table.handle_part(part(2, 1, 2, &[3])));
        assert_eq!(shown(&table), Some(vec![2, 3]));
        table.handle_version(3);
        assert!(!table.handle_part(part(3, 0, 1, &[2, 3])), "the same again");
        table.handle_boot();
        assert_eq!((table.asked(), shown(&table)), ((0, 0), None));
        assert!(!table.handle_part(part(0, 0, 1, &[1])));
    }
}
