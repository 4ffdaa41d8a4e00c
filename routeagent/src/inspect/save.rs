//! What the programs say that save the rules of the old iptables: they are somebody else's, and may
//! not answer, or not end.

use std::io::{self, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Where these programs are looked for: this runs as root, whatever the caller's own path is.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
/// For one program.
const PATIENCE: Duration = Duration::from_secs(2);
/// Some ten thousand rules.
const BYTES: u64 = 4 << 20;

/// The second name is that of either kind of program; it says which it is. Else why there is none.
pub(super) fn save(programs: &[&str]) -> Result<String, &'static str> {
    let mut why = "is not installed to read them";
    for program in programs {
        match output(&mut Command::new(program), PATIENCE) {
            Ok(text) if !text.contains("(nf_tables)") => return Ok(text),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err("did not answer in time");
            }
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err("tells of more rules than are read");
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => why = "does not read them",
            Ok(_) | Err(_) => {}
        }
    }
    Err(why)
}

/// What a program says, if it says it in time and there is an end to it.
fn output(program: &mut Command, patience: Duration) -> io::Result<String> {
    let mut child = program
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let until = Instant::now() + patience;
    let (tell, told) = mpsc::channel();
    let stdout = child.stdout.take();
    let reader = std::thread::Builder::new().name("iptables".to_owned());
    reader.spawn(move || {
        let mut text = vec![];
        let read = stdout.map(|stdout| stdout.take(BYTES + 1).read_to_end(&mut text));
        // Whoever asked may not wait any more.
        let _ = tell.send(read.unwrap_or(Ok(0)).map(|_| text));
    })?;
    let said = match told.recv_timeout(patience) {
        Ok(Ok(text)) if text.len() as u64 > BYTES => Err(io::ErrorKind::FileTooLarge.into()),
        Ok(said) => said,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let is_well = said.is_ok() && ends_well(&mut child, until)?;
    if !is_well {
        // One that does not end even so is left to a thread that waits for it.
        child.kill()?;
        std::thread::spawn(move || child.wait());
    }
    let text = said?;
    if !is_well {
        return Err(io::Error::other("it failed"));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn ends_well(child: &mut Child, until: Instant) -> io::Result<bool> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_heard_to_its_end() {
        assert_eq!(output(&mut Command::new("true"), PATIENCE * 5).unwrap(), "");
        let said = output(Command::new("echo").args(["-A", "FORWARD"]), PATIENCE * 5);
        assert_eq!(said.unwrap(), "-A FORWARD\n");
    }

    #[test]
    fn a_program_that_fails_or_is_not_there_is_told_apart() {
        assert_eq!(save(&["false"]), Err("does not read them"));
        let missing = save(&["causeway-no-such-program"]);
        assert_eq!(missing, Err("is not installed to read them"));
    }

    #[test]
    fn nobody_waits_for_a_program_beyond_its_time() {
        let begin = Instant::now();
        let error =
            output(Command::new("sleep").arg("600"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_program_without_an_end_is_not_read_for_ever() {
        let error = output(&mut Command::new("yes"), Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
