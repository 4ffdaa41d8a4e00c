//! Hears that links or addresses of this host have changed; what they are now is read anew by
//! whoever wants to know.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocketExt as _, TokioSocket};

use super::events::listen;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

pub(crate) struct Changes(TokioSocket);

impl Changes {
    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> io::Result<Changes> {
        let groups = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        listen(NETLINK_ROUTE, &groups).map(Changes)
    }

    /// Until something has changed.
    pub(crate) async fn next(&self) -> io::Result<()> {
        match self.0.recv_from_full().await {
            // More than the socket could hold is a change as well.
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
