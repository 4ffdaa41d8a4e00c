//! What this machine knows of a mesh before anything is looked at: its directory, a token, and what
//! its daemons say.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use gateway::status::Link;
use ip_network::IpNetwork;
use node::cloud::Found;
use node::follow::{Cached, cached};
use node::state::{LocalNode, StateDir};
use node::status::{Broker, Kernel, Prefix, Problem};
use proto::entry::GrantRole;
use proto::key::MeshId;
use proto::ledger::PrefixState;
use proto::token::{Token, TokenBroker};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Arguments;
use crate::secret;

const PATIENCE: Duration = Duration::from_secs(2);
/// Of an answer.
const MOST: u64 = 16 * 1024 * 1024;

pub(super) struct Known {
    pub(super) node: Option<Cached>,
    /// Its keys, to ask brokers as this node.
    pub(super) local: Option<LocalNode>,
    pub(super) token: Option<Token>,
    /// Why there is no node or token although one was to be had.
    pub(super) unread: Vec<String>,
    pub(super) gateway: Option<Told>,
    pub(super) agent: Option<Told>,
    /// Sockets that are there and give no answer.
    pub(super) silent: Vec<String>,
    pub(super) cloud: Option<Found>,
    /// How brokers see a node that has joined, while no gateway of its own tells.
    pub(super) seen: Result<Vec<SocketAddr>, String>,
}

/// What of a daemon's status is looked at; both roles tell it in the same words.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    pub(super) site: String,
    pub(super) node: String,
    pub(super) ready: bool,
    pub(super) broker: Broker,
    pub(super) tun: String,
    pub(super) listen_port: u16,
    pub(super) kernel: Kernel,
    pub(super) lan_address: Option<IpAddr>,
    pub(super) addresses: Vec<gateway::status::OwnAddress>,
    pub(super) links: Vec<Link>,
    pub(super) prefixes: Vec<Prefix>,
    pub(super) mode: Mode,
    pub(super) gateways: Vec<Neighbour>,
    pub(super) problems: Vec<Problem>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Mode {
    pub(super) used: String,
    pub(super) why: String,
}

/// A gateway as an agent knows it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Neighbour {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) state: String,
    /// Whether packets of other sites pass on the way that is used.
    pub(super) probe: String,
    /// The same of the site's own network, whichever way is used.
    pub(super) direct: String,
}

impl Known {
    pub(super) fn gather(arguments: &Arguments) -> Known {
        let mut known = Known {
            node: None,
            local: None,
            token: None,
            unread: Vec::new(),
            gateway: None,
            agent: None,
            silent: Vec::new(),
            cloud: None,
            seen: Ok(Vec::new()),
        };
        known.read_state(&arguments.state_dir);
        if let Some(file) = &arguments.token_file {
            known.read_token(file);
        }
        known.gateway = known.ask(&arguments.runtime_dir.join(gateway::status::SOCKET));
        known.agent = known.ask(&arguments.runtime_dir.join("agent.sock"));
        known
    }

    fn read_state(&mut self, path: &Path) {
        match StateDir::open(path).and_then(|state| state.node()) {
            Ok(node) => {
                self.node = node.as_ref().map(cached);
                self.local = node;
            }
            Err(node::state::StateError::Missing(_)) => {}
            Err(error) => self.unread.push(error.to_string()),
        }
    }

    fn read_token(&mut self, file: &Path) {
        let text = secret::read(Some(file), "token", "--token-file");
        let token = text.and_then(|text| Ok(Token::decode(&text)?));
        match token {
            Ok(token) => self.token = Some(token),
            Err(error) => self.unread.push(format!("{error:#}")),
        }
    }

    fn ask(&mut self, socket: &Path) -> Option<Told> {
        if !socket.exists() {
            return None;
        }
        let told = get(socket, "/status", PATIENCE);
        if let Err(why) = &told {
            self.silent.push(format!("{}: {why}", socket.display()));
        }
        told.ok()
    }

    pub(super) fn daemons(&self) -> impl Iterator<Item = (&'static str, &Told)> {
        let gateway = self.gateway.iter().map(|told| ("gateway", told));
        gateway.chain(self.agent.iter().map(|told| ("agent", told)))
    }

    /// The numbers that are ours: those that a running daemon was given, else the usual ones.
    pub(super) fn kernel(&self) -> Kernel {
        let mut told = self.daemons().map(|(_, told)| told.kernel);
        told.next().unwrap_or_default()
    }

    /// Whether this node carries traffic of others, or may be meant to.
    pub(super) fn may_forward(&self) -> bool {
        let granted = self.granted_role();
        self.gateway.is_some() || (self.agent.is_none() && granted != Some(GrantRole::Agent))
    }

    pub(super) fn granted_role(&self) -> Option<GrantRole> {
        let token = self
            .token
            .as_ref()
            .and_then(|token| token.grant_entry().grant());
        token.map(|grant| grant.role)
    }

    pub(super) fn mesh(&self) -> Option<MeshId> {
        let joined = self.node.as_ref().map(|node| node.view.mesh);
        joined.or(self.token.as_ref().map(|token| token.mesh))
    }

    /// Brokers with the keys they must show.
    pub(super) fn brokers(&self) -> Vec<TokenBroker> {
        match (&self.node, &self.token) {
            (Some(node), _) => node.view.contacts.to_vec(),
            (None, Some(token)) => token.brokers.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// Of this site, by the ledger or by the token.
    pub(super) fn own_prefixes(&self) -> Vec<IpNetwork> {
        if let Some(node) = &self.node {
            let view = &node.view;
            let own = view.prefixes.iter().filter(|held| held.site == view.site);
            return own.map(|held| held.prefix).collect();
        }
        let grant = self
            .token
            .as_ref()
            .and_then(|token| token.grant_entry().grant());
        grant.map_or_else(Vec::new, |grant| {
            let all = grant.prefixes.iter().chain(&grant.service_prefixes);
            all.copied().collect()
        })
    }

    /// Of other sites, with their names.
    pub(super) fn remote_prefixes(&self) -> Vec<(IpNetwork, String)> {
        let Some(node) = &self.node else {
            return Vec::new();
        };
        let view = &node.view;
        let remote = view.prefixes.iter().filter(|held| held.site != view.site);
        let owned = remote.filter(|held| held.state == PrefixState::Owned);
        owned
            .map(|held| (held.prefix, held.site.to_string()))
            .collect()
    }

    /// Of this node in its site.
    pub(super) fn lan_address(&self) -> Option<IpAddr> {
        let told = self.daemons().find_map(|(_, told)| told.lan_address);
        let own = self.node.as_ref().and_then(|node| node.own.as_ref());
        told.or(own.and_then(|own| own.presence()?.lan_address))
    }
}

/// What a daemon answers on its socket.
pub(super) fn get<T: DeserializeOwned>(
    socket: &Path,
    page: &str,
    patience: Duration,
) -> Result<T, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = UnixStream::connect(socket).map_err(text)?;
    stream.set_read_timeout(Some(patience)).map_err(text)?;
    stream.set_write_timeout(Some(patience)).map_err(text)?;
    stream
        .write_all(format!("GET {page} HTTP/1.0\r\nHost: node\r\n\r\n").as_bytes())
        .map_err(text)?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).map_err(text)?;
    let split = answer.windows(4).position(|part| part == b"\r\n\r\n");
    let body = split.map_or(&answer[..], |at| &answer[at + 4..]);
    serde_json::from_slice(body).map_err(|error| format!("its answer cannot be read: {error}"))
}
