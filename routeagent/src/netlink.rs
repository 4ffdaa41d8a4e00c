//! Everything that is asked of the kernel and told by it.

pub(crate) mod changes;
pub(crate) mod events;
mod expression;
pub(crate) mod forward;
pub(crate) mod link;
pub(crate) mod nexthop;
pub(crate) mod nft;
pub(crate) mod raw;
pub(crate) mod request;
pub(crate) mod route;
pub(crate) mod rule;
pub(crate) mod trace;
mod transactions;
pub(crate) mod translation;
pub(crate) mod vxlan;

/// What was asked, and what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}")]
pub(crate) struct Refused {
    pub(crate) what: String,
    pub(crate) error: std::io::Error,
}

impl Refused {
    pub(crate) fn is(&self, errno: i32) -> bool {
        self.error.raw_os_error() == Some(errno)
    }
}

/// A request that failed: the kernel's error number where it gave one.
fn refused(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Refused {
    let what = what.into();
    move |error| {
        let error = if let rtnetlink::Error::NetlinkError(told) = &error {
            told.to_io()
        } else {
            std::io::Error::other(error.to_string())
        };
        Refused { what, error }
    }
}

/// What was asked for is so already.
fn unless<T: Default>(errnos: &[i32], done: Result<T, Refused>) -> Result<T, Refused> {
    match done {
        Err(refused) if errnos.iter().any(|errno| refused.is(*errno)) => Ok(T::default()),
        other => other,
    }
}
