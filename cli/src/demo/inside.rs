//! The first process inside: takes namespaces of its own for networks and mounts, shows the demo,
//! and ends. The kernel then ends and removes all that was started and made here.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpid, setsid};

use super::story::Story;
use super::{How, outside, tour};
use crate::print;

/// Ends the output of a demo that goes on without its parent.
pub(super) const KEPT: u8 = 0;
/// Ends the output of one that failed; why follows.
pub(super) const FAILED: u8 = 1;
/// In memory, and seen only from inside: files of the demo are nowhere else.
pub(super) const PLACE: &str = "/run";

pub(super) fn run(how: How) -> anyhow::Result<ExitCode> {
    // Anywhere else this would change what is not ours.
    if getpid() != Pid::from_raw(1) {
        bail!("`causeway demo inside` is for `causeway demo` alone");
    }
    let kept = Arc::new(AtomicBool::new(false));
    if let Err(error) = show(how, &kept) {
        let mut text = vec![FAILED];
        text.extend_from_slice(format!("causeway: {}", print::error(&error)).as_bytes());
        print::raw(&text)?;
        return Ok(ExitCode::FAILURE);
    }
    if how.keep {
        kept.store(true, Ordering::Release);
        stay()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(how: How, kept: &Arc<AtomicBool>) -> anyhow::Result<()> {
    // Ctrl-C is for the parent, which knows what to do.
    setsid().context("cannot leave the terminal")?;
    set_pdeathsig(Signal::SIGKILL).context("cannot tie the demo to its parent")?;
    SigSet::empty()
        .thread_set_mask()
        .context("cannot unblock signals")?;
    separate()?;
    watch_parent(Arc::clone(kept));
    let story = Story::new(how.output.json);
    let figures = tour::run(&story)?;
    story.finish(&figures)
}

/// Its end of our standard input closes with the parent, also if that went before it could be tied.
fn watch_parent(kept: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        if !kept.load(Ordering::Acquire) {
            std::process::exit(1);
        }
    });
}

fn separate() -> anyhow::Result<()> {
    let all = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC;
    unshare(all).map_err(|error| refused(error, "make namespaces of networks and mounts"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|error| refused(error, "keep its mounts to itself"))?;
    let options = Some("mode=0700,size=256m");
    mount(
        Some("causeway-demo"),
        PLACE,
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )
    .map_err(|error| refused(error, &format!("mount a tmpfs on {PLACE}")))?;
    // So that `ps` inside shows what is inside; where a container hides parts of /proc it may not be.
    let _ = mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        None::<&str>,
    );
    Ok(())
}

fn refused(error: Errno, what: &str) -> anyhow::Error {
    let next = match outside_root() {
        true => "start the container with `--privileged`, or run it on the host".to_owned(),
        false => format!(
            "user namespaces have no rights here (see the sysctl kernel.apparmor_restrict_unprivileged_userns); {}",
            outside::as_root()
        ),
    };
    anyhow::anyhow!("the demo may not {what} ({}): {next}", error.desc())
}

/// Whether root here is root outside.
fn outside_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(1) == Some("0")
}

/// Goes on until it is killed, without terminal and parent.
fn stay() -> anyhow::Result<()> {
    set_pdeathsig(None).context("cannot leave the parent")?;
    print::raw(&[KEPT])?;
    let nothing = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new("/dev/null"))
        .context("cannot open /dev/null")?;
    dup2_stdin(&nothing)
        .and_then(|()| dup2_stdout(&nothing))
        .and_then(|()| dup2_stderr(&nothing))
        .context("cannot leave the terminal")?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("cannot wait for signals")?;
    loop {
        let _ = children.wait();
        // Whoever lost his parent inside is ours.
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some())
        {
        }
    }
}
