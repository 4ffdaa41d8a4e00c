//! The life of a node: when its name may pass to another, when its record is dropped, what number
//! its next record has, and how many nodes a site may have.

use std::time::Duration;

/// A holder unheard for so long loses its name to a newcomer.
pub const NAME_HELD: Duration = Duration::from_secs(60);
/// A record unheard for so long is dropped.
pub const RECORD_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// What one site may have at a broker.
pub const MAX_GATEWAYS: u32 = 16;
pub const MAX_AGENTS: u32 = 4096;

/// How long a node has been silent, all in unix seconds by the broker's clock. Silence counts only
/// since the broker has been serving: a node cannot be heard by a broker that is down. A clock
/// that was put back makes silence short, never long.
pub fn unheard_for(now: u64, heard: u64, serving_since: u64) -> Duration {
    Duration::from_secs(now.saturating_sub(heard.max(serving_since)))
}

/// Whether another identity may take the (site, name) of a holder.
pub fn name_may_move(holder_unheard: Duration, holder_withdrawn: bool) -> bool {
    holder_withdrawn || holder_unheard >= NAME_HELD
}

/// Whether a record is dropped. A withdrawn one is kept as long: it tells those who were away.
pub fn is_dropped(unheard: Duration) -> bool {
    unheard >= RECORD_KEPT
}

/// The sequence number of a node's next record: above its own last one and above what it was
/// shown of itself, which is higher when its state directory was restored from a snapshot. `None`
/// at the end of all numbers.
pub fn next_sequence(last: u64, shown: u64) -> Option<u64> {
    last.max(shown).checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_holder_keeps_its_name_and_a_silent_one_loses_it_after_a_minute() {
        assert!(!name_may_move(Duration::ZERO, false));
        assert!(!name_may_move(Duration::from_secs(59), false));
        assert!(name_may_move(Duration::from_secs(60), false));
    }

    #[test]
    fn a_holder_that_said_goodbye_loses_its_name_at_once() {
        assert!(name_may_move(Duration::ZERO, true));
    }

    #[test]
    fn silence_counts_only_while_the_broker_was_there_to_hear() {
        let a_month = 30 * 24 * 3600;
        assert_eq!(unheard_for(a_month, 5, a_month), Duration::ZERO);
        assert_eq!(unheard_for(100, 70, 50), Duration::from_secs(30));
        assert!(!is_dropped(unheard_for(a_month, 0, a_month - 60)));
        assert!(is_dropped(unheard_for(a_month, 0, 10)));
    }

    #[test]
    fn a_clock_put_back_makes_nobody_silent() {
        assert_eq!(unheard_for(1_000, 2_000, 0), Duration::ZERO);
    }

    #[test]
    fn a_restored_node_signs_above_what_it_is_shown() {
        assert_eq!(next_sequence(3, 9), Some(10));
        assert_eq!(next_sequence(9, 3), Some(10));
        assert_eq!(next_sequence(u64::MAX, 0), None);
    }
}
