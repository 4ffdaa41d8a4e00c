//! Two machines on one wire, joined by a tunnel: where most system tests begin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::echo::Echo;
use crate::lab::{Lab, Namespace};
use crate::stream::Flow;
use crate::subject::subject;
use crate::wireguard::{Device, Keys, MTU, Program};

pub const NEAR_PORT: u16 = 51821;
pub const FAR_PORT: u16 = 51822;

pub const NEAR_OUTER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub const FAR_OUTER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
pub const NEAR_OUTER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
pub const FAR_OUTER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

pub const NEAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
pub const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
pub const NEAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1));
pub const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2));

/// How long a handshake may take on a busy machine; its first retry comes after five seconds.
pub const HANDSHAKE: Duration = Duration::from_secs(15);

/// The family of the outer datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    V4,
    V6,
}

/// What a tunnel is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub near: Program,
    pub far: Program,
    pub outer: Outer,
    pub outer_mtu: u16,
    pub inner_mtu: u16,
    pub preshared_key: bool,
    /// Whether the far end is told where the near end is; if not, only the near end can begin.
    pub far_knows: bool,
    /// Of the near end, in seconds.
    pub persistent_keepalive: Option<u16>,
}

impl Plan {
    /// The subject at both ends, over IPv4.
    pub fn plain() -> Result<Plan> {
        Ok(Plan::between(
            Program::find(subject())?,
            Program::find(subject())?,
        ))
    }

    pub fn between(near: Program, far: Program) -> Plan {
        Plan {
            near,
            far,
            outer: Outer::V4,
            outer_mtu: 1500,
            inner_mtu: MTU,
            preshared_key: false,
            far_knows: true,
            persistent_keepalive: None,
        }
    }

    pub fn near_outer(&self) -> SocketAddr {
        match self.outer {
            Outer::V4 => SocketAddr::new(NEAR_OUTER_V4, NEAR_PORT),
            Outer::V6 => SocketAddr::new(NEAR_OUTER_V6, NEAR_PORT),
        }
    }

    pub fn far_outer(&self) -> SocketAddr {
        match self.outer {
            Outer::V4 => SocketAddr::new(FAR_OUTER_V4, FAR_PORT),
            Outer::V6 => SocketAddr::new(FAR_OUTER_V6, FAR_PORT),
        }
    }
}

/// Two devices that know each other. Fields end in this order: devices before their namespaces.
pub struct Tunnel {
    pub near: Device,
    pub far: Device,
    pub plan: Plan,
    pub lab: Lab,
}

impl Tunnel {
    /// The subject at both ends, nothing sent yet.
    pub fn new(tag: &str) -> Result<Tunnel> {
        Tunnel::build(tag, Plan::plain()?)
    }

    pub fn build(tag: &str, plan: Plan) -> Result<Tunnel> {
        let lab = Lab::new(tag)?;
        let (left, right) = wire(&lab, plan.outer_mtu)?;
        let near = Device::launch(&left, &plan.near, NEAR_PORT, Keys::generate(&left)?)?;
        let far = Device::launch(&right, &plan.far, FAR_PORT, Keys::generate(&right)?)?;
        introduce(&plan, &near, &far)?;
        let tunnel = Tunnel {
            near,
            far,
            plan,
            lab,
        };
        for (device, v4, v6) in [
            (&tunnel.near, NEAR_V4, NEAR_V6),
            (&tunnel.far, FAR_V4, FAR_V6),
        ] {
            device.up(tunnel.plan.inner_mtu)?;
            device.address(&format!("{v4}/24"))?;
            device.address(&format!("{v6}/64"))?;
        }
        Ok(tunnel)
    }

    /// Gives both ends a new preshared key.
    pub fn change_preshared_key(&self) -> Result<()> {
        let key = self.left().run("wg", &["genpsk"])?;
        set_preshared_key(&self.near, &self.far.keys().public, &key)?;
        set_preshared_key(&self.far, &self.near.keys().public, &key)
    }

    /// Waits until the tunnel carries packets.
    pub fn wait(&self) -> Result<()> {
        Echo::to(FAR_V4).until_reply(self.left(), HANDSHAKE)
    }

    /// The near machine.
    pub fn left(&self) -> &Namespace {
        self.near.namespace()
    }

    /// The far machine.
    pub fn right(&self) -> &Namespace {
        self.far.namespace()
    }

    /// From near to far inside the tunnel.
    pub fn outbound(&self, family: Outer) -> Flow<'_> {
        Flow {
            from: self.left(),
            to: self.right(),
            address: match family {
                Outer::V4 => FAR_V4,
                Outer::V6 => FAR_V6,
            },
        }
    }

    /// From far to near inside the tunnel.
    pub fn inbound(&self, family: Outer) -> Flow<'_> {
        Flow {
            from: self.right(),
            to: self.left(),
            address: match family {
                Outer::V4 => NEAR_V4,
                Outer::V6 => NEAR_V6,
            },
        }
    }
}

/// Tells each end of the other in one go: one of the rivals ends when a peer it knows is changed.
fn introduce(plan: &Plan, near: &Device, far: &Device) -> Result<()> {
    let preshared = match plan.preshared_key {
        true => format!(
            "PresharedKey = {}",
            near.namespace().run("wg", &["genpsk"])?
        ),
        false => String::new(),
    };
    let peer = |of: &Device, prefixes: &str, endpoint: Option<SocketAddr>| {
        let endpoint = endpoint.map_or_else(String::new, |at| format!("Endpoint = {at}\n"));
        let public = &of.keys().public;
        format!("[Peer]\nPublicKey = {public}\nAllowedIPs = {prefixes}\n{endpoint}{preshared}")
    };
    let known = plan.far_knows.then(|| plan.near_outer());
    let keepalive = plan
        .persistent_keepalive
        .map_or_else(String::new, |seconds| {
            format!("PersistentKeepalive = {seconds}\n")
        });
    let of_far = peer(far, "10.9.0.2/32, fd09::2/128", Some(plan.far_outer()));
    near.configure(&(of_far + &keepalive))?;
    far.configure(&peer(near, "10.9.0.1/32, fd09::1/128", known))
}

/// Two namespaces with `eth0` on one wire and the outer addresses of both families.
pub fn wire(lab: &Lab, mtu: u16) -> Result<(Namespace, Namespace)> {
    let (left, right) = (lab.namespace("near")?, lab.namespace("far")?);
    lab.veth(&left, "eth0", &right, "eth0")?;
    for (namespace, v4, v6) in [
        (&left, NEAR_OUTER_V4, NEAR_OUTER_V6),
        (&right, FAR_OUTER_V4, FAR_OUTER_V6),
    ] {
        namespace.run("ip", &["link", "set", "eth0", "mtu", &mtu.to_string()])?;
        namespace.address("eth0", &format!("{v4}/24"))?;
        namespace.address("eth0", &format!("{v6}/64"))?;
    }
    Ok((left, right))
}

/// `wg set … preshared-key`; the key goes over standard input.
pub fn set_preshared_key(device: &Device, peer: &str, key: &str) -> Result<()> {
    let arguments = [
        "set",
        device.interface(),
        "peer",
        peer,
        "preshared-key",
        "/dev/stdin",
    ];
    device
        .namespace()
        .run_with_input("wg", &arguments, key)
        .map(drop)
}
