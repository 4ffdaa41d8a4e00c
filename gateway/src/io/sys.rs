//! The system calls that have no safe wrapper: TUN ioctls, socket options, batched UDP.
//!
//! The only unsafe code of the crate. Everything above sees slices, addresses and `io::Result`.
#![expect(unsafe_code, reason = "the one place that talks to libc")]

mod datagrams;

pub use datagrams::{Local, Mark, Message, Received};
pub(crate) use datagrams::{ReceiveBatch, SendBatch};

use std::io;
use std::mem;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

// ---- TUN ------------------------------------------------------------------------------------

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;
pub(crate) const IFF_ATTACH_QUEUE: libc::c_short = 0x0200;
pub(crate) const IFF_DETACH_QUEUE: libc::c_short = 0x0400;

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    // SAFETY: ifreq is plain old data for which all-zero is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// Makes or joins the TUN `name`.
pub(crate) fn tun_set_interface(fd: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) }).map(drop)
}

/// Attaches or detaches one queue of a multi-queue TUN.
pub(crate) fn tun_set_queue(fd: BorrowedFd<'_>, flags: libc::c_short) -> io::Result<()> {
    let mut request = interface_request("-")?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETQUEUE reads one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETQUEUE, &raw mut request) }).map(drop)
}

pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
        .map(drop)
}

pub(crate) fn tun_set_vnet_header_size(fd: BorrowedFd<'_>, size: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) }).map(drop)
}

/// Lets a TUN outlive the processes that hold it.
pub(crate) fn tun_set_persistent(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong) }).map(drop)
}

/// The network namespace that a TUN is in now.
pub(crate) fn tun_namespace(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let namespace = check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS, 0) })?;
    // SAFETY: the call made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

/// What a TUN is called now.
pub(crate) fn tun_name(fd: BorrowedFd<'_>) -> io::Result<String> {
    let mut request = interface_request("-")?;
    // SAFETY: TUNGETIFF writes one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
    let name = request
        .ifr_name
        .iter()
        .map(|byte| *byte as u8)
        .take_while(|byte| *byte != 0);
    Ok(String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned())
}

/// The index of an interface in the network namespace of `socket`.
pub(crate) fn interface_index(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = interface_request(name)?;
    // SAFETY: SIOCGIFINDEX reads and writes one ifreq, which outlives the call.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFINDEX as _,
            &raw mut request,
        )
    })?;
    // SAFETY: the call filled this field, and any bytes are valid for it.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex }.unsigned_abs())
}

/// Whether there is an interface with this index in the network namespace of `socket`.
pub(crate) fn interface_exists(socket: BorrowedFd<'_>, index: u32) -> bool {
    let Ok(mut request) = interface_request("-") else {
        return true;
    };
    request.ifr_ifru.ifru_ifindex = index.cast_signed();
    // SAFETY: SIOCGIFNAME reads and writes one ifreq, which outlives the call.
    let found =
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut request) });
    !matches!(
        found.map_err(|error| error.raw_os_error()),
        Err(Some(libc::ENODEV))
    )
}

/// Sets a numeric attribute of an interface (`SIOCSIFMTU`, `SIOCSIFTXQLEN`).
pub(crate) fn interface_set(
    socket: BorrowedFd<'_>,
    name: &str,
    request: libc::c_ulong,
    value: i32,
) -> io::Result<()> {
    let mut body = interface_request(name)?;
    body.ifr_ifru.ifru_mtu = value;
    // SAFETY: both requests read one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut body) }).map(drop)
}

/// Brings an interface up; the rest of its flags stay as they are.
pub(crate) fn interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = interface_request(name)?;
    // SAFETY: SIOCGIFFLAGS reads and writes one ifreq, which outlives the call.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        )
    })?;
    // SAFETY: the call filled this field, and any bytes are valid for it.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        )
    })
    .map(drop)
}

// ---- sockets --------------------------------------------------------------------------------

/// Sets a socket option whose value is a plain integer.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option value is one int that outlives the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) })
        .map(drop)
}

/// Attaches a classic BPF program that picks the receiving socket of a reuseport group.
pub(crate) fn attach_steering(fd: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel copies the program, `filter` points to `len` instructions for that long.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    })
    .map(drop)
}

fn encode_address(
    address: SocketAddr,
    dual: bool,
    to: &mut libc::sockaddr_storage,
) -> libc::socklen_t {
    let v6 = match address {
        SocketAddr::V4(v4) if !dual => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large and aligned enough for every address family.
            unsafe { (&raw mut *to).cast::<libc::sockaddr_in>().write(raw) };
            return size_of::<libc::sockaddr_in>() as libc::socklen_t;
        }
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
        SocketAddr::V6(v6) => v6,
    };
    let raw = libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as u16,
        sin6_port: v6.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr {
            s6_addr: v6.ip().octets(),
        },
        sin6_scope_id: v6.scope_id(),
    };
    // SAFETY: sockaddr_storage is large and aligned enough for every address family.
    unsafe { (&raw mut *to).cast::<libc::sockaddr_in6>().write(raw) };
    size_of::<libc::sockaddr_in6>() as libc::socklen_t
}

fn decode_address(from: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(from.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel wrote a sockaddr_in, as the family says; any bytes are valid for it.
            let raw = unsafe { (&raw const *from).cast::<libc::sockaddr_in>().read() };
            let ip = raw.sin_addr.s_addr.to_ne_bytes();
            Some(SocketAddrV4::new(ip.into(), u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the kernel wrote a sockaddr_in6, as the family says; any bytes are valid for it.
            let raw = unsafe { (&raw const *from).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Some(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddrV4::new(v4, port).into(),
                None => SocketAddrV6::new(ip, port, 0, raw.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}

/// Binds a socket made by the caller.
pub(crate) fn bind(fd: BorrowedFd<'_>, address: SocketAddr, dual: bool) -> io::Result<()> {
    // SAFETY: sockaddr_storage is plain old data for which all-zero is a valid value.
    let mut raw: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let len = encode_address(address, dual, &mut raw);
    // SAFETY: `raw` holds an address of `len` bytes and outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw).cast(), len) }).map(drop)
}

pub(crate) fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    // SAFETY: sockaddr_storage is plain old data for which all-zero is a valid value.
    let mut raw: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `raw`.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut raw).cast(), &raw mut len) })?;
    decode_address(&raw).ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}
