//! Which gateways of a site are used, from the states of their links.

use proto::key::PublicKey;

/// What counts of one gateway's link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bearing {
    pub is_up: bool,
    /// It failed a short while ago.
    pub is_held: bool,
    /// It says that the link is up for it too.
    pub carries: bool,
}

/// Those of the best rank that are up. Rank never excludes: who is alone in its site is used
/// whatever its rank.
pub(crate) fn direct(gateways: impl Iterator<Item = (PublicKey, Bearing)>) -> Vec<PublicKey> {
    let up: Vec<_> = gateways.filter(|(_, bearing)| bearing.is_up).collect();
    let best = up.iter().map(|(_, bearing)| rank(*bearing)).min();
    up.into_iter()
        .filter(|(_, bearing)| Some(rank(*bearing)) == best)
        .map(|(gateway, _)| gateway)
        .collect()
}

/// A gateway that does not take packets yet would lose them for a moment; one that failed is
/// likely to lose more.
const fn rank(bearing: Bearing) -> (bool, bool) {
    (bearing.is_held, !bearing.carries)
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    const GOOD: Bearing = Bearing {
        is_up: true,
        is_held: false,
        carries: true,
    };
    const DOWN: Bearing = Bearing {
        is_up: false,
        ..GOOD
    };
    const HELD: Bearing = Bearing {
        is_held: true,
        ..GOOD
    };
    const NEW: Bearing = Bearing {
        carries: false,
        ..GOOD
    };

    fn used(bearings: &[Bearing]) -> Vec<usize> {
        let keys: Vec<PublicKey> = (0..bearings.len())
            .map(|at| SigningKey::from_seed(&[at as u8 + 1; 32]).public())
            .collect();
        let gateways = keys.iter().copied().zip(bearings.iter().copied());
        let direct = direct(gateways);
        (0..keys.len())
            .filter(|at| direct.contains(&keys[*at]))
            .collect()
    }

    #[test]
    fn all_that_are_well_are_used() {
        assert_eq!(used(&[GOOD, GOOD, DOWN]), [0, 1]);
    }

    #[test]
    fn one_that_failed_is_used_only_while_it_is_alone() {
        assert_eq!(used(&[GOOD, HELD]), [0]);
        assert_eq!(used(&[DOWN, HELD]), [1]);
        assert_eq!(used(&[HELD, HELD]), [0, 1]);
    }

    #[test]
    fn one_that_takes_nothing_yet_is_used_only_while_it_is_alone() {
        assert_eq!(used(&[GOOD, NEW]), [0]);
        assert_eq!(used(&[NEW, DOWN]), [0]);
        assert_eq!(used(&[NEW, HELD]), [0]);
    }

    #[test]
    fn nobody_is_used_when_all_are_down() {
        assert!(used(&[DOWN, DOWN]).is_empty());
    }
}
