//! Leaving: the goodbye, and what a broker that does not take it can make of it.

use node::leave::leave;
use proto::message::Refusal;
use proto::record::{Member, SignedRecord};

use crate::follow::{Home, ours, until_seen};
use crate::scratch::listing;
use crate::world::name;

#[tokio::test]
async fn leaving_says_goodbye_above_the_last_number_and_forgets_the_keys() {
    let home = Home::new().await;
    let handle = home.follow();
    handle.publish(ours(&handle)).await;
    until_seen(&home.broker, |seen| !seen.published.is_empty()).await;
    handle.stop().await;
    let left = leave(&home.state()).await.unwrap();
    assert_eq!((left.site, left.node), (name("home"), name("here")));
    let (sequence, member) = home
        .broker
        .seen(|seen| seen.published.last().cloned())
        .unwrap();
    let member = Member::read(&member).unwrap();
    let record = SignedRecord::read(&member.record).unwrap();
    assert_eq!(sequence, 2);
    assert!(record.record().presence().is_none());
    assert_eq!(
        listing(&home.state()).len(),
        1,
        "only the directory itself is left"
    );
}

#[tokio::test]
async fn leaving_with_no_broker_to_tell_takes_no_key_away() {
    let home = Home::new().await;
    let keys = || {
        let mut kept = listing(&home.state());
        kept.retain(|(path, ..)| !path.ends_with("cache.journal"));
        kept
    };
    let before = keys();
    home.broker.script(|script| {
        script.refuse_publish = Some(Refusal::StoreDown {
            why: "full".to_owned(),
        })
    });
    let error = leave(&home.state()).await.unwrap_err();
    assert!(error.to_string().contains(&home.broker.at()), "{error}");
    assert_eq!(keys(), before);
    assert_eq!(home.granted.entry.grant().unwrap().site, name("home"));
}

/// Every number under which the broker was shown a record, taken or not.
fn offered(home: &Home) -> Vec<u64> {
    home.broker
        .seen(|seen| seen.offered.iter().map(|(sequence, _)| *sequence).collect())
}

#[tokio::test]
async fn a_broker_that_claims_the_last_number_gets_no_goodbye_that_nothing_can_follow() {
    let home = Home::new().await;
    home.broker.script(|script| {
        script.refuse_publish = Some(Refusal::OldSequence {
            latest: u64::MAX - 1,
        })
    });
    leave(&home.state()).await.unwrap_err();
    assert_eq!(offered(&home), [1]);
}

#[tokio::test]
async fn a_goodbye_that_was_shown_is_never_followed_by_a_record_with_its_number() {
    let home = Home::new().await;
    let down = Refusal::StoreDown {
        why: "full".to_owned(),
    };
    home.broker
        .script(|script| script.refuse_publish = Some(down));
    leave(&home.state()).await.unwrap_err();
    home.broker.script(|script| script.refuse_publish = None);
    let handle = home.follow();
    handle.publish(ours(&handle)).await;
    until_seen(&home.broker, |seen| !seen.published.is_empty()).await;
    handle.stop().await;
    assert_eq!(offered(&home), [1, 2]);
}
