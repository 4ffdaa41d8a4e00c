//! What the daemon of this machine says of itself, as far as packets go by it.

use std::net::IpAddr;

use anyhow::{Context, anyhow};
use ip_network::IpNetwork;
use node::status::Prefix;
use proto::key::PublicKey;
use routeagent::link_layer;

use crate::local::{AskError, Place, Who};

pub(super) enum Told {
    Gateway(Box<gateway::status::Status>),
    Agent(Box<routeagent::status::Status>),
}

/// The gateway if one runs here, else the agent.
pub(super) async fn ask(place: &Place) -> anyhow::Result<Told> {
    match place.get(Who::Gateway, "/status").await {
        Ok(body) => {
            let status = serde_json::from_slice(&body);
            return Ok(Told::Gateway(status.context("the gateway's answer cannot be read: is it of another version? Use the `causeway` it was started with")?));
        }
        Err(AskError::Absent(_)) => {}
        Err(error @ (AskError::Failed(_) | AskError::Refused(_))) => {
            return Err(anyhow!("{error}"));
        }
    }
    match place.get(Who::Agent, "/status").await {
        Ok(body) => {
            let status = serde_json::from_slice(&body);
            Ok(Told::Agent(status.context("the agent's answer cannot be read: is it of another version? Use the `causeway` it was started with")?))
        }
        Err(AskError::Absent(_)) => Err(anyhow!(
            "neither a gateway nor an agent runs here: start one (`causeway gateway run`, `causeway routeagent run`), or give the --runtime-dir it was started with"
        )),
        Err(error @ (AskError::Failed(_) | AskError::Refused(_))) => Err(anyhow!("{error}")),
    }
}

impl Told {
    pub(super) const fn role(&self) -> &'static str {
        match self {
            Told::Gateway(_) => "gateway",
            Told::Agent(_) => "agent",
        }
    }

    pub(super) fn node(&self) -> &str {
        match self {
            Told::Gateway(status) => &status.node,
            Told::Agent(status) => &status.node,
        }
    }

    pub(super) fn site(&self) -> &str {
        match self {
            Told::Gateway(status) => &status.site,
            Told::Agent(status) => &status.site,
        }
    }

    pub(super) fn prefixes(&self) -> &[Prefix] {
        match self {
            Told::Gateway(status) => &status.prefixes,
            Told::Agent(status) => &status.prefixes,
        }
    }

    /// The longest prefix that holds it. One that is quarantined counts: it is closed, not open.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&Prefix> {
        let all = self.prefixes().iter().filter_map(|prefix| {
            let network: IpNetwork = prefix.prefix.parse().ok()?;
            network
                .contains(address)
                .then_some((network.netmask(), prefix))
        });
        // Of two that claim one prefix, the one in force.
        all.max_by_key(|(length, prefix)| (*length, prefix.state != "quarantined"))
            .map(|(_, prefix)| prefix)
    }
}

/// The gateway behind a next hop of an agent's kernel.
pub(super) fn gateway_at(
    status: &routeagent::status::Status,
    via: IpAddr,
) -> Option<&routeagent::status::Gateway> {
    status.gateways.iter().find(|gateway| {
        let addresses = [Some(&gateway.address), gateway.other_address.as_ref()];
        let mut addresses = addresses.into_iter().flatten();
        let is_named = addresses.any(|address| {
            let bare = address.parse::<IpAddr>().ok();
            let with_port = || address.parse::<std::net::SocketAddr>().ok();
            bare.or_else(|| with_port().map(|at| at.ip())) == Some(via)
        });
        let identity: Option<PublicKey> = gateway.identity.parse().ok();
        is_named || identity.is_some_and(|identity| link_layer::next_hop(&identity) == via)
    })
}

/// Whether an agent with this address sends and takes what is of other sites by VXLAN.
pub(super) fn uses_vxlan(status: &gateway::status::Status, address: IpAddr) -> bool {
    let is_at = |agent: &gateway::status::Agent| {
        let text = agent.address.as_deref()?;
        let bare = text.parse::<IpAddr>().ok();
        bare.or_else(|| Some(text.parse::<std::net::SocketAddr>().ok()?.ip()))
    };
    let mut all = status.agents.iter();
    all.any(|agent| agent.mode == "vxlan" && is_at(agent) == Some(address))
}
