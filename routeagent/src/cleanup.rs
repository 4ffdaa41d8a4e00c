//! Takes everything of ours out of the kernel, whatever was killed before.

use std::collections::BTreeMap;
use std::io;

use crate::agent::{self, StartError};
use crate::lock::{Holder, Lock};
use crate::netlink::nft::Nft;
use crate::netlink::request::Requests;
use crate::netlink::vxlan::{self, Named};
use crate::netlink::{Refused, link, nexthop, route, rule};
use crate::settings::{ALIAS, TABLE_NAME, VXLAN_DEVICE};
use crate::sysctl::Memory;
use crate::wanted::{Nexthop, nexthop_line, route_line};

/// How a kernel without nf_tables answers who asks for its tables.
const NO_NFT: [i32; 3] = [libc::EINVAL, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT];

/// What was removed, or would be, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub removed: Vec<String>,
    /// Whose all this is now, if it was only asked what would be removed.
    pub in_use: Option<Holder>,
}

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{}", .0.join("; "))]
    Kernel(Vec<String>),
}

/// Blocks; starts a runtime of its own.
pub fn cleanup(dry_run: bool) -> Result<Cleaned, CleanupError> {
    agent::need_privilege()?;
    let lock = if dry_run { None } else { Some(Lock::take()?) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Kernel)?;
    let mut cleaner = Cleaner {
        dry_run,
        ..Cleaner::default()
    };
    runtime
        .block_on(cleaner.run())
        .map_err(StartError::Kernel)?;
    if dry_run {
        cleaner.cleaned.in_use = Holder::find();
    }
    drop(lock);
    if cleaner.failed.is_empty() {
        Ok(cleaner.cleaned)
    } else {
        Err(CleanupError::Kernel(cleaner.failed))
    }
}

#[derive(Default)]
struct Cleaner {
    dry_run: bool,
    cleaned: Cleaned,
    failed: Vec<String>,
}

impl Cleaner {
    /// The tunnel goes first and what guards against sending in clear last, as long as it can.
    async fn run(&mut self) -> io::Result<()> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        let raw = Requests::new()?;
        if let Some(links) = self.read(link::list(&handle).await) {
            let names = links
                .iter()
                .map(|(name, link)| (link.index, name.clone()))
                .collect();
            let routes = self.read(route::list(&raw, &names));
            self.rules(&handle).await;
            for (place, way) in routes.unwrap_or_default() {
                let line = format!("route {}", route_line(&place, &way));
                let done = self.unless_dry_now(|| route::remove(&raw, &place));
                self.note(line, done);
            }
            self.nexthops(&raw, &names);
            // Known by more than its alias: it gets that last.
            let vxlan = self.read(vxlan::find(&raw));
            let is_vxlan_ours = matches!(vxlan, Some(Named::Ours { .. }));
            let ours = links.iter().filter(|(name, link)| {
                link.alias.as_deref() == Some(ALIAS) || is_vxlan_ours && *name == VXLAN_DEVICE
            });
            for (name, link) in ours {
                let done = self.unless_dry(link::remove(&handle, name, link)).await;
                self.note(format!("interface {name}"), done);
            }
        }
        self.nft();
        self.sysctls();
        Ok(())
    }

    /// Groups first: a hop that is gone changes the groups it was in.
    fn nexthops(&mut self, raw: &Requests, names: &BTreeMap<u32, String>) {
        let found = self.read(nexthop::list(raw, names)).unwrap_or_default();
        let (groups, hops): (Vec<_>, Vec<_>) = found
            .ours
            .into_iter()
            .partition(|(_, nexthop)| matches!(nexthop, Nexthop::Group(_)));
        for (id, nexthop) in groups.into_iter().chain(hops) {
            let done = self.unless_dry_now(|| nexthop::remove(raw, id));
            self.note(format!("nexthop {}", nexthop_line(id, &nexthop)), done);
        }
    }

    async fn rules(&mut self, handle: &rtnetlink::Handle) {
        let rules = self.read(rule::list(handle).await).unwrap_or_default();
        for rule in rules.ours {
            let done = self.unless_dry(rule::remove(handle, &rule)).await;
            self.note(format!("rule {rule}"), done);
        }
        for message in rules.strange {
            let done = self.unless_dry(rule::remove_strange(handle, message)).await;
            self.note("rule of another version".to_owned(), done);
        }
    }

    fn nft(&mut self) {
        // A kernel without nf_tables has nothing of ours in it.
        let Ok(nft) = Nft::new() else { return };
        let exists = match nft.exists() {
            Err(refused) if NO_NFT.iter().any(|errno| refused.is(*errno)) => return,
            exists => self.read(exists).unwrap_or_default(),
        };
        for (chain, handle) in self.read(nft.all_openings()).unwrap_or_default() {
            let done = if self.dry_run {
                Ok(())
            } else {
                nft.close(&chain, handle)
            };
            self.note(format!("nft rule in {chain}"), done);
        }
        if exists {
            let done = if self.dry_run {
                Ok(())
            } else {
                nft.remove().map(drop)
            };
            self.note(format!("nft table inet {TABLE_NAME}"), done);
        }
    }

    fn sysctls(&mut self) {
        let restored = Memory::open().and_then(|memory| {
            if self.dry_run {
                Ok(memory.to_restore().into_iter().cloned().collect())
            } else {
                memory.restore()
            }
        });
        match restored {
            Ok(restored) => {
                self.cleaned
                    .removed
                    .extend(restored.into_iter().map(|kept| {
                        format!("sysctl {} from {} to {}", kept.key, kept.set, kept.before)
                    }))
            }
            Err(error) => self.failed.push(format!("sysctls: {error}")),
        }
    }

    fn unless_dry_now(&self, work: impl FnOnce() -> Result<(), Refused>) -> Result<(), Refused> {
        if self.dry_run { Ok(()) } else { work() }
    }

    async fn unless_dry(
        &self,
        work: impl Future<Output = Result<(), Refused>>,
    ) -> Result<(), Refused> {
        if self.dry_run { Ok(()) } else { work.await }
    }

    fn note(&mut self, line: String, done: Result<(), Refused>) {
        match done {
            Ok(()) => self.cleaned.removed.push(line),
            Err(refused) => self.failed.push(refused.to_string()),
        }
    }

    fn read<T>(&mut self, read: Result<T, Refused>) -> Option<T> {
        read.map_err(|refused| self.failed.push(refused.to_string()))
            .ok()
    }
}
