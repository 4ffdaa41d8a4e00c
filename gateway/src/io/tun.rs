//! The TUN: made exclusively, with as many queues as there are data threads and every offload
//! that the kernel grants.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

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
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let flags = if multi {
            flags | libc::IFF_MULTI_QUEUE
        } else {
            flags
        };
        let first = open()?;
        sys::tun_set_interface(first.as_fd(), name, flags | IFF_TUN_EXCL)
            .map_err(|error| refused(name, error))?;
        let failed = |step| {
            move |error| TunError::Kernel {
                name: name.to_owned(),
                step,
                error,
            }
        };

        let mut tun = Tun {
            name: name.to_owned(),
            index: nix::net::if_::if_nametoindex(name)
                .map_err(|errno| failed("find its index")(errno.into()))?,
            queues: vec![TunQueue {
                file: first,
                attached: true,
            }],
            uso: false,
        };
        if multi {
            for _ in 1..queues {
                let file = open()?;
                // Joining must not ask for exclusiveness: the device exists now, and is ours.
                sys::tun_set_interface(file.as_fd(), name, flags).map_err(failed("add a queue"))?;
                tun.queues.push(TunQueue {
                    file,
                    attached: true,
                });
            }
        }
        tun.probe_offloads(without)
            .map_err(failed("set the packet header"))?;
        tun.set_attributes().map_err(failed("set the MTU"))?;
        Ok(tun)
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

    fn set_attributes(&self) -> io::Result<()> {
        let socket = super::udp::any_socket()?;
        sys::interface_set(
            socket.as_fd(),
            &self.name,
            libc::SIOCSIFMTU as _,
            DEFAULT_MTU,
        )?;
        // Wants privilege over the whole machine, which a rootless container lacks: only speed is lost.
        let length = libc::SIOCSIFTXQLEN as _;
        if let Err(error) = sys::interface_set(socket.as_fd(), &self.name, length, QUEUE_LENGTH) {
            tracing::info!(interface = self.name, %error, "queue length left as it is");
        }
        Ok(())
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
