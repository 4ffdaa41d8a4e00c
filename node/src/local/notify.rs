//! Tells the service manager, if one started us, that we are ready or about to end.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

const VARIABLE: &str = "NOTIFY_SOCKET";

pub fn ready() {
    say("READY=1");
}

pub fn stopping() {
    say("STOPPING=1");
}

fn say(word: &str) {
    if let Err(error) = try_say(word) {
        tracing::warn!("the service manager cannot be told {word}: {error}");
    }
}

fn try_say(word: &str) -> io::Result<()> {
    let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&name)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(word.as_bytes(), &address)
        .map(drop)
}
