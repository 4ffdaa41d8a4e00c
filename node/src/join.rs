//! Joining a mesh with a token. Safe to repeat after a crash at any point: the keys are durable
//! before anybody sees them, and the directory becomes part of the mesh in one step.

mod error;
mod hop;
mod standing;
mod step;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use proto::entry::GrantRole;
use proto::key::{MeshId, PublicKey};
use proto::name::Name;
use proto::token::{Token, TokenBroker};
use zeroize::Zeroizing;

use crate::back_off::BackOff;
use crate::contacts;
use crate::session::Ways;
use crate::state::{Draft, LocalNode, Lock, Staging, StateDir};
use hop::{Hop, Outcome};

pub use error::{JoinError, Tried};
pub use step::Step;

/// Brokers that are asked at all: those of the token, and those that other brokers name.
const MAX_TRIED: usize = 16;

/// How often those are asked again that hung up: a broker with too many callers at once does.
const TURNS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

pub struct Options {
    /// As it was pasted; not needed where the directory is part of a mesh already.
    pub token: Option<Zeroizing<String>>,
    pub state_dir: PathBuf,
    /// The host name made to fit, if none is given.
    pub node: Option<Name>,
    pub region: String,
    pub zone: String,
    /// A gateway to go through where the brokers cannot be reached directly.
    pub via: Option<String>,
}

/// What a directory is after a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub mesh: MeshId,
    pub site: Name,
    pub node: Name,
    pub role: GrantRole,
    pub identity: PublicKey,
    /// It was part of the mesh before, and nothing was done.
    pub already: bool,
}

/// Whether the directory is part of a mesh, so that no token has to be asked for.
pub fn joined(state_dir: &std::path::Path) -> Result<Option<Joined>, JoinError> {
    let Some(state) = StateDir::look(state_dir)? else {
        return Ok(None);
    };
    Ok(state.node()?.map(|node| Joined::of(&node, true)))
}

/// Tells each step as it is done.
pub async fn join(
    options: Options,
    tell: &mut (dyn FnMut(Step) + Send),
) -> Result<Joined, JoinError> {
    let token = match &options.token {
        Some(text) => Some(Token::decode(text)?),
        None => None,
    };
    if let Some(state) = StateDir::look(&options.state_dir)?
        && let Some(node) = state.node()?
    {
        sweep(&options.state_dir);
        return already(&node, token.as_ref(), tell).await;
    }
    let token = token.ok_or(JoinError::NoToken)?;
    let node = match &options.node {
        Some(node) => node.clone(),
        None => host_name()?,
    };
    let via = options.via.as_deref();
    if let Some(via) = via.filter(|via| contacts::gateway(via).is_none()) {
        return Err(JoinError::Via(via.to_owned()));
    }
    if !proto::blob::is_plain(&options.region) || !proto::blob::is_plain(&options.zone) {
        return Err(JoinError::Place);
    }
    Join {
        token,
        node,
        options,
        staged: None,
        tried: Vec::new(),
        may_be_used: false,
        tell,
    }
    .run()
    .await
}

/// Takes away what a join left that was killed after its last step. One that is still at it holds
/// the lock, and does so itself.
fn sweep(state_dir: &std::path::Path) {
    if let Ok(Some(state)) = StateDir::look(state_dir)
        && let Ok(_lock) = state.lock()
    {
        state.clear_joining();
    }
}

async fn already(
    node: &LocalNode,
    token: Option<&Token>,
    tell: &mut (dyn FnMut(Step) + Send),
) -> Result<Joined, JoinError> {
    let joined = Joined::of(node, true);
    if let Some(token) = token
        && token.mesh != joined.mesh
    {
        return Err(JoinError::OtherMesh {
            ours: joined.mesh,
            token: token.mesh,
        });
    }
    if let Some(problem) = standing::put_out(node).await {
        return Err(JoinError::PutOut {
            site: joined.site,
            node: joined.node,
            problem: Box::new(problem),
        });
    }
    tell(Step::Already {
        site: joined.site.clone(),
        node: joined.node.clone(),
    });
    Ok(joined)
}

/// One run of the command.
struct Join<'a> {
    token: Token,
    node: Name,
    options: Options,
    staged: Option<Staged>,
    tried: Vec<Tried>,
    /// A broker may have counted a use for the staged identity: it must be kept.
    may_be_used: bool,
    tell: &'a mut (dyn FnMut(Step) + Send),
}

struct Staged {
    state: StateDir,
    made_directory: bool,
    staging: Staging,
    _lock: Lock,
}

impl Join<'_> {
    async fn run(mut self) -> Result<Joined, JoinError> {
        let result = self.ask_all().await;
        if result.is_err() && !self.may_be_used {
            self.untouch();
        }
        result
    }

    async fn ask_all(&mut self) -> Result<Joined, JoinError> {
        let mut queue: VecDeque<TokenBroker> = self.token.brokers.iter().cloned().collect();
        let mut asked: Vec<TokenBroker> = Vec::new();
        let mut turned_away: VecDeque<TokenBroker> = VecDeque::new();
        let mut waits = BackOff::new(FIRST_WAIT, LONGEST_WAIT, getrandom::u64().unwrap_or(0));
        for turn in 0..=TURNS {
            while let Some(broker) = queue.pop_front() {
                if asked.contains(&broker) || asked.len() >= MAX_TRIED {
                    continue;
                }
                asked.push(broker.clone());
                match self.ask(&broker).await? {
                    Outcome::Taken(taken) => return self.finish(*taken),
                    Outcome::Elsewhere(brokers) => queue.extend(brokers),
                    Outcome::Failed(tried) => {
                        if tried.turned_away {
                            turned_away.push_back(broker);
                        }
                        (self.tell)(Step::Failed(tried.clone()));
                        self.tried.retain(|before| before.address != tried.address);
                        self.tried.push(tried);
                    }
                }
            }
            if turned_away.is_empty() || turn == TURNS {
                break;
            }
            let wait = waits.handle_failure();
            (self.tell)(Step::Waiting(wait));
            tokio::time::sleep(wait).await;
            asked.retain(|broker| !turned_away.contains(broker));
            queue = std::mem::take(&mut turned_away);
        }
        Err(JoinError::NoBroker {
            tried: std::mem::take(&mut self.tried),
            again: self.may_be_used,
        })
    }

    /// `Err` ends the join; everything else lets the next broker have its turn.
    async fn ask(&mut self, broker: &TokenBroker) -> Result<Outcome, JoinError> {
        let via = self.options.via.as_deref();
        let ways = Ways {
            mark: None,
            through: via.and_then(contacts::gateway).into_iter().collect(),
        };
        let session = match hop::reach(broker, &self.token, &ways, self.tell).await {
            Ok(session) => session,
            Err(tried) => return Ok(Outcome::Failed(tried)),
        };
        if self.staged.is_none() {
            self.staged = Some(self.stage()?);
        }
        let staged = self.staged.as_ref().ok_or(JoinError::NoToken)?;
        let hop = Hop {
            token: &self.token,
            identity: &staged.staging.identity,
            may_be_used: &mut self.may_be_used,
            tell: self.tell,
        };
        hop.enrol(session).await
    }

    fn stage(&self) -> Result<Staged, JoinError> {
        let (state, made_directory) = StateDir::open_or_create(&self.options.state_dir)?;
        let lock = state.lock()?;
        if state.node()?.is_some() {
            // Another join was quicker than this one's first connection.
            return Err(JoinError::Raced);
        }
        let staging = state.stage(&self.token.grant_entry().hash())?;
        Ok(Staged {
            state,
            made_directory,
            staging,
            _lock: lock,
        })
    }

    fn finish(&mut self, taken: hop::Taken) -> Result<Joined, JoinError> {
        let staged = self.staged.as_ref().ok_or(JoinError::NoToken)?;
        let chosen = crate::state::Chosen {
            authority: self.token.authority,
            brokers: taken.brokers,
            node: self.node.clone(),
            region: self.options.region.clone(),
            zone: self.options.zone.clone(),
            via: self.options.via.clone(),
        };
        let grant = self.token.grant_entry().clone();
        let membership =
            crate::state::Membership::new(chosen, grant, &taken.enrolment, crate::now())
                .map_err(JoinError::Enrolment)?;
        let draft = Draft {
            membership: &membership,
            cache: &taken.cache,
        };
        staged.state.finish(&staged.staging, &draft)?;
        let node = staged.state.joined()?;
        (self.tell)(Step::Stored {
            path: staged.state.path().to_owned(),
            identity: node.identity_key(),
        });
        let joined = Joined::of(&node, false);
        (self.tell)(Step::Next {
            state_dir: staged.state.path().to_owned(),
            role: joined.role,
        });
        Ok(joined)
    }

    /// Leaves no trace of a join that cannot have taken a use.
    fn untouch(&mut self) {
        let Some(staged) = self.staged.take() else {
            return;
        };
        staged.state.abandon(&staged.staging);
        if staged.made_directory {
            // Only if it is still empty.
            let _kept = std::fs::remove_dir(staged.state.path());
        }
    }
}

impl Joined {
    fn of(node: &LocalNode, already: bool) -> Joined {
        Joined {
            mesh: node.membership.mesh,
            site: node.membership.site().clone(),
            node: node.membership.node.clone(),
            role: node.membership.grant().role,
            identity: node.identity_key(),
            already,
        }
    }
}

fn host_name() -> Result<Name, JoinError> {
    let host = nix::unistd::gethostname().map_err(|errno| JoinError::HostName(errno.into()))?;
    Ok(Name::fit(&host.to_string_lossy()))
}
