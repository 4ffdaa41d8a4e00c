//! What a caller asks, and what it may ask.

use std::sync::Arc;
use std::time::Duration;

use proto::enrolment::Enrolment;
use proto::entry::Role;
use proto::frame::MAX_FRAME;
use proto::key::{Domain, PublicKey, Signature};
use proto::ledger::Standing;
use proto::mesh::MemberRefusal;
use proto::message::{Authenticate, Enrol, GrantUse, NodeStatus, Refusal, Reply, Request, Who};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{CARRIES, Caller, Closed, Next, Node, Seat, Session, too_often};
use crate::broker::unix_now;
use crate::enrol;
use crate::entries;
use crate::metrics::Outcome;
use crate::pace::Bucket;
use crate::publish;
use crate::relay::MAX_PEERS;

/// Of the records or uses in one reply.
const BUDGET: usize = MAX_FRAME - 32 * 1024;
/// Of a use beside its enrolment, at most.
const USE: usize = 80;

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    pub(super) async fn handle_request(&mut self, request: Request) -> Reply {
        if let Err(wait) = self.requests.take(std::time::Instant::now()) {
            return Reply::Refused(too_often(wait));
        }
        if let Caller::Authority(key) = self.caller
            && !matches!(request, Request::PutLedger { .. })
            && !self.is_in_force(&key)
        {
            self.caller = Caller::Stranger;
            self.seat = None;
            return Reply::Refused(Refusal::NotAllowed);
        }
        let reply = match request {
            Request::Enrol(asked) => self.enrol(&asked).await,
            Request::Authenticate(asked) => self.authenticate(&asked),
            Request::Publish { member } => self.publish(member).await,
            Request::Watch { resume, heads } => {
                self.watch(resume, &heads).ok_or(Refusal::NotAllowed)
            }
            Request::PutLedger { entries } => self.put_ledger(entries).await,
            Request::Reflect => self.reflect(),
            Request::Relay { peers } => self.relay(&peers),
            // A stranger has a first message, and must not stay by others.
            Request::Ping
            | Request::Ledger { .. }
            | Request::ListNodes { .. }
            | Request::ListUses { .. }
                if !self.is_known() =>
            {
                Err(Refusal::NotAllowed)
            }
            // Taken before anything that has a reply.
            Request::Carry { .. } => Err(Refusal::NotAllowed),
            Request::Ping => Ok(Reply::Pong),
            Request::Ledger { heads } => Ok(entries::missing(&self.broker, &heads)),
            Request::ListNodes { after } => Ok(self.list_nodes(after)),
            Request::ListUses { after } => {
                let register = self.broker.register();
                Ok(Reply::Uses(page(register.uses_after(after))))
            }
        };
        reply.unwrap_or_else(Reply::Refused)
    }

    fn is_in_force(&self, authority: &PublicKey) -> bool {
        let register = self.broker.register();
        register
            .mesh()
            .map_or(*authority == self.broker.authority, |mesh| {
                mesh.charter().authority == Some(*authority)
            })
    }

    fn check_hello_mesh(&self) -> Result<(), Refusal> {
        let register = self.broker.register();
        match register.mesh().map(proto::mesh::Mesh::id) {
            Some(mesh) if mesh != self.mesh => Err(Refusal::WrongMesh { mesh: mesh.0 }),
            Some(_) | None => Ok(()),
        }
    }

    async fn enrol(&mut self, asked: &Enrol) -> Result<Reply, Refusal> {
        let done = self.try_enrol(asked).await;
        let outcome = match &done {
            Ok(_) => "enrolled",
            Err(refusal) => super::reason_of(refusal),
        };
        self.broker
            .metrics
            .enrolments
            .get_or_create(&Outcome { outcome })
            .inc();
        done
    }

    async fn try_enrol(&mut self, asked: &Enrol) -> Result<Reply, Refusal> {
        let (Some(exporter), false) = (self.link.exporter, self.is_known()) else {
            return Err(Refusal::NotAllowed);
        };
        self.check_hello_mesh()?;
        self.check_attempts()?;
        let proven = match enrol::prove(&self.broker, asked, &exporter).await {
            Ok(proven) => proven,
            Err(refusal) => {
                self.note_failure(&refusal);
                return Err(refusal);
            }
        };
        // It has shown the token's key; the store may take its time.
        self.link.pass = None;
        let node = Node {
            identity: proven.proof.identity,
            grant: proven.proof.grant,
            site: proven.grant.site.clone(),
            role: proven.grant.role,
        };
        let enrolment = enrol::enrol(&self.broker, proven).await?;
        self.become_node(node)?;
        Ok(Reply::Enrolled { enrolment })
    }

    fn check_attempts(&self) -> Result<(), Refusal> {
        let Some(source) = self.link.source else {
            return Ok(());
        };
        self.broker
            .failures()
            .check(&source, std::time::Instant::now())
            .map_err(too_often)
    }

    /// Only what no honest joiner sends counts: a hundred may share an address and a token.
    fn note_failure(&self, refusal: &Refusal) {
        if *refusal != Refusal::BadProof {
            return;
        }
        if let Some(source) = self.link.source {
            warn!("{}: a join with a forged proof", self.link.peer);
            self.broker
                .failures()
                .handle_failure(source, std::time::Instant::now());
        }
    }

    fn authenticate(&mut self, asked: &Authenticate) -> Result<Reply, Refusal> {
        let authenticated = Reply::Authenticated { now: unix_now() };
        let Some(exporter) = self.link.exporter else {
            return Ok(authenticated);
        };
        if self.is_known() {
            return Err(Refusal::NotAllowed);
        }
        self.check_hello_mesh()?;
        let key = match &asked.who {
            Who::Node { identity, .. } => identity,
            Who::Authority { key } => key,
        };
        let key = PublicKey::new(*key).map_err(|_| Refusal::BadProof)?;
        key.verify(Domain::Session, &exporter, &Signature(asked.session))
            .map_err(|_| Refusal::BadProof)?;
        match &asked.who {
            Who::Node { enrolment, .. } => {
                let node = self.check_node(key, enrolment)?;
                self.become_node(node)?;
            }
            Who::Authority { .. } => self.become_authority(key)?,
        }
        Ok(authenticated)
    }

    fn check_node(&mut self, identity: PublicKey, enrolment: &[u8]) -> Result<Node, Refusal> {
        let enrolment = Enrolment::read(enrolment).map_err(|_| Refusal::NotEnrolled)?;
        if enrolment.proof.identity != identity {
            return Err(Refusal::BadProof);
        }
        let checked = {
            let register = self.broker.register();
            let mesh = register.mesh().ok_or(Refusal::NotReady)?;
            let grant = mesh.charter().grant(&enrolment.proof.grant);
            let site = grant.map(|standing| (standing.grant.site.clone(), standing.grant.role));
            mesh.check_enrolment(&enrolment)
                .and_then(|()| site.ok_or(MemberRefusal::NoGrant))
        };
        match checked {
            Ok((site, role)) => Ok(Node {
                identity,
                grant: enrolment.proof.grant,
                site,
                role,
            }),
            Err(error) => {
                let refusal = refusal(&error);
                if refusal == Refusal::GrantUnknown {
                    self.become_carrier(None)?;
                }
                Err(refusal)
            }
        }
    }

    fn become_node(&mut self, node: Node) -> Result<(), Refusal> {
        self.link.pass = None;
        let (identity, grant) = (node.identity, node.grant);
        info!(
            "node key {} of site {} at {} is here",
            identity.short(),
            node.site,
            self.link.peer
        );
        self.seat = Some(Seat::take(&self.broker, Some(node.clone())));
        self.caller = Caller::Node(node);
        self.requests = super::requests_of_known();
        self.frames.allow(MAX_FRAME);
        // It may have been revoked while this was decided, and before it had a seat to lose.
        let standing = {
            let register = self.broker.register();
            let mesh = register.mesh().ok_or(Refusal::NotReady)?;
            mesh.charter().standing(&grant, &identity)
        };
        if standing == Standing::Good {
            return Ok(());
        }
        self.broker.cut_off_revoked();
        Err(enrol::refusal_of(standing))
    }

    /// The authority in force; before there is a ledger, the one this broker was made for.
    fn become_authority(&mut self, key: PublicKey) -> Result<(), Refusal> {
        let (is_in_force, was_in_force) = {
            let register = self.broker.register();
            match register.mesh().map(proto::mesh::Mesh::charter) {
                Some(charter) => (
                    charter.authority == Some(key),
                    charter.authorities.contains(&key),
                ),
                None => (key == self.broker.authority, false),
            }
        };
        if is_in_force {
            self.link.pass = None;
            info!("the authority is at {}", self.link.peer);
            self.seat = Some(Seat::take(&self.broker, None));
            self.caller = Caller::Authority(key);
            self.requests = super::requests_of_known();
            self.frames.allow(MAX_FRAME);
            return Ok(());
        }
        if was_in_force {
            return Err(Refusal::NotAllowed);
        }
        // Perhaps one that this broker has yet to hear of.
        self.become_carrier(Some(key))
    }

    /// Few at a time, or strangers could fill memory with what proves nothing.
    fn become_carrier(&mut self, authority: Option<PublicKey>) -> Result<(), Refusal> {
        if self.is_carrier() {
            return Ok(());
        }
        let place = Arc::clone(&self.broker.carriers)
            .try_acquire_owned()
            .map_err(|_| Refusal::TooOften { retry_s: 10 })?;
        self.caller = Caller::Carrier {
            until: Instant::now() + CARRIES,
            authority,
            _place: place,
        };
        self.requests = Bucket::new(8, Duration::from_secs(1));
        self.frames.allow(MAX_FRAME);
        Ok(())
    }

    async fn put_ledger(&mut self, entries: Vec<Vec<u8>>) -> Result<Reply, Refusal> {
        let mut by = entries::By::Anybody;
        match self.caller {
            Caller::Stranger => return Err(Refusal::NotAllowed),
            // Each costs a copy of the ledger, whatever it brings.
            Caller::Carrier { .. } | Caller::Node(_) => self
                .ledgers
                .take(std::time::Instant::now())
                .map_err(too_often)?,
            Caller::Authority(_) | Caller::Local => by = entries::By::Authority,
        }
        let heads = entries::put(&self.broker, entries, by).await?;
        if let Caller::Carrier {
            authority: Some(key),
            ..
        } = self.caller
        {
            // What it brought may have made it the authority; if not, it stays what it is.
            self.become_authority(key)?;
        }
        Ok(Reply::LedgerTaken { heads })
    }

    async fn publish(&mut self, member: Vec<u8>) -> Result<Reply, Refusal> {
        let Caller::Node(node) = &self.caller else {
            return Err(Refusal::NotAllowed);
        };
        self.publications
            .take(std::time::Instant::now())
            .map_err(too_often)?;
        let done = publish::publish(&self.broker, &node.identity, member).await;
        let outcome = match &done {
            Ok(_) => "taken",
            Err(refusal) => super::reason_of(refusal),
        };
        self.broker
            .metrics
            .publications
            .get_or_create(&Outcome { outcome })
            .inc();
        done.map(|revision| Reply::Published { revision })
    }

    fn reflect(&mut self) -> Result<Reply, Refusal> {
        let Caller::Node(_) = &self.caller else {
            return Err(Refusal::NotAllowed);
        };
        let leave = match self.leave.take() {
            Some(leave) => leave,
            None => self
                .broker
                .askers
                .allow()
                .map_err(|_| Refusal::TooOften { retry_s: 1 })?,
        };
        let message = leave.message(self.broker.port);
        self.leave = Some(leave);
        Ok(Reply::Reflector(message))
    }

    fn relay(&mut self, peers: &[(u32, [u8; 32])]) -> Result<Reply, Refusal> {
        let node = match &self.caller {
            Caller::Node(node) if node.role.allows(Role::Gateway) => node,
            Caller::Node(_)
            | Caller::Stranger
            | Caller::Carrier { .. }
            | Caller::Authority(_)
            | Caller::Local => return Err(Refusal::NotAllowed),
        };
        let relay = self.broker.relay.as_ref().ok_or(Refusal::NoRelay)?;
        if peers.len() > MAX_PEERS {
            return Err(Refusal::Quota {
                what: "relayed gateways".to_owned(),
                most: u32::try_from(MAX_PEERS).unwrap_or(u32::MAX),
            });
        }
        let seat = match self.relay.take() {
            Some(seat) => seat,
            None => relay
                .seat(node.identity, node.grant)
                .map_err(|_| Refusal::TooOften { retry_s: 1 })?,
        };
        // Nobody has a key that is none.
        let wanted = peers.iter().filter_map(|(channel, peer)| {
            let peer = PublicKey::new(*peer).ok()?;
            Some((*channel, peer))
        });
        seat.handle_wanted(&wanted.collect::<Vec<_>>());
        let message = seat.message(self.broker.port);
        self.relay = Some(seat);
        Ok(Reply::Relay(message))
    }

    /// Of whoever has no place at the relay it is the last message.
    pub(super) fn handle_carry(&self, channel: u32, datagram: &[u8]) -> Result<Next, Closed> {
        let seat = self.relay.as_ref().ok_or(Closed::Refused)?;
        seat.handle_carried(channel, datagram);
        Ok(Next::GoOn)
    }

    fn list_nodes(&self, after: Option<[u8; 32]>) -> Reply {
        let register = self.broker.register();
        let now = unix_now();
        let mut room = BUDGET;
        let mut nodes = Vec::new();
        for (identity, listed) in register.nodes_after(after) {
            let length = listed.bytes.len() + 32;
            if length > room {
                break;
            }
            room -= length;
            let heard = register.heard(&identity);
            let connected =
                self.broker.seats.is_taken(&identity) || heard.is_some_and(|heard| heard.connected);
            nodes.push(NodeStatus {
                member: listed.bytes.to_vec(),
                connected,
                heard: if connected {
                    now
                } else {
                    heard.map_or(0, |heard| heard.at)
                },
            });
        }
        Reply::Nodes(nodes)
    }
}

/// As many as one reply has room for.
fn page(uses: impl Iterator<Item = GrantUse>) -> Vec<GrantUse> {
    let mut room = BUDGET;
    uses.take_while(|taken| {
        let left = room.checked_sub(taken.enrolment.len() + USE);
        room = left.unwrap_or(0);
        left.is_some()
    })
    .collect()
}

fn refusal(error: &MemberRefusal) -> Refusal {
    match error {
        MemberRefusal::NoGrant => Refusal::GrantUnknown,
        MemberRefusal::GrantClosed | MemberRefusal::Revoked => Refusal::Revoked,
        MemberRefusal::SiteRevoked => Refusal::SiteRevoked,
        MemberRefusal::Quarantined => enrol::refusal_of(Standing::Quarantined),
        MemberRefusal::WrongMesh(mesh) => Refusal::WrongMesh { mesh: mesh.0 },
        MemberRefusal::EnrolmentForm(_)
        | MemberRefusal::RecordForm(_)
        | MemberRefusal::UseNumber { .. }
        | MemberRefusal::Enrolment(_)
        | MemberRefusal::ForeignBroker(_)
        | MemberRefusal::OtherIdentity
        | MemberRefusal::RecordSignature
        | MemberRefusal::WrongSite { .. }
        | MemberRefusal::WrongRole { .. }
        | MemberRefusal::OldSequence { .. }
        | MemberRefusal::SameSequence(_)
        | MemberRefusal::TwoForOneUse(_)
        | MemberRefusal::Quota { .. } => Refusal::NotEnrolled,
    }
}

#[cfg(test)]
mod tests {
    use proto::codec;
    use proto::message::Answer;

    use super::*;

    #[test]
    fn a_page_of_uses_fits_into_a_frame_and_wastes_little_of_it() {
        let taken = |use_number| GrantUse {
            grant: [1; 32],
            use_number,
            identity: [2; 32],
            // As long as an enrolment is.
            enrolment: vec![3; 325],
        };
        let uses = page((u32::MAX - 5000..u32::MAX).map(taken));
        assert!(uses.len() > 500, "{}", uses.len());
        let answer = Answer::Reply {
            number: u32::MAX,
            reply: Reply::Uses(uses),
        };
        let bytes = codec::encode(&answer).unwrap();
        assert!((MAX_FRAME / 4 * 3..MAX_FRAME).contains(&bytes.len()));
        assert_eq!(codec::decode(&bytes), Ok(answer));
        assert_eq!(page((0..3).map(taken)).len(), 3);
    }
}
