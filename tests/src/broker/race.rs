//! Joins that race for one use of a token, all in this process.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use proto::enrolment::Enrolment;
use proto::key::{PublicKey, SigningKey};
use proto::message::{Refusal, Reply};
use tokio::sync::Barrier;

use super::cast::{Ticket, random};
use super::client::{Target, runtime};

/// Who got the use, and who did not.
pub struct Outcome {
    pub winner: PublicKey,
    pub losers: BTreeSet<PublicKey>,
}

/// `size` joiners, each from an address of its own and dealt out over the brokers, hold their proofs
/// ready and show them in one moment. An error if it is not so that one gets the use and all others
/// are told who did.
pub fn race(targets: &[Target], ticket: Ticket, size: usize) -> Result<Outcome> {
    runtime()?.block_on(run(targets, Arc::new(ticket), size))
}

async fn run(targets: &[Target], ticket: Arc<Ticket>, size: usize) -> Result<Outcome> {
    let barrier = Arc::new(Barrier::new(size));
    let mut joiners = Vec::new();
    for number in 0..size {
        let target = targets[number % targets.len()].clone();
        let (ticket, barrier) = (Arc::clone(&ticket), Arc::clone(&barrier));
        joiners.push(tokio::spawn(async move {
            let identity = SigningKey::from_seed(&random());
            let client = target.connect(Some(address(number))).await;
            // Whoever failed must not keep the others waiting.
            barrier.wait().await;
            let reply = client?
                .enrol(&ticket.entry, &ticket.join_key(), &identity)
                .await?;
            anyhow::Ok((identity.public(), reply))
        }));
    }
    let mut replies = Vec::new();
    for joiner in joiners {
        replies.push(joiner.await.context("a joiner panicked")??);
    }
    judge(&ticket, replies)
}

fn judge(ticket: &Ticket, replies: Vec<(PublicKey, Reply)>) -> Result<Outcome> {
    let enrolled: Vec<&(PublicKey, Reply)> = replies
        .iter()
        .filter(|(_, reply)| matches!(reply, Reply::Enrolled { .. }))
        .collect();
    let [(winner, Reply::Enrolled { enrolment })] = enrolled[..] else {
        bail!("{} of {} won", enrolled.len(), replies.len());
    };
    let enrolment = Enrolment::read(enrolment)?;
    let grant = ticket.entry.grant().context("a ticket holds a grant")?;
    enrolment.verify(grant)?;
    if enrolment.proof.identity != *winner || enrolment.use_number != 0 {
        bail!("the winner was given somebody else's enrolment");
    }
    let mut losers = BTreeSet::new();
    for (identity, reply) in replies.iter().filter(|(identity, _)| identity != winner) {
        let Reply::Refused(Refusal::TokenUsed {
            uses: 1,
            holder: Some(holder),
        }) = reply
        else {
            bail!("a loser was told {reply:?}");
        };
        if holder != winner.as_bytes() {
            bail!("a loser was told of another winner");
        }
        losers.insert(*identity);
    }
    Ok(Outcome {
        winner: *winner,
        losers,
    })
}

/// 127.2.0.0 and on.
fn address(number: usize) -> IpAddr {
    let number = u32::try_from(number).unwrap_or(0);
    Ipv4Addr::from_bits(0x7f02_0001 + number).into()
}
