//! The mark of a gateway's own outer sockets, by which the host's rules keep them out of the mesh.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

/// Without the privilege (as in a test) there are no routes of ours to be kept out of either, so
/// that the mark is not missed.
pub(crate) fn set(socket: &impl AsFd, mark: Option<u32>) -> io::Result<()> {
    let Some(mark) = mark else { return Ok(()) };
    match setsockopt(&socket.as_fd(), sockopt::Mark, &mark) {
        Err(Errno::EPERM) if !nix::unistd::geteuid().is_root() => Ok(()),
        set => Ok(set?),
    }
}
