//! The outer sockets: one per data thread and one for handshakes, all on the same port, with the
//! kernel steering each datagram to the thread that owns its session.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Offload;
use super::sys::{self, ReceiveBatch, SendBatch};

pub use super::sys::{Local, Mark, Message, Received};

/// Enough for 10 ms at 10 Gb/s; more would only add delay.
const RECEIVE_BUFFER: i32 = 16 << 20;
const SEND_BUFFER: i32 = 4 << 20;

/// Bits of a receiver index that name the owning thread; see `data::index`.
const THREAD_MASK: u32 = crate::data::index::THREAD_MASK;

/// A bound socket of the group.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    /// IPv6 socket that carries IPv4 as mapped addresses; without IPv6 in the kernel a plain IPv4 one.
    dual: bool,
}

/// All sockets of one port: `data[i]` for thread i, `control` for what is not data.
#[derive(Debug)]
pub struct SocketGroup {
    pub port: u16,
    pub data: Vec<UdpSocket>,
    pub control: UdpSocket,
    /// Whether the kernel picks the socket by receiver index.
    pub steered: bool,
}

/// What our datagrams do on paths that they are too big for. Either way what ICMP says of the path
/// is ignored: anyone can forge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMtu {
    /// They are cut by whoever must: DF is off, and what is larger than the interface goes in pieces.
    Omit,
    /// They are lost: DF is on, so that a probe that arrives has shown what the path carries.
    Probe,
}

#[derive(Debug, thiserror::Error)]
#[error("UDP {} cannot be opened ({step}): {error}{}", place(.listen), hint(.error))]
pub struct SocketError {
    pub listen: SocketAddr,
    step: &'static str,
    pub error: io::Error,
}

fn place(listen: &SocketAddr) -> String {
    if *listen == any(listen.port()) {
        format!("port {}", listen.port())
    } else {
        format!("address {listen}")
    }
}

/// Every address of both families.
fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => "; another process has it, see: ss -lunp",
        Some(libc::EADDRNOTAVAIL) => "; no interface has that address, see: ip address",
        Some(libc::EAFNOSUPPORT) => "; this system has IPv6 switched off",
        Some(libc::EPERM | libc::EACCES) => "; run as root or with CAP_NET_ADMIN",
        _ => "",
    }
}

impl SocketGroup {
    /// Binds `threads` data sockets and the control socket to `port` (0: any free one) as `causeway
    /// wg` wants them: on all addresses, and their datagrams may be cut on the way.
    pub fn bind(
        port: u16,
        threads: usize,
        fwmark: u32,
        without: &[Offload],
    ) -> Result<SocketGroup, SocketError> {
        SocketGroup::bind_to(any(port), threads, fwmark, PathMtu::Omit, without)
    }

    /// The same on one address. `[::]` is all addresses of both families, `0.0.0.0` all of IPv4.
    pub fn bind_to(
        listen: SocketAddr,
        threads: usize,
        fwmark: u32,
        path_mtu: PathMtu,
        without: &[Offload],
    ) -> Result<SocketGroup, SocketError> {
        let failed = |step| {
            move |error| SocketError {
                listen,
                step,
                error,
            }
        };
        let open = || UdpSocket::open(listen, path_mtu, without).map_err(failed("socket"));
        let first = open()?;
        // The first binds alone, so that a port someone else holds is an error even if he would share it.
        first.bind(listen).map_err(failed("bind"))?;
        let port = sys::local_address(first.as_fd())
            .map_err(failed("read back"))?
            .port();
        let mut sockets = vec![first];
        sockets[0].share().map_err(failed("share"))?;
        for _ in 0..threads {
            let next = open()?;
            next.share().map_err(failed("share"))?;
            next.bind(SocketAddr::new(listen.ip(), port))
                .map_err(failed("bind"))?;
            sockets.push(next);
        }
        for socket in &sockets {
            socket
                .set_mark(fwmark)
                .map_err(failed("set the firewall mark"))?;
        }
        let steered = !without.contains(&Offload::Steering)
            && sys::attach_steering(sockets[0].as_fd(), &steering(threads as u32)).is_ok();
        // The control socket was bound last, as the steering program counts.
        let Some(control) = sockets.pop() else {
            unreachable!("one was bound above")
        };
        Ok(SocketGroup {
            port,
            data: sockets,
            control,
            steered,
        })
    }

    /// Fails if the address could not be bound now: to be called before anything is made that would
    /// be left behind then.
    pub fn check(listen: SocketAddr, path_mtu: PathMtu) -> Result<(), SocketError> {
        let failed = |step| {
            move |error| SocketError {
                listen,
                step,
                error,
            }
        };
        let socket = UdpSocket::open(listen, path_mtu, &[]).map_err(failed("socket"))?;
        socket.bind(listen).map_err(failed("bind"))
    }
}

/// The program that picks a socket of the group: data by the thread bits of its receiver index,
/// everything else to the control socket, which was bound last. Offsets count from the payload.
fn steering(threads: u32) -> [libc::sock_filter; 6] {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const RETURN_A: u16 = (libc::BPF_RET | libc::BPF_A) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        step(LOAD_BYTE, 0, 0, 0),
        step(JUMP_EQUAL, 0, 3, 4),
        step(LOAD_BYTE, 0, 0, 5),
        step(AND, 0, 0, THREAD_MASK),
        step(RETURN_A, 0, 0, 0),
        step(RETURN, 0, 0, threads),
    ]
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// A socket of IPv6 that takes IPv4 too.
fn open_dual() -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Inet6, SockType::Datagram, FLAGS, None)?;
    sys::set_option(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
    Ok(fd)
}

/// Any datagram socket, for interface requests.
pub(crate) fn any_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Inet, SockType::Datagram, flags, None)
        .or_else(|_| socket(AddressFamily::Inet6, SockType::Datagram, flags, None))
        .map_err(Into::into)
}

impl UdpSocket {
    /// A socket without a port, for links that tests and fuzz targets try without a network: to a
    /// link the interface is up, and nothing arrives.
    pub fn unbound() -> io::Result<UdpSocket> {
        UdpSocket::open(any(0), PathMtu::Omit, &[])
    }

    fn open(listen: SocketAddr, path_mtu: PathMtu, without: &[Offload]) -> io::Result<UdpSocket> {
        let (fd, dual) = match open_dual() {
            Ok(fd) if listen.is_ipv6() => (fd, true),
            // One address of IPv6 cannot be had without it, all addresses can.
            Err(error) if listen.is_ipv6() && !listen.ip().is_unspecified() => return Err(error),
            _ => (
                socket(AddressFamily::Inet, SockType::Datagram, FLAGS, None)?,
                false,
            ),
        };
        let opened = UdpSocket { fd, dual };
        opened.set_options(path_mtu, without)?;
        Ok(opened)
    }

    fn set_options(&self, path_mtu: PathMtu, without: &[Offload]) -> io::Result<()> {
        let fd = self.fd.as_fd();
        let set = |level, name, value| sys::set_option(fd, level, name, value);
        // IP_PMTUDISC_OMIT and IP_PMTUDISC_PROBE; those of IPv6 have the same numbers.
        let discover = match path_mtu {
            PathMtu::Omit => 5,
            PathMtu::Probe => 3,
        };
        if self.dual {
            set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)?;
        } else {
            set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
        for (forced, plain, size) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER),
        ] {
            if set(libc::SOL_SOCKET, forced, size).is_err() {
                set(libc::SOL_SOCKET, plain, size)?;
            }
        }
        if !without.contains(&Offload::UdpGro)
            && let Err(error) = set(libc::SOL_UDP, libc::UDP_GRO, 1)
        {
            tracing::info!(%error, "no UDP_GRO: datagrams are received one by one");
        }
        Ok(())
    }

    fn share(&self) -> io::Result<()> {
        sys::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
    }

    fn bind(&self, listen: SocketAddr) -> io::Result<()> {
        let address = if listen.is_ipv6() && !self.dual {
            (Ipv4Addr::UNSPECIFIED, listen.port()).into()
        } else {
            listen
        };
        sys::bind(self.fd.as_fd(), address, self.dual)
    }

    /// Marks what is sent; 0 takes the mark off.
    pub fn set_mark(&self, fwmark: u32) -> io::Result<()> {
        sys::set_option(
            self.fd.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            fwmark.cast_signed(),
        )
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Buffers that receive batches of datagrams.
pub struct Inbox(ReceiveBatch);

impl Inbox {
    pub fn new(slots: usize, slot: usize) -> Inbox {
        Inbox(ReceiveBatch::new(slots, slot))
    }

    /// Fills slots with what waits; 0 when nothing does.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        match self.0.receive(socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    pub fn slots(&self) -> usize {
        self.0.slots()
    }

    pub fn get(&self, index: usize) -> Option<(Received, &[u8])> {
        self.0.get(index)
    }
}

/// What became of a list of messages.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// The first this many are gone.
    Some(usize),
    /// The socket takes no more for now.
    Full,
}

/// Sends lists of messages out of one arena.
pub struct Sender(Box<SendBatch>);

impl Default for Sender {
    fn default() -> Self {
        Sender(SendBatch::new())
    }
}

impl Sender {
    /// Sends a prefix of `messages`. An error concerns the first of them only.
    pub fn send(
        &mut self,
        socket: &UdpSocket,
        arena: &[u8],
        messages: &[Message],
    ) -> io::Result<Sent> {
        match self.0.send(socket.as_fd(), socket.dual, arena, messages) {
            Ok(count) => Ok(Sent::Some(count)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN)) => Ok(Sent::Full),
            Err(error) => Err(error),
        }
    }
}
