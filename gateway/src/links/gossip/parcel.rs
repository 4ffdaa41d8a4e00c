//! A handover on its way: cut into parts by the sender, put together by the receiver.

use std::collections::VecDeque;
use std::time::Duration;

use proto::codec;
use proto::control::{Handover, Part};

/// Of a part, so that it fits any path with what goes around it.
pub(super) const MAX_PART: usize = 900;
/// Of a whole handover.
const MAX_WHOLE: usize = 256 * 1024;
const MAX_PARTS: u16 = (MAX_WHOLE / MAX_PART) as u16;
/// Of one neighbour at a time; parts of two may be mixed on the way.
const MAX_OPEN: usize = 2;
const WITHIN: Duration = Duration::from_secs(5);

/// `None` if it is too large.
pub(super) fn cut(handover: &Handover, id: u64) -> Option<Vec<Part>> {
    let bytes = codec::encode(handover).ok()?;
    if bytes.len() > MAX_WHOLE {
        return None;
    }
    let chunks = bytes.chunks(MAX_PART);
    let count = chunks.len() as u16;
    let parts = chunks.enumerate().map(|(index, bytes)| Part {
        id,
        index: index as u16,
        count,
        bytes: bytes.to_vec(),
    });
    Some(parts.collect())
}

/// What came of handovers that are not whole yet.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    open: VecDeque<Open>,
}

#[derive(Debug)]
struct Open {
    id: u64,
    since: Duration,
    pieces: Vec<Option<Vec<u8>>>,
    missing: usize,
}

impl Assembly {
    /// The whole, when this was its last missing part.
    pub(super) fn handle_part(&mut self, part: Part, now: Duration) -> Option<Handover> {
        let is_sound = (1..=MAX_PARTS).contains(&part.count)
            && part.index < part.count
            && (1..=MAX_PART).contains(&part.bytes.len());
        if !is_sound {
            return None;
        }
        if part.count == 1 {
            return codec::decode(&part.bytes).ok();
        }
        self.forget(now);
        let count = usize::from(part.count);
        let found = self.open.iter().position(|open| open.id == part.id);
        let at = found.unwrap_or_else(|| {
            if self.open.len() >= MAX_OPEN {
                self.open.pop_front();
            }
            self.open.push_back(Open {
                id: part.id,
                since: now,
                pieces: vec![None; count],
                missing: count,
            });
            self.open.len() - 1
        });
        let open = self
            .open
            .get_mut(at)
            .filter(|open| open.pieces.len() == count)?;
        let place = &mut open.pieces[usize::from(part.index)];
        if place.is_none() {
            *place = Some(part.bytes);
            open.missing -= 1;
        }
        if open.missing > 0 {
            return None;
        }
        let whole: Vec<u8> = self
            .open
            .remove(at)?
            .pieces
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        codec::decode(&whole).ok()
    }

    /// What has not become whole in time.
    pub(super) fn forget(&mut self, now: Duration) {
        self.open.retain(|open| now < open.since + WITHIN);
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let pieces = self
            .open
            .iter()
            .flat_map(|open| open.pieces.iter().flatten());
        pieces.map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover(entries: usize, length: usize) -> Handover {
        Handover {
            entries: (0..entries).map(|at| vec![at as u8; length]).collect(),
            members: vec![vec![7; 3]],
        }
    }

    #[test]
    fn parts_in_any_order_and_twice_make_the_whole_once() {
        let whole = handover(20, 400);
        let mut parts = cut(&whole, 1).unwrap();
        assert!(parts.len() > 8);
        assert!(parts.iter().all(|part| part.bytes.len() <= MAX_PART));
        parts.reverse();
        let mut assembly = Assembly::default();
        let mut made = Vec::new();
        for part in parts.iter().chain(&parts[1..]) {
            made.extend(assembly.handle_part(part.clone(), Duration::ZERO));
        }
        assert_eq!(made, [whole]);
    }

    #[test]
    fn two_whose_parts_are_mixed_both_come_through() {
        let (one, other) = (handover(5, 800), handover(6, 700));
        let mut assembly = Assembly::default();
        let mut made = Vec::new();
        let (first, second) = (cut(&one, 1).unwrap(), cut(&other, 2).unwrap());
        for at in 0..first.len().max(second.len()) {
            for part in [first.get(at), second.get(at)].into_iter().flatten() {
                made.extend(assembly.handle_part(part.clone(), Duration::ZERO));
            }
        }
        assert_eq!(made, [one, other]);
    }

    #[test]
    fn what_is_not_whole_in_five_seconds_is_forgotten() {
        let mut parts = cut(&handover(5, 800), 1).unwrap();
        let last = parts.pop().unwrap();
        let mut assembly = Assembly::default();
        for part in parts {
            assembly.handle_part(part, Duration::ZERO);
        }
        assert!(assembly.bytes() > 0);
        assert_eq!(assembly.handle_part(last, WITHIN), None);
    }

    #[test]
    fn a_sender_of_pieces_that_never_fit_holds_no_more_than_two() {
        let mut assembly = Assembly::default();
        for id in 0..1000 {
            for index in 0..MAX_PARTS {
                let bytes = vec![1; MAX_PART];
                let part = Part {
                    id,
                    index,
                    count: MAX_PARTS,
                    bytes,
                };
                if index + 1 < MAX_PARTS {
                    assembly.handle_part(part, Duration::ZERO);
                }
            }
        }
        assert!(assembly.bytes() <= MAX_OPEN * MAX_WHOLE);
    }

    #[test]
    fn parts_that_lie_about_themselves_are_refused() {
        let mut assembly = Assembly::default();
        for (index, count, length) in [
            (0, 0, 1),
            (1, 1, 1),
            (9, 3, 1),
            (0, u16::MAX, 1),
            (0, 2, MAX_PART + 1),
            (0, 2, 0),
        ] {
            let bytes = vec![0; length];
            let part = Part {
                id: 1,
                index,
                count,
                bytes,
            };
            assert_eq!(assembly.handle_part(part, Duration::ZERO), None);
        }
        assert_eq!(assembly.bytes(), 0);
        // One count at first, another later.
        for count in [4, 2, 300] {
            let part = Part {
                id: 1,
                index: 1,
                count,
                bytes: vec![0; 5],
            };
            assembly.handle_part(part, Duration::ZERO);
        }
        assert_eq!(assembly.bytes(), 5);
        assert_eq!(cut(&handover(400, 900), 1), None, "more than anyone takes");
    }
}
