//! Small file systems that can be full or read-only.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Directory;

/// A file system in memory; goes with its owner. Needs root.
pub struct Disk {
    directory: Directory,
    kibibytes: u64,
}

impl Disk {
    pub fn new(kibibytes: u64) -> Result<Disk> {
        let disk = Disk {
            directory: Directory::new("disk")?,
            kibibytes,
        };
        disk.mount(MsFlags::empty())?;
        Ok(disk)
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes until nothing more fits.
    pub fn fill(&self) -> Result<()> {
        let path = self.filler();
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        // Large steps first, then single bytes into what is left of the last page.
        for step in [64 * 1024, 4096, 1] {
            let zeros = vec![0; step];
            while let Ok(()) = file.write_all(&zeros) {}
        }
        Ok(())
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("the disk was not filled")
    }

    pub fn make_read_only(&self) -> Result<()> {
        self.mount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)
    }

    pub fn make_writable(&self) -> Result<()> {
        self.mount(MsFlags::MS_REMOUNT)
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    fn mount(&self, flags: MsFlags) -> Result<()> {
        let options = format!("size={}k,mode=0700", self.kibibytes);
        let kind = Some("tmpfs");
        mount(kind, self.path(), kind, flags, Some(options.as_str()))
            .with_context(|| format!("cannot mount {}", self.path().display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.path(), MntFlags::MNT_DETACH)
            && error != Errno::EINVAL
        {
            eprintln!("{} stays mounted: {error}", self.path().display());
        }
    }
}
