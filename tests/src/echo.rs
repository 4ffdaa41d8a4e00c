//! Echo requests of any size and mark, and the ICMP errors that answer them.
//!
//! The kernel's echo sockets need no ping program and say which router refused.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::sockopt::{BindToDevice, Ipv4RecvErr, Ipv4Tos, Ipv6RecvErr, Ipv6TClass};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, recvmsg, setsockopt, socket,
};

use crate::lab::Namespace;

/// What the usual ping program carries: 84 bytes with IPv4's header.
pub const USUAL: usize = 56;

/// One kind of echo request.
#[derive(Clone, Debug)]
pub struct Echo {
    to: IpAddr,
    payload: usize,
    tos: u8,
    device: Option<String>,
    limit: Duration,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Reply,
    /// An ICMP error; from whom, and how the kernel words it.
    Unreachable {
        router: Option<IpAddr>,
        errno: i32,
    },
    Nothing,
}

impl Echo {
    pub fn to(to: impl Into<IpAddr>) -> Echo {
        Echo {
            to: to.into(),
            payload: USUAL,
            tos: 0,
            device: None,
            limit: Duration::from_secs(2),
        }
    }

    /// Bytes behind the ICMP header.
    pub fn payload(mut self, payload: usize) -> Echo {
        self.payload = payload;
        self
    }

    /// The traffic class; its two low bits are ECN.
    pub fn tos(mut self, tos: u8) -> Echo {
        self.tos = tos;
        self
    }

    /// Bound to an interface, as `ping -I` does.
    pub fn device(mut self, device: &str) -> Echo {
        self.device = Some(device.to_owned());
        self
    }

    /// How long to wait for an answer.
    pub fn limit(mut self, limit: Duration) -> Echo {
        self.limit = limit;
        self
    }

    /// Sends one request and waits for what comes back.
    pub fn once(&self, from: &Namespace) -> Result<Answer> {
        let socket = self.socket(from)?;
        self.exchange(&socket, 1)
            .with_context(|| format!("echo from {} to {}", from.name(), self.to))
    }

    /// Sends `count` requests, each as soon as the one before is answered. All must be answered.
    pub fn flood(&self, from: &Namespace, count: u16) -> Result<()> {
        let socket = self.socket(from)?;
        for number in 1..=count {
            let answer = self.exchange(&socket, number)?;
            if answer != Answer::Reply {
                bail!(
                    "echo {number} of {count} from {} to {}: {answer:?}",
                    from.name(),
                    self.to
                );
            }
        }
        Ok(())
    }

    /// Repeats until a reply comes; for paths that are just being made.
    pub fn until_reply(&self, from: &Namespace, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        let patient = self.clone().limit(Duration::from_millis(300));
        loop {
            // A route that is not there yet is an error of the sending, and passes too.
            let last = patient.once(from);
            if matches!(last, Ok(Answer::Reply)) {
                return Ok(());
            }
            if begin.elapsed() > limit {
                bail!("{} does not answer {}: {last:?}", self.to, from.name());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn socket(&self, from: &Namespace) -> Result<UdpSocket> {
        from.within(|| self.open())?
            .with_context(|| format!("no echo socket from {} to {}", from.name(), self.to))
    }

    fn open(&self) -> io::Result<UdpSocket> {
        let (family, protocol) = match self.to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let descriptor = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
        match self.to {
            IpAddr::V4(_) => {
                setsockopt(&descriptor, Ipv4RecvErr, &true)?;
                setsockopt(&descriptor, Ipv4Tos, &i32::from(self.tos))?;
            }
            IpAddr::V6(_) => {
                setsockopt(&descriptor, Ipv6RecvErr, &true)?;
                setsockopt(&descriptor, Ipv6TClass, &i32::from(self.tos))?;
            }
        }
        if let Some(device) = &self.device {
            setsockopt(&descriptor, BindToDevice, &device.into())?;
        }
        let socket = UdpSocket::from(descriptor);
        socket.connect(SocketAddr::new(self.to, 0))?;
        socket.set_read_timeout(Some(self.limit))?;
        Ok(socket)
    }

    fn exchange(&self, socket: &UdpSocket, number: u16) -> Result<Answer> {
        let request = self.request(number);
        socket.send(&request).context("cannot send")?;
        let begin = Instant::now();
        let mut answer = vec![0; request.len() + 64];
        while begin.elapsed() <= self.limit {
            match socket.recv(&mut answer) {
                Ok(length) if is_answer(&request, &answer[..length]) => return Ok(Answer::Reply),
                // Late, from the request before.
                Ok(_) => {}
                Err(error) if is_timeout(&error) => break,
                Err(error) => return Ok(refusal(socket, &error)),
            }
        }
        Ok(Answer::Nothing)
    }

    /// Type, code, checksum, identifier, sequence; the kernel fills in sum and identifier.
    fn request(&self, number: u16) -> Vec<u8> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![kind, 0, 0, 0, 0, 0];
        packet.extend(number.to_be_bytes());
        packet.extend((0..self.payload).map(|at| (at % 251) as u8));
        packet
    }
}

/// Sequence and payload are the request's; type and sum differ.
fn is_answer(request: &[u8], answer: &[u8]) -> bool {
    answer.len() == request.len() && answer[6..] == request[6..]
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Reads the socket's error queue, where the kernel says who sent the ICMP error.
fn refusal(socket: &UdpSocket, error: &io::Error) -> Answer {
    let mut packet = [0; 2048];
    let mut parts = [IoSliceMut::new(&mut packet)];
    let mut space = [0; 512];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
    );
    let router = received.ok().and_then(|message| {
        let mut messages = message.cmsgs().ok()?;
        messages.find_map(|message| offender(&message))
    });
    Answer::Unreachable {
        router,
        errno: error.raw_os_error().unwrap_or_default(),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "dozens of control messages exist, two of them are asked for"
)]
fn offender(message: &ControlMessageOwned) -> Option<IpAddr> {
    match message {
        ControlMessageOwned::Ipv4RecvErr(_, Some(from)) => {
            Some(IpAddr::from(from.sin_addr.s_addr.to_ne_bytes()))
        }
        ControlMessageOwned::Ipv6RecvErr(_, Some(from)) => {
            Some(IpAddr::from(from.sin6_addr.s6_addr))
        }
        _ => None,
    }
}
