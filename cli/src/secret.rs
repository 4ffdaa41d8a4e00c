//! Secrets on their way in: from a file, from standard input, from `CAUSEWAY_TOKEN`. Never from an
//! argument, which every user of the machine could read.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use data_encoding::BASE64URL_NOPAD;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use proto::key::SigningKey;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::private;

const TOKEN_VARIABLE: &str = "CAUSEWAY_TOKEN";
/// Tells a recovery key from everything else that is pasted.
const RECOVERY_PREFIX: &str = "cwyr1.";
const CHECKSUM: usize = 4;

/// Removes `CAUSEWAY_TOKEN` from this process's environment, where /proc shows it to the end: the
/// program starts itself again without it, under the same process id. A command that wants the
/// token finds it on standard input. Returns only if there is nothing to do.
pub(crate) fn leave_environment(arguments: &[OsString], wanted: bool) -> anyhow::Result<()> {
    let Some(token) = std::env::var_os(TOKEN_VARIABLE) else {
        return Ok(());
    };
    let token = Zeroizing::new(token.into_encoded_bytes());
    let mut again = Command::new("/proc/self/exe");
    again
        .args(arguments.iter().skip(1))
        .env_remove(TOKEN_VARIABLE);
    if let Some(name) = arguments.first() {
        again.arg0(name);
    }
    if wanted && !token.is_empty() {
        again.stdin(in_memory(&token)?);
    }
    // Only returns if it failed.
    let error = again.exec();
    bail!(
        "cannot start again without {TOKEN_VARIABLE} in the environment: {error}; is /proc mounted? Else give the token with --token-file"
    );
}

/// A file that exists in this process only.
fn in_memory(content: &[u8]) -> anyhow::Result<File> {
    let descriptor = memfd_create("causeway-token", MFdFlags::MFD_CLOEXEC)
        .context("cannot keep the token in memory; give it with --token-file")?;
    let mut file = File::from(descriptor);
    file.write_all(content)
        .and_then(|()| file.rewind())
        .context("cannot keep the token in memory; give it with --token-file")?;
    Ok(file)
}

/// From the file, or from standard input if there is none or its name is `-`. `what` is the thing
/// to paste, for the prompt and for errors; `flag` names the file.
pub(crate) fn read(
    file: Option<&Path>,
    what: &str,
    flag: &str,
) -> anyhow::Result<Zeroizing<String>> {
    let text = match file.filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let mut file =
                File::open(path).map_err(|error| private::explain(error, "read", path))?;
            warn_if_open(path, &file);
            private::read_limited(&mut file)
                .with_context(|| format!("cannot read {}", path.display()))?
        }
        None if io::stdin().is_terminal() => prompt(what)?,
        None => private::read_limited(&mut io::stdin().lock())
            .with_context(|| format!("cannot read the {what} from standard input"))?,
    };
    if text.trim().is_empty() {
        let from = match file {
            Some(path) => format!("{} is empty", path.display()),
            None => "standard input is empty".to_owned(),
        };
        bail!(
            "there is no {what}: {from}. Give the {what} on standard input or in a file with {flag}"
        );
    }
    Ok(text)
}

/// A token is used up soon, so this is no reason to stop.
fn warn_if_open(path: &Path, file: &File) {
    use std::os::unix::fs::MetadataExt;
    let mode = file.metadata().map_or(0, |found| found.mode() & 0o777);
    if mode & 0o077 != 0 {
        eprintln!(
            "causeway: {} can be read by others (mode {mode:04o}); chmod 600 it, and delete it afterwards",
            path.display()
        );
    }
}

/// Without echo, so that it stays out of what the terminal keeps.
fn prompt(what: &str) -> anyhow::Result<Zeroizing<String>> {
    let terminal = io::stdin();
    eprint!("Paste the {what} and press Enter (it is not shown): ");
    let before = tcgetattr(&terminal).ok();
    if let Some(before) = &before {
        let mut silent = before.clone();
        // Not line by line either: the kernel cuts lines there at 4096 characters. Nor with signals,
        // which would leave the terminal silent.
        silent
            .local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        // Where it cannot be silenced it is shown: a nuisance, no fault.
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &silent);
    }
    let line = read_line(&mut terminal.lock());
    if let Some(before) = &before {
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, before);
    }
    eprintln!();
    line.with_context(|| format!("cannot read the {what} from the terminal"))
}

/// What Ctrl-D and Ctrl-C send.
const END: u8 = 4;
const INTERRUPT: u8 = 3;

/// Byte by byte, as the terminal may hold more than this line.
fn read_line(from: &mut impl io::Read) -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::with_capacity(4096));
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        match byte[0] {
            b'\n' | b'\r' | END => break,
            INTERRUPT => return Err(io::Error::other("interrupted")),
            other if line.len() < 64 * 1024 => line.push(char::from(other)),
            _ => return Err(io::Error::other("it is far too long")),
        }
    }
    Ok(line)
}

/// What is printed once, to be kept on paper: with a checksum against a wrong copy.
pub(crate) fn recovery_text(key: &SigningKey) -> Zeroizing<String> {
    let seed = key.seed();
    let mut bytes = Zeroizing::new(seed.to_vec());
    bytes.extend_from_slice(&Sha256::digest(*seed)[..CHECKSUM]);
    let mut text = Zeroizing::new(String::with_capacity(96));
    text.push_str(RECOVERY_PREFIX);
    BASE64URL_NOPAD.encode_append(&bytes, &mut text);
    text
}

/// Never repeats what it was given.
pub(crate) fn parse_recovery(text: &str) -> anyhow::Result<SigningKey> {
    let Some(encoded) = text.trim().strip_prefix(RECOVERY_PREFIX) else {
        bail!(
            "this is no recovery key: one begins with {RECOVERY_PREFIX}, as `causeway broker init` printed it"
        );
    };
    let damaged =
        "the recovery key is cut off or has a wrong character; compare it with what was kept";
    let bytes = BASE64URL_NOPAD
        .decode(encoded.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| anyhow::anyhow!(damaged))?;
    let mut seed = Zeroizing::new([0; 32]);
    match bytes.split_at_checked(seed.len()) {
        Some((kept, sum)) if Sha256::digest(kept)[..CHECKSUM] == *sum => seed.copy_from_slice(kept),
        Some(_) | None => bail!(damaged),
    }
    Ok(SigningKey::from_seed(&seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_key_survives_paper_and_a_wrong_character_is_noticed() {
        let key = SigningKey::from_seed(&[9; 32]);
        let text = recovery_text(&key);
        let read = parse_recovery(&format!(" {}\n", *text)).unwrap();
        assert_eq!(read.public(), key.public());
        for index in 0..text.len() {
            let mut wrong = text.as_bytes().to_vec();
            wrong[index] = if wrong[index] == b'A' { b'B' } else { b'A' };
            let error = parse_recovery(&String::from_utf8(wrong).unwrap());
            let error = error.err().unwrap().to_string();
            assert!(!error.contains(&text[10..20]), "{error}");
        }
        assert!(parse_recovery(&text[..20]).is_err());
        assert!(parse_recovery("cwy1.abc").is_err());
    }

    #[test]
    fn a_line_ends_at_its_end() {
        let mut typed: &[u8] = b"cwy1.abc\rrest";
        assert_eq!(*read_line(&mut typed).unwrap(), "cwy1.abc");
        assert_eq!(typed, b"rest");
    }

    #[test]
    fn nothing_pasted_is_said_to_be_nothing() {
        let scratch = crate::scratch::Scratch::new();
        let path = scratch.path().join("token");
        private::write_new(&path, b" \n").unwrap();
        let error = read(Some(&path), "token", "--token-file").unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
    }
}
