//! Neighbours that lie, flood or ask without end.

use super::*;

fn spoilt(entry: &SignedEntry, by: u8) -> Vec<u8> {
    let mut bytes = entry.bytes().to_vec();
    *bytes.last_mut().unwrap() ^= by;
    bytes
}

#[test]
fn a_spoilt_copy_keeps_neither_the_entry_of_another_neighbour_away_nor_its_own() {
    let entries = chain(3);
    let mut listener = Listener::new(entries[..1].to_vec());
    let [liar, honest] = [key(2).public(), key(3).public()];
    let genuine: Vec<Vec<u8>> = entries[1..].iter().map(|e| e.bytes().to_vec()).collect();
    // The second one waits for its parent, under a spoilt signature.
    listener.come(2, &[spoilt(&entries[2], 1)]);
    listener.come(2, &[spoilt(&entries[1], 1)]);
    assert_eq!(listener.turn().len(), 1);
    let digest = Digest {
        heads: vec![entries[2].hash().0],
        records: listener.gossip.knowledge.records.0,
    };
    assert!(!listener.gossip.lacks(&liar, &digest, listener.now));
    assert!(listener.gossip.lacks(&honest, &digest, listener.now));
    listener.come(3, &genuine[1..]);
    listener.come(3, &genuine[..1]);
    listener.come(2, &genuine);
    let mut turn = listener.turn();
    turn.sort();
    let mut expected = [(liar, genuine.clone()), (honest, genuine)];
    expected.sort();
    assert_eq!(turn, expected);
}

#[test]
fn one_that_sends_lies_without_end_has_a_handover_of_its_own_and_one_turn_like_others() {
    let entries = chain(2);
    let mut listener = Listener::new(entries[..1].to_vec());
    for round in 0..20 {
        let lie = |by: u8| {
            let mut lie = spoilt(&entries[1], by);
            lie.reverse();
            lie[1] ^= round as u8;
            lie.reverse();
            lie
        };
        for by in 1..40 {
            listener.come(2, &[lie(by)]);
            listener.come(4, &[lie(40 + by)]);
        }
        if round % 3 == 0 {
            let honest = entry(1, entries[0].hash(), 100 + round);
            let honest = honest.bytes().to_vec();
            listener.come(3, std::slice::from_ref(&honest));
            let turn = listener.turn();
            let others = turn.iter().filter(|(from, _)| *from == key(3).public());
            let others: Vec<_> = others.map(|(_, entries)| entries.clone()).collect();
            assert_eq!(others, [vec![honest]], "round {round}");
            assert!(turn.len() <= 3);
        } else {
            assert!(listener.turn().len() <= 2);
        }
    }
}

#[test]
fn what_another_neighbour_made_known_meanwhile_is_not_handed_over() {
    let entries = chain(2);
    let mut listener = Listener::new(entries[..1].to_vec());
    listener.come(2, &[spoilt(&entries[1], 1)]);
    assert_eq!(listener.turn().len(), 1);
    listener.come(3, &[entries[1].bytes().to_vec()]);
    let knowledge = knowledge(entries, BTreeMap::new());
    listener.gossip.handle_knowledge(knowledge, listener.now);
    assert_eq!(listener.turn(), []);
    assert_eq!(listener.gossip.intake.due(), None);
}

#[test]
fn who_starts_anew_all_the_time_is_not_listened_to_more() {
    let mut listener = Listener::new(chain(1));
    let liar = key(2).public();
    let first = listener.gossip.knowledge.entries[0].hash();
    let mut handed = 0;
    for label in 0..1000 {
        if label % 10 == 0 {
            listener.gossip.handle_up(&liar, listener.now);
        }
        if label % 100 == 50 {
            listener.gossip.handle_gone(&liar);
            listener.gossip.handle_up(&key(3).public(), listener.now);
            listener.gossip.handle_up(&liar, listener.now);
        }
        listener.come(2, &[entry(1, first, label).bytes().to_vec()]);
    }
    for _ in 0..5 {
        let turn = listener.turn();
        handed += turn.iter().map(|(_, entries)| entries.len()).sum::<usize>();
    }
    assert_eq!(handed, 400);
    listener.now += Duration::from_secs(10);
    listener.gossip.handle_gone(&liar);
    listener.gossip.handle_up(&key(3).public(), listener.now);
    assert!(listener.gossip.limits.is_empty());
}

#[test]
fn who_asks_for_records_all_the_time_is_answered_now_and_then() {
    let now = Duration::from_secs(100);
    let mut gossip = Gossip::new(key(1).public(), 1, now);
    let known = members((1..1000).map(|number| (number, 1)));
    gossip.handle_knowledge(knowledge(chain(1), known), now);
    let asks = |gossip: &mut Gossip| {
        for byte in 0..=255 {
            let want = Want {
                heads: vec![],
                have: vec![(0, 0)],
                span: (byte, byte),
            };
            gossip.handle_message(&key(2).public(), GossipMessage::Want(want), now);
        }
    };
    gossip.handle_up(&key(2).public(), now);
    asks(&mut gossip);
    gossip.handle_up(&key(2).public(), now);
    asks(&mut gossip);
    let mut parts = 0;
    for tick in 0..200 {
        gossip.handle_timeout(now + Duration::from_millis(50) * tick);
        while let Some(output) = gossip.poll_output() {
            match output {
                GossipOutput::Send {
                    message: Control::Part(_),
                    ..
                } => parts += 1,
                GossipOutput::Send { .. } | GossipOutput::HandedOver { .. } => {}
            }
        }
    }
    // Of four records each, one a part, in 24 answers.
    assert!((1..=150).contains(&parts), "{parts}");
}
