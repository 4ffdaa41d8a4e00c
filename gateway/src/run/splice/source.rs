//! Who has an account here: for seats, and for connections to brokers.

use std::net::IpAddr;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Host(IpAddr),
    /// The first half of IPv6 addresses: all of them may be one host's, or a whole network's.
    Network(u64),
}

/// So many at once, and then one each time this has passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) burst: u32,
    pub(super) every: Duration,
}

impl Source {
    /// `is_known`: a node of this site has signed that the address is its own.
    pub(super) fn of(address: IpAddr, is_known: bool) -> Source {
        match address.to_canonical() {
            IpAddr::V6(v6) if !is_known => Source::Network((v6.to_bits() >> 64) as u64),
            address @ (IpAddr::V4(_) | IpAddr::V6(_)) => Source::Host(address),
        }
    }

    /// A node has a daemon with a session for each store, and commands beside it.
    pub(super) const fn seats(self) -> usize {
        match self {
            Source::Host(_) => 16,
            Source::Network(_) => 256,
        }
    }

    pub(super) const fn dials(self) -> Rate {
        match self {
            Source::Host(_) => Rate {
                burst: 8,
                every: Duration::from_millis(500),
            },
            Source::Network(_) => Rate {
                burst: 64,
                every: Duration::from_millis(50),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_a_64_is_one_source_and_a_node_of_the_site_is_its_own() {
        let of = |text: &str, is_known| Source::of(text.parse().unwrap(), is_known);
        assert_eq!(of("fd00:1::1", false), of("fd00:1::ffff:2", false));
        assert_ne!(of("fd00:1::1", false), of("fd00:1:0:1::1", false));
        assert_ne!(of("fd00:1::1", true), of("fd00:1::2", true));
        assert_ne!(of("fd00:1::1", true), of("fd00:1::1", false));
        assert_eq!(of("::ffff:10.1.0.1", false), of("10.1.0.1", true));
        assert_ne!(of("10.1.0.1", false), of("10.1.0.2", false));
    }
}
