//! Terms of a rule as the kernel's expressions. What netlink-packet-netfilter has no types for is
//! put together from attributes here, by the numbers of `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    Lookup, Meta, MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use crate::guard::{Rule, SetName, Term};
use crate::inspect::Flow;
use crate::wanted::Family;

pub(super) type Expression = ListAttribute<ExpressionAttribute>;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const RTN_LOCAL: u32 = 2;
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 2;
/// In a header of IPv4 and of IPv6.
const SOURCE_AT: (u32, u32) = (12, 8);
const DESTINATION_AT: (u32, u32) = (16, 24);
/// Keys of conntrack for the same.
const ORIGINAL_SOURCE: (u32, u32) = (19, 21);
const ORIGINAL_DESTINATION: (u32, u32) = (20, 22);
/// The kernel compares names with all of their sixteen bytes.
const NAME_LEN: usize = 16;

pub(super) fn rule(rule: &Rule) -> Vec<Expression> {
    rule.0.iter().flat_map(term).collect()
}

/// The source that this machine has on the way out.
pub(super) fn masquerade() -> Expression {
    raw("masq", vec![])
}

/// Marks what is of `flow`.
pub(super) fn traced(flow: &Flow) -> Vec<Expression> {
    const TRACE: u32 = 12;
    let mut all = of_flow(flow);
    all.extend([
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Reg1),
            Immediate::Data(DataAttribute::Value(vec![1])),
        ])
        .into(),
        Expressions::Meta(vec![
            Meta::Key(MetaKey::from(TRACE)),
            Meta::SourceRegister(Register::Reg1),
        ])
        .into(),
    ]);
    all
}

pub(super) fn dropped(flow: &Flow) -> Vec<Expression> {
    let mut all = of_flow(flow);
    all.extend(term(&Term::Drop));
    all
}

/// What this node's kernel would tell the source of such a packet about it.
pub(super) fn errors_dropped(flow: &Flow) -> Vec<Expression> {
    let Some(source) = flow.source else {
        return vec![];
    };
    let icmp = if source.is_ipv4() { 1 } else { 58 };
    let mut all = is_at(source, DESTINATION_AT);
    all.extend([load(MetaKey::L4Proto), compare(true, vec![icmp])]);
    all.extend(term(&Term::Drop));
    all
}

fn is_at(address: IpAddr, (v4_offset, v6_offset): (u32, u32)) -> Vec<Expression> {
    let (offset, bytes) = match address {
        IpAddr::V4(v4) => (v4_offset, v4.octets().to_vec()),
        IpAddr::V6(v6) => (v6_offset, v6.octets().to_vec()),
    };
    let mut all = is_family(Family::of(address));
    all.push(payload(NETWORK_HEADER, offset, bytes.len() as u32));
    all.push(compare(true, bytes));
    all
}

fn of_flow(flow: &Flow) -> Vec<Expression> {
    let ends = [(flow.source, SOURCE_AT), (flow.destination, DESTINATION_AT)];
    let ends = ends.into_iter();
    let mut all: Vec<Expression> = ends
        .filter_map(|(address, at)| Some(is_at(address?, at)))
        .flatten()
        .collect();
    all.extend(
        flow.port
            .into_iter()
            .flat_map(|port| term(&Term::UdpTo(port))),
    );
    all
}

fn term(term: &Term) -> Vec<Expression> {
    match term {
        Term::Input { is, device } => name(MetaKey::Iifname, *is, device),
        Term::Output { is, device } => name(MetaKey::Oifname, *is, device),
        Term::From { is, index } => {
            vec![load(MetaKey::Iif), compare(*is, index.to_ne_bytes().into())]
        }
        Term::To(index) => vec![
            load(MetaKey::Oif),
            compare(true, index.to_ne_bytes().into()),
        ],
        Term::Source(set) => header_in(*set, SOURCE_AT, true),
        Term::SourceNot(set) => header_in(*set, SOURCE_AT, false),
        Term::Destination(set) => header_in(*set, DESTINATION_AT, true),
        Term::OriginalSource(set) => original_in(*set, ORIGINAL_SOURCE),
        Term::OriginalDestination(set) => original_in(*set, ORIGINAL_DESTINATION),
        Term::NextHop(set) => next_hop_in(*set),
        Term::NotTranslated => not_translated(),
        Term::OwnSource => is_own(FIB_SOURCE, true),
        Term::ComesAstray => comes_astray(),
        Term::DestinationIsOwn(is) => is_own(FIB_DESTINATION, *is),
        Term::UdpTo(port) => vec![
            load(MetaKey::L4Proto),
            compare(true, vec![17]),
            payload(TRANSPORT_HEADER, 2, 2),
            compare(true, port.to_be_bytes().into()),
        ],
        Term::Marked(value, mask) => vec![
            load(MetaKey::Mark),
            masked(*mask, 0),
            compare(true, value.to_ne_bytes().into()),
        ],
        Term::Mark(value, mask) => vec![
            load(MetaKey::Mark),
            masked(!mask, *value),
            Expressions::Meta(vec![
                Meta::Key(MetaKey::Mark),
                Meta::SourceRegister(Register::Reg1),
            ])
            .into(),
        ],
        Term::Count => vec![raw("counter", vec![])],
        Term::Accept => vec![verdict(NF_ACCEPT)],
        Term::Drop => vec![verdict(NF_DROP)],
        Term::Untracked => vec![raw("notrack", vec![])],
        Term::KeepSource(family) => keep_source(*family),
        Term::TranslateSource(address) => translate_source(*address),
    }
}

fn name(key: MetaKey, is: bool, device: &str) -> Vec<Expression> {
    let mut bytes = device.as_bytes().to_vec();
    bytes.resize(NAME_LEN, 0);
    vec![load(key), compare(is, bytes)]
}

fn is_family(family: Family) -> Vec<Expression> {
    let number = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    vec![load(MetaKey::Nfproto), compare(true, vec![number])]
}

fn header_in(set: SetName, (v4_offset, v6_offset): (u32, u32), is: bool) -> Vec<Expression> {
    let (offset, len) = match set.family() {
        Family::V4 => (v4_offset, 4),
        Family::V6 => (v6_offset, 16),
    };
    found_in(set, payload(NETWORK_HEADER, offset, len), is)
}

/// Of the packet that began the connection, in the direction it went.
fn original_in(set: SetName, (v4_key, v6_key): (u32, u32)) -> Vec<Expression> {
    const DIRECTION: u16 = 3;
    const ORIGINAL: u8 = 0;
    let key = match set.family() {
        Family::V4 => v4_key,
        Family::V6 => v6_key,
    };
    let mut attributes = conntrack(key);
    attributes.push(DefaultNla::new(DIRECTION, vec![ORIGINAL]));
    found_in(set, raw("ct", attributes), true)
}

fn next_hop_in(set: SetName) -> Vec<Expression> {
    const DREG: u16 = 1;
    const KEY: u16 = 2;
    let key = match set.family() {
        Family::V4 => 1,
        Family::V6 => 2,
    };
    let attributes = vec![number(DREG, Register::Reg1.into()), number(KEY, key)];
    found_in(set, raw("rt", attributes), true)
}

fn not_translated() -> Vec<Expression> {
    const STATUS: u32 = 2;
    const DESTINATION_TRANSLATED: u32 = 32;
    vec![
        raw("ct", conntrack(STATUS)),
        masked(DESTINATION_TRANSLATED, 0),
        compare(true, vec![0; 4]),
    ]
}

fn conntrack(key: u32) -> Vec<DefaultNla> {
    const DREG: u16 = 1;
    const KEY: u16 = 2;
    vec![number(DREG, Register::Reg1.into()), number(KEY, key)]
}

/// What `load` brings, looked up.
fn found_in(set: SetName, load: Expression, is: bool) -> Vec<Expression> {
    const INVERTED: u32 = 1;
    let mut lookup = vec![
        Lookup::Set(set.name().to_owned()),
        Lookup::SourceRegister(Register::Reg1),
    ];
    if !is {
        lookup.push(Lookup::Flags(INVERTED));
    }
    let mut all = is_family(set.family());
    all.extend([load, Expressions::Lookup(lookup).into()]);
    all
}

fn is_own(which: u32, is: bool) -> Vec<Expression> {
    const ADDRESS_TYPE: u32 = 3;
    let fib = fib(ADDRESS_TYPE, which);
    vec![fib, compare(is, RTN_LOCAL.to_ne_bytes().into())]
}

fn comes_astray() -> Vec<Expression> {
    const OUTPUT: u32 = 1;
    const BY_INPUT: u32 = 8;
    const PRESENT: u32 = 32;
    let fib = fib(OUTPUT, FIB_SOURCE | BY_INPUT | PRESENT);
    vec![fib, compare(true, vec![0; 4])]
}

fn fib(result: u32, flags: u32) -> Expression {
    const DREG: u16 = 1;
    const RESULT: u16 = 2;
    const FLAGS: u16 = 3;
    raw(
        "fib",
        vec![
            number(DREG, Register::Reg1.into()),
            number(RESULT, result),
            number(FLAGS, flags),
        ],
    )
}

fn keep_source(family: Family) -> Vec<Expression> {
    let (offset, len) = match family {
        Family::V4 => (SOURCE_AT.0, 4),
        Family::V6 => (SOURCE_AT.1, 16),
    };
    source_becomes(family, payload(NETWORK_HEADER, offset, len))
}

fn translate_source(address: IpAddr) -> Vec<Expression> {
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let constant = Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Reg1),
        Immediate::Data(DataAttribute::Value(bytes)),
    ]);
    source_becomes(Family::of(address), constant.into())
}

fn source_becomes(family: Family, load: Expression) -> Vec<Expression> {
    const TYPE: u16 = 1;
    const FAMILY: u16 = 2;
    const ADDRESS: u16 = 3;
    const SOURCE: u32 = 0;
    let protocol = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    let nat = raw(
        "nat",
        vec![
            number(TYPE, SOURCE),
            number(FAMILY, u32::from(protocol)),
            number(ADDRESS, Register::Reg1.into()),
        ],
    );
    let mut all = is_family(family);
    all.extend([load, nat]);
    all
}

fn load(key: MetaKey) -> Expression {
    Expressions::Meta(vec![
        Meta::Key(key),
        Meta::DestinationRegister(Register::Reg1),
    ])
    .into()
}

fn payload(base: u32, offset: u32, len: u32) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
    .into()
}

fn compare(equal: bool, data: Vec<u8>) -> Expression {
    let op = if equal {
        Operator::Equal
    } else {
        Operator::NotEqual
    };
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(op),
        Cmp::Data(DataAttribute::Value(data)),
    ])
    .into()
}

/// The register, cut down to `mask` and then turned over in the bits of `xor`.
fn masked(mask: u32, xor: u32) -> Expression {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(4),
        Bitwise::Mask(DataAttribute::Value(mask.to_ne_bytes().into())),
        Bitwise::Xor(DataAttribute::Value(xor.to_ne_bytes().into())),
    ])
    .into()
}

fn verdict(code: u32) -> Expression {
    let code = VerdictAttribute::Code(Verdict::Other(code));
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![code])),
    ])
    .into()
}

fn raw(kind: &str, attributes: Vec<DefaultNla>) -> Expression {
    Expressions::Other {
        expression_type: kind.to_owned(),
        attributes,
    }
    .into()
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().into())
}
