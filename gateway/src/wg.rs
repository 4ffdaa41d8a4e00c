//! The process behind `causeway wg`: one interface, configured over the usual WireGuard socket.

pub mod background;
pub mod device;
pub mod keys;
pub mod protocol;
pub mod socket;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc;

use device::Device;
use protocol::{PeerStats, Request};
use socket::{ConfigSocket, SocketError, SocketEvent};

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The interface.
    pub name: String,
    /// Data threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Not to be used even where the kernel has them.
    pub without: Vec<Offload>,
}

/// Something the kernel can do for us, which can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// TCP superpackets over the TUN.
    Tso,
    /// UDP superpackets over the TUN.
    Uso,
    /// Many datagrams in one send.
    UdpSegment,
    /// Many datagrams in one receive.
    UdpGro,
    /// One TUN queue per thread.
    MultiQueue,
    /// The kernel picks the socket of the thread that owns the peer.
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

#[derive(Debug, thiserror::Error)]
pub enum WgError {
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Serves the interface until it is told to end.
pub fn run(options: Options, ready: impl FnOnce()) -> Result<(), WgError> {
    let socket = ConfigSocket::bind(Path::new(socket::DIRECTORY), &options.name)?;
    let (events, incoming) = mpsc::channel();
    let server = socket.serve(events, || ())?;
    tracing::info!(interface = options.name, socket = %server.path().display(), "ready");
    ready();
    let mut device = Device::default();
    for event in incoming {
        let call = match event {
            SocketEvent::Call(call) => call,
            SocketEvent::Gone => break,
        };
        let answer = match &call.request {
            Request::Get => {
                protocol::print_get(&device, device.listen_port, |_| PeerStats::default())
            }
            Request::Drops => protocol::print_drops(|_| 0),
            Request::Set(request) => {
                let applied = device.apply(request).map(|next| device = next);
                protocol::print_set(applied.err().as_ref())
            }
        };
        call.answer(answer);
    }
    Ok(())
}
