//! The part that stays outside: looks whether a demo can be here, starts its first process in
//! namespaces of its own, passes on what it says, and sees that it ends.

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{getegid, geteuid};

use super::inside::{FAILED, KEPT};
use super::{How, kept};
use crate::print;

/// Whatever is mounted where, and whatever this file was replaced by.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";
const TUN: &str = "/dev/net/tun";
/// What shells say of a program that a signal ended.
const BY_SIGNAL: u8 = 128;

pub(super) fn run(how: How) -> anyhow::Result<ExitCode> {
    separate()?;
    let signals = blocked().context("cannot handle signals")?;
    let mut command = Command::new(THIS_PROGRAM);
    command.args(["demo", "inside"]);
    if how.keep {
        command.arg("--keep");
    }
    if how.output.json {
        command.arg("--json");
    }
    // Settings of this user's own mesh are none of the demo's.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"CAUSEWAY_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let first = command
        .spawn()
        .context("cannot start the first process of the demo")?;
    Running(first).follow(&signals)
}

/// The first process inside; all of the demo ends with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // Until the last process inside is gone.
        let _ = self.0.wait();
    }
}

/// How its output ended.
enum Told {
    /// With what went wrong, if it said so.
    Ended(String),
    Kept,
    Signal(Signal),
    /// Nobody reads any more.
    Unread,
}

impl Running {
    fn follow(mut self, signals: &SignalFd) -> anyhow::Result<ExitCode> {
        let out = self.0.stdout.take().context("the demo has no output")?;
        match relay(out, signals)? {
            Told::Ended(why) => {
                let status = self.0.wait().context("cannot wait for the demo")?;
                if status.success() {
                    return Ok(ExitCode::SUCCESS);
                }
                eprintln!("\n{why}\nThe demo failed ({status}), and what it had made is gone.");
                Ok(ExitCode::FAILURE)
            }
            Told::Kept => {
                eprint!("\n{}", kept::how_to(self.0.id()));
                // It goes on without its parent.
                std::mem::forget(self);
                Ok(ExitCode::SUCCESS)
            }
            Told::Signal(signal) => {
                drop(self);
                let word = match signal == Signal::SIGINT {
                    true => "Interrupted",
                    false => "Ended",
                };
                eprintln!("\n{word}: everything the demo had made is gone.");
                Ok(ExitCode::from(BY_SIGNAL + signal as u8))
            }
            Told::Unread => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Prints what comes from inside until it ends or a signal says so.
fn relay(mut out: ChildStdout, signals: &SignalFd) -> anyhow::Result<Told> {
    let mut buffer = [0; 4096];
    let mut why: Option<Vec<u8>> = None;
    loop {
        let mut waiting = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(out.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the demo"),
        }
        let [signalled, readable] = waiting.map(|one| one.any().unwrap_or(false));
        if signalled && let Some(told) = signals.read_signal().context("cannot read a signal")? {
            let signal = i32::try_from(told.ssi_signo).context("a strange signal")?;
            return Ok(Told::Signal(Signal::try_from(signal)?));
        }
        if !readable {
            continue;
        }
        let len = out.read(&mut buffer).context("cannot read from the demo")?;
        let mut said = &buffer[..len];
        if said.is_empty() {
            let why = why.unwrap_or_default();
            return Ok(Told::Ended(String::from_utf8_lossy(&why).into_owned()));
        }
        if let Some(why) = &mut why {
            why.extend_from_slice(said);
            continue;
        }
        let mark = said.iter().position(|byte| [KEPT, FAILED].contains(byte));
        let mut is_kept = false;
        if let Some(at) = mark {
            is_kept = said[at] == KEPT;
            why = Some(said[at + 1..].to_vec());
            said = &said[..at];
        }
        if !print::raw(said)? {
            return Ok(Told::Unread);
        }
        if is_kept {
            return Ok(Told::Kept);
        }
    }
}

fn blocked() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::new(&set)
}

/// Puts the next child, and only it, into namespaces of its own.
fn separate() -> anyhow::Result<()> {
    let tun = look_at_tun(Path::new(TUN));
    let user = if geteuid().is_root() {
        Ok(())
    } else {
        become_root_of_namespace()
    };
    match (tun, user) {
        (Ok(()), Ok(())) => {}
        (Err(why), Ok(())) | (Ok(()), Err(why)) => bail!(why),
        (Err(tun), Err(user)) => bail!("{tun}\n{user}"),
    }
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| {
        anyhow::anyhow!(
            "this root may not make namespaces of processes ({error}), as in a container; start the container with `--privileged`, or run it on the host"
        )
    })
}

/// Gateways make their interfaces with it. The error is the whole sentence.
fn look_at_tun(device: &Path) -> Result<(), String> {
    let opened = OpenOptions::new().read(true).write(true).open(device);
    let Err(error) = opened else { return Ok(()) };
    let path = device.display();
    let absent = [Errno::ENOENT, Errno::ENOTDIR, Errno::ENODEV, Errno::ENXIO];
    if absent
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
    {
        return Err(format!(
            "{path} is missing, and gateways make their interfaces with it: load the module with `sudo modprobe tun`, or start the container with `--device {path}`, and try again"
        ));
    }
    Err(format!(
        "{path} cannot be opened by this user ({error}), and gateways make their interfaces with it: {}",
        as_root()
    ))
}

/// The kernel lets anyone be root of namespaces of his own, unless it is told not to. The error is
/// the whole sentence.
fn become_root_of_namespace() -> Result<(), String> {
    let (uid, gid) = (geteuid(), getegid());
    let refused = |error: &dyn std::fmt::Display| {
        format!(
            "this user may not make user namespaces ({error}; see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns), and without root the demo needs one: {}",
            as_root()
        )
    };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| refused(&error.desc()))?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ];
    for (file, text) in maps {
        let path = Path::new("/proc/self").join(file);
        fs::write(path, text).map_err(|error| refused(&error))?;
    }
    Ok(())
}

/// How to go on where this user may not.
pub(super) fn as_root() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "causeway".into());
    format!("run it as root with `sudo {} demo`", program.display())
}
