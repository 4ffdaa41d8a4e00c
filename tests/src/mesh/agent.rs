//! One worker of a site with a route agent on it.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};

use anyhow::Result;
use serde_json::Value;

use super::daemon::Daemon;

pub struct AgentNode {
    daemon: Daemon,
    /// Its LAN address of the other family.
    pub lan6: IpAddr,
}

impl AgentNode {
    pub(super) fn new(daemon: Daemon, lan6: IpAddr) -> AgentNode {
        AgentNode { daemon, lan6 }
    }

    /// `direct` or `vxlan`, as it says itself.
    pub fn mode(&self) -> Result<String> {
        let status = self.status()?;
        let used = status["mode"]["used"].as_str();
        Ok(used.unwrap_or("undecided").to_owned())
    }

    /// What one of its gateways is to it: `up`, `silent` and so on.
    pub fn gateway_state(&self, name: &str) -> Result<String> {
        let status = self.status()?;
        let state = gateway_of(&status, name).and_then(|gateway| gateway["state"].as_str());
        Ok(state.unwrap_or("unknown").to_owned())
    }

    /// What there is still to come before it can carry, of these gateways and to these sites;
    /// nothing if it can.
    pub(super) fn lacks(&self, gateways: &[&str], sites: &[&str]) -> Vec<String> {
        let status = match self.status() {
            Ok(status) => status,
            Err(error) => return vec![format!("{}: {error:#}", self.name)],
        };
        let mut lacks = Vec::new();
        if status["ready"] != true {
            lacks.push(format!("{} is not ready", self.name));
        }
        for gateway in gateways {
            // A probe that has passed is what decides between the modes.
            let ready = |found: &&Value| found["state"] == "up" && found["probe"] == "passed";
            let found = gateway_of(&status, gateway);
            if found.filter(ready).is_none() {
                lacks.push(format!("{} to {gateway}: {found:?}", self.name));
            }
        }
        for site in sites {
            let prefixes = status["prefixes"].as_array().cloned().unwrap_or_default();
            // What is IPv6 alone has no address to send IPv4 from.
            let wanted = |prefix: &Value| {
                let is_v6 = || {
                    prefix["prefix"]
                        .as_str()
                        .is_some_and(|one| one.contains(':'))
                };
                self.lan.is_ipv4() || is_v6()
            };
            let mut of_site = prefixes
                .iter()
                .filter(|prefix| prefix["site"] == *site && wanted(prefix));
            let reached = |prefix: &Value| {
                let by = prefix["gateways"].as_array().map_or(0, Vec::len);
                prefix["state"] == "reachable" && by == gateways.len()
            };
            if of_site.clone().count() == 0 || !of_site.all(reached) {
                lacks.push(format!("{} does not reach {site}: {prefixes:?}", self.name));
            }
        }
        lacks
    }
}

fn gateway_of<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let gateways = status["gateways"].as_array()?;
    gateways.iter().find(|gateway| gateway["name"] == name)
}

impl Deref for AgentNode {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for AgentNode {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}
