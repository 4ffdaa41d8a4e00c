//! Programs the kernel of a node so that the mesh's prefixes are reached through it: observe, plan,
//! diff, apply. What is wanted is one value that prints like `ip route`; what is found is read from
//! the kernel, never assumed.

#![forbid(unsafe_code)]

mod agent;
mod cleanup;
mod close;
pub mod diff;
pub mod facts;
pub mod guard;
pub mod health;
pub mod held;
pub mod inspect;
pub mod link_layer;
mod lock;
mod netlink;
pub mod plan;
mod problem;
pub mod run;
mod settings;
pub mod status;
mod sysctl;
pub mod wanted;

pub use agent::{Handle, StartError, has_routes, start};
pub use cleanup::{Cleaned, CleanupError, cleanup};
pub use close::{CloseError, Closed, close};
pub use lock::Holder;
pub use netlink::translation::translate_behind;
pub use problem::Problem;
pub use settings::{Kernel, Settings, VXLAN_DEVICE};
