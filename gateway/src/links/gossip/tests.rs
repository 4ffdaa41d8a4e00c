//! Gateways that gossip over a wire that loses, repeats and reorders.

mod hostile;

use proptest::prelude::*;
use proto::control::MAX_MESSAGE;
use proto::entry::{Body, Entry, Role, SignedEntry};
use proto::key::{Domain, SigningKey};
use proto::ledger::NOTHING_BEFORE;
use proto::record::{Member, NodeState, Record};

use super::*;

fn key(number: u16) -> SigningKey {
    let mut seed = [9; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_seed(&seed)
}

fn entry(number: u64, previous: Hash, label: u64) -> SignedEntry {
    let body = Body::SiteRevoked {
        site: format!("site-{label}").parse().unwrap(),
    };
    let entry = Entry {
        number,
        previous,
        issued: 0,
        body,
    };
    entry.sign(&key(0))
}

fn chain(length: u64) -> Vec<SignedEntry> {
    let mut entries: Vec<SignedEntry> = Vec::new();
    for number in 0..length {
        let previous = entries.last().map_or(NOTHING_BEFORE, SignedEntry::hash);
        entries.push(entry(number, previous, number));
    }
    entries
}

fn member(number: u16, sequence: u64) -> (PublicKey, (u64, Arc<Member>)) {
    let key = key(number);
    let record = Record {
        mesh: Hash([1; 32]),
        site: format!("site-{number}").parse().unwrap(),
        node: "gate".parse().unwrap(),
        role: Role::Gateway,
        identity: key.public(),
        sequence,
        issued: 0,
        state: NodeState::Withdrawn,
    };
    let member = Member {
        enrolment: vec![7; 400],
        record: record.sign(&key).bytes().to_vec(),
    };
    (key.public(), (sequence, Arc::new(member)))
}

fn knowledge(
    entries: Vec<SignedEntry>,
    members: BTreeMap<PublicKey, (u64, Arc<Member>)>,
) -> Arc<Knowledge> {
    let mut said = Vec::new();
    for (identity, (sequence, _)) in &members {
        said.extend_from_slice(identity.as_bytes());
        said.extend_from_slice(&sequence.to_be_bytes());
    }
    let parents: HashSet<Hash> = entries.iter().map(|e| e.entry().previous).collect();
    let mut heads: Vec<Hash> = entries.iter().map(SignedEntry::hash).collect();
    heads.retain(|head| !parents.contains(head));
    heads.sort();
    Arc::new(Knowledge {
        entries: Arc::new(entries),
        heads,
        members: Arc::new(members),
        records: Hash::of(Domain::Records, &said),
    })
}

/// A gossiping gateway with a register that takes whatever follows what it has.
struct Node {
    gossip: Gossip,
    knowledge: Arc<Knowledge>,
}

impl Node {
    fn take(&mut self, handover: &Handover, now: Duration) {
        let mut entries = self.knowledge.entries.to_vec();
        let mut hashes: HashSet<Hash> = entries.iter().map(SignedEntry::hash).collect();
        for bytes in &handover.entries {
            let entry = SignedEntry::read(bytes).unwrap();
            let has_parent = entry.entry().number == 0 || hashes.contains(&entry.entry().previous);
            if has_parent && hashes.insert(entry.hash()) {
                entries.push(entry);
            }
        }
        let mut members = (*self.knowledge.members).clone();
        for bytes in &handover.members {
            let taken = Member::read(bytes).unwrap();
            let signed = proto::record::SignedRecord::read(&taken.record).unwrap();
            let record = signed.record();
            let known = members.get(&record.identity);
            if known.is_none_or(|(sequence, _)| *sequence < record.sequence) {
                members.insert(record.identity, (record.sequence, Arc::new(taken)));
            }
        }
        self.knowledge = knowledge(entries, members);
        self.gossip.handle_knowledge(self.knowledge.clone(), now);
    }
}

struct Net {
    nodes: Vec<Node>,
    now: Duration,
    dice: Dice,
    loss_percent: u64,
    /// Lasts between half of it and all of it, so that packets overtake each other.
    trip: Duration,
    wire: BTreeMap<(Duration, u64), (usize, usize, Control)>,
    sent: usize,
    sent_bytes: usize,
    handed: Vec<(Duration, usize, Handover)>,
}

impl Net {
    fn new(all: Vec<Arc<Knowledge>>, loss_percent: u64, seed: u64) -> Net {
        let now = Duration::from_secs(100);
        let keys: Vec<PublicKey> = (0..all.len() as u16)
            .map(|at| key(at + 1).public())
            .collect();
        let nodes = all.into_iter().zip(&keys).map(|(knowledge, own)| {
            let mut gossip = Gossip::new(*own, seed ^ u64::from(own.as_bytes()[0]), now);
            gossip.handle_knowledge(knowledge.clone(), now);
            for other in keys.iter().filter(|other| *other != own) {
                gossip.handle_up(other, now);
            }
            Node { gossip, knowledge }
        });
        let mut net = Net {
            nodes: nodes.collect(),
            now,
            dice: Dice::new(seed),
            loss_percent,
            trip: Duration::from_millis(40),
            wire: BTreeMap::new(),
            sent: 0,
            sent_bytes: 0,
            handed: Vec::new(),
        };
        net.drain();
        net
    }

    fn index(&self, of: &PublicKey) -> usize {
        self.nodes
            .iter()
            .position(|node| node.gossip.own == *of)
            .unwrap()
    }

    fn drain(&mut self) {
        for at in 0..self.nodes.len() {
            while let Some(output) = self.nodes[at].gossip.poll_output() {
                match output {
                    GossipOutput::HandedOver { handover, .. } => {
                        self.handed.push((self.now, at, handover.clone()));
                        let now = self.now;
                        self.nodes[at].take(&handover, now);
                    }
                    GossipOutput::Send { to, message } => {
                        let bytes = proto::codec::encode(&message).unwrap().len();
                        assert!(bytes <= MAX_MESSAGE, "{message:?}");
                        self.sent += 1;
                        self.sent_bytes += bytes;
                        let to = self.index(&to);
                        for copy in 0..2 {
                            let repeated = copy == 0 || self.dice.below(20) == 0;
                            if repeated && self.dice.below(100) >= self.loss_percent {
                                let trip = self.dice.jitter(self.trip, 50);
                                let id = self.dice.next();
                                self.wire
                                    .insert((self.now + trip, id), (at, to, message.clone()));
                            }
                        }
                    }
                }
            }
        }
    }

    fn step(&mut self, end: Duration) -> bool {
        let timers = self
            .nodes
            .iter()
            .filter_map(|node| node.gossip.poll_timeout());
        let arrival = self.wire.keys().next().map(|(at, _)| *at);
        let next = timers.chain(arrival).min().unwrap_or(end).max(self.now);
        if next > end {
            self.now = end;
            return false;
        }
        self.now = next;
        while let Some(first) = self.wire.first_entry()
            && first.key().0 <= next
        {
            let (from, to, message) = first.remove();
            let from = self.nodes[from].gossip.own;
            let message = if let Control::Digest(digest) = message {
                GossipMessage::Digest(digest)
            } else if let Control::Want(want) = message {
                GossipMessage::Want(want)
            } else if let Control::Part(part) = message {
                GossipMessage::Part(part)
            } else {
                panic!("{message:?}")
            };
            self.nodes[to].gossip.handle_message(&from, message, next);
        }
        for node in &mut self.nodes {
            if node.gossip.poll_timeout().is_some_and(|at| at <= next) {
                node.gossip.handle_timeout(next);
            }
        }
        self.drain();
        true
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.step(end) {}
    }

    /// Runs until all know the same; how long that took.
    fn converge(&mut self, within: Duration) -> Option<Duration> {
        let (start, end) = (self.now, self.now + within);
        while !self.is_equal() {
            if !self.step(end) {
                return None;
            }
        }
        Some(self.now - start)
    }

    fn is_equal(&self) -> bool {
        self.nodes.windows(2).all(|pair| {
            let (one, other) = (&pair[0].knowledge, &pair[1].knowledge);
            one.heads == other.heads && one.records == other.records
        })
    }

    fn learn(&mut self, at: usize, knowledge: Arc<Knowledge>) {
        let node = &mut self.nodes[at];
        node.knowledge = knowledge;
        node.gossip
            .handle_knowledge(node.knowledge.clone(), self.now);
        self.drain();
    }
}

fn members(of: impl IntoIterator<Item = (u16, u64)>) -> BTreeMap<PublicKey, (u64, Arc<Member>)> {
    of.into_iter()
        .map(|(number, sequence)| member(number, sequence))
        .collect()
}

#[test]
fn a_new_entry_reaches_every_neighbour_in_one_trip() {
    let old = knowledge(chain(5), BTreeMap::new());
    let mut net = Net::new(vec![old; 5], 0, 1);
    net.run(Duration::from_secs(20));
    net.learn(0, knowledge(chain(6), BTreeMap::new()));
    assert!(net.converge(net.trip).is_some());
}

#[test]
fn a_new_entry_reaches_everyone_in_ten_seconds_though_a_third_is_lost() {
    for seed in 0..20 {
        let old = knowledge(chain(5), BTreeMap::new());
        let mut net = Net::new(vec![old; 5], 33, seed);
        net.run(Duration::from_secs(20));
        net.learn(0, knowledge(chain(6), BTreeMap::new()));
        let took = net.converge(Duration::from_secs(10));
        assert!(took.is_some(), "seed {seed}");
    }
}

#[test]
fn our_own_new_record_is_told_at_once() {
    let old = knowledge(chain(2), members([(1, 1), (2, 1), (3, 1)]));
    let mut net = Net::new(vec![old; 3], 0, 1);
    net.run(Duration::from_secs(20));
    net.learn(0, knowledge(chain(2), members([(1, 2), (2, 1), (3, 1)])));
    assert!(net.converge(net.trip).is_some());
}

#[test]
fn who_starts_with_an_old_cache_is_brought_up_to_date_in_seconds() {
    let old = knowledge(chain(2), members([(1, 1)]));
    let new = knowledge(chain(40), members((1..60).map(|number| (number, 3))));
    let mut net = Net::new(vec![old, new], 0, 1);
    assert!(net.converge(Duration::from_secs(8)).is_some());
}

#[test]
fn equals_only_tell_each_other_a_digest_now_and_then() {
    let same = knowledge(chain(5), members([(1, 1), (2, 1)]));
    let mut net = Net::new(vec![same; 4], 0, 1);
    net.run(Duration::from_secs(2));
    net.sent = 0;
    net.run(Duration::from_secs(100));
    let digests = 12 * 100 / 5;
    assert!(
        (digests..=digests * 5 / 4).contains(&net.sent),
        "{}",
        net.sent
    );
    assert!(net.handed.is_empty());
}

#[test]
fn a_thousand_neighbours_with_two_thousand_records_do_not_flood() {
    let now = Duration::from_secs(100);
    let mut gossip = Gossip::new(key(1).public(), 1, now);
    let known = members((1..1500).map(|number| (number, 1)));
    gossip.handle_knowledge(knowledge(chain(3), known), now);
    let others: Vec<PublicKey> = (2..1002).map(|number| key(number).public()).collect();
    for other in &others {
        gossip.handle_up(other, now);
    }
    // Every one of them claims to have other records and a further entry.
    let digest = Digest {
        heads: vec![[3; 32]],
        records: [4; 32],
    };
    let mut sent: BTreeMap<u64, usize> = BTreeMap::new();
    for tick in 0..200 {
        let now = now + Duration::from_millis(50) * tick;
        if tick % 100 == 60 {
            for other in &others {
                gossip.handle_message(other, GossipMessage::Digest(digest.clone()), now);
            }
        }
        gossip.handle_timeout(now);
        while let Some(output) = gossip.poll_output() {
            match output {
                GossipOutput::Send {
                    message: Control::Want(_),
                    ..
                } => {
                    *sent.entry(now.as_secs()).or_default() += 1;
                }
                GossipOutput::Send { .. } | GossipOutput::HandedOver { .. } => {}
            }
        }
    }
    assert!(!sent.is_empty());
    assert!(sent.values().all(|wants| *wants <= 30), "{sent:?}");
}

#[test]
fn two_with_two_thousand_records_that_differ_in_some_find_these() {
    let all = members((1..2000).map(|number| (number, 1)));
    let mut one = all.clone();
    let mut other = all;
    one.extend(members([(5, 3), (1999, 4), (700, 9)]));
    other.extend(members([(6, 3), (2001, 1)]));
    let mut net = Net::new(
        vec![knowledge(chain(2), one), knowledge(chain(2), other)],
        0,
        1,
    );
    assert!(net.converge(Duration::from_secs(30)).is_some());
    let members: usize = net.handed.iter().map(|(_, _, h)| h.members.len()).sum();
    assert!(members <= 10, "{members} records were sent for five");
}

#[test]
fn what_is_known_or_was_just_handed_over_is_not_handed_over_again() {
    let now = Duration::from_secs(100);
    let mut gossip = Gossip::new(key(1).public(), 1, now);
    let entries = chain(4);
    gossip.handle_knowledge(knowledge(entries[..3].to_vec(), members([(2, 5)])), now);
    gossip.handle_up(&key(2).public(), now);
    let handover = Handover {
        entries: entries
            .iter()
            .map(|e| e.bytes().to_vec())
            .chain([vec![1, 2]])
            .collect(),
        members: [member(2, 4), member(2, 5), member(3, 1)]
            .map(|(_, (_, member))| member.write())
            .into_iter()
            .chain([vec![0]])
            .collect(),
    };
    let mut handed = Vec::new();
    for again in 0..15 {
        let now = now + Duration::from_millis(100) * again;
        for part in parcel::cut(&handover, u64::from(again)).unwrap() {
            gossip.handle_message(&key(2).public(), GossipMessage::Part(part), now);
        }
        gossip.handle_timeout(now);
        while let Some(output) = gossip.poll_output() {
            match output {
                GossipOutput::HandedOver { handover, .. } => handed.push(handover),
                GossipOutput::Send { .. } => {}
            }
        }
    }
    let expected = Handover {
        entries: vec![entries[3].bytes().to_vec()],
        members: vec![member(3, 1).1.1.write()],
    };
    assert_eq!(handed, [expected]);
}

#[test]
fn entries_wait_for_their_parents_and_go_on_in_order() {
    let now = Duration::from_secs(100);
    let mut gossip = Gossip::new(key(1).public(), 1, now);
    let entries = chain(6);
    gossip.handle_knowledge(knowledge(entries[..1].to_vec(), BTreeMap::new()), now);
    gossip.handle_up(&key(2).public(), now);
    let mut handed = Vec::new();
    for at in [5, 3, 4, 2, 1] {
        let handover = Handover {
            entries: vec![entries[at].bytes().to_vec()],
            members: Vec::new(),
        };
        for part in parcel::cut(&handover, at as u64).unwrap() {
            gossip.handle_message(&key(2).public(), GossipMessage::Part(part), now);
        }
        while let Some(output) = gossip.poll_output() {
            match output {
                GossipOutput::HandedOver { handover, .. } => handed.extend(handover.entries),
                GossipOutput::Send { .. } => {}
            }
        }
        assert_eq!(handed.is_empty(), at != 1, "{at}");
    }
    let expected: Vec<Vec<u8>> = entries[1..].iter().map(|e| e.bytes().to_vec()).collect();
    assert_eq!(handed, expected);
}

#[test]
fn a_stranger_and_one_that_is_gone_are_not_listened_to() {
    let now = Duration::from_secs(100);
    let mut gossip = Gossip::new(key(1).public(), 1, now);
    gossip.handle_knowledge(knowledge(chain(3), BTreeMap::new()), now);
    let want = Want {
        heads: vec![NO_HEAD],
        have: vec![(0, 0)],
        span: (0, 255),
    };
    for is_gone in [false, true] {
        if is_gone {
            gossip.handle_up(&key(2).public(), now);
            gossip.handle_gone(&key(2).public());
        }
        gossip.handle_message(&key(2).public(), GossipMessage::Want(want.clone()), now);
        gossip.handle_timeout(now);
        assert_eq!(gossip.poll_output(), None);
        assert_eq!(gossip.poll_timeout(), None);
    }
}

#[test]
fn who_asks_without_end_gets_two_hundred_parts_a_second() {
    let now = Duration::from_secs(100);
    let mut gossip = Gossip::new(key(1).public(), 1, now);
    let known = members((1..1500).map(|number| (number, 1)));
    gossip.handle_knowledge(knowledge(chain(600), known), now);
    gossip.handle_up(&key(2).public(), now);
    let want = Want {
        heads: vec![NO_HEAD],
        have: vec![(0, 0)],
        span: (0, 255),
    };
    let mut parts = 0;
    for tick in 0..1000 {
        let now = now + Duration::from_millis(10) * tick;
        gossip.handle_message(&key(2).public(), GossipMessage::Want(want.clone()), now);
        gossip.handle_timeout(now);
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
    assert!((500..=2020).contains(&parts), "{parts} in ten seconds");
}

/// One gateway that knows of three neighbours, and what they send to it.
struct Listener {
    gossip: Gossip,
    now: Duration,
    id: u64,
}

impl Listener {
    fn new(entries: Vec<SignedEntry>) -> Listener {
        let now = Duration::from_secs(100);
        let mut gossip = Gossip::new(key(1).public(), 1, now);
        gossip.handle_knowledge(knowledge(entries, BTreeMap::new()), now);
        for neighbour in [2, 3, 4] {
            gossip.handle_up(&key(neighbour).public(), now);
        }
        gossip.handle_timeout(now);
        let mut listener = Listener { gossip, now, id: 0 };
        // The first thing that comes goes on at once.
        listener.come(4, &[entry(0, NOTHING_BEFORE, 99).bytes().to_vec()]);
        while listener.gossip.poll_output().is_some() {}
        listener
    }

    fn come(&mut self, from: u16, entries: &[Vec<u8>]) {
        self.id += 1;
        let handover = Handover {
            entries: entries.to_vec(),
            members: Vec::new(),
        };
        for part in parcel::cut(&handover, self.id).unwrap() {
            let message = GossipMessage::Part(part);
            self.gossip
                .handle_message(&key(from).public(), message, self.now);
        }
    }

    /// What is handed over now, and by whom it was sent.
    fn turn(&mut self) -> Vec<(PublicKey, Vec<Vec<u8>>)> {
        self.now += Duration::from_millis(100);
        self.gossip.handle_timeout(self.now);
        let mut turn = Vec::new();
        while let Some(output) = self.gossip.poll_output() {
            match output {
                GossipOutput::HandedOver { from, handover } => turn.push((from, handover.entries)),
                GossipOutput::Send { .. } => {}
            }
        }
        turn
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn all_end_with_the_same_knowledge_whatever_is_lost_repeated_or_late(
        seed: u64,
        loss in 0u64..40,
        lengths in proptest::collection::vec(1u64..60, 2..6),
        records in proptest::collection::vec(proptest::collection::btree_map(1u16..80, 1u64..9, 0..60), 6),
        fork: bool,
    ) {
        let entries = chain(60);
        let all = lengths.iter().zip(&records).enumerate().map(|(at, (length, records))| {
            let mut entries = entries[..*length as usize].to_vec();
            if fork && at == 0 {
                let last = entries.last().unwrap();
                entries.push(entry(last.entry().number + 1, last.hash(), 1000));
            }
            knowledge(entries, members(records.clone()))
        });
        let mut net = Net::new(all.collect(), loss, seed);
        let took = net.converge(Duration::from_secs(300));
        prop_assert!(took.is_some());
    }
}
