//! What an agent says of itself: the one model behind `causeway status`, `--json` and the metrics.
//!
//! The daemon serves HTTP/1.1 on the Unix socket `RUNTIME_DIR/agent.sock`, for its own user:
//!
//! - `GET /status` -> one [`Status`] as JSON. Texts are for people, `state` words are fixed.
//! - `GET /metrics` -> Prometheus text.
//!
//! Fields are only ever added; readers pass over those they do not know, and take a default for
//! those they miss.

use node::status::{Broker, Kernel, Prefix, Problem};
use serde::{Deserialize, Serialize};

pub const SOCKET: &str = "agent.sock";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub mesh: String,
    pub site: String,
    pub node: String,
    /// `agent`.
    pub role: String,
    /// Public key of the node.
    pub identity: String,
    pub version: String,
    pub uptime_s: u64,
    /// The kernel has what is known, and a gateway has answered or long enough was waited for that.
    pub ready: bool,
    pub broker: Broker,
    /// This node's own address in its site; what it sends into the mesh comes from there.
    pub lan_address: Option<String>,
    /// The same in the other family.
    pub other_lan_address: Option<String>,
    pub region: String,
    pub zone: String,
    pub kernel: Kernel,
    pub mode: Mode,
    pub gateways: Vec<Gateway>,
    pub prefixes: Vec<Prefix>,
    pub problems: Vec<Problem>,
    /// No fault of anything, and worth knowing.
    pub remarks: Vec<Problem>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mode {
    /// `auto`, `direct` or `vxlan`.
    pub asked: String,
    /// `direct`, `vxlan` or `undecided`.
    pub used: String,
    /// As a sentence.
    pub why: String,
}

/// One of this site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gateway {
    pub name: String,
    pub identity: String,
    /// In the site's network, of its signed record.
    pub address: String,
    /// Of the other family, as it says itself.
    pub other_address: Option<String>,
    /// `up`, `held_down` (it failed lately and is used last), `leaving`, `silent`, or `never` (it has
    /// not answered since this agent was started).
    pub state: String,
    pub rtt_ms: Option<f64>,
    /// How many sites it says it reaches.
    pub reaches: usize,
    /// Whether packets of other sites pass on the way that is used: `passed`, `failed` or `untried`.
    pub probe: String,
    /// The same of the site's own network, whichever way is used.
    pub direct: String,
    /// And of VXLAN, which is tried only while it is used.
    pub vxlan: String,
    /// Whether its kernel does what it has to, as it says itself.
    pub forwards: bool,
    pub last_heard_s: Option<u64>,
    pub held_down: bool,
    /// Whether packets of a site are sent to it now.
    pub carries: bool,
}
