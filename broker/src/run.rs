//! The process `causeway broker run`: opens the directory and the store, then one event loop.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::directory::{DirectoryError, StoreUrl};

#[derive(Clone, Debug)]
pub struct Options {
    pub state_directory: PathBuf,
    /// Holds `broker.sock`.
    pub runtime_directory: PathBuf,
    /// TCP and UDP.
    pub listen: SocketAddr,
    /// Another store than the one the directory names.
    pub store: Option<StoreUrl>,
    /// Metrics and health; `None` for neither.
    pub http: Option<SocketAddr>,
    /// Datagrams of gateways whose paths fail.
    pub relay: bool,
}

/// Where the broker is to be found once it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    pub listen: SocketAddr,
    pub http: Option<SocketAddr>,
    pub socket: PathBuf,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Serves until SIGTERM or SIGINT. Must be called while the process has one thread: the fence goes
/// up for threads that are started after it.
pub fn run(options: Options, ready: impl FnOnce(&Serving)) -> Result<(), Error> {
    serve(options, ready, std::future::pending())
}

/// The same until `stop`, for tests.
pub fn serve(
    options: Options,
    ready: impl FnOnce(&Serving),
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let _later = (ready, stop);
    crate::directory::open(&options.state_directory)?;
    Ok(())
}
