//! Network namespaces with wires between them, made by asking the kernel.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::Runtime;

use super::inside::PLACE;
use super::plan;
use super::wire::Wires;

/// Where `ip netns` looks too.
const NAMES: &str = "netns";
const OWN: &str = "/proc/thread-self/ns/net";

/// One network namespace; it lives as long as the demo.
pub(super) struct Namespace {
    name: String,
    file: File,
    wires: Wires,
}

pub(super) struct Lab {
    runtime: Runtime,
    next_index: AtomicU32,
}

pub(super) fn path_of(name: &str) -> PathBuf {
    Path::new(PLACE).join(NAMES).join(name)
}

impl Lab {
    pub(super) fn new() -> anyhow::Result<Lab> {
        fs::create_dir_all(Path::new(PLACE).join(NAMES)).context("cannot make a directory")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("cannot start threads")?;
        Ok(Lab {
            runtime,
            next_index: AtomicU32::new(10),
        })
    }

    /// A new one with its loopback up.
    pub(super) fn namespace(&self, name: &str) -> anyhow::Result<Namespace> {
        let file = self
            .make(name)
            .with_context(|| format!("cannot make the network namespace {name}"))?;
        let wires = enter(&file, || {
            let _entered = self.runtime.enter();
            Wires::new()
        })??;
        let namespace = Namespace {
            name: name.to_owned(),
            file,
            wires,
        };
        self.runtime.block_on(namespace.wires.up(1))?;
        // Lets the echo be sent and measured without privilege.
        let group = nix::unistd::getegid();
        namespace.sysctl("net/ipv4/ping_group_range", &format!("{group} {group}"))?;
        // Addresses of one's own need no search for others that have them, which takes seconds.
        namespace.sysctl6("default/accept_dad", "0")?;
        Ok(namespace)
    }

    /// A thread of its own, since this one stays where it is.
    fn make(&self, name: &str) -> anyhow::Result<File> {
        let path = path_of(name);
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                File::create(&path)?;
                let none = None::<&str>;
                mount(Some(OWN), &path, none, MsFlags::MS_BIND, none)?;
                anyhow::Ok(File::open(&path)?)
            });
            made.join()
                .unwrap_or_else(|_| Err(anyhow!("its thread ended")))
        })
    }

    /// A wire between two machines; both ends are up.
    pub(super) fn wire(&self, left: End<'_>, right: End<'_>) -> anyhow::Result<()> {
        let [left_index, right_index] = [self.index(), self.index()];
        let made = self.runtime.block_on(async {
            let ends = [
                (left.interface, left_index, left.namespace.file.as_raw_fd()),
                (
                    right.interface,
                    right_index,
                    right.namespace.file.as_raw_fd(),
                ),
            ];
            left.namespace.wires.pair(ends).await?;
            left.namespace.wires.up(left_index).await?;
            right.namespace.wires.up(right_index).await?;
            for (end, index) in [(&left, left_index), (&right, right_index)] {
                for (address, len) in end.addresses {
                    end.namespace.wires.address(index, *address, *len).await?;
                }
                if let Some(bridge) = end.bridge {
                    end.namespace.wires.plug(index, bridge).await?;
                }
            }
            anyhow::Ok(())
        });
        made.with_context(|| {
            format!(
                "cannot lay a wire from {} to {}",
                left.namespace.name, right.namespace.name
            )
        })
    }

    /// Its number.
    pub(super) fn bridge(&self, place: &Namespace, name: &str) -> anyhow::Result<u32> {
        let index = self.index();
        self.runtime
            .block_on(async {
                place.wires.bridge(name, index).await?;
                place.wires.up(index).await
            })
            .with_context(|| format!("cannot make the bridge {name}"))?;
        Ok(index)
    }

    pub(super) fn route(
        &self,
        at: &Namespace,
        to: (IpAddr, u8),
        via: IpAddr,
    ) -> anyhow::Result<()> {
        self.runtime
            .block_on(at.wires.route(to, via))
            .with_context(|| format!("cannot set a route to {} in {}", to.0, at.name))
    }

    pub(super) fn unroute(
        &self,
        at: &Namespace,
        to: (IpAddr, u8),
        via: IpAddr,
    ) -> anyhow::Result<()> {
        self.runtime
            .block_on(at.wires.unroute(to, via))
            .with_context(|| format!("cannot remove a route to {} in {}", to.0, at.name))
    }

    /// Chosen here, so that nobody has to ask which the kernel chose.
    fn index(&self) -> u32 {
        self.next_index.fetch_add(1, Ordering::Relaxed)
    }
}

/// One end of a wire.
pub(super) struct End<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) interface: &'a str,
    pub(super) addresses: &'a [(IpAddr, u8)],
    pub(super) bridge: Option<u32>,
}

impl Namespace {
    /// Does it on a thread that is inside; sockets that it opens and processes that it starts stay there.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        enter(&self.file, work).with_context(|| format!("cannot enter {}", self.name))
    }

    /// The same for work that goes on while others do theirs.
    pub(super) fn keep_within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<JoinHandle<T>> {
        self.within(|| std::thread::spawn(work))
    }

    pub(super) fn sysctl(&self, path: &str, value: &str) -> anyhow::Result<()> {
        let file = Path::new("/proc/sys").join(path);
        self.within(|| fs::write(&file, value))?
            .with_context(|| format!("cannot set {path} in {}", self.name))
    }

    /// Makes it a router for both families.
    pub(super) fn forward(&self) -> anyhow::Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl6("all/forwarding", "1")
    }

    /// Below conf, where the kernel has IPv6.
    pub(super) fn sysctl6(&self, path: &str, value: &str) -> anyhow::Result<()> {
        if !plan::has_v6() {
            return Ok(());
        }
        self.sysctl(&format!("net/ipv6/conf/{path}"), value)
    }
}

fn enter<T: Send>(file: &File, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            anyhow::Ok(work())
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread in there ended")))
    })
}
