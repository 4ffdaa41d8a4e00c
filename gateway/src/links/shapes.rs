//! What the links are told and what they tell.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ip_network::IpNetwork;
use proto::control;
use proto::key::{PublicKey, WireguardKey};
use proto::name::Name;

/// Gateways that are verified and in good standing, without this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    pub gateways: BTreeMap<PublicKey, Gateway>,
    /// What sites own now. No gateway of another site may be reached in there.
    pub prefixes: Vec<(IpNetwork, Name)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub site: Name,
    pub node: Name,
    pub wireguard: WireguardKey,
    /// Those of its record that may be used: in its LAN, configured, reflected.
    pub candidates: Vec<SocketAddr>,
    /// In the site's own network; tells which candidate is there.
    pub lan: Option<IpAddr>,
}

/// A control packet to be sealed for a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub to: PublicKey,
    /// Where to; `None` is the path in use.
    pub path: Option<SocketAddr>,
    /// The whole inner packet.
    pub packet: Vec<u8>,
}

/// What the rest of the gateway has to do or may want to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Begin a handshake; the same initiation goes to every address.
    Initiate {
        to: PublicKey,
        addresses: Vec<SocketAddr>,
    },
    /// Send everything for this gateway there from now on.
    UsePath { of: PublicKey, address: SocketAddr },
    /// The inner packets that the path in use carries.
    Mtu { of: PublicKey, mtu: u16 },
    /// [`Carriers`] say something else now.
    CarriersChanged,
    /// Ask for a relayed path, or give it back.
    Relay { of: PublicKey, wanted: bool },
    /// A remote gateway handed these over; nothing of them is verified.
    HandedOver {
        from: PublicKey,
        handover: control::Handover,
    },
    /// A state has changed; for log, metrics and `status`.
    Changed { of: PublicKey, change: Change },
    /// The answer to `handle_ping`.
    Ponged {
        of: PublicKey,
        id: u64,
        rtt: Duration,
    },
    /// Every remote gateway has heard the goodbye, or does not answer.
    Left,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The other side has signed that the tunnel is its own: what comes through it may be taken.
    Proven,
    Up,
    Down(Why),
    /// It went from one address to another.
    Path {
        from: SocketAddr,
        to: SocketAddr,
    },
    /// Two boots of this identity speak in turn.
    TwoOfOneKey,
    /// It takes nothing from here: two machines use our key.
    ShutOut,
    /// Its proof does not hold: a record claims a WireGuard key that is another's.
    NotProven,
}

/// Why a link is not up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No handshake was answered yet, by any address.
    NoAnswer,
    /// No address of it is known.
    NoAddress,
    /// The other side has not signed yet that the tunnel is its own.
    NotProven,
    /// Nothing was heard for too long.
    Silent,
    /// The other side does not hear us.
    NotHeard,
    /// A sibling said that it died, and it did not answer.
    Accused,
    /// It said goodbye.
    Goodbye,
    /// Two nodes use its key.
    TwoOfOneKey,
    /// It takes nothing from here: two nodes use our key.
    ShutOut,
}

/// Who carries the packets for a site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carriers {
    pub sites: BTreeMap<Name, Carry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carry {
    /// One of these for each flow.
    Direct(Vec<PublicKey>),
    /// The site is lost from here, not from these siblings.
    Siblings(Vec<PublicKey>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    Lan,
    /// Any other of its record: configured or reflected.
    Record,
    /// Where datagrams of it came from, or what it told inside the tunnel.
    Observed,
    Relay,
}

/// One link as `status` and metrics show it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkStatus {
    pub of: PublicKey,
    pub site: Name,
    pub node: Name,
    pub is_sibling: bool,
    /// `Ok` is up: packets pass both ways now.
    pub state: Result<(), Why>,
    /// Whether its tunnel is its own; nothing is taken from it before.
    pub proven: bool,
    /// Whether the other side says that the link is up for it, and takes what we send.
    pub carries: bool,
    /// Whether it is used only while no other gateway of the site is up.
    pub held_down: bool,
    pub path: Option<(SocketAddr, PathKind)>,
    pub rtt: Option<Duration>,
    pub jitter: Option<Duration>,
    /// Of the hellos of the last minute that should have come, the part that did not.
    pub loss: f64,
    /// Inner, of the path in use.
    pub mtu: u16,
    /// Times it went down since the start, and how long each lasted in sum.
    pub failovers: u64,
    pub down_for: Duration,
    /// The local address of ours as the other side sees it.
    pub seen_as: Option<SocketAddr>,
    pub candidates: Vec<(SocketAddr, PathKind, CandidateState)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CandidateState {
    Untried,
    Answered { rtt: Duration },
    Silent { tries: u32 },
}
