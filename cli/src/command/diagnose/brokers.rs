//! Whether brokers are reached from here, and what their clock says.

use std::time::{Duration, Instant};

use node::session::Session;
use proto::key::{Hash, PublicKey};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::check::{Check, Group, Sheet};
use super::known::Known;

const PATIENCE: Duration = Duration::from_secs(3);
/// A broker more is asked only as long as there are fewer than this.
const MOST: usize = 8;
/// Ahead or behind: noticed, and a grant's window missed.
const ODD_S: i64 = 5;
const WRONG_S: i64 = 300;

/// One to ask.
struct Target {
    address: String,
    /// The key it must show; without it only the port can be tried.
    pin: Option<PublicKey>,
}

struct Answer {
    address: String,
    /// How long it took, and its clock where it was asked in our own protocol.
    result: Result<(Duration, Option<u64>), String>,
}

pub(super) async fn checks(known: &Known, given: &[String]) -> Vec<Check> {
    let mut sheet = Sheet::new(Group::Broker);
    let mut targets: Vec<Target> = Vec::new();
    let pinned = known.brokers().into_iter().map(|broker| Target {
        address: broker.address,
        pin: Some(broker.key),
    });
    let bare = given.iter().map(|address| Target {
        address: address.clone(),
        pin: None,
    });
    for target in pinned.chain(bare) {
        let is_new = targets.iter().all(|known| known.address != target.address);
        if is_new && targets.len() < MOST {
            targets.push(target);
        }
    }
    if targets.is_empty() {
        let how = "no broker is known here; give the token with --token-file, or an address with --broker";
        sheet.skipped("broker", how);
        sheet.skipped("clock", how);
        return sheet.done();
    }
    let mesh = known.mesh();
    let asked = targets.into_iter().map(|target| {
        tokio::spawn(async move {
            let asked = timeout(PATIENCE, ask(&target, mesh.unwrap_or(Hash([0; 32])))).await;
            let late = || Err(format!("{} does not answer within 3 s", target.address));
            Answer {
                result: asked.unwrap_or_else(|_| late()),
                address: target.address,
            }
        })
    });
    let asked: Vec<_> = asked.collect();
    let mut answers = Vec::new();
    for task in asked {
        // It has no way to panic; and if it did, it gave no answer.
        answers.extend(task.await.ok());
    }
    report(&mut sheet, &answers, known);
    clock(&mut sheet, &answers);
    sheet.done()
}

async fn ask(target: &Target, mesh: Hash) -> Result<(Duration, Option<u64>), String> {
    let begun = Instant::now();
    let Some(pin) = target.pin else {
        let stream = TcpStream::connect(&target.address).await;
        let address = &target.address;
        return stream
            .map(|_| (begun.elapsed(), None))
            .map_err(|error| format!("{address}: {error}"));
    };
    match Session::connect(&target.address, pin, mesh).await {
        Ok((session, welcome)) => {
            let took = begun.elapsed();
            session.close().await;
            Ok((took, Some(welcome.now)))
        }
        Err(failure) => Err(failure.to_string()),
    }
}

fn report(sheet: &mut Sheet, answers: &[Answer], known: &Known) {
    let is_any = answers.iter().any(|answer| answer.result.is_ok());
    let by_gateway = known.daemons().find_map(|(_, told)| {
        let is_up = told.broker.state == "connected";
        told.broker.address.clone().filter(|_| is_up)
    });
    for answer in answers {
        let address = &answer.address;
        match &answer.result {
            Ok((took, Some(_))) => sheet.passed(
                "broker",
                format!("{address} answers with its key, in {} ms", took.as_millis()),
            ),
            Ok((_, None)) => sheet.passed(
                "broker",
                format!("TCP to {address} passes; with a token it could be asked more"),
            ),
            Err(why) if is_any => sheet.warning(
                "broker",
                why,
                "another broker is reached; see to this one, or remove it with `causeway broker remove`",
            ),
            Err(why) => match &by_gateway {
                Some(through) => sheet.passed(
                    "broker",
                    format!("{why}; this node's daemon is connected ({through})"),
                ),
                None => sheet.failed(
                    "broker",
                    why,
                    "see that the broker runs and that TCP to this address and port passes from here; an agent may reach it through its gateway (`join --via GATEWAY`)",
                ),
            },
        }
    }
}

/// The first that tells it; several that agree need not be named.
fn clock(sheet: &mut Sheet, answers: &[Answer]) {
    let told = answers.iter().find_map(|answer| match &answer.result {
        Ok((_, Some(now))) => Some((answer, *now)),
        Ok((_, None)) | Err(_) => None,
    });
    let Some((answer, theirs)) = told else {
        return sheet.skipped("clock", "no broker told its time");
    };
    let ahead = node::now()
        .cast_signed()
        .saturating_sub(theirs.cast_signed());
    judge_clock(sheet, ahead, &answer.address);
}

fn judge_clock(sheet: &mut Sheet, ahead: i64, address: &str) {
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    let saw = format!(
        "this machine's clock is {} s {way} that of {address}",
        ahead.abs()
    );
    let next =
        "set the clock of the one that is wrong, and keep it set (chrony, systemd-timesyncd)";
    match ahead.abs() {
        0..ODD_S => sheet.passed("clock", format!("within {ODD_S} s of that of {address}")),
        ODD_S..WRONG_S => sheet.warning("clock", saw, next),
        _ => sheet.failed(
            "clock",
            format!("{saw}: tokens may count as expired or not begun"),
            next,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Outcome;
    use super::*;

    #[test]
    fn a_clock_is_right_odd_or_wrong_either_way() {
        for (ahead, expected) in [
            (0, Outcome::Passed),
            (-4, Outcome::Passed),
            (6, Outcome::Warning),
            (-299, Outcome::Warning),
            (301, Outcome::Failed),
            (i64::MIN + 1, Outcome::Failed),
        ] {
            let mut sheet = Sheet::new(Group::Broker);
            judge_clock(&mut sheet, ahead, "b:1");
            assert_eq!(sheet.done()[0].result, expected, "{ahead}");
        }
    }
}
