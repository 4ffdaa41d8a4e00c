//! Everything that touches the kernel: TUN, UDP sockets, netlink, and the few system calls they need.

use std::fmt;
use std::str::FromStr;

pub mod netlink;
mod sys;
pub mod tun;
pub mod udp;
pub mod way;

pub use node::boottime;

/// Offloads that can be switched off, by the kernel's refusal or by the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// TCP superpackets between the TUN and us, both ways.
    Tso,
    /// UDP superpackets between the TUN and us, both ways.
    Uso,
    /// Many datagrams in one send.
    UdpSegment,
    /// Many datagrams in one receive.
    UdpGro,
    /// Several TUN queues, and so several data threads.
    MultiQueue,
    /// Datagrams steered by the kernel to the thread that owns their session.
    Steering,
}

impl Offload {
    pub const ALL: [Offload; 6] = [
        Offload::Tso,
        Offload::Uso,
        Offload::UdpSegment,
        Offload::UdpGro,
        Offload::MultiQueue,
        Offload::Steering,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Offload::Tso => "tso",
            Offload::Uso => "uso",
            Offload::UdpSegment => "udp-segment",
            Offload::UdpGro => "udp-gro",
            Offload::MultiQueue => "multi-queue",
            Offload::Steering => "steering",
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Offload {
    type Err = String;

    fn from_str(text: &str) -> Result<Offload, String> {
        Offload::ALL
            .into_iter()
            .find(|offload| offload.name() == text)
            .ok_or_else(|| {
                let names = Offload::ALL.map(Offload::name).join(", ");
                format!("no offload is called `{text}`; choose from {names}")
            })
    }
}
