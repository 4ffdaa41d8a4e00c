//! The table of sites that this gateway reaches, cut into the parts that agents ask for.

use proto::lan::{PART_SITES, Site, Sites, parts_of};

#[derive(Default)]
pub(super) struct Table {
    /// 0 until anything is known.
    version: u64,
    sites: Vec<Site>,
}

impl Table {
    pub(super) fn handle_sites(&mut self, mut sites: Vec<Site>) {
        sites.sort_unstable();
        if self.version == 0 || sites != self.sites {
            self.version += 1;
            self.sites = sites;
        }
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Those that are not among `has`.
    pub(super) fn missing(&self, has: u64, boot: u64) -> impl Iterator<Item = Sites> {
        let of = parts_of(self.sites.len()) as u8;
        let wanted = (0..of).filter(move |part| self.version != 0 && has & 1 << part == 0);
        wanted.map(move |part| {
            let chunks = self.sites.chunks(PART_SITES);
            let sites = chunks.skip(usize::from(part)).map(<[Site]>::to_vec);
            Sites {
                boot,
                table: self.version,
                part,
                of,
                sites: sites.take(1).flatten().collect(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites(count: u64) -> Vec<Site> {
        let site = |number: u64| Site {
            hash: number.to_be_bytes(),
            mtu: 1420,
            by_sibling: false,
        };
        (0..count).rev().map(site).collect()
    }

    #[test]
    fn the_version_changes_only_with_what_is_said() {
        let mut table = Table::default();
        assert_eq!(table.missing(0, 1).count(), 0, "nothing is known");
        table.handle_sites(vec![]);
        assert_eq!((table.version(), table.missing(0, 1).count()), (1, 1));
        table.handle_sites(sites(2));
        table.handle_sites(sites(2).into_iter().rev().collect());
        assert_eq!(table.version(), 2);
    }

    #[test]
    fn a_thousand_sites_come_in_parts_and_only_those_that_are_missing() {
        let mut table = Table::default();
        table.handle_sites(sites(1000));
        let all: Vec<Sites> = table.missing(0, 7).collect();
        assert_eq!(all.len(), usize::from(all[0].of));
        let mut whole: Vec<Site> = all.iter().flat_map(|part| part.sites.clone()).collect();
        whole.sort_unstable();
        whole.dedup();
        assert_eq!(whole.len(), 1000);
        assert!(
            all.iter()
                .all(|part| part.boot == 7 && part.sites.len() <= PART_SITES)
        );
        let rest: Vec<u8> = table.missing(0b101, 7).map(|part| part.part).collect();
        assert_eq!(rest[..2], [1, 3]);
        assert_eq!(table.missing(u64::MAX, 7).count(), 0);
    }
}
