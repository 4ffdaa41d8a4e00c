//! Whether this host's kernel passes on what comes out of the tunnel, found out by trying: a packet
//! as if from another site goes into the interface, and the kernel tells which rule ends it, or by
//! which interface it would have left. It never leaves.

mod ways;
mod words;

use std::sync::Arc;
use std::time::Duration;

use node::status::Problem;
use routeagent::inspect::{End, Flow, Traced, Watch, trace_drops};
use tokio::sync::oneshot;

use super::Daemon;
use crate::packet::probe::Probe;
use crate::plane::Injector;
use crate::status;
use ways::Way;

/// Discards what it gets, if anything listens there at all.
const PORT: u16 = 9;
/// For all packets to be seen.
const LIMIT: Duration = Duration::from_millis(700);
/// What fails is tried once more: routes and rules may just be changing.
const AGAIN: Duration = Duration::from_millis(300);
/// How often it is looked whether rules have changed.
const LOOK: Duration = Duration::from_secs(2);

type Answer = oneshot::Sender<Arc<status::Passage>>;

#[derive(Default)]
pub(super) struct Passage {
    watch: Option<Watch>,
    next_look: Duration,
    last: Option<Tried>,
    pace: Pace,
    running: Option<oneshot::Receiver<Tried>>,
    /// Those who asked before it began, and since.
    served: Vec<Answer>,
    waiting: Vec<Answer>,
}

/// One trial.
struct Tried {
    shown: Arc<status::Passage>,
    ways: Vec<Way>,
    /// Of the rules after it, unless others changed them meanwhile.
    generation: Option<u32>,
}

/// When it is tried again: after a change, but not at once, and rarely without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pace {
    not_before: Duration,
    at_last: Duration,
}

impl Pace {
    /// Whoever mends a firewall wants to see that it helped.
    fn after(is_trouble: bool, now: Duration) -> Pace {
        let (soon, late) = if is_trouble { (5, 30) } else { (60, 600) };
        Pace {
            not_before: now + Duration::from_secs(soon),
            at_last: now + Duration::from_secs(late),
        }
    }

    fn is_due(self, is_changed: bool, now: Duration) -> bool {
        now >= self.at_last || (is_changed && now >= self.not_before)
    }
}

impl Passage {
    /// Tried anew, whenever it was tried last.
    pub(super) fn ask(&mut self, answer: Answer) {
        self.waiting.push(answer);
    }

    /// Without those about a chain that one of `told` names already.
    pub(super) fn problems(&self, told: &[Problem]) -> Vec<Problem> {
        let ways = self.last.iter().flat_map(|tried| &tried.shown.ways);
        let failed = ways.filter(|way| is_trouble(way));
        let new = failed.filter(|way| {
            let chain = way.chain.as_deref();
            !chain.is_some_and(|chain| told.iter().any(|other| other.what.contains(chain)))
        });
        new.map(|way| Problem::new(way.what.clone(), way.next.clone()))
            .collect()
    }

    fn is_changed(&mut self, ways: &[Way]) -> bool {
        if self.watch.is_none() {
            self.watch = Watch::new().ok();
        }
        let now = self
            .watch
            .as_ref()
            .and_then(|watch| watch.generation().ok());
        let last = self.last.as_ref();
        last.is_none_or(|last| last.generation != now || last.ways != ways)
    }

    fn handle_end(&mut self, tried: Tried, now: Duration) {
        for answer in self.served.drain(..) {
            // Whoever asked may have gone.
            let _told = answer.send(tried.shown.clone());
        }
        let last = self.last.as_ref().map(|last| &last.shown.ways[..]);
        for way in tried.shown.ways.iter().filter(|way| is_trouble(way)) {
            if !last.is_some_and(|last| last.contains(way)) {
                tracing::warn!(next = way.next, "{}", way.what);
            }
        }
        self.pace = Pace::after(tried.shown.ways.iter().any(is_trouble), now);
        self.last = Some(tried);
    }
}

fn is_trouble(way: &status::Way) -> bool {
    matches!(way.state.as_str(), "dropped" | "lost")
}

impl Daemon {
    pub(super) fn try_passage(&mut self, now: Duration) {
        if let Some(running) = &mut self.passage.running {
            match running.try_recv() {
                Ok(tried) => {
                    self.passage.running = None;
                    self.passage.handle_end(tried, now);
                }
                Err(oneshot::error::TryRecvError::Empty) => return,
                // The thread failed; whoever asked hears that nobody answers.
                Err(oneshot::error::TryRecvError::Closed) => {
                    (self.passage.running, self.passage.served) = (None, Vec::new());
                }
            }
        }
        let is_asked = !self.passage.waiting.is_empty();
        if !is_asked && (now < self.passage.next_look || !self.routes.are_applied()) {
            return;
        }
        self.passage.next_look = now + LOOK;
        if !is_asked && !self.passage.pace.is_due(true, now) {
            return;
        }
        let own = self.whereabouts.lan();
        let ways = ways::ways(&self.view, self.whereabouts.interfaces(), own);
        if ways.is_empty() {
            // What was found is of a way that is no more.
            self.passage.last = None;
        }
        let is_changed = self.passage.is_changed(&ways);
        let is_due = self.passage.pace.is_due(is_changed, now) && !ways.is_empty();
        if is_asked || is_due {
            self.begin_trial(ways);
        }
    }

    fn begin_trial(&mut self, ways: Vec<Way>) {
        self.passage.served = std::mem::take(&mut self.passage.waiting);
        let (done, running) = oneshot::channel();
        self.passage.running = Some(running);
        let (tun, injector) = (self.options.tun.clone(), self.plane.injector());
        tokio::task::spawn_blocking(move || {
            // Nobody waits for it once the daemon ends.
            let _told = done.send(try_all(ways, &tun, &injector));
        });
    }
}

/// Blocks.
fn try_all(ways: Vec<Way>, tun: &str, injector: &Injector) -> Tried {
    if ways.is_empty() {
        let why = "no address of another site, or none of this one, is known yet";
        return Tried::not(why.to_owned(), ways);
    }
    let generation = || Watch::new().and_then(|watch| watch.generation()).ok();
    let before = generation();
    let mut trials: u32 = 1;
    let mut traced = try_once(&ways, injector);
    let is_good = |traced: &Vec<Traced>| {
        let passed = |one: &&Traced| matches!(one.end, End::Passed(_));
        traced.iter().filter(passed).count() >= ways.len()
    };
    if !traced.as_ref().is_ok_and(is_good) {
        std::thread::sleep(AGAIN);
        traced = try_once(&ways, injector);
        trials += 1;
    }
    // Each makes a table and takes it away.
    let expected = before.map(|before| before.wrapping_add(2 * trials));
    match traced {
        Ok(traced) => Tried {
            shown: Arc::new(words::shown(&ways, &traced, tun)),
            generation: generation().filter(|after| expected == Some(*after)),
            ways,
        },
        Err(error) => Tried::not(
            format!("the kernel does not tell what becomes of packets (nftrace): {error}"),
            ways,
        ),
    }
}

impl Tried {
    fn not(why: String, ways: Vec<Way>) -> Tried {
        Tried {
            shown: Arc::new(status::Passage {
                ways: Vec::new(),
                untried: Some(why),
            }),
            ways,
            generation: None,
        }
    }
}

fn try_once(ways: &[Way], injector: &Injector) -> std::io::Result<Vec<Traced>> {
    let flow = |way: &Way| Flow {
        source: Some(way.source),
        destination: Some(way.destination),
        port: Some(PORT),
        stays: true,
    };
    let flows: Vec<Flow> = ways.iter().map(flow).collect();
    let send = || {
        ways.iter()
            .filter_map(packet)
            .for_each(|one| injector.send(one))
    };
    trace_drops(&flows, ways.len(), send, LIMIT)
}

fn packet(way: &Way) -> Option<Vec<u8>> {
    let turned = Probe {
        from: (way.destination, PORT).into(),
        to: way.source,
        datagram: &[],
    };
    turned.answer(b"causeway")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_after_changes_soon_where_something_fails_and_rarely_else() {
        let at = Duration::from_secs;
        assert!(Pace::default().is_due(false, at(0)), "at the start");
        let good = Pace::after(false, at(0));
        assert!(!good.is_due(true, at(59)) && good.is_due(true, at(60)));
        assert!(!good.is_due(false, at(599)) && good.is_due(false, at(600)));
        let bad = Pace::after(true, at(0));
        assert!(!bad.is_due(true, at(4)) && bad.is_due(true, at(5)));
        assert!(!bad.is_due(false, at(29)) && bad.is_due(false, at(30)));
    }

    fn failed(chain: &str) -> Tried {
        Tried {
            shown: Arc::new(status::Passage {
                ways: vec![status::Way {
                    state: "dropped".to_owned(),
                    chain: Some(chain.to_owned()),
                    what: format!("dropped by {chain} handle 7"),
                    ..status::Way::default()
                }],
                untried: None,
            }),
            ways: Vec::new(),
            generation: None,
        }
    }

    #[test]
    fn a_rule_that_is_told_of_already_is_no_second_problem() {
        let mut passage = Passage::default();
        passage.handle_end(failed("inet fw forward"), Duration::ZERO);
        assert_eq!(passage.problems(&[]).len(), 1);
        let other = Problem::new("a rule drops: inet other forward handle 3", "");
        assert_eq!(passage.problems(&[other]).len(), 1);
        let same = Problem::new("a rule drops: inet fw forward handle 7: drop", "");
        assert_eq!(passage.problems(&[same]), []);
    }

    #[test]
    fn whoever_asks_while_it_is_tried_waits_for_the_next_trial() {
        let mut passage = Passage::default();
        let (answer, mut told) = oneshot::channel();
        passage.ask(answer);
        passage.handle_end(failed("inet fw forward"), Duration::ZERO);
        assert!(told.try_recv().is_err());
        passage.served = std::mem::take(&mut passage.waiting);
        passage.handle_end(failed("inet fw forward"), Duration::ZERO);
        assert_eq!(told.try_recv().unwrap().ways.len(), 1);
    }
}
