//! What can be seen of a broker from outside: its HTTP endpoint, and its process as the kernel
//! shows it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

const HTTP_LIMIT: Duration = Duration::from_secs(3);

/// Status and body of a GET.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    get_as(address, path, &address.to_string())
}

/// The same under another `Host`.
pub fn get_as(address: SocketAddr, path: &str, host: &str) -> Result<(u16, String)> {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    )
}

/// A POST of JSON.
pub fn post(address: SocketAddr, path: &str, json: &str) -> Result<(u16, String)> {
    let length = json.len();
    ask(
        address,
        &format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{json}"
        ),
    )
}

fn ask(address: SocketAddr, request: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, HTTP_LIMIT)?;
    stream.set_read_timeout(Some(HTTP_LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.context("the answer is no HTTP")?, body.to_owned()))
}

pub fn healthy(address: SocketAddr) -> bool {
    get(address, "/healthz").is_ok_and(|(status, _)| status == 200)
}

/// KiB of a process that are in memory.
pub fn resident(pid: u32) -> Result<u64> {
    status_number(pid, "VmRSS:")
}

/// The most it ever had.
pub fn peak_resident(pid: u32) -> Result<u64> {
    status_number(pid, "VmHWM:")
}

fn status_number(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("{path} has no {field}"))
}

/// Time on a processor of all threads of a process.
pub fn process_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&path).with_context(|| format!("process {pid} has ended"))?;
    let threads = threads.flatten();
    Ok(threads
        .filter_map(|thread| thread_time(&thread.path()))
        .sum())
}

/// The first field is nanoseconds on a processor; the others are waiting time and turns.
fn thread_time(thread: &Path) -> Option<Duration> {
    let text = fs::read_to_string(thread.join("schedstat")).ok()?;
    let on_processor = text.split_whitespace().next()?;
    Some(Duration::from_nanos(on_processor.parse().ok()?))
}

/// The words and the environment that anybody on the host can read.
pub fn arguments_and_environment(pid: u32) -> (Vec<u8>, Vec<u8>) {
    let read = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    (read("cmdline"), read("environ"))
}

/// Paths of all files a process has open.
pub fn open_files(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}
