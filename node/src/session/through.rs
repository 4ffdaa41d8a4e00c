//! To a broker by whatever way there is: directly, else through gateways of the same site.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use proto::entry::Role;
use proto::hello::Welcome;
use proto::key::{MeshId, PublicKey};
use proto::record::{Member, SignedRecord};
use proto::splice::{self, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Failure, STEP_DEADLINE, Session, Why, dial};
use crate::cache::Line;
use crate::contacts;
use crate::journal::Journal;
use crate::state::LocalNode;

/// So long the direct way is tried alone.
const HEAD_START: Duration = Duration::from_secs(1);
/// And so long each gateway, before the next is tried beside it.
const STAGGER: Duration = Duration::from_secs(1);
/// Gateways that are tried at a time for a way to one broker; others have their turn the next time.
pub(crate) const MAX_THROUGH: usize = 4;
/// A gateway tries all addresses of a broker before it gives up.
const VERDICT: Duration = Duration::from_secs(12);

/// How this node may reach brokers.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// Of the connection's packets, for the host's rules to tell them by.
    pub mark: Option<u32>,
    /// Gateways as `host:port`, in the order in which they are tried if the direct way fails.
    pub through: Vec<String>,
}

impl Ways {
    /// For a command beside the daemon: the gateway that the node joined through, and those that
    /// its cache names. What is read there is believed no more than that gateways are trusted: not
    /// at all.
    pub fn of(node: &LocalNode) -> Ways {
        let mut through: Vec<String> = node.membership.gateway().into_iter().collect();
        let lines = Journal::read(&node.cache_path()).unwrap_or_default();
        for address in lines.iter().rev().filter_map(|line| lan_of(line, node)) {
            let gateway = contacts::at(address);
            if through.len() < MAX_THROUGH && !through.contains(&gateway) {
                through.push(gateway);
            }
        }
        Ways {
            mark: None,
            through,
        }
    }
}

/// If the line is the record of a gateway of the node's site.
fn lan_of(line: &str, node: &LocalNode) -> Option<IpAddr> {
    let Ok(Line::Member(bytes)) = line.parse() else {
        return None;
    };
    let member = Member::read(&bytes).ok()?;
    let signed = SignedRecord::read(&member.record).ok()?;
    let record = signed.record();
    let is_one = record.role == Role::Gateway && record.site == *node.membership.site();
    let presence = record.presence().filter(|_| is_one)?;
    presence.lan_address
}

impl Session {
    /// By the first way that leads to the broker.
    pub async fn connect_by(
        address: &str,
        pin: PublicKey,
        mesh: MeshId,
        ways: &Ways,
    ) -> Result<(Session, Welcome), Failure> {
        let mut direct = pin!(Session::connect_marked(address, pin, mesh, ways.mark));
        if ways.through.is_empty() {
            return direct.await;
        }
        let failed = match timeout(HEAD_START, &mut direct).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(failure)) => Some(failure),
            Err(_) => None,
        };
        let target = Target {
            address: address.to_owned(),
            pin,
            mesh,
            mark: ways.mark,
        };
        let mut through = pin!(target.through(&ways.through));
        let failed = match failed {
            Some(failure) => failure,
            None => tokio::select! {
                connected = &mut direct => match connected {
                    Ok(connected) => return Ok(connected),
                    Err(failure) => failure,
                },
                connected = &mut through => return match connected {
                    Ok(connected) => Ok(connected),
                    Err(through) => direct.await.map_err(|failure| no_way(failure, through)),
                },
            },
        };
        through.await.map_err(|through| no_way(failed, through))
    }
}

fn no_way(direct: Failure, through: Vec<Failure>) -> Failure {
    Failure {
        address: direct.address,
        why: Why::NoWay {
            direct: Box::new(direct.why),
            through,
        },
    }
}

#[derive(Clone)]
struct Target {
    address: String,
    pin: PublicKey,
    mesh: MeshId,
    mark: Option<u32>,
}

impl Target {
    /// One gateway after the other, each a while beside the one before: one that keeps silent does
    /// not hold up the others.
    async fn through(&self, gateways: &[String]) -> Result<(Session, Welcome), Vec<Failure>> {
        let mut waiting = gateways.iter();
        let mut trying = JoinSet::new();
        let mut failed = Vec::new();
        loop {
            if let Some(gateway) = waiting.next() {
                trying.spawn(self.clone().by(gateway.clone()));
            } else if trying.is_empty() {
                return Err(failed);
            }
            tokio::select! {
                Some(tried) = trying.join_next() => match tried {
                    Ok(Ok(session)) => {
                        let welcome = session.welcome;
                        return Ok((session, welcome));
                    }
                    Ok(Err(failure)) => failed.push(failure),
                    // It neither panics nor is it ended from outside.
                    Err(_) => {}
                },
                () = sleep(STAGGER), if waiting.len() > 0 => {}
            }
        }
    }

    async fn by(self, gateway: String) -> Result<Session, Failure> {
        let session = async {
            let stream = splice(&gateway, &self.pin, self.mark).await?;
            Session::over(stream, &self.address, self.pin, self.mesh).await
        };
        match session.await {
            Ok(mut session) => {
                session.through = Some(gateway);
                Ok(session)
            }
            Err(why) => Err(Failure {
                address: gateway,
                why,
            }),
        }
    }
}

/// Has a gateway connect to the broker; from then on the broker is at the other end.
async fn splice(gateway: &str, broker: &PublicKey, mark: Option<u32>) -> Result<TcpStream, Why> {
    let dialled = dial(gateway, mark).await;
    let (mut stream, _) = dialled.map_err(|why| {
        if matches!(why, Why::ConnectionRefused) {
            Why::NoGateway
        } else {
            why
        }
    })?;
    let asked = timeout(STEP_DEADLINE, stream.write_all(&splice::call(broker))).await;
    asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let byte = match timeout(VERDICT, stream.read_u8()).await {
        Ok(Ok(byte)) => byte,
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Why::Closed),
        Ok(Err(error)) => return Err(Why::Broken(error)),
        Err(_) => return Err(Why::Silent(VERDICT)),
    };
    match Verdict::read(byte) {
        Some(Verdict::Connected) => Ok(stream),
        Some(verdict) => Err(Why::Splice(verdict)),
        None => Err(Why::NotAGateway),
    }
}
