//! Demos that were left running: finding them, going inside, ending them.
//!
//! Nothing about them is written down anywhere, so nothing can be left behind or be wrong: they are
//! found among the processes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::lab;
use super::mesh::Home;
use super::outside::THIS_PROGRAM;
use super::story::{COLUMNS, wrapped};

const PATIENCE: Duration = Duration::from_secs(30);
const SHELL: &str = "/bin/sh";

#[derive(Debug, clap::Args)]
pub(super) struct Enter {
    #[command(flatten)]
    which: Which,
    /// The machine, like aws-frankfurt-worker-1, or broker.
    #[arg(value_name = "MACHINE")]
    machine: String,
    /// What to run there; a shell if not given.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Stop {
    #[command(flatten)]
    which: Which,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Which {
    /// Which of several demos: the number that it said at its end.
    #[arg(long, value_name = "N", env = "CAUSEWAY_DEMO")]
    demo: Option<i32>,
}

/// What to do with the demo whose first process is this one.
pub(super) fn how_to(first: u32) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "causeway".into());
    let program = program.display();
    let words = "Any machine above, and broker, internet, gcp-zurich-nat, can be entered; without a command that \
        starts a shell there, with `causeway` and what else this machine has.";
    format!(
        "The demo goes on, with all its machines. Look around with\n\n  \
         {program} demo enter --demo {first} azure-dublin-gateway-1 causeway status\n  \
         {program} demo enter --demo {first} gcp-zurich-worker-1 causeway trace 10.3.0.10 10.1.0.10\n  \
         {program} demo enter --demo {first} gcp-zurich-worker-1\n\n\
         {}\n\nIt goes on until you end it, or the machine ends. End it with\n\n  \
         {program} demo stop --demo {first}\n",
        wrapped(words, COLUMNS)
    )
}

pub(super) fn stop(stop: &Stop) -> anyhow::Result<ExitCode> {
    let first = stop.which.find()?;
    kill(first, Signal::SIGKILL).with_context(|| format!("cannot end the demo {first}"))?;
    let begun = Instant::now();
    while kill(first, None).is_ok() && !is_zombie(first) {
        if begun.elapsed() > PATIENCE {
            bail!("the demo {first} was killed and has not ended yet; look at it with `ps`");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    eprintln!("The demo has ended, and nothing of it is left.");
    Ok(ExitCode::SUCCESS)
}

pub(super) fn enter(enter: &Enter) -> anyhow::Result<ExitCode> {
    let first = enter.which.find()?;
    // Inside, this process has no number by which it would find itself.
    let path = path();
    go_inside(first)?;
    let place = lab::path_of(&enter.machine);
    let Ok(network) = File::open(&place) else {
        bail!(
            "the demo has no machine {}; it has: {}",
            enter.machine,
            machines().join(", ")
        );
    };
    setns(network, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter {}", enter.machine))?;
    let mut command = match enter.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        None => Command::new(std::env::var_os("SHELL").unwrap_or_else(|| SHELL.into())),
    };
    command
        .envs(Home::of(&enter.machine).variables())
        .env("PATH", path);
    // Ctrl-C is for what runs inside.
    let mut ignored = SigSet::empty();
    ignored.add(Signal::SIGINT);
    ignored.add(Signal::SIGQUIT);
    ignored.thread_block().context("cannot block signals")?;
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}

/// All but the network; the next child is inside of the processes too.
fn go_inside(first: Pid) -> anyhow::Result<()> {
    let here = std::env::current_dir();
    let of = |name: &str| {
        let path = format!("/proc/{first}/ns/{name}");
        File::open(&path)
            .with_context(|| format!("cannot open {path}; whoever started the demo may"))
    };
    // Opened first: afterwards the number means something else.
    let (user, mounts, processes) = (of("user")?, of("mnt")?, of("pid")?);
    let is_own =
        fs::read_link("/proc/self/ns/user")? == fs::read_link(format!("/proc/{first}/ns/user"))?;
    if !is_own {
        setns(user, CloneFlags::CLONE_NEWUSER).context("cannot enter the demo's user namespace")?;
    }
    setns(processes, CloneFlags::CLONE_NEWPID)
        .and_then(|()| setns(mounts, CloneFlags::CLONE_NEWNS))
        .context("cannot enter the demo's namespaces")?;
    if let Ok(here) = here {
        let _ = std::env::set_current_dir(here);
    }
    Ok(())
}

/// With the place of this program, so that `causeway` is found.
fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Some(own) = std::env::current_exe()
        .ok()
        .as_deref()
        .and_then(|own| own.parent())
    {
        places.push(own.to_owned());
    }
    std::env::join_paths(places).unwrap_or(path)
}

fn machines() -> Vec<String> {
    let entries = lab::path_of("").read_dir().into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

impl Which {
    fn find(self) -> anyhow::Result<Pid> {
        let mut found = kept()?;
        if let Some(number) = self.demo {
            found.retain(|pid| pid.as_raw() == number);
        }
        match found.as_slice() {
            [one] => Ok(*one),
            [] => bail!("no demo is running here that this user left with `causeway demo --keep`"),
            several => {
                let several: Vec<String> = several.iter().map(Pid::to_string).collect();
                bail!(
                    "{} demos are running here; say which with --demo: {}",
                    several.len(),
                    several.join(", ")
                )
            }
        }
    }
}

/// First processes of demos that were to be kept, of this user; of everyone for root.
fn kept() -> anyhow::Result<Vec<Pid>> {
    let entries = fs::read_dir("/proc").context("cannot look for demos in /proc")?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<Pid> = pids
        .map(Pid::from_raw)
        .filter(|pid| is_kept(*pid))
        .collect();
    found.sort_by_key(|pid| pid.as_raw());
    Ok(found)
}

fn is_kept(pid: Pid) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let place = PathBuf::from(format!("/proc/{pid}"));
    let line = fs::read(place.join("cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let is_first = words.starts_with(&[THIS_PROGRAM.as_bytes(), b"demo", b"inside", b"--keep"]);
    let user = geteuid();
    let is_ours = || {
        let owner = fs::metadata(&place).map(|data| data.uid());
        user.is_root() || owner.is_ok_and(|owner| owner == user.as_raw())
    };
    is_first && !is_zombie(pid) && is_ours()
}

/// Dead, and not yet looked at by its parent.
fn is_zombie(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:\tZ"))
}
