//! What gateways and agents say of themselves in the same words: parts of their status, and how it
//! is told from what is known of the mesh.

use std::sync::Arc;
use std::time::Duration;

use proto::ledger::Standing;
use proto::name::Name;
use serde::{Deserialize, Serialize};

use crate::follow::{BrokerState, View};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Broker {
    /// `connected`, `cached` or `unreachable`.
    pub state: String,
    pub address: Option<String>,
    /// Since all a broker had was taken for the last time.
    pub last_sync_s: Option<u64>,
    /// Why none is connected.
    pub reasons: Vec<String>,
}

/// Which numbers of the kernel's a daemon was given; the next two tables and the two priorities
/// before are its own as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    pub table: u32,
    pub rule_priority: u32,
    pub vxlan_port: u16,
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel {
            table: 7100,
            rule_priority: 100,
            vxlan_port: 7803,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prefix {
    pub prefix: String,
    pub site: String,
    /// `local`, `reachable`, `unreachable`, `no_gateway` (nobody is there to carry it),
    /// `quarantined` or `refused`.
    pub state: String,
    /// Names of those that carry it now.
    pub gateways: Vec<String>,
    /// They are siblings: from here the site itself is not reached.
    pub by_siblings: bool,
    /// What fits through all of them.
    pub mtu: Option<u16>,
}

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    pub what: String,
    pub next: String,
    /// Traffic is stopped by it now, all or some: `causeway status` ends with 1.
    pub stops: bool,
}

impl Problem {
    /// One that stops no traffic now.
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Problem {
        Problem {
            what: what.into(),
            next: next.into(),
            stops: false,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub what: String,
    pub next: String,
}

pub fn broker(view: &View) -> Broker {
    let address = match &view.broker {
        BrokerState::Connected { address } => Some(address.clone()),
        BrokerState::Cached { .. } | BrokerState::Unreachable { .. } => None,
    };
    Broker {
        state: view.broker.name().to_owned(),
        address,
        last_sync_s: view.last_sync.map(|at| crate::now().saturating_sub(at)),
        reasons: view.broker.reasons().to_vec(),
    }
}

pub fn millis(time: Duration) -> f64 {
    // Microseconds are what there is; more digits would only look exact.
    (time.as_secs_f64() * 1e6).round() / 1000.0
}

pub fn view_problems(view: &View) -> Vec<Problem> {
    let all = view.problems.iter().map(|problem| Problem {
        what: problem.to_string(),
        next: problem.next(),
        // Who is not one of the mesh speaks with nobody.
        stops: view.standing != Standing::Good,
    });
    all.collect()
}

/// `changes` is how the node hears of them meanwhile, as in a sentence.
pub fn broker_problem(broker: &BrokerState, changes: &str) -> Option<Problem> {
    if matches!(broker, BrokerState::Connected { .. }) {
        return None;
    }
    let reasons = match broker.reasons() {
        [] => "they are called, and none has answered yet".to_owned(),
        reasons => reasons.join("; "),
    };
    Some(Problem::new(
        format!("no broker can be reached: {reasons}"),
        format!(
            "traffic goes on with what is known, and changes of the mesh {changes}; see whether the broker runs, and whether TCP to it passes from here"
        ),
    ))
}

/// A site that nobody is there to carry for: no fault of anything here.
pub fn vacancy(site: &Name, prefixes: &[String]) -> Problem {
    Problem::new(
        format!(
            "site {site} has no gateway, so {} cannot be reached: nobody has joined with its token yet, or whoever had has left",
            prefixes.join(", ")
        ),
        format!(
            "join one there (`causeway token create --site {site} --role gateway` makes another token), or `causeway site remove-prefix {site} {}` if none is to come",
            prefixes.join(" ")
        ),
    )
}

/// How long a report serves those who ask after the first.
const KEPT: Duration = Duration::from_millis(250);

/// The last report, for those who ask again at once: it is made where hellos are sent.
pub struct Shown<S>(Option<(Duration, Arc<S>)>);

impl<S> Default for Shown<S> {
    fn default() -> Self {
        Shown(None)
    }
}

impl<S> Shown<S> {
    pub fn get(&self, now: Duration) -> Option<Arc<S>> {
        let (made, status) = self.0.as_ref()?;
        (now < *made + KEPT).then(|| status.clone())
    }

    pub fn keep(&mut self, status: S, now: Duration) -> Arc<S> {
        let status = Arc::new(status);
        self.0 = Some((now, status.clone()));
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_broker_is_told_with_the_reasons() {
        let reasons = vec!["b:7800: refused".to_owned()];
        let problem = broker_problem(&BrokerState::Cached { reasons }, "wait").unwrap();
        assert!(problem.what.contains("b:7800: refused"));
        let none_yet = BrokerState::Cached { reasons: vec![] };
        let problem = broker_problem(&none_yet, "wait").unwrap();
        assert!(problem.what.ends_with("none has answered yet"));
        let address = "b:7800".to_owned();
        assert_eq!(
            broker_problem(&BrokerState::Connected { address }, "wait"),
            None
        );
    }

    #[test]
    fn a_site_without_a_gateway_is_told_with_the_commands() {
        let prefixes = ["10.3.0.0/16".to_owned(), "10.4.0.0/16".to_owned()];
        let remark = vacancy(&"cork".parse().unwrap(), &prefixes);
        assert!(remark.what.contains("site cork has no gateway"));
        let command = "causeway site remove-prefix cork 10.3.0.0/16 10.4.0.0/16";
        assert!(remark.next.contains(command), "{}", remark.next);
        assert!(!remark.stops);
    }

    #[test]
    fn a_report_serves_all_who_ask_within_a_quarter_of_a_second() {
        let (begin, mut shown) = (Duration::from_secs(100), Shown::default());
        assert_eq!(shown.get(begin), None);
        let made = shown.keep(Broker::default(), begin);
        let again = shown.get(begin + KEPT / 2).unwrap();
        assert!(Arc::ptr_eq(&made, &again));
        assert_eq!(shown.get(begin + KEPT), None);
    }
}
