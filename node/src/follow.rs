//! Staying in touch with the mesh's brokers: everything that is received is verified by
//! `proto::mesh`, made durable, and only then shown. With every broker down, what was verified
//! before stays in force.
//!
//! A [`Handle`] belongs to one task that holds a conversation with every store there is: what one
//! has, another need not have. `register` decides, `keeper` has it and the cache, `driver` knows
//! which stores there are, and a `visitor` talks to the brokers of each.

mod cache_file;
mod cached;
mod conversation;
mod driver;
mod keeper;
mod refused;
mod register;
mod view;
mod visitor;

use std::sync::Arc;
use std::time::Duration;

use proto::control::Handover;
use proto::entry::Role;
use proto::mesh::Mesh;
use proto::record::Presence;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::journal::JournalError;
use crate::state::{LocalNode, StateDir, StateError};
use cache_file::CacheFile;
use driver::{Driver, Inputs};
use keeper::Start;
use register::Register;

pub use crate::stores::StoreName;
pub use cached::{Cached, cached};
pub use refused::{Cause, Item, Refused};
pub use view::{BrokerState, Peer, Problem, ReflectorSession, StoreView, View};

/// Commands that wait; each is quickly done.
const MAX_COMMANDS: usize = 16;
/// Handovers that wait, each of 4 MiB at most; what finds no room is offered again.
const MAX_HANDOVERS: usize = 4;

pub struct Options {
    pub role: Role,
    pub timing: Timing,
    /// For the connections to brokers, so that a gateway's own route table leaves them alone.
    pub fwmark: Option<u32>,
}

/// How long things may take. The defaults are for use; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A broker that has said nothing for so long is asked whether it lives.
    pub quiet: Duration,
    /// And is left if it says nothing for so long after that. The two are 10 s together.
    pub dead: Duration,
    /// A broker that has not sent all it has by then is left.
    pub caught_up: Duration,
    /// All is asked for again after about this time.
    pub relist: Duration,
    /// The first and the longest wait between rounds over all brokers.
    pub back_off: (Duration, Duration),
    /// A record that was refused for a passing reason is sent again.
    pub republish: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            quiet: Duration::from_secs(3),
            dead: Duration::from_secs(7),
            caught_up: Duration::from_secs(60),
            relist: Duration::from_secs(3600),
            back_off: (Duration::from_millis(500), Duration::from_secs(10)),
            republish: Duration::from_secs(15),
        }
    }
}

#[derive(Debug, Error)]
pub enum FollowError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Cache(#[from] JournalError),
    #[error(
        "the token this node joined with is for: {granted}; it cannot run as {wanted}. Join again with a token for it (`causeway token create --role {wanted}`)"
    )]
    WrongRole {
        granted: proto::entry::GrantRole,
        wanted: Role,
    },
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Dropping it ends the task as well.
pub struct Handle {
    node: Arc<LocalNode>,
    view: watch::Receiver<Arc<View>>,
    reflector: watch::Receiver<Option<ReflectorSession>>,
    commands: mpsc::Sender<Command>,
    handovers: mpsc::Sender<Handover>,
    task: JoinHandle<()>,
}

enum Command {
    Publish(Presence),
    Stop,
}

/// Loads what was verified before and starts the task, which tries brokers until it is stopped.
/// Must be called within a tokio runtime. One process at a time for a state directory.
pub fn start(state: &StateDir, options: Options) -> Result<Handle, FollowError> {
    let node = Arc::new(state.joined()?);
    let granted = node.membership.grant().role;
    if !granted.allows(options.role) {
        return Err(FollowError::WrongRole {
            granted,
            wanted: options.role,
        });
    }
    let lock = node.lock()?;
    let (cache, content) = CacheFile::open(&node)?;
    let mesh = Mesh::new(node.membership.mesh, Some(node.membership.site().clone()));
    let mut register = Register::new(mesh, node.identity_key());
    let damaged = content.load(&mut register, crate::now());
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(FollowError::Random)?;
    let (commands, commanded) = mpsc::channel(MAX_COMMANDS);
    let (handovers, handed) = mpsc::channel(MAX_HANDOVERS);
    let inputs = Inputs {
        commands: commanded,
        handovers: handed,
    };
    let start = Start {
        local: node.clone(),
        role: options.role,
        register,
        cache,
        damaged,
    };
    let (driver, outputs) = Driver::new(start, &options, u64::from_le_bytes(seed), inputs);
    let task = tokio::spawn(async move {
        driver.run().await;
        drop(lock);
    });
    Ok(Handle {
        node,
        view: outputs.view,
        reflector: outputs.reflector,
        commands,
        handovers,
        task,
    })
}

impl Handle {
    pub fn node(&self) -> &LocalNode {
        &self.node
    }

    /// The same, to be shared with what outlives a borrow.
    pub fn local(&self) -> Arc<LocalNode> {
        self.node.clone()
    }

    /// What another gateway has handed over: verified, made durable and shown like a broker's word,
    /// and told to brokers that lack it. `false` if so much waits that it was dropped.
    pub fn hand_in(&self, handover: Handover) -> bool {
        self.handovers.try_send(handover).is_ok()
    }

    /// Leave to ask a broker for this node's outer address; `None` while none gives it. For
    /// gateways only.
    pub fn reflector(&self) -> watch::Receiver<Option<ReflectorSession>> {
        self.reflector.clone()
    }

    /// The latest view; it is there at once, from the cache.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Signs and sends what this node says of itself, now and on every connection from now on.
    pub async fn publish(&self, presence: Presence) {
        // The task ends only with this handle.
        let _sent = self.commands.send(Command::Publish(presence)).await;
    }

    /// Ends the conversations and the task.
    pub async fn stop(self) {
        let _sent = self.commands.send(Command::Stop).await;
        let _ended = self.task.await;
    }
}
