//! One gateway of a site.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::daemon::Daemon;

pub struct GatewayNode {
    daemon: Daemon,
    /// On its wire to the internet.
    pub outer: IpAddr,
}

impl GatewayNode {
    pub(super) fn new(daemon: Daemon, outer: IpAddr) -> GatewayNode {
        GatewayNode { daemon, outer }
    }

    /// One link as `status` shows it.
    pub fn link(&self, to: &str) -> Result<Value> {
        let status = self.status()?;
        find_link(&status, to)
            .cloned()
            .with_context(|| format!("{} has no link to {to}", self.name))
    }
}

impl Deref for GatewayNode {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for GatewayNode {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

fn find_link<'a>(status: &'a Value, to: &str) -> Option<&'a Value> {
    let links = status["links"].as_array()?;
    links.iter().find(|link| link["gateway"] == to)
}

pub(super) fn link_state(status: &Value, to: &str) -> String {
    let state = find_link(status, to).and_then(|link| link["state"].as_str());
    state.unwrap_or("unknown").to_owned()
}
