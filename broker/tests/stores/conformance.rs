//! What every store promises. Each case gets a fresh store, as one handle or as two that two
//! brokers would hold.

use std::sync::Arc;
use std::time::Duration;

use broker::store::{Enrolled, Published, Store, StoreError};
use proto::enrolment::Enrolment;
use proto::entry::Uses;

use crate::given::{
    Model, broker, claim, done, entries, follow, fresh, heard, identity, publication,
};

pub(crate) type Handles = Vec<Arc<dyn Store>>;

pub(crate) async fn conforms(make: impl AsyncFn() -> Handles) {
    one_use_is_won_once(&make().await).await;
    uses_are_counted(&make().await).await;
    a_record_needs_a_higher_sequence(&make().await).await;
    a_name_has_one_holder(&make().await).await;
    forgetting_keeps_the_sequence(&make().await).await;
    entries_are_kept_once_and_in_order(&make().await).await;
    heard_is_the_latest(&make().await).await;
    changes_come_in_order_and_resume_anywhere(&make().await).await;
    racing_publications_leave_the_newest(&make().await).await;
    a_revision_to_come_is_behind(&make().await).await;
}

fn first(stores: &Handles) -> &dyn Store {
    stores[0].as_ref()
}

fn last(stores: &Handles) -> &dyn Store {
    stores[stores.len() - 1].as_ref()
}

async fn one_use_is_won_once(stores: &Handles) {
    for round in 0..30 {
        let racers: Vec<_> = (0..100)
            .map(|node| {
                let store = Arc::clone(&stores[node as usize % stores.len()]);
                let claim = claim(round, Uses::AtMost(1), node);
                tokio::spawn(async move { store.enrol(claim, broker()).await.unwrap() })
            })
            .collect();
        let mut winner = None;
        let mut holders = Vec::new();
        for (node, racer) in racers.into_iter().enumerate() {
            match racer.await.unwrap() {
                Enrolled::Fresh(bytes) => {
                    assert_eq!(winner.replace((node as u32, bytes)), None, "two won");
                }
                Enrolled::Again(_) => panic!("nobody asked twice"),
                Enrolled::AllUsed { holder } => holders.push(holder),
            }
        }
        let (winner, bytes) = winner.expect("one wins");
        assert_eq!(holders, vec![Some(identity(winner)); 99]);
        let enrolment = Enrolment::read(&bytes).unwrap();
        assert_eq!(enrolment.use_number, 0);
        assert_eq!(enrolment.proof, claim(round, Uses::AtMost(1), winner).proof);
        assert_eq!(enrolment.broker, broker().public());
        let again = last(stores)
            .enrol(claim(round, Uses::AtMost(1), winner), broker())
            .await;
        assert_eq!(again, Ok(Enrolled::Again(bytes)));
    }
    assert_eq!(first(stores).load().await.unwrap().uses.len(), 30);
}

async fn uses_are_counted(stores: &Handles) {
    let racers: Vec<_> = (0..20)
        .map(|node| {
            let store = Arc::clone(&stores[node as usize % stores.len()]);
            tokio::spawn(async move {
                let claim = claim(1, Uses::AtMost(12), node);
                store.enrol(claim, broker()).await.unwrap()
            })
        })
        .collect();
    let mut numbers = Vec::new();
    let mut refused = 0;
    for racer in racers {
        match racer.await.unwrap() {
            Enrolled::Fresh(bytes) => numbers.push(Enrolment::read(&bytes).unwrap().use_number),
            Enrolled::Again(_) => panic!("nobody asked twice"),
            Enrolled::AllUsed { holder } => {
                assert_eq!(holder, None, "of several holders none is the one");
                refused += 1;
            }
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..12).collect::<Vec<_>>());
    assert_eq!(refused, 8);
    for node in 0..5 {
        let claim = claim(2, Uses::Unlimited, node);
        let bytes = fresh(last(stores).enrol(claim, broker()).await.unwrap());
        assert_eq!(Enrolment::read(&bytes).unwrap().use_number, node);
    }
    let uses = first(stores).load().await.unwrap().uses;
    assert_eq!(uses.len(), 17);
    for taken in uses {
        let enrolment = Enrolment::read(&taken.enrolment).unwrap();
        assert_eq!(taken.use_number, enrolment.use_number);
        assert_eq!(taken.identity, enrolment.proof.identity);
        assert_eq!(taken.grant, enrolment.proof.grant);
    }
}

async fn a_record_needs_a_higher_sequence(stores: &Handles) {
    let (one, two) = (first(stores), last(stores));
    let revision = done(one.publish(publication(1, "a", 5)).await.unwrap());
    assert_eq!(
        two.publish(publication(1, "a", 5)).await,
        Ok(Published::Same { revision })
    );
    let mut other = publication(1, "a", 5);
    other.bytes = b"the same number, other bytes".to_vec();
    assert_eq!(two.publish(other).await, Ok(Published::Old { sequence: 5 }));
    assert_eq!(
        two.publish(publication(1, "a", 4)).await,
        Ok(Published::Old { sequence: 5 })
    );
    assert!(done(two.publish(publication(1, "a", 9)).await.unwrap()) > revision);
    let members = one.load().await.unwrap().members;
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].bytes, publication(1, "a", 9).bytes);
}

async fn a_name_has_one_holder(stores: &Handles) {
    let (one, two) = (first(stores), last(stores));
    done(one.publish(publication(1, "a", 1)).await.unwrap());
    let held = Ok(Published::NameHeld {
        holder: identity(1),
    });
    assert_eq!(two.publish(publication(2, "a", 1)).await, held);
    // Only the holder that was judged gone may be displaced.
    let mut wrong = publication(2, "a", 1);
    wrong.takes_over = Some(identity(3));
    assert_eq!(two.publish(wrong).await, held);
    let mut right = publication(2, "a", 1);
    right.takes_over = Some(identity(1));
    done(two.publish(right).await.unwrap());
    let contents = one.load().await.unwrap();
    assert_eq!(contents.members.len(), 1);
    assert_eq!(contents.members[0].identity, identity(2));
    assert_eq!(contents.forgotten_at, contents.members[0].revision);
    // The displaced one is not forgotten so far that it could go back.
    assert_eq!(
        one.publish(publication(1, "b", 1)).await,
        Ok(Published::Old { sequence: 1 })
    );
    // Another name of one's own frees the first.
    done(one.publish(publication(2, "c", 2)).await.unwrap());
    done(two.publish(publication(1, "a", 2)).await.unwrap());
    // So does saying goodbye, for which no name is needed.
    let mut goodbye = publication(1, "a", 3);
    goodbye.withdrawn = true;
    done(one.publish(goodbye).await.unwrap());
    done(two.publish(publication(3, "a", 1)).await.unwrap());
    let members = one.load().await.unwrap().members;
    assert_eq!(members.len(), 3, "a goodbye stays until it is forgotten");
    // Forgetting the one that left takes nothing from the new holder.
    one.forget(vec![identity(1)]).await.unwrap();
    assert_eq!(
        two.publish(publication(4, "a", 1)).await,
        Ok(Published::NameHeld {
            holder: identity(3)
        })
    );
}

async fn forgetting_keeps_the_sequence(stores: &Handles) {
    let (one, two) = (first(stores), last(stores));
    done(one.publish(publication(1, "a", 7)).await.unwrap());
    one.heard(vec![(identity(1), heard(50, true))])
        .await
        .unwrap();
    let revision = two.forget(vec![identity(1), identity(2)]).await.unwrap();
    let contents = one.load().await.unwrap();
    assert!(contents.members.is_empty() && contents.heard.is_empty());
    assert_eq!(contents.forgotten_at, revision);
    assert_eq!(
        one.publish(publication(1, "a", 7)).await,
        Ok(Published::Old { sequence: 7 })
    );
    done(two.publish(publication(2, "a", 1)).await.unwrap());
    done(one.publish(publication(1, "b", 8)).await.unwrap());
    // Who is not here is gone already.
    let now = one.load().await.unwrap();
    two.forget(vec![identity(9)]).await.unwrap();
    assert_eq!(one.load().await.unwrap().members, now.members);
}

async fn entries_are_kept_once_and_in_order(stores: &Handles) {
    let (one, two) = (first(stores), last(stores));
    let all = entries(0, 250);
    let before = Model::of(one.load().await.unwrap());
    two.append(all[..3].to_vec()).await.unwrap();
    let mut backwards = all.clone();
    backwards.reverse();
    let revision = one.append(backwards).await.unwrap();
    two.append(all.clone()).await.unwrap();
    let contents = two.load().await.unwrap();
    let wanted: Vec<_> = all.iter().map(|entry| entry.bytes().to_vec()).collect();
    assert_eq!(contents.entries, wanted);
    let mut model = before;
    follow(two, &mut model, revision).await;
    assert_eq!(model.entries.len(), wanted.len());
}

async fn heard_is_the_latest(stores: &Handles) {
    let (one, two) = (first(stores), last(stores));
    let start = one.load().await.unwrap();
    let many: Vec<_> = (0..150)
        .map(|node| (identity(node), heard(10, true)))
        .collect();
    one.heard(many).await.unwrap();
    two.heard(vec![(identity(3), heard(20, true))])
        .await
        .unwrap();
    two.heard(vec![(identity(3), heard(30, false))])
        .await
        .unwrap();
    let contents = one.load().await.unwrap();
    assert_eq!(contents.heard.len(), 150);
    for (found, state) in &contents.heard {
        let wanted = if *found == identity(3) {
            heard(30, false)
        } else {
            heard(10, true)
        };
        assert_eq!(*state, wanted);
    }
    let mut model = Model::of(start);
    follow(two, &mut model, contents.revision).await;
    assert_eq!(model, Model::of(contents));
}

async fn changes_come_in_order_and_resume_anywhere(stores: &Handles) {
    let (one, two) = (first(stores), last(stores));
    let start = Model::of(one.load().await.unwrap());
    let mut points = vec![start.clone()];
    for step in 0..12_u32 {
        let (writer, other) = if step % 2 == 0 {
            (one, two)
        } else {
            (two, one)
        };
        let name = format!("node-{step}");
        done(writer.publish(publication(step, &name, 1)).await.unwrap());
        other
            .heard(vec![(
                identity(step),
                heard(u64::from(step), step % 3 == 0),
            )])
            .await
            .unwrap();
        writer
            .append(entries(u64::from(step) * 10, 3))
            .await
            .unwrap();
        other
            .enrol(claim(step, Uses::AtMost(1), step), broker())
            .await
            .unwrap();
        if step % 4 == 3 {
            writer.forget(vec![identity(step - 1)]).await.unwrap();
            let mut taken = publication(step + 100, &name, 1);
            taken.takes_over = Some(identity(step));
            done(other.publish(taken).await.unwrap());
        }
        points.push(Model::of(writer.load().await.unwrap()));
    }
    let end = points.last().unwrap().clone();
    let mut from_start = start;
    follow(two, &mut from_start, end.revision).await;
    assert_eq!(from_start, end);
    for point in points {
        let mut model = point;
        follow(one, &mut model, end.revision).await;
        assert_eq!(model, end);
    }
    // Nothing more comes until something happens; then just that.
    let waiting = tokio::time::timeout(Duration::from_millis(300), one.changes(end.revision));
    assert!(waiting.await.is_err(), "a change from nowhere");
    let (batch, revision) = tokio::join!(one.changes(end.revision), async {
        done(two.publish(publication(500, "late", 1)).await.unwrap())
    });
    let batch = batch.unwrap();
    assert_eq!(batch.revision, revision);
    assert_eq!(batch.changes.len(), 1);
}

async fn racing_publications_leave_the_newest(stores: &Handles) {
    let start = first(stores).load().await.unwrap();
    let racers: Vec<_> = (1..=40)
        .map(|sequence| {
            let store = Arc::clone(&stores[sequence as usize % stores.len()]);
            tokio::spawn(async move { store.publish(publication(1, "a", sequence)).await.unwrap() })
        })
        .collect();
    for racer in racers {
        let published = racer.await.unwrap();
        assert!(matches!(
            published,
            Published::Done { .. } | Published::Old { .. }
        ));
    }
    let end = last(stores).load().await.unwrap();
    assert_eq!(end.members[0].bytes, publication(1, "a", 40).bytes);
    let mut model = Model::of(start);
    follow(first(stores), &mut model, end.revision).await;
    assert_eq!(model, Model::of(end));
}

async fn a_revision_to_come_is_behind(stores: &Handles) {
    let revision = first(stores).load().await.unwrap().revision;
    let far = first(stores).changes(revision + 1_000_000).await;
    assert_eq!(far, Err(StoreError::Behind));
}
