//! A broker's refusal as a sentence: what it refused, why, and what to do next.

use proto::key::{Hash, PublicKey};
use proto::message::Refusal;

/// A clock that is further off than this is worth a word.
const CLOCK_OFF: u64 = 120;

/// `now` is this machine's clock in unix seconds.
pub fn sentence(refusal: &Refusal, now: u64) -> String {
    match refusal {
        Refusal::TokenExpired { not_after, now: theirs } => format!(
            "the token expired {} ago by the broker's clock{}; make another one with `causeway token create`",
            duration(theirs.saturating_sub(*not_after)),
            clock(now, *theirs)
        ),
        Refusal::TokenNotYet { not_before, now: theirs } => format!(
            "the token is not valid yet: it becomes so in {} by the broker's clock{}; wait, or compare the clocks of the broker and of the machine that made the token",
            duration(not_before.saturating_sub(*theirs)),
            clock(now, *theirs)
        ),
        Refusal::TokenUsed { uses, holder } => used(*uses, *holder),
        Refusal::TokenClosed => "the token was revoked; make another one with `causeway token create`".to_owned(),
        Refusal::SiteRevoked => "the token's site was revoked; a new token for it makes it anew (`causeway token create`)".to_owned(),
        Refusal::GrantUnknown => "the broker's ledger lacks what stands before the token's grant; hand it the ledger with `causeway ledger push`, then try again".to_owned(),
        Refusal::WrongMesh { mesh } => format!(
            "this broker serves another mesh ({}); use a token of that mesh, or the address of a broker of yours",
            Hash(*mesh).short()
        ),
        Refusal::WrongStore { brokers } => format!(
            "another broker's store counts this token's uses: {}",
            if brokers.is_empty() {
                "the ledger names none that has it; make another token with `causeway token create`".to_owned()
            } else {
                let named: Vec<&str> = brokers.iter().map(|(address, _)| address.as_str()).filter(|address| proto::blob::is_plain(address)).collect();
                format!("go to {}", named.join(", "))
            }
        ),
        Refusal::BadProof => "the broker did not accept the token's signatures; the token does not belong to the grant it shows, make another one with `causeway token create`".to_owned(),
        Refusal::WrongRole => "the token this node joined with does not allow this role; join again with a token for it (`causeway token create --role`)".to_owned(),
        Refusal::NotEnrolled => "the broker does not know this node as one of the mesh; join again with a new token".to_owned(),
        Refusal::Revoked => "this node is revoked; if that was not meant, join again with a new token and another state directory".to_owned(),
        Refusal::NameTaken { holder, heard_s } => format!(
            "another node ({}) has this name and was heard {heard_s} s ago; choose another with `join --node`, or wait until it has left or was silent for 60 s",
            key(*holder)
        ),
        Refusal::OldSequence { latest } => format!(
            "the broker has a newer record of this node (number {latest}); the next one will be above it"
        ),
        Refusal::BadRecord { why } => format!("the broker did not accept this node's record: {}", plain(why)),
        Refusal::BadLedger { why } => format!("the broker did not accept the ledger entries: {}", plain(why)),
        Refusal::Quota { what, most } => format!(
            "the site has as many {} as it may have ({most}); remove some first (`causeway node list`)",
            plain(what)
        ),
        Refusal::TooOften { retry_s } => format!("the broker was asked too often; try again in {retry_s} s"),
        Refusal::StoreDown { why } => format!(
            "the broker's store cannot write now ({}); nothing was done, try again later or see the broker's log",
            plain(why)
        ),
        Refusal::NotAllowed => "the broker does not do that for this caller".to_owned(),
        Refusal::NoRelay => "this broker runs without a relay (`--no-relay`)".to_owned(),
        Refusal::NotReady => "this broker has no ledger yet; hand it the ledger with `causeway ledger push`".to_owned(),
    }
}

/// Whether asking this broker, or another one, again can have another outcome without anybody
/// changing the token.
pub fn is_passing(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::GrantUnknown
        | Refusal::WrongMesh { .. }
        | Refusal::WrongStore { .. }
        | Refusal::NameTaken { .. }
        | Refusal::OldSequence { .. }
        | Refusal::Quota { .. }
        | Refusal::TooOften { .. }
        | Refusal::StoreDown { .. }
        | Refusal::NotAllowed
        | Refusal::NotEnrolled
        | Refusal::NotReady
        | Refusal::NoRelay => true,
        Refusal::TokenExpired { .. }
        | Refusal::TokenNotYet { .. }
        | Refusal::TokenUsed { .. }
        | Refusal::TokenClosed
        | Refusal::SiteRevoked
        | Refusal::BadProof
        | Refusal::WrongRole
        | Refusal::Revoked
        | Refusal::BadRecord { .. }
        | Refusal::BadLedger { .. } => false,
    }
}

fn used(uses: u32, holder: Option<[u8; 32]>) -> String {
    match holder {
        Some(holder) => format!(
            "the token was already used, by the node with the key {}; if that is not one of yours revoke it (`causeway node revoke`), and make another token with `causeway token create`",
            key(holder)
        ),
        None => format!(
            "all {uses} uses of the token are taken (`causeway node list` shows by whom); make another one with `causeway token create`"
        ),
    }
}

/// What to add to a word about a window when the clocks disagree.
pub fn clock(ours: u64, theirs: u64) -> String {
    let off = ours.abs_diff(theirs);
    if off < CLOCK_OFF {
        return String::new();
    }
    let way = if ours > theirs { "ahead of" } else { "behind" };
    format!(
        ", and this machine's clock is {} {way} the broker's: set it right",
        duration(off)
    )
}

/// In the largest unit of which there are two.
fn duration(seconds: u64) -> String {
    for (unit, name) in [(86_400, "days"), (3600, "hours"), (60, "minutes")] {
        if seconds >= 2 * unit {
            return format!("{} {name}", seconds / unit);
        }
    }
    format!("{seconds} s")
}

fn key(bytes: [u8; 32]) -> String {
    PublicKey::new(bytes).map_or_else(|_| "an invalid one".to_owned(), |key| key.to_string())
}

/// What a broker says in words is shown only if it cannot move a terminal's cursor.
fn plain(text: &str) -> &str {
    if proto::blob::is_plain(text) {
        text
    } else {
        "in words that cannot be shown"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_named_and_one_that_is_not_is_not() {
        let expired = Refusal::TokenExpired {
            not_after: 10_000,
            now: 17_200,
        };
        let right = sentence(&expired, 17_203);
        assert!(right.contains("expired 2 hours ago"), "{right}");
        assert!(!right.contains("clock is"), "{right}");
        let off = sentence(&expired, 17_200 - 3 * 3600);
        assert!(off.contains("3 hours behind the broker's"), "{off}");
    }

    #[test]
    fn words_of_a_broker_cannot_move_the_cursor() {
        let refusal = Refusal::BadRecord {
            why: "\u{1b}[2J".to_owned(),
        };
        assert!(!sentence(&refusal, 0).contains('\u{1b}'));
    }
}
