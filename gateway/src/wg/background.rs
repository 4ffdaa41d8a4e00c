//! Going to the background without `fork`: the program runs itself once more in a session of its own,
//! and the first process stays until the second is ready or has failed.
//!
//! The second's standard output is a pipe on which one byte means "ready"; its standard error is a
//! pipe whose words the first passes on until then.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::{env, thread};

use nix::unistd::{chdir, dup2_stderr, dup2_stdout, getppid, setsid};

/// Holds the number of the process that waits, so that a stray value in an environment does nothing.
const MARKER: &str = "CAUSEWAY_BACKGROUND_OF";

/// This very file, also if it was deleted since.
const PROGRAM: &str = "/proc/self/exe";

#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    #[error("cannot {action}: {error}; run in the foreground with -f instead")]
    Start {
        action: &'static str,
        error: io::Error,
    },
    #[error(
        "cannot open the log file {path}: {error}; check that its directory exists and can be written"
    )]
    LogFile { path: PathBuf, error: io::Error },
}

/// The second process, before it is ready.
#[derive(Debug)]
pub struct Background {
    log: File,
}

/// Starts the second process and waits until it is ready or has ended. The number is what to exit with.
pub fn start() -> Result<u8, BackgroundError> {
    let failed = |action| move |error| BackgroundError::Start { action, error };
    // By its real path where there is one, since the kernel names the process after it.
    let program = env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PROGRAM.into());
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| PROGRAM.into());
    let mut child = Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(MARKER, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start this program again in the background"))?;
    let words = child.stderr.take();
    let forwarder = thread::spawn(move || {
        // A terminal that went away does not keep the process from starting.
        words.map(|mut words| io::copy(&mut words, &mut io::stderr()))
    });
    let code = wait(&mut child).map_err(failed("wait for the process in the background"))?;
    // Ends by itself: the second closes its end, ready or dead.
    let _ = forwarder.join();
    Ok(code)
}

fn wait(child: &mut Child) -> io::Result<u8> {
    let mut byte = [0];
    let ready = match &mut child.stdout {
        Some(pipe) => pipe.read(&mut byte)? == 1,
        None => false,
    };
    if ready {
        Ok(0)
    } else {
        child.wait().map(exit_code)
    }
}

/// As a shell would say it; a process that ends well without having been ready has failed.
fn exit_code(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(0) | None, None) => 1,
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
    };
    u8::try_from(code).unwrap_or(1)
}

impl Background {
    /// `Some` in the second process. Leaves the terminal's session; the log file is opened now, so
    /// that a wrong name is an error while someone still reads.
    pub fn enter(log_file: Option<&Path>) -> Result<Option<Background>, BackgroundError> {
        let waiting = env::var(MARKER).ok().and_then(|number| number.parse().ok());
        if waiting != Some(getppid().as_raw()) {
            return Ok(None);
        }
        let failed = |action| {
            move |errno: nix::Error| BackgroundError::Start {
                action,
                error: errno.into(),
            }
        };
        let log = open_log(log_file)?;
        setsid().map_err(failed("leave the session of the terminal"))?;
        chdir("/").map_err(failed("change to the directory /"))?;
        Ok(Some(Background { log }))
    }

    /// Lets the first process end with success. From here on words go to the log file, or nowhere.
    pub fn ready(self) -> io::Result<()> {
        dup2_stderr(&self.log)?;
        io::stdout().write_all(b"+")?;
        io::stdout().flush()?;
        dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        Ok(())
    }
}

/// Sends this process's own words to the log file, for a process that stays in the foreground.
pub fn log_to(log_file: &Path) -> Result<(), BackgroundError> {
    let log = open_log(Some(log_file))?;
    dup2_stderr(&log).map_err(|errno| BackgroundError::LogFile {
        path: log_file.to_owned(),
        error: errno.into(),
    })
}

fn open_log(log_file: Option<&Path>) -> Result<File, BackgroundError> {
    let path = log_file.unwrap_or(Path::new("/dev/null"));
    OpenOptions::new()
        .append(true)
        .create(log_file.is_some())
        .mode(0o600)
        .open(path)
        .map_err(|error| BackgroundError::LogFile {
            path: path.to_owned(),
            error,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_before_it_was_ready_has_failed_whatever_it_says() {
        let code = |raw| exit_code(ExitStatus::from_raw(raw));
        assert_eq!(code(0), 1);
        assert_eq!(code(1 << 8), 1);
        assert_eq!(code(2 << 8), 2);
        assert_eq!(code(libc::SIGKILL), 137);
    }

    #[test]
    fn a_process_that_nobody_waits_for_is_not_the_second() {
        assert!(Background::enter(None).unwrap().is_none());
    }
}
