//! Counts packets of the mesh's prefixes in clear on an internet: from its beginning to its end,
//! without a packet being copied, so that it costs a test nothing.
//!
//! A datagram from gateway to gateway is not in clear: one is sent to each address that a gateway
//! names in its record, its LAN's among them, which some networks reach.

use anyhow::{Result, ensure};

use crate::lab::Namespace;

pub struct Watch {
    internet: Namespace,
}

impl Watch {
    pub(super) fn over(internet: &Namespace) -> Result<Watch> {
        internet.sh(
            "nft add table inet watch &&
             nft add set inet watch who '{ typeof ip saddr . ip daddr . meta l4proto . th sport . th dport; size 64; flags dynamic; }' &&
             nft add chain inet watch seen '{ type filter hook prerouting priority -400; }' &&
             nft add rule inet watch seen udp dport 51820 accept &&
             nft add rule inet watch seen ip saddr 10.0.0.0/8 counter add @who '{ ip saddr . ip daddr . meta l4proto . th sport . th dport }' &&
             nft add rule inet watch seen ip daddr 10.0.0.0/8 counter add @who '{ ip saddr . ip daddr . meta l4proto . th sport . th dport }' &&
             nft add rule inet watch seen ip6 saddr fd00::/16 counter &&
             nft add rule inet watch seen ip6 daddr fd00::/16 counter",
        )?;
        Ok(Watch {
            internet: internet.clone(),
        })
    }

    /// Packets seen in clear so far.
    pub fn count(&self) -> Result<u64> {
        let listing = self
            .internet
            .run("nft", &["list", "chain", "inet", "watch", "seen"])?;
        let words: Vec<&str> = listing.split_whitespace().collect();
        let counts: Vec<u64> = words
            .windows(2)
            .filter(|pair| pair[0] == "packets")
            .filter_map(|pair| pair[1].parse().ok())
            .collect();
        ensure!(counts.len() == 4, "the watch is gone: {listing}");
        Ok(counts.iter().sum())
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        let seen = self.count().expect("the watch is there");
        let who = ["list", "set", "inet", "watch", "who"];
        assert_eq!(
            seen,
            0,
            "packets of the mesh's prefixes were seen in clear: {}",
            self.internet.run("nft", &who).unwrap_or_default()
        );
    }
}
