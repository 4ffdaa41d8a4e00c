//! Why a packet was not passed on. Every drop has one reason, whose name is the metric label.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)+) => {
        /// The reason for which one packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason { $($(#[$doc])* $name,)+ }

        impl DropReason {
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)+];

            /// The metric label.
            pub fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)+ }
            }
        }
    };
}

reasons! {
    /// From the TUN: the vnet header contradicts the packet behind it.
    VnetHeader = "tun_vnet_header",
    /// From the TUN: neither IPv4 nor IPv6, or shorter than its header says.
    TunMalformed = "tun_malformed",
    /// From the TUN: its transport checksum does not hold.
    TunChecksum = "tun_checksum",
    /// From the TUN: no peer's allowed-ips hold the destination, or no site's prefixes.
    NoPeer = "no_peer",
    /// From the TUN: to an address that agents' probes go to, and no probe, or too many.
    LanProbe = "lan_probe",
    /// The peer has no endpoint yet.
    NoEndpoint = "no_endpoint",
    /// The peer's public key is low-order: it is listed, but nothing is ever sent to it.
    LowOrderKey = "low_order_key",
    /// From the TUN: our own datagram, since the route to a peer's endpoint leads into the tunnel.
    Loop = "loop",
    /// The interface has no private key yet.
    NoPrivateKey = "no_private_key",
    /// There is no session yet and the staging room is full; the oldest went.
    StagingFull = "staging_full",
    /// Staged while a handshake was tried, which was given up.
    StagingGivenUp = "staging_given_up",
    /// Another thread's ring was full.
    RingFull = "ring_full",
    /// The kernel refused to send the datagram.
    SendFailed = "send_failed",
    /// The socket would not take more and the room for waiting datagrams is full.
    SendFull = "send_full",
    /// Sealed, and not sent within a second: its key may be too old by now.
    Stale = "stale",
    /// From the network: too short, unknown type, wrong length.
    Malformed = "udp_malformed",
    /// From the network: no session has this receiver index.
    UnknownIndex = "udp_unknown_index",
    /// From the network: the authentication tag does not hold.
    BadTag = "udp_bad_tag",
    /// From the network: this counter was seen before, or is older than the window.
    Replay = "udp_replay",
    /// From the network: a counter at or above the limit of messages under one key.
    MessageLimit = "udp_message_limit",
    /// From the network: the key is older than it may be, or gone.
    NoSession = "udp_no_session",
    /// From the network: marked as congested on the way, though its sender cannot understand that.
    Ecn = "udp_ecn",
    /// Opened: not an IP packet, or longer than what was opened.
    InnerMalformed = "inner_malformed",
    /// Opened: the source belongs to another peer, or to none.
    InnerSource = "inner_source",
    /// The kernel refused to take the packet from the TUN.
    TunWrite = "tun_write",
    /// A handshake message with a wrong first authentication code.
    HandshakeMac = "handshake_mac",
    /// A handshake message over the limit of its source address.
    HandshakeLimited = "handshake_limited",
    /// A handshake message answered with a cookie, under load.
    HandshakeCookie = "handshake_cookie",
    /// A handshake message from a key that is no peer's.
    HandshakeUnknownPeer = "handshake_unknown_peer",
    /// A handshake message that did not lead to a session: replayed, forged or too late.
    HandshakeRejected = "handshake_rejected",
    /// The handshake queue was full.
    HandshakeQueueFull = "handshake_queue_full",
    /// The interface is down.
    InterfaceDown = "interface_down",
    /// From the TUN: from or to a link-local address, with which gateways speak inside tunnels.
    ControlFromTun = "control_from_tun",
    /// From the TUN: no gateway of the destination's site can be reached, from siblings neither.
    SiteDown = "site_down",
    /// Larger than its link carries, and not to be cut; the sender was told by ICMP.
    TooBig = "too_big",
    /// The link chosen for it has no session any more.
    LinkNoSession = "link_no_session",
    /// Opened: the destination is in none of our own prefixes.
    InnerDestination = "inner_destination",
    /// Opened: the link may carry nothing yet, or nothing any more.
    InnerNotAllowed = "inner_not_allowed",
    /// From a sibling: the source is in none of our own prefixes.
    SiblingSource = "sibling_source",
    /// From a sibling: the destination is in no other site's prefix.
    SiblingDestination = "sibling_destination",
    /// From a sibling: the destination's site cannot be reached from here either.
    SiblingSiteLost = "sibling_site_lost",
    /// A control packet beyond what one gateway may send in so short a time.
    ControlLimited = "control_limited",
    /// A control packet that came while too many waited.
    ControlQueueFull = "control_queue_full",
    /// A control packet for a link without a session.
    ControlNoSession = "control_no_session",
}

/// One thread's counts. Only its owner adds; anyone may read.
#[derive(Debug)]
pub struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Drops([const { AtomicU64::new(0) }; DropReason::ALL.len()])
    }
}

impl Drops {
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    pub fn add(&self, reason: DropReason, packets: u64) {
        self.0[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}
