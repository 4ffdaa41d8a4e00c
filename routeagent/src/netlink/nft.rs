//! The nft table over netlink: read whole, made anew or changed in one transaction.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook as HookAttribute, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute,
    SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute,
    TableMessage,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    none::ControlMessage,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use super::request::{INTERRUPTED, TRIES, attributes, dump};
use super::transactions::transactions;
use super::{Refused, expression};
use crate::diff::Change;
use crate::guard::{Chain, FoundChain, FoundTable, Rule, SetName, Span, Table, after, before};
use crate::settings::TABLE_NAME;
use crate::wanted::Family;

const NFTABLES_SUBSYSTEM: u16 = 10;
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// Of a list of elements, of one of them, and of its parts.
const ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
const KEY: u16 = 1;
const VALUE: u16 = 1;
const FLAGS: u16 = 3;
const INTERVAL_END: u8 = 1;
/// Attributes of attributes have sixteen bits for their length.
const ELEMENTS_A_MESSAGE: usize = 500;
/// What fits the send buffer of a host that nobody tuned.
const ELEMENTS_A_TRANSACTION: usize = 1500;
/// More than both ends of an interval need in a request.
const ELEMENT_BYTES: usize = 128;

/// Speaks with nf_tables. The kernel has answered when a request returns, so nothing waits.
pub(crate) struct Nft {
    socket: Socket,
}

/// Another program's chain on the forward hook that drops by policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardChain {
    pub(crate) family: NetfilterProtoFamily,
    pub(crate) table: String,
    pub(crate) chain: String,
}

impl Nft {
    pub(crate) fn new() -> io::Result<Nft> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        socket.set_rx_buf_sz(1_i32 << 20)?;
        Ok(Nft { socket })
    }

    /// Our table as it is, unless there is none.
    pub(crate) fn found(&self) -> Result<Option<FoundTable>, Refused> {
        let mut found = FoundTable::default();
        let chains = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
        for answer in self.dump(NetfilterProtoFamily::Inet, chains)? {
            if let NfTablesMessage::NewChain(chain) = answer.1
                && let Some((name, chain)) = read_chain(&chain.attributes)
            {
                found.shape.insert(name, chain);
            }
        }
        let table = RuleAttribute::Table(TABLE_NAME.to_owned());
        let rules = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![table],
        });
        for answer in self.dump(NetfilterProtoFamily::Inet, rules)? {
            if let NfTablesMessage::NewRule(rule) = answer.1
                && let Some((chain, comment)) = read_rule(&rule.attributes)
                && let Some(chain) = found.shape.get_mut(&chain)
            {
                chain.comments.push(comment);
            }
        }
        for set in SetName::ALL {
            match self.elements(set) {
                Ok(spans) => {
                    found.sets.insert(set, spans);
                }
                Err(refused) if refused.is(libc::ENOENT) && set.is_always() => return Ok(None),
                Err(refused) if refused.is(libc::ENOENT) => {}
                Err(refused) => return Err(refused),
            }
        }
        Ok(Some(found))
    }

    pub(crate) fn exists(&self) -> Result<bool, Refused> {
        let tables = NfTablesMessage::GetTable(TableMessage { attributes: vec![] });
        let name = TableAttribute::Name(TABLE_NAME.to_owned());
        let found = self.dump(NetfilterProtoFamily::Inet, tables)?;
        Ok(found.into_iter().any(|(_, message)| {
            if let NfTablesMessage::NewTable(table) = message {
                table.attributes.contains(&name)
            } else {
                false
            }
        }))
    }

    fn elements(&self, set: SetName) -> Result<BTreeSet<Span>, Refused> {
        let request = NfTablesMessage::GetSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(TABLE_NAME.to_owned()),
                SetElementList::Set(set.name().to_owned()),
            ],
        });
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = serialize(NetfilterProtoFamily::Inet, flags, request, 1);
        let each = |edges: &mut Edges, _, body: &[u8]| read_edges(body, edges);
        let edges = dump(&self.socket, &request, each).map_err(|error| Refused {
            what: "nft list".to_owned(),
            error,
        })?;
        Ok(spans(&edges, set.family()))
    }

    pub(crate) fn apply(&self, change: &Change) -> Result<(), Refused> {
        match change {
            Change::Guard(table) => self.make(table),
            Change::Elements { set, add, remove } => {
                let gone: Vec<Span> = remove.iter().copied().collect();
                let new: Vec<Span> = add.iter().copied().collect();
                let room = self.room(gone.len() + new.len());
                for (gone, new) in transactions(gone, new, room) {
                    let mut batch = elements(*set, &gone, NfTablesMessage::DeleteSetElement);
                    batch.extend(elements(*set, &new, NfTablesMessage::NewSetElement));
                    self.commit("nft change set", batch)?;
                }
                Ok(())
            }
            Change::RemoveVxlan
            | Change::SetForwarding(_)
            | Change::RemoveForwarding(_)
            | Change::SetNeighbour(_)
            | Change::RemoveNeighbour(_)
            | Change::AddNexthop(..)
            | Change::ReplaceNexthop(..)
            | Change::RemoveNexthop(..)
            | Change::AddRoute(..)
            | Change::ReplaceRoute(..)
            | Change::RemoveRoute(..)
            | Change::AddRule(_)
            | Change::RemoveRule(_) => Ok(()),
        }
    }

    /// How many elements a transaction may have, if it shall have as many as this.
    fn room(&self, elements: usize) -> usize {
        let bytes = elements * ELEMENT_BYTES;
        let has_room = elements > ELEMENTS_A_TRANSACTION
            && setsockopt(&self.socket, sockopt::SndBufForce, &bytes).is_ok();
        if has_room {
            elements
        } else {
            ELEMENTS_A_TRANSACTION
        }
    }

    /// One transaction, whatever is there; what does not fit into it is added after.
    fn make(&self, table: &Table) -> Result<(), Refused> {
        let mut batch = vec![new_table(), delete_table(), new_table()];
        let mut later = vec![];
        let mut room = self.room(table.sets.values().map(BTreeSet::len).sum());
        for (id, (set, spans)) in table.sets.iter().enumerate() {
            batch.push(new_set(*set, id as u32 + 1));
            let spans: Vec<Span> = spans.iter().copied().collect();
            let (now, rest) = spans.split_at(room.min(spans.len()));
            room -= now.len();
            batch.extend(elements(*set, now, NfTablesMessage::NewSetElement));
            for part in rest.chunks(ELEMENTS_A_TRANSACTION) {
                later.push(elements(*set, part, NfTablesMessage::NewSetElement));
            }
        }
        for chain in &table.chains {
            batch.push(new_chain(chain));
            batch.extend(chain.rules.iter().map(|rule| new_rule(chain.name, rule)));
        }
        self.commit("nft make table inet causeway", batch)?;
        later
            .into_iter()
            .try_for_each(|batch| self.commit("nft fill set", batch))
    }

    /// Whether there was one.
    pub(crate) fn remove(&self) -> Result<bool, Refused> {
        match self.commit("nft delete table inet causeway", vec![delete_table()]) {
            Ok(()) => Ok(true),
            Err(refused) if refused.is(libc::ENOENT) => Ok(false),
            Err(refused) => Err(refused),
        }
    }

    pub(super) fn commit(
        &self,
        what: &str,
        batch: Vec<(NetfilterProtoFamily, u16, NfTablesMessage)>,
    ) -> Result<(), Refused> {
        let mut bytes = control(ControlMessage::BatchBegin);
        for (family, flags, message) in batch {
            bytes.extend(serialize(family, NLM_F_REQUEST | flags, message, 0));
        }
        bytes.extend(control(ControlMessage::BatchEnd));
        let failed = |error| Refused {
            what: what.to_owned(),
            error,
        };
        self.clear();
        self.socket.send(&bytes, 0).map_err(failed)?;
        self.answers(|_, _| {}).map_err(failed).map(drop)
    }

    pub(super) fn dump(
        &self,
        family: NetfilterProtoFamily,
        message: NfTablesMessage,
    ) -> Result<Vec<(NetfilterProtoFamily, NfTablesMessage)>, Refused> {
        let failed = |error| Refused {
            what: "nft list".to_owned(),
            error,
        };
        let request = serialize(family, NLM_F_REQUEST | NLM_F_DUMP, message, 1);
        let mut all = vec![];
        for _ in 0..TRIES {
            all.clear();
            self.clear();
            self.socket.send(&request, 0).map_err(failed)?;
            let answers = self.answers(|family, message| all.push((family, message)));
            if answers.map_err(failed)? {
                break;
            }
        }
        Ok(all)
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Answers to an earlier request that ended in an error.
    pub(super) fn clear(&self) {
        while self.socket.recv_from_full().is_ok() {}
    }

    /// All there is, and whether it is of one state; the first error of the kernel ends it.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kernel's enums are open, and most of them does not concern us"
    )]
    fn answers(
        &self,
        mut answer: impl FnMut(NetfilterProtoFamily, NfTablesMessage),
    ) -> io::Result<bool> {
        let mut is_one_state = true;
        loop {
            let bytes = match self.socket.recv_from_full() {
                Ok((bytes, _)) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(is_one_state),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = &bytes[..];
            while rest.len() >= HEADER {
                let len = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                let Some(one) = rest.get(..len).filter(|one| one.len() >= HEADER) else {
                    break;
                };
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
                // What other programs' objects hold need not be understood.
                let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(one) else {
                    continue;
                };
                is_one_state &= message.header.flags & INTERRUPTED == 0;
                match message.payload {
                    NetlinkPayload::Error(told) if told.code.is_some() => {
                        return Err(told.to_io());
                    }
                    NetlinkPayload::Done(_) => return Ok(is_one_state),
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        header,
                        inner: NetfilterMessageInner::NfTables(message),
                        ..
                    }) => answer(header.family, message),
                    _ => {}
                }
            }
        }
    }
}

type Kind = fn(SetElementMessage) -> NfTablesMessage;
type Step = (NetfilterProtoFamily, u16, NfTablesMessage);

fn control(message: ControlMessage) -> Vec<u8> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES_SUBSYSTEM);
    bytes(NLM_F_REQUEST, NetfilterMessage::new(header, message), 0)
}

pub(super) fn serialize(
    family: NetfilterProtoFamily,
    flags: u16,
    message: NfTablesMessage,
    sequence: u32,
) -> Vec<u8> {
    let header = NetfilterHeader::new(family, 0, 0);
    bytes(flags, NetfilterMessage::new(header, message), sequence)
}

fn bytes(flags: u16, message: NetfilterMessage, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn new_table() -> Step {
    let attributes = vec![TableAttribute::Name(TABLE_NAME.to_owned())];
    let message = NfTablesMessage::NewTable(TableMessage { attributes });
    (NetfilterProtoFamily::Inet, NLM_F_CREATE, message)
}

fn delete_table() -> Step {
    let attributes = vec![TableAttribute::Name(TABLE_NAME.to_owned())];
    let message = NfTablesMessage::DeleteTable(TableMessage { attributes });
    (NetfilterProtoFamily::Inet, 0, message)
}

fn new_set(set: SetName, id: u32) -> Step {
    // The type is for who lists it: ipv4_addr and ipv6_addr in the numbers of nft.
    let (kind, len) = match set.family() {
        Family::V4 => (7, 4),
        Family::V6 => (8, 16),
    };
    let attributes = vec![
        SetAttribute::Table(TABLE_NAME.to_owned()),
        SetAttribute::Name(set.name().to_owned()),
        SetAttribute::Flags(SetFlags::Interval),
        SetAttribute::KeyType(kind),
        SetAttribute::KeyLen(len),
        SetAttribute::Id(id),
    ];
    let message = NfTablesMessage::NewSet(SetMessage { attributes });
    (NetfilterProtoFamily::Inet, NLM_F_CREATE, message)
}

fn elements(set: SetName, spans: &[Span], kind: Kind) -> Vec<Step> {
    let parts = spans.chunks(ELEMENTS_A_MESSAGE).map(|part| {
        let elements = part.iter().flat_map(edges).collect();
        let attributes = vec![
            SetElementList::Table(TABLE_NAME.to_owned()),
            SetElementList::Set(set.name().to_owned()),
            SetElementList::Elements(elements),
        ];
        let message = kind(SetElementMessage { attributes });
        (NetfilterProtoFamily::Inet, NLM_F_CREATE, message)
    });
    parts.collect()
}

/// Where it begins, and the first address behind it unless it reaches to the end.
fn edges(span: &Span) -> Vec<ListAttribute<SetElementAttribute>> {
    let key = |address| SetElementAttribute::Key(DataAttribute::Value(octets(address)));
    let mut all = vec![ListAttribute::Element(vec![key(span.first)])];
    if let Some(end) = after(span.last) {
        let flags = SetElementAttribute::Flags(SetElementFlags::IntervalEnd);
        all.push(ListAttribute::Element(vec![key(end), flags]));
    }
    all
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

fn new_chain(chain: &Chain) -> Step {
    let attributes = vec![
        ChainAttribute::Table(TABLE_NAME.to_owned()),
        ChainAttribute::Name(chain.name.to_owned()),
        ChainAttribute::Hook(vec![
            HookAttribute::Number(netlink_packet_netfilter::nftables::HookNumber::Other(
                chain.hook as u32,
            )),
            HookAttribute::Priority(chain.priority.cast_unsigned()),
        ]),
        ChainAttribute::Policy(1),
        ChainAttribute::Type(chain.kind.to_owned()),
    ];
    let message = NfTablesMessage::NewChain(ChainMessage { attributes });
    (NetfilterProtoFamily::Inet, NLM_F_CREATE, message)
}

fn new_rule(chain: &str, rule: &Rule) -> Step {
    let attributes = vec![
        RuleAttribute::Table(TABLE_NAME.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expression::rule(rule)),
        RuleAttribute::UserData(user_data(&rule.comment())),
    ];
    let message = NfTablesMessage::NewRule(RuleMessage { attributes });
    (
        NetfilterProtoFamily::Inet,
        NLM_F_CREATE | NLM_F_APPEND,
        message,
    )
}

/// As the program nft keeps a comment: type, length, text with its end.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    let mut bytes = vec![0, comment.len() as u8 + 1];
    bytes.extend_from_slice(comment.as_bytes());
    bytes.push(0);
    bytes
}

/// What stands in a rule's user data, as far as it is a comment.
pub(super) fn comment(data: &[u8]) -> Option<String> {
    let [0, len, rest @ ..] = data else {
        return None;
    };
    let text = rest.get(..usize::from(*len).checked_sub(1)?)?;
    String::from_utf8(text.to_vec()).ok()
}

fn read_chain(attributes: &[ChainAttribute]) -> Option<(String, FoundChain)> {
    let ours = ChainAttribute::Table(TABLE_NAME.to_owned());
    if !attributes.contains(&ours) {
        return None;
    }
    let mut found = FoundChain::default();
    let mut name = None;
    for attribute in attributes {
        if let ChainAttribute::Name(text) = attribute {
            name = Some(text.clone());
        } else if let ChainAttribute::Hook(hook) = attribute {
            found.hook = read_hook(hook);
        }
    }
    Some((name?, found))
}

pub(super) fn read_hook(hook: &[HookAttribute]) -> (u32, i32) {
    let mut found = (0, 0);
    for attribute in hook {
        if let HookAttribute::Number(number) = attribute {
            found.0 = u32::from(*number);
        } else if let HookAttribute::Priority(priority) = attribute {
            found.1 = priority.cast_signed();
        }
    }
    found
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are open, and most of them does not concern us"
)]
fn read_rule(attributes: &[RuleAttribute]) -> Option<(String, String)> {
    let (mut chain, mut said) = (None, String::new());
    for attribute in attributes {
        match attribute {
            RuleAttribute::Table(name) if name != TABLE_NAME => return None,
            RuleAttribute::Chain(name) => chain = Some(name.clone()),
            RuleAttribute::UserData(data) => said = comment(data).unwrap_or_default(),
            _ => {}
        }
    }
    Some((chain?, said))
}

/// They sort with the end of one interval before the beginning of the next.
type Edges = BTreeSet<(Vec<u8>, bool)>;

/// The library's own reading takes a hundred times as long, and there may be tens of thousands.
fn read_edges(body: &[u8], edges: &mut Edges) {
    let inside = |bytes, wanted| {
        attributes(bytes).filter_map(move |(kind, value)| (kind == wanted).then_some(value))
    };
    let lists = inside(body.get(FAMILY_HEADER..).unwrap_or_default(), ELEMENTS);
    for element in lists.flat_map(|list| inside(list, ELEMENT)) {
        let (mut key, mut begins) = (None, true);
        for (kind, value) in attributes(element) {
            match kind {
                KEY => key = inside(value, VALUE).next().map(<[u8]>::to_vec),
                FLAGS => begins = value.last().is_some_and(|flags| flags & INTERVAL_END == 0),
                _ => {}
            }
        }
        edges.extend(key.map(|key| (key, begins)));
    }
}

fn spans(edges: &Edges, family: Family) -> BTreeSet<Span> {
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        match family {
            Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    };
    let highest: IpAddr = match family {
        Family::V4 => [0xff; 4].into(),
        Family::V6 => [0xff; 16].into(),
    };
    let mut all = BTreeSet::new();
    let mut open = None;
    for (key, begins) in edges {
        let Some(key) = address(key) else { continue };
        if let Some(first) = open.take()
            && let Some(last) = before(key)
        {
            all.insert(Span { first, last });
        }
        if *begins {
            open = Some(key);
        }
    }
    all.extend(open.map(|first| Span {
        first,
        last: highest,
    }));
    all
}
