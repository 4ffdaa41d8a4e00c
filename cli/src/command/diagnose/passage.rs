//! Whether this gateway's kernel passes on what comes out of the tunnel: the daemon tries it.

use std::path::Path;
use std::time::Duration;

use gateway::status::{Passage, SOCKET, Way};

use super::check::{Check, Group, Sheet};
use super::known::{Known, get};

const NAME: &str = "tunnel-to-lan";
/// It is tried twice where it fails, on a machine that may have much else to do.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn checks(known: &Known, runtime: &Path) -> Vec<Check> {
    let mut sheet = Sheet::new(Group::Firewall);
    if known.gateway.is_some() {
        match get::<Passage>(&runtime.join(SOCKET), "/passage", PATIENCE) {
            Ok(passage) => report(&mut sheet, &passage),
            Err(why) => sheet.skipped(NAME, format!("the gateway does not try it: {why}")),
        }
    } else if known.may_forward() {
        sheet.skipped(NAME, "a gateway tries this, and none runs here");
    }
    sheet.done()
}

fn report(sheet: &mut Sheet, passage: &Passage) {
    for way in &passage.ways {
        let Way { what, next, .. } = way;
        match way.state.as_str() {
            "passed" => sheet.passed(NAME, what.clone()),
            "unseen" => sheet.warning(NAME, what.clone(), next.clone()),
            _ => sheet.failed(NAME, what.clone(), next.clone()),
        }
    }
    if passage.ways.is_empty() {
        let why = passage.untried.as_deref();
        sheet.skipped(NAME, why.unwrap_or("this gateway does not try it"));
    }
}
