//! One network namespace has one program that changes its kernel for a mesh.

use std::fmt;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use crate::agent::StartError;

const NAME: &str = "causeway-routes";
/// A killed daemon takes a moment to be gone.
const TRIES: usize = 20;
const APART: Duration = Duration::from_millis(50);
/// Of a command line, as much as is of use.
const SHOWN: usize = 200;

/// Abstract sockets belong to a network namespace, and go with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    _socket: UnixDatagram,
}

impl Lock {
    /// Waits up to a second for one that is just ending.
    pub(crate) fn take() -> Result<Lock, StartError> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        let mut left = TRIES;
        loop {
            match UnixDatagram::bind_addr(&address) {
                Ok(socket) => return Ok(Lock { _socket: socket }),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(error.into()),
                Err(_) if left == 0 => {
                    return Err(StartError::Running(
                        Holder::find().unwrap_or(Holder::Hidden),
                    ));
                }
                Err(_) => std::thread::sleep(APART),
            }
            left -= 1;
        }
    }
}

/// Who has the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Process {
        pid: u32,
        command: String,
    },
    /// It shares the network and not the process numbers.
    Hidden,
}

impl Holder {
    /// `None` if nobody has it.
    pub fn find() -> Option<Holder> {
        let sockets = fs::read_to_string("/proc/thread-self/net/unix").ok()?;
        let inode = inode(&sockets)?;
        let link = format!("socket:[{inode}]");
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        for pid in pids {
            let process = Path::new("/proc").join(u32::to_string(&pid));
            if has_open(&process, &link) {
                let command = fs::read(process.join("cmdline")).unwrap_or_default();
                let command = plain(&command);
                return Some(Holder::Process { pid, command });
            }
        }
        Some(Holder::Hidden)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Process { pid, command } => write!(out, "process {pid} (`{command}`)"),
            Holder::Hidden => write!(
                out,
                "a process that cannot be seen from here, as in another container with this one's network,"
            ),
        }
    }
}

/// Of the socket that is the lock, in what the kernel lists.
fn inode(sockets: &str) -> Option<&str> {
    let of = |line: &str| line.split_whitespace().next_back() == Some(&format!("@{NAME}"));
    let line = sockets.lines().find(|line| of(line))?;
    line.split_whitespace().nth(6)
}

fn has_open(process: &Path, link: &str) -> bool {
    let open = fs::read_dir(process.join("fd")).into_iter().flatten();
    open.flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == Path::new(link)))
}

/// As one line that a terminal takes for text.
fn plain(command: &[u8]) -> String {
    let text = String::from_utf8_lossy(command);
    let words = text.split(|c: char| c.is_control() || c.is_whitespace());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found_among_those_of_other_names() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00000000 0002 01 111 @causeway-routes-2\n\
            0000000000000000: 00000002 00000000 00000000 0002 01 222\n\
            0000000000000000: 00000002 00000000 00000000 0002 01 333 @causeway-routes\n";
        assert_eq!(inode(sockets), Some("333"));
        assert_eq!(inode("Num\n"), None);
    }

    #[test]
    fn a_command_line_is_one_line_of_plain_text() {
        assert_eq!(
            plain(b"/bin/causeway\0gateway\0run\0\x1b[31mx\n\0"),
            "/bin/causeway gateway run [31mx"
        );
        assert_eq!(plain(&[b'a'; 999]).len(), SHOWN);
    }
}
