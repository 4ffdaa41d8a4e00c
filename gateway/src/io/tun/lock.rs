//! Who may use a kept interface: one process in a network namespace.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen,
    socket, sockopt::PeerCredentials,
};

use super::{TunError, failed};

/// The right to one interface name. A listening socket without a file: such names belong to a
/// network namespace, as interfaces do, end with the process, and tell who has them.
#[derive(Clone, Debug)]
pub struct TunLock {
    name: Arc<str>,
    #[expect(
        dead_code,
        reason = "held, not used: the lock is given back when it closes"
    )]
    held: Arc<OwnedFd>,
}

impl TunLock {
    /// The error names the process that has it.
    pub fn take(name: &str) -> Result<TunLock, TunError> {
        let held = unix_socket().map_err(failed(name, "lock it"))?;
        let address = address(name).map_err(failed(name, "lock it"))?;
        match bind(held.as_raw_fd(), &address) {
            Ok(()) => {}
            Err(nix::Error::EADDRINUSE) => {
                return Err(TunError::Held {
                    name: name.to_owned(),
                    holder: holder(&address),
                });
            }
            Err(errno) => return Err(failed(name, "lock it")(errno.into())),
        }
        // Whoever connects is told our process id; nobody is ever answered.
        listen(&held, Backlog::MAXALLOWABLE)
            .map_err(|errno| failed(name, "lock it")(errno.into()))?;
        Ok(TunLock {
            name: name.into(),
            held: Arc::new(held),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

fn address(name: &str) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new_abstract(
        format!("causeway/tun/{name}").as_bytes(),
    )?)
}

/// The process behind a lock, as a person would look for it.
fn holder(address: &UnixAddr) -> String {
    let asked = unix_socket().and_then(|asking| {
        connect(asking.as_raw_fd(), address)?;
        Ok(getsockopt(&asking, PeerCredentials)?.pid())
    });
    match asked {
        // A process id of another namespace is shown as 0.
        Ok(0) => "a process in another container".to_owned(),
        Ok(pid) => match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(program) => format!("process {pid} ({})", program.trim_end()),
            Err(_) => format!("process {pid}"),
        },
        Err(_) => "another process".to_owned(),
    }
}
