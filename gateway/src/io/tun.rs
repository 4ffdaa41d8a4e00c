//! The TUN: made exclusively, with as many queues as there are data threads and every offload
//! that the kernel grants; or, for the mesh, kept by the kernel and taken over again.

mod lock;

pub use lock::TunLock;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::netlink::{self, Interface};
use super::{Offload, sys};

const IFF_TUN_EXCL: i32 = 0x8000;

const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// As the kernel's own WireGuard has: enough for a burst of small packets while one batch is
/// sealed, and not a second of delay when the sender does not slow down.
const QUEUE_LENGTH: i32 = 1000;
/// What `ip link add type wireguard` and every other user-space WireGuard set.
const DEFAULT_MTU: i32 = 1420;
/// The most a TUN has: what a path carries is seen to by the packet path, packet by packet.
const MESH_MTU: i32 = 65535;

/// What `ip link` shows beside an interface of the mesh: how we know our own again.
pub const ALIAS: &str = "causeway";

#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error(
        "/dev/net/tun cannot be opened: {0}; load the tun module, or give the container the device and run as root"
    )]
    Device(io::Error),
    #[error(
        "interface {0} cannot be made: it exists already; choose another name or delete it with: ip link delete {0}"
    )]
    Taken(String),
    #[error("interface {0} cannot be made without privilege; run as root or with CAP_NET_ADMIN")]
    Privilege(String),
    #[error(
        "interface {name} is in use by {holder}; stop that, or give this gateway another interface with --tun"
    )]
    Held { name: String, holder: String },
    #[error(
        "interface {0} is there already and is not Causeway's; choose another name with --tun, or delete it with: ip link delete {0}"
    )]
    Foreign(String),
    #[error("interface name {0:?} is not valid: 1 to 15 bytes, no '/', no white space")]
    Name(String),
    #[error("interface {name} cannot be made ({step}): {error}")]
    Kernel {
        name: String,
        step: &'static str,
        error: io::Error,
    },
}

/// One interface; `queues[i]` belongs to data thread i.
#[derive(Debug)]
pub struct Tun {
    pub name: String,
    pub index: u32,
    pub queues: Vec<TunQueue>,
    /// Whether the kernel hands us UDP superpackets; what it takes from us is found out by writing.
    pub uso: bool,
    /// Of an interface that was taken over: to be kept as long as the interface is used.
    pub lock: Option<TunLock>,
}

/// One queue of a TUN, non-blocking.
#[derive(Debug)]
pub struct TunQueue {
    file: File,
    attached: bool,
}

impl Tun {
    /// Makes the interface `name` with `queues` queues. Offloads in `without` are left alone.
    pub fn create(name: &str, queues: usize, without: &[Offload]) -> Result<Tun, TunError> {
        let multi = queues > 1 && !without.contains(&Offload::MultiQueue);
        let first = open()?;
        sys::tun_set_interface(first.as_fd(), name, flags(multi) | IFF_TUN_EXCL)
            .map_err(|error| refused(name, error))?;
        let mut tun = Tun::with_first(name, first)?;
        if multi {
            tun.add_queues(queues)?;
        }
        tun.probe_offloads(without)
            .map_err(failed(name, "set the packet header"))?;
        tun.set_attributes(DEFAULT_MTU)
            .map_err(failed(name, "set the MTU"))?;
        Ok(tun)
    }

    /// Makes the interface `name`, or takes over the one that a former process of ours left, routes
    /// and addresses with it. It stays when we end, however we end. Nobody else gets it meanwhile.
    pub fn take_over(name: &str, queues: usize, without: &[Offload]) -> Result<Tun, TunError> {
        Tun::take_over_under(TunLock::take(name)?, queues, without)
    }

    /// The same for a process that has the lock already: it makes an interface again that was deleted.
    pub fn take_over_under(
        lock: TunLock,
        queues: usize,
        without: &[Offload],
    ) -> Result<Tun, TunError> {
        let name = lock.name();
        let found = Interface::find(name).map_err(failed(name, "look it up"))?;
        if found.as_ref().is_some_and(|found| !is_ours(found)) {
            return Err(TunError::Foreign(name.to_owned()));
        }
        let (first, multi) = attach(name, found.is_some(), without)?;
        let mut tun = Tun::with_first(name, first)?;
        if found.is_some_and(|found| found.index != tun.index) {
            return Err(TunError::Foreign(name.to_owned()));
        }
        if multi {
            let wanted = if without.contains(&Offload::MultiQueue) {
                1
            } else {
                queues
            };
            tun.add_queues(wanted)?;
        } else if queues > 1 && !without.contains(&Offload::MultiQueue) {
            tracing::warn!(
                interface = name,
                "made with one queue, so one thread moves its packets; for more, stop this gateway and run: ip link delete {name}"
            );
        }
        tun.probe_offloads(without)
            .map_err(failed(name, "set the packet header"))?;
        tun.set_attributes(MESH_MTU)
            .map_err(failed(name, "set the MTU"))?;
        tun.keep().map_err(failed(name, "make it stay"))?;
        tun.lock = Some(lock);
        Ok(tun)
    }

    fn with_first(name: &str, first: File) -> Result<Tun, TunError> {
        Ok(Tun {
            name: name.to_owned(),
            index: nix::net::if_::if_nametoindex(name)
                .map_err(|errno| failed(name, "find its index")(errno.into()))?,
            queues: vec![TunQueue {
                file: first,
                attached: true,
            }],
            uso: false,
            lock: None,
        })
    }

    /// Joins until there are `wanted` queues.
    fn add_queues(&mut self, wanted: usize) -> Result<(), TunError> {
        while self.queues.len() < wanted {
            let file = open()?;
            // Joining must not ask for exclusiveness: the device exists now, and is ours.
            sys::tun_set_interface(file.as_fd(), &self.name, flags(true))
                .map_err(failed(&self.name, "add a queue"))?;
            self.queues.push(TunQueue {
                file,
                attached: true,
            });
        }
        Ok(())
    }

    /// Up and ours for good. The alias comes first: what stays must be known as ours.
    fn keep(&self) -> io::Result<()> {
        netlink::set_alias(self.index, ALIAS)?;
        // The link-local address would only make the kernel send its own packets into the mesh.
        if let Err(error) = netlink::set_no_link_local(self.index) {
            tracing::debug!(interface = self.name, %error, "IPv6 address generation left as it is");
        }
        sys::tun_set_persistent(self.queues[0].as_fd())?;
        put_up(&self.name)
    }

    /// Asks for the most and takes what the kernel grants.
    fn probe_offloads(&mut self, without: &[Offload]) -> io::Result<()> {
        for queue in &self.queues {
            sys::tun_set_vnet_header_size(
                queue.as_fd(),
                crate::packet::vnet::VnetHeader::LEN as i32,
            )?;
        }
        let tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        let attempts = [(true, true), (true, false), (false, false)];
        for (with_tso, with_uso) in attempts {
            let with_tso = with_tso && !without.contains(&Offload::Tso);
            let with_uso = with_uso && with_tso && !without.contains(&Offload::Uso);
            let mut flags = if with_tso { tso } else { 0 };
            if with_uso {
                flags |= TUN_F_USO4 | TUN_F_USO6;
            }
            if sys::tun_set_offload(self.queues[0].as_fd(), flags).is_ok() {
                self.uso = with_uso;
                if !with_tso || !with_uso {
                    tracing::info!(
                        interface = self.name,
                        tso = with_tso,
                        uso = with_uso,
                        "TUN offloads limited"
                    );
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn set_attributes(&self, mtu: i32) -> io::Result<()> {
        let socket = super::udp::any_socket()?;
        sys::interface_set(socket.as_fd(), &self.name, libc::SIOCSIFMTU as _, mtu)?;
        // Wants privilege over the whole machine, which a rootless container lacks: only speed is lost.
        let length = libc::SIOCSIFTXQLEN as _;
        if let Err(error) = sys::interface_set(socket.as_fd(), &self.name, length, QUEUE_LENGTH) {
            tracing::info!(interface = self.name, %error, "queue length left as it is");
        }
        Ok(())
    }
}

/// Brings an interface up, whatever else it is.
pub fn put_up(name: &str) -> io::Result<()> {
    let socket = super::udp::any_socket()?;
    sys::interface_up(socket.as_fd(), name)
}

fn flags(multi: bool) -> i32 {
    let plain = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi {
        plain | libc::IFF_MULTI_QUEUE
    } else {
        plain
    }
}

fn is_ours(found: &Interface) -> bool {
    found.alias.as_deref() == Some(ALIAS.as_bytes())
}

/// The first queue, and whether there may be more. An interface keeps for life whether it may have
/// several, so one that stays is made for several: the next process may have another number.
fn attach(name: &str, exists: bool, without: &[Offload]) -> Result<(File, bool), TunError> {
    let wish = !without.contains(&Offload::MultiQueue);
    let first = open()?;
    let excl = if exists { 0 } else { IFF_TUN_EXCL };
    let Err(error) = sys::tun_set_interface(first.as_fd(), name, flags(wish) | excl) else {
        return Ok((first, wish));
    };
    match error.raw_os_error() {
        Some(libc::EINVAL) if exists => {
            sys::tun_set_interface(first.as_fd(), name, flags(!wish)).map_err(|error| {
                match error.raw_os_error() {
                    // Neither way: no TUN, whatever its alias says.
                    Some(libc::EINVAL) => TunError::Foreign(name.to_owned()),
                    _ => refused_ours(name, error),
                }
            })?;
            Ok((first, !wish))
        }
        _ if exists => Err(refused_ours(name, error)),
        _ => Err(refused(name, error)),
    }
}

/// Ours, and yet not to be had.
fn refused_ours(name: &str, error: io::Error) -> TunError {
    match error.raw_os_error() {
        Some(libc::EBUSY) => TunError::Held {
            name: name.to_owned(),
            holder: "a process that has it open".to_owned(),
        },
        _ => refused(name, error),
    }
}

fn failed<'a>(name: &'a str, step: &'static str) -> impl FnOnce(io::Error) -> TunError + use<'a> {
    move |error| match error.raw_os_error() {
        // One of ours can be opened by whoever made it, and no more than that without privilege.
        Some(libc::EPERM | libc::EACCES) => TunError::Privilege(name.to_owned()),
        _ => TunError::Kernel {
            name: name.to_owned(),
            step,
            error,
        },
    }
}

fn open() -> Result<File, TunError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(TunError::Device)
}

fn refused(name: &str, error: io::Error) -> TunError {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => TunError::Taken(name.to_owned()),
        Some(libc::EPERM | libc::EACCES) => TunError::Privilege(name.to_owned()),
        Some(libc::EINVAL | libc::ENAMETOOLONG) => TunError::Name(name.to_owned()),
        _ => TunError::Kernel {
            name: name.to_owned(),
            step: "TUNSETIFF",
            error,
        },
    }
}

impl TunQueue {
    /// Frames go to and come from the other end of a socket that keeps their bounds.
    #[cfg(test)]
    pub(crate) fn stand_in(socket: OwnedFd) -> TunQueue {
        TunQueue {
            file: socket.into(),
            attached: true,
        }
    }

    /// Another descriptor of the same queue, for what is asked of the interface as a whole.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// One frame: vnet header and packet. `None` when nothing waits.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One frame, gathered from `pieces`, the first of which is the vnet header.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(pieces).map(drop)
    }

    /// Takes the queue into or out of the kernel's choice, so that a thread without peers is
    /// handed nothing that it would have to pass on.
    pub fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        if self.attached == attached {
            return Ok(());
        }
        let flags = if attached {
            sys::IFF_ATTACH_QUEUE
        } else {
            sys::IFF_DETACH_QUEUE
        };
        sys::tun_set_queue(self.as_fd(), flags)?;
        self.attached = attached;
        Ok(())
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for TunQueue {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}
