//! How a node logs in at a broker, also at one that has been away while the ledger grew.

use proto::entry::SignedEntry;
use proto::message::Refusal;

use crate::session::{Failure, Session};
use crate::state::LocalNode;

/// A broker whose ledger lacks the node's grant lets it bring the entries that say what it is.
pub(crate) async fn log_in(
    session: &mut Session,
    local: &LocalNode,
    ledger: &[SignedEntry],
) -> Result<(), Failure> {
    let enrolment = local.membership.enrolment();
    let refused = match session.authenticate_node(&local.identity, enrolment).await {
        Ok(()) => return Ok(()),
        Err(failure) => failure,
    };
    if refused.refusal() != Some(&Refusal::GrantUnknown) || ledger.is_empty() {
        return Err(refused);
    }
    session.put_ledger(ledger).await?;
    session.authenticate_node(&local.identity, enrolment).await
}
