//! What a gateway says of itself: the one model behind `causeway status`, `--json`, `ping` and the
//! metrics.
//!
//! The daemon serves HTTP/1.1 on the Unix socket `RUNTIME_DIR/gateway.sock`, for its own user:
//!
//! - `GET /status` -> one [`Status`] as JSON. Texts are for people, `state` words are fixed.
//! - `GET /ping?site=NAME&count=N` (1 to 100, 4 if left out) -> one JSON line per [`Pong`], each sent
//!   when it is known, to every gateway of the site; the body ends after the last.
//! - `GET /passage` -> one [`Passage`] as JSON, when it has been tried.
//! - `GET /metrics` -> Prometheus text.
//!
//! A refusal is a status other than 200 with a [`node::status::Refusal`] as JSON. Fields are only ever added;
//! readers pass over those they do not know, and take a default for those they miss.

use std::collections::BTreeMap;

use node::status::{Broker, Kernel, Prefix, Problem};
use serde::{Deserialize, Serialize};

pub const SOCKET: &str = "gateway.sock";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub mesh: String,
    pub site: String,
    pub node: String,
    /// `gateway`.
    pub role: String,
    /// Public key of the node.
    pub identity: String,
    pub version: String,
    pub uptime_s: u64,
    /// Whether every gateway that answers had its links up, or long enough was waited for that.
    pub ready: bool,
    pub broker: Broker,
    pub tun: String,
    pub listen_port: u16,
    pub kernel: Kernel,
    /// This node's own address in its site.
    pub lan_address: Option<String>,
    /// Where this node stands; empty if nobody said.
    pub region: String,
    pub zone: String,
    /// Where it says that it can be reached, with how each is known.
    pub addresses: Vec<OwnAddress>,
    pub links: Vec<Link>,
    pub prefixes: Vec<Prefix>,
    /// Of this site, whether they are heard or not.
    pub agents: Vec<Agent>,
    /// Packets dropped since the start, by reason; those of none are left out.
    pub drops: BTreeMap<String, u64>,
    pub problems: Vec<Problem>,
    /// No fault of anything, and worth knowing.
    pub remarks: Vec<Problem>,
}

/// A node of this site that runs the route agent, as this gateway hears it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agent {
    pub name: String,
    pub identity: String,
    /// Where it was heard from last, else what its record says.
    pub address: Option<String>,
    /// `up`, `silent`, or `never`: not heard since this gateway's start. The kernel of a silent one
    /// goes on as it was told last.
    pub state: String,
    /// `direct`, `vxlan` or `undecided`.
    pub mode: String,
    pub last_heard_s: Option<f64>,
    /// What it keeps between two questions.
    pub interval_ms: Option<u64>,
    /// Whether foreign packets pass between both, as its probes found.
    pub passes: Option<bool>,
}

/// Whether this host passes on what comes out of the tunnel to the site's network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Passage {
    /// One for each family.
    pub ways: Vec<Way>,
    /// Why it could not be tried.
    pub untried: Option<String>,
}

/// Of one packet, which did not leave this host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Way {
    pub source: String,
    pub destination: String,
    /// `passed`, `dropped` by a rule, `lost` otherwise, or `unseen`.
    pub state: String,
    /// Family, table and chain of the rule that dropped it.
    pub chain: Option<String>,
    /// As a sentence, with the rule or the interface.
    pub what: String,
    /// What to do.
    pub next: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnAddress {
    pub address: String,
    /// `configured`, `reflected`, `lan` or `interface`.
    pub from: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    pub site: String,
    pub gateway: String,
    pub identity: String,
    /// Where that gateway stands; empty if nobody said.
    pub region: String,
    pub zone: String,
    /// A gateway of our own site.
    pub sibling: bool,
    /// `up` means that packets pass both ways now; else `connecting` (never was up) or `down`.
    pub state: String,
    /// Why it is not up, as a word; see [`Link::why_text`].
    pub why: Option<String>,
    /// The same as a sentence.
    pub why_text: Option<String>,
    /// `direct` or `relay`.
    pub path: Option<String>,
    /// `lan`, `record`, `observed` or `relay`.
    pub path_kind: Option<String>,
    pub endpoint: Option<String>,
    /// `wireguard`; `lanes` in a later version.
    pub datapath: String,
    pub suite: Option<String>,
    pub lanes: u32,
    pub rtt_ms: Option<f64>,
    pub jitter_ms: Option<f64>,
    /// Of the hellos of the last minute, the part that did not come: 0 to 1.
    pub loss: f64,
    /// Of packets inside the tunnel.
    pub mtu: u16,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    /// Since the last handshake.
    pub last_handshake_s: Option<u64>,
    /// It went down lately and is used only while no other gateway of its site is up.
    pub held_down: bool,
    /// Whether it carries packets of its site now.
    pub carries: bool,
    /// Times it went down since the start.
    pub failovers: u64,
    /// How long it was down since it was up for the first time, in sum.
    pub down_ms: u64,
    /// Our address as the other side sees it.
    pub seen_as: Option<String>,
    pub candidates: Vec<Candidate>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Candidate {
    pub address: String,
    /// As [`Link::path_kind`].
    pub kind: String,
    /// `untried`, `answered` or `silent`.
    pub state: String,
    pub rtt_ms: Option<f64>,
    /// Tries since it was last heard.
    pub tries: Option<u32>,
}

/// One answer to a ping, or that none came in time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pong {
    pub site: String,
    pub gateway: String,
    /// Counts from 1.
    pub number: u32,
    /// `None`: no answer.
    pub rtt_ms: Option<f64>,
    /// `direct` or `relay`.
    pub path: Option<String>,
    pub endpoint: Option<String>,
}
