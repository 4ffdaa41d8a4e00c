//! The Unix socket: for its own user alone, and one process at a time.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{role} is running already on {}; stop that one, or give this one another --runtime-dir", .path.display())]
    Running { role: &'static str, path: PathBuf },
    #[error(
        "cannot {doing} {}: {error}; give a directory that this user may write to with --runtime-dir",
        .path.display()
    )]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// Its name goes when it is dropped.
pub struct LocalSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl LocalSocket {
    /// `role` is who has it, as in a sentence: `a gateway`.
    pub async fn bind(
        directory: &Path,
        name: &str,
        role: &'static str,
    ) -> Result<LocalSocket, SocketError> {
        make_directory(directory)?;
        let path = directory.join(name);
        // One that answers has an owner; any other was left by a crash.
        if UnixStream::connect(&path).await.is_ok() {
            return Err(SocketError::Running { role, path });
        }
        let staged = directory.join(format!("{}.new", name));
        for stale in [&path, &staged] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", stale, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        // Nobody else can connect before its mode says so: it gets its name last.
        let listener =
            UnixListener::bind(&staged).map_err(|error| failed("make", &staged, error))?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&staged, &path))
            .map_err(|error| failed("name", &path, error))?;
        Ok(LocalSocket { listener, path })
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // Left behind, it is removed at the next start.
        drop(fs::remove_file(&self.path));
    }
}

fn make_directory(path: &Path) -> Result<(), SocketError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| failed("make", parent, error))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("make", path, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(doing: &'static str, path: &Path, error: io::Error) -> SocketError {
    SocketError::Io {
        doing,
        path: path.to_owned(),
        error,
    }
}
