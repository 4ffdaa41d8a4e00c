//! worker - gateway = gateway - worker, in four namespaces.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ::tests::lab::{Lab, Namespace};
use ::tests::wireguard::{Device, Keys, MTU, Program};
use anyhow::Result;

use crate::subject::Contender;

const PORT: u16 = 51820;
const CROWD: &str = "10.99.0.0/16";
/// Far beyond any handshake; a subject that needs longer does not carry traffic.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The address of the far worker.
pub(crate) const FAR_WORKER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);

/// One site: a worker, and its gateway to the other.
pub(crate) struct Site {
    pub(crate) worker: Namespace,
    pub(crate) gateway: Namespace,
    /// What the workers' networks are called on both sides.
    network: String,
    /// The gateway's address between the gateways.
    outer: Ipv4Addr,
}

/// Both sites and the wire between them.
pub(crate) struct Topology {
    pub(crate) near: Site,
    pub(crate) far: Site,
    // Last, so that everything above has ended before the namespaces go.
    _lab: Lab,
}

impl Topology {
    /// With `nic`, the wire between the gateways behaves as a card that does not segment.
    pub(crate) fn new(nic: bool) -> Result<Topology> {
        let lab = Lab::new("bench")?;
        let near = Site::new(&lab, 1)?;
        let far = Site::new(&lab, 2)?;
        lab.veth(&near.gateway, "outer", &far.gateway, "outer")?;
        for site in [&near, &far] {
            site.gateway
                .address("outer", &format!("{}/24", site.outer))?;
            if nic {
                let words = [
                    "-K",
                    "outer",
                    "tx",
                    "off",
                    "tx-udp-segmentation",
                    "off",
                    "gro",
                    "on",
                ];
                site.gateway.run("ethtool", &words)?;
            }
        }
        Ok(Topology {
            near,
            far,
            _lab: lab,
        })
    }

    /// Gives the far gateway the addresses 10.99.0.0/16, from which many peers can speak.
    pub(crate) fn add_crowd(&self) -> Result<()> {
        let Topology { near, far, .. } = self;
        let via = far.outer.to_string();
        far.gateway
            .run("ip", &["route", "add", "local", CROWD, "dev", "lo"])?;
        near.gateway
            .run("ip", &["route", "add", CROWD, "via", &via])
            .map(drop)
    }

    /// Where the near gateway listens.
    pub(crate) fn near_endpoint(&self) -> SocketAddr {
        SocketAddr::from((self.near.outer, PORT))
    }
}

impl Site {
    fn new(lab: &Lab, number: u8) -> Result<Site> {
        let worker = lab.namespace(&format!("worker{number}"))?;
        let gateway = lab.namespace(&format!("gateway{number}"))?;
        lab.veth(&worker, "eth0", &gateway, "lan")?;
        worker.address("eth0", &format!("10.{number}.0.2/24"))?;
        gateway.address("lan", &format!("10.{number}.0.1/24"))?;
        // The workers know the inner MTU, so that no subject gains by path MTU discovery and the
        // bare path carries segments of the same size.
        let mtu = MTU.to_string();
        worker.run("ip", &["link", "set", "eth0", "mtu", &mtu])?;
        gateway.run("ip", &["link", "set", "lan", "mtu", &mtu])?;
        worker.run(
            "ip",
            &[
                "route",
                "add",
                "default",
                "via",
                &format!("10.{number}.0.1"),
            ],
        )?;
        gateway.forward()?;
        Ok(Site {
            worker,
            gateway,
            network: format!("10.{number}.0.0/24"),
            outer: Ipv4Addr::new(192, 0, 2, number),
        })
    }

    fn route(&self, to: &Site, via: &[&str]) -> Result<()> {
        let words = [&["route", "replace", to.network.as_str()][..], via].concat();
        self.gateway.run("ip", &words).map(drop)
    }
}

/// A subject carrying traffic between the sites; its devices and routes end with it.
pub(crate) struct Tunnel {
    near: Option<Device>,
    far: Option<Device>,
}

impl Tunnel {
    /// Starts `contender` on both gateways and waits until the workers reach each other.
    pub(crate) fn start(topology: &Topology, contender: &Contender) -> Result<Tunnel> {
        let Topology { near, far, .. } = topology;
        let tunnel = match &contender.program {
            None => {
                near.route(far, &["via", &far.outer.to_string()])?;
                far.route(near, &["via", &near.outer.to_string()])?;
                Tunnel {
                    near: None,
                    far: None,
                }
            }
            Some(program) => {
                let near_device = device(near, program)?;
                let far_device = device(far, program)?;
                join(near, &near_device, far, &far_device)?;
                join(far, &far_device, near, &near_device)?;
                Tunnel {
                    near: Some(near_device),
                    far: Some(far_device),
                }
            }
        };
        near.worker
            .wait_for_ping(FAR_WORKER.into(), CONNECT_LIMIT)?;
        Ok(tunnel)
    }

    /// Of the gateway processes; the bare path has none.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let devices = self.near.iter().chain(&self.far);
        devices.map(|device| device.process().pid()).collect()
    }

    pub(crate) fn near(&self) -> Option<&Device> {
        self.near.as_ref()
    }
}

fn device(site: &Site, program: &Program) -> Result<Device> {
    let keys = Keys::generate(&site.gateway)?;
    let device = Device::launch(&site.gateway, program, PORT, keys)?;
    device.up(MTU)?;
    Ok(device)
}

/// Makes `local` send what is for `remote`'s network through its device.
fn join(local: &Site, device: &Device, remote: &Site, peer: &Device) -> Result<()> {
    let endpoint = SocketAddr::from((remote.outer, PORT));
    device.peer(peer, Some(endpoint), &remote.network)?;
    local.route(remote, &["dev", device.interface()])
}
