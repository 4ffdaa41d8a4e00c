//! Several sizes that are tried at once.

use std::time::Duration;

/// What common paths carry after the headers of a tunnel, IPv4 and IPv6, and just above that so
/// that it is settled at once; then what the gap between is cut by.
const LADDER: [u16; 20] = [
    1200, 1280, 1284, 1320, 1380, 1400, 1412, 1420, 1424, 1432, 1440, 1444, 1800, 4000, 8836, 8900,
    8920, 8924, 8940, 8944,
];
/// With room for the headers of a message that is padded to it.
const MOST: u16 = 9180;
/// Above, a lost probe costs more than a later search.
const LARGE: u16 = 1500;
/// Further apart than this is worth another round.
const CLOSE: u16 = 4;
/// Pieces that a gap is cut into.
const PIECES: u16 = 8;
const TRIES: u16 = 3;
const GROWTH_TRIES: u16 = 2;

#[derive(Debug)]
pub(super) struct Round {
    /// Not echoed yet, ascending.
    open: Vec<u16>,
    tries: u16,
    tries_left: u16,
    /// Of the next tries, or the end.
    pub(super) due: Duration,
}

impl Round {
    fn new(mut open: Vec<u16>, tries_left: u16, now: Duration) -> Round {
        open.sort_unstable();
        open.dedup();
        Round {
            open,
            tries: 0,
            tries_left,
            due: now,
        }
    }

    /// Everything, and what is in use.
    pub(super) fn ladder(mtu: u16, now: Duration) -> Round {
        let sizes = LADDER.into_iter().chain([mtu, MOST]);
        Round::new(sizes.collect(), TRIES, now)
    }

    /// Everything above.
    pub(super) fn growth(low: u16, now: Duration) -> Round {
        let near = [low + CLOSE, low + CLOSE * 8, low + CLOSE * 64];
        let sizes = LADDER.into_iter().chain(near).chain([MOST]);
        let above = sizes.filter(|size| *size > low && *size <= MOST);
        Round::new(above.collect(), GROWTH_TRIES, now)
    }

    /// `None` when they are close enough.
    pub(super) fn between(low: u16, high: u16, now: Duration) -> Option<Round> {
        let gap = high.checked_sub(low).filter(|gap| *gap > CLOSE)?;
        let cut = |piece: u16| low + (u32::from(gap) * u32::from(piece) / u32::from(PIECES)) as u16;
        let sizes = (1..PIECES).map(cut).filter(|size| *size > low);
        Some(Round::new(sizes.collect(), TRIES, now))
    }

    pub(super) fn handle_passed(&mut self, size: u16) {
        self.open.retain(|open| *open > size);
    }

    pub(super) fn is_answered(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn smallest_open(&self) -> Option<u16> {
        self.open.first().copied()
    }

    /// Each time more copies, so that even many losses do not hide a size that passes.
    pub(super) fn next_tries(&mut self, wait: Duration, now: Duration) -> Option<Vec<u16>> {
        self.tries_left = self.tries_left.checked_sub(1)?;
        self.tries += 1;
        self.due = now + wait;
        let copies = |size: &u16| if *size > LARGE { 1 } else { self.tries };
        let sizes = self.open.iter();
        Some(
            sizes
                .flat_map(|size| std::iter::repeat_n(*size, usize::from(copies(size))))
                .collect(),
        )
    }
}
