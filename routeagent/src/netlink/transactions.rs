//! A change of a set in parts that fit the socket.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::guard::Span;

/// What goes and what comes in each. With room for all of it nothing is ever missing; otherwise what
/// can come first does, and what only goes is last.
pub(super) fn transactions(
    gone: Vec<Span>,
    new: Vec<Span>,
    room: usize,
) -> Vec<(Vec<Span>, Vec<Span>)> {
    if gone.len() + new.len() <= room {
        return vec![(gone, new)];
    }
    // No element may lie upon another.
    let (in_place_of, first): (Vec<_>, Vec<_>) = new.into_iter().partition(touches(&gone));
    let (made_way, last): (Vec<_>, Vec<_>) = gone.into_iter().partition(touches(&in_place_of));
    let mut all = vec![];
    for (spans, is_new) in [
        (first, true),
        (made_way, false),
        (in_place_of, true),
        (last, false),
    ] {
        let parts = spans.chunks(room.max(1)).map(<[Span]>::to_vec);
        all.extend(parts.map(|part| {
            if is_new {
                (vec![], part)
            } else {
                (part, vec![])
            }
        }));
    }
    all
}

/// Whether one lies upon any of `others`, which do not lie upon each other.
fn touches(others: &[Span]) -> impl Fn(&Span) -> bool {
    let others: BTreeMap<IpAddr, IpAddr> =
        others.iter().map(|span| (span.first, span.last)).collect();
    move |span| {
        let before = others.range(..=span.last).next_back();
        before.is_some_and(|(_, last)| *last >= span.first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn span(first: u32, last: u32) -> Span {
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        Span {
            first: address(first),
            last: address(last),
        }
    }

    fn covers(set: &BTreeSet<Span>, address: u32) -> bool {
        let address = span(address, address).first;
        set.iter()
            .any(|span| span.first <= address && address <= span.last)
    }

    #[test]
    fn a_change_in_parts_adds_first_and_takes_away_last() {
        let gone: Vec<Span> = (0..40).map(|at| span(at * 10, at * 10 + 4)).collect();
        let mut new: Vec<Span> = (100..140).map(|at| span(at * 10, at * 10 + 4)).collect();
        // In place of five, and of a part of one.
        new.push(span(50, 94));
        new.push(span(200, 202));
        for room in [7, 100] {
            let mut set: BTreeSet<Span> = gone.iter().copied().collect();
            let steps = transactions(gone.clone(), new.clone(), room);
            assert_eq!(steps.len() == 1, room == 100);
            for (gone, new) in steps {
                assert!(gone.len() + new.len() <= room);
                assert!(gone.iter().all(|span| set.remove(span)));
                assert!(
                    !new.iter()
                        .any(touches(&set.iter().copied().collect::<Vec<_>>()))
                );
                set.extend(&new);
                let is_full = (100..140).all(|at| covers(&set, at * 10));
                let is_untouched = (10..20).all(|at| covers(&set, at * 10));
                assert!(is_full || is_untouched);
            }
            assert_eq!(set, new.iter().copied().collect());
        }
    }
}
