//! What lies between this gateway and others, by what they and brokers see of it. Where no gateway
//! runs yet, brokers are asked from here, from one port.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use node::netlink::interfaces::interfaces;
use node::session::Session;
use node::state::LocalNode;
use proto::message::{Reflector, Reply, Request};
use proto::reflect::{self, Question};
use proto::token::TokenBroker;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::check::Sheet;
use super::known::{Known, Told};

const NAME: &str = "nat";
/// Brokers that are asked.
const MOST: usize = 3;
const PATIENCE: Duration = Duration::from_secs(2);
/// A datagram may be lost. Answers carry the MAC of their session, so that numbers need be no secret.
const TRIES: u64 = 3;
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nat {
    None,
    /// One outer address and port for all.
    Cone,
    /// Another one for each.
    Symmetric,
    /// Translated, and seen from one place only.
    Some,
    Unknown,
}

fn kind_of_nat(own: &[IpAddr], seen: &BTreeSet<SocketAddr>, witnesses: usize) -> Nat {
    let Some(first) = seen.iter().next() else {
        return Nat::Unknown;
    };
    if seen.iter().all(|address| own.contains(&address.ip())) {
        return Nat::None;
    }
    match (seen.len(), witnesses) {
        (1, 2..) => Nat::Cone,
        (1, _) => Nat::Some,
        // Several lines out have several addresses; several ports of one are a translator's.
        _ if seen.iter().all(|address| address.ip() == first.ip()) => Nat::Symmetric,
        _ => Nat::Unknown,
    }
}

pub(super) fn check(sheet: &mut Sheet, known: &Known) {
    if !known.may_forward() {
        return;
    }
    let seen = match (&known.gateway, &known.seen) {
        (Some(told), _) => by_others(told),
        // A daemon that does not answer has its say as soon as it does.
        (None, _) if !known.silent.is_empty() => return,
        (None, Ok(seen)) => seen.clone(),
        (None, Err(why)) => return sheet.skipped(NAME, why),
    };
    judge(sheet, &seen);
}

/// As other gateways and brokers tell a running gateway.
fn by_others(told: &Told) -> Vec<SocketAddr> {
    let of_others = told.links.iter().filter(|link| !link.sibling);
    let by_links = of_others.filter_map(|link| link.seen_as.clone());
    let reflected = told.addresses.iter().filter(|one| one.from == "reflected");
    let by_brokers = reflected.map(|one| one.address.clone());
    let all = by_links
        .chain(by_brokers)
        .filter_map(|text| text.parse().ok());
    // By a relay it is seen at the relay's socket on its own host.
    all.filter(|at: &SocketAddr| at.is_ipv4() && !at.ip().is_loopback())
        .collect()
}

fn judge(sheet: &mut Sheet, all: &[SocketAddr]) {
    let own = interfaces().unwrap_or_default();
    let own: Vec<IpAddr> = own.into_values().flat_map(|one| one.addresses).collect();
    let seen: BTreeSet<SocketAddr> = all.iter().copied().collect();
    let texts: Vec<String> = seen.iter().map(ToString::to_string).collect();
    let texts = texts.join(", ");
    match kind_of_nat(&own, &seen, all.len()) {
        Nat::None => sheet.passed(NAME, format!("no NAT: others see this gateway at its own address {texts}")),
        Nat::Cone => sheet.passed(NAME, format!("behind a NAT that keeps one port for all: {} see {texts}, so direct paths can be opened", all.len())),
        Nat::Some => sheet.passed(NAME, format!("behind a NAT: seen as {texts}, by one only, so its kind is not known")),
        Nat::Symmetric => sheet.warning(
            NAME,
            format!("behind a NAT with another port for each: seen as {texts}. Sites that are behind such a one too are reached through a relay"),
            "forward a UDP port to this gateway and give it with --endpoint, or set the NAT to endpoint-independent mapping",
        ),
        Nat::Unknown if texts.is_empty() => sheet.skipped(NAME, "unknown: neither a broker nor another gateway has told how it sees this one"),
        Nat::Unknown => sheet.skipped(NAME, format!("unknown: seen as {texts}, by several ways out")),
    }
}

/// How each broker sees one port of this machine; why that cannot be had.
pub(super) async fn ask(known: &Known) -> Result<Vec<SocketAddr>, String> {
    if known.daemons().next().is_some() || !known.may_forward() {
        return Ok(Vec::new());
    }
    let Some(local) = &known.local else {
        return Err("unknown: brokers tell only nodes that have joined how they see them; repeat this after `causeway join`".to_owned());
    };
    let mut open = Vec::new();
    let mut why = "no broker is known".to_owned();
    for broker in known.brokers().into_iter().take(MOST) {
        match timeout(PATIENCE, reflector(local, &broker)).await {
            Ok(Ok(one)) => open.push(one),
            Ok(Err(reason)) => why = reason,
            Err(_) => why = format!("{} does not answer", broker.address),
        }
    }
    let unknown = |why: &str| format!("unknown: {why}");
    if open.is_empty() {
        return Err(unknown(&why));
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await;
    let socket = socket.map_err(|error| unknown(&format!("no UDP port can be opened: {error}")))?;
    let mut seen = Vec::new();
    for (session, reflector) in &open {
        for address in session.addresses_at(reflector.port) {
            // The datagrams of one that is asked are not waited for at another.
            seen.extend(reflected(&socket, address, reflector).await);
        }
    }
    for (session, _) in open {
        session.close().await;
    }
    if seen.is_empty() {
        return Err(unknown(
            "no broker answers over UDP; see whether a firewall lets UDP to it pass",
        ));
    }
    Ok(seen)
}

/// It answers as long as the session is open.
async fn reflector(
    local: &LocalNode,
    broker: &TokenBroker,
) -> Result<(Session, Reflector), String> {
    let text = |failure: node::session::Failure| failure.to_string();
    let connected = Session::connect(&broker.address, broker.key, local.membership.mesh).await;
    let (mut session, _) = connected.map_err(text)?;
    let enrolment = local.membership.enrolment();
    let login = session.authenticate_node(&local.identity, enrolment).await;
    login.map_err(text)?;
    match session.call(Request::Reflect).await.map_err(text)? {
        Reply::Reflector(reflector) => Ok((session, reflector)),
        Reply::Enrolled { .. }
        | Reply::Authenticated { .. }
        | Reply::Published { .. }
        | Reply::Watching
        | Reply::Ledger { .. }
        | Reply::LedgerTaken { .. }
        | Reply::Nodes(_)
        | Reply::Uses(_)
        | Reply::Pong
        | Reply::Relay(_)
        | Reply::Refused(_) => Err(format!("{} has no reflector", broker.address)),
    }
}

async fn reflected(
    socket: &UdpSocket,
    address: SocketAddr,
    reflector: &Reflector,
) -> Option<SocketAddr> {
    let to = SocketAddr::new(address.ip().to_canonical(), address.port());
    if !to.is_ipv4() {
        return None;
    }
    for nonce in 1..=TRIES {
        let question = Question {
            session: reflector.session,
            nonce,
        };
        let datagram = reflect::question(question, &reflector.key);
        socket.send_to(&datagram, to).await.ok()?;
        let answer = timeout(ANSWER_WITHIN, answer(socket, reflector)).await;
        if let Ok(Some(seen)) = answer {
            return Some(seen);
        }
    }
    None
}

/// What else comes to the port is passed over.
async fn answer(socket: &UdpSocket, reflector: &Reflector) -> Option<SocketAddr> {
    let mut datagram = [0; 2 * reflect::LENGTH];
    loop {
        let (length, _) = socket.recv_from(&mut datagram).await.ok()?;
        let told = reflect::read_answer(&datagram[..length], &reflector.key);
        if let Ok(told) = told
            && told.session == reflector.session
        {
            return Some(told.seen_as);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sees_this_gateway_through_a_relay_tells_nothing_of_it() {
        let link = |seen: &str| gateway::status::Link {
            seen_as: Some(seen.to_owned()),
            ..Default::default()
        };
        let told = Told {
            links: vec![link("127.0.0.1:6099"), link("198.51.100.1:40000")],
            ..Told::default()
        };
        let seen = by_others(&told);
        assert_eq!(seen, ["198.51.100.1:40000".parse().unwrap()]);
    }

    #[test]
    fn a_nat_is_known_by_what_several_see() {
        let own: IpAddr = "192.0.2.9".parse().unwrap();
        let kind = |seen: &[&str]| {
            let all = seen.iter().map(|text| text.parse().unwrap()).collect();
            kind_of_nat(&[own], &all, seen.len())
        };
        assert_eq!(kind(&[]), Nat::Unknown);
        assert_eq!(kind(&["192.0.2.9:51820"]), Nat::None);
        assert_eq!(kind(&["198.51.100.1:40000"]), Nat::Some);
        assert_eq!(
            kind(&["198.51.100.1:40000", "198.51.100.1:40000"]),
            Nat::Cone
        );
        assert_eq!(
            kind(&["198.51.100.1:40000", "198.51.100.1:40001"]),
            Nat::Symmetric
        );
        assert_eq!(
            kind(&["198.51.100.1:40000", "203.0.113.1:40000"]),
            Nat::Unknown
        );
    }
}
