use super::*;

/// An attribute with what is in it.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let len = content.len() as u16 + 4;
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn expression(name: &str, data: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let data: Vec<u8> = data
        .iter()
        .flat_map(|(kind, content)| attribute(*kind, content))
        .collect();
    let inner = [attribute(1, name.as_bytes()), attribute(2, &data)].concat();
    attribute(1, &inner)
}

fn raw(expressions: &[Vec<u8>]) -> Raw {
    let attributes = [
        attribute(1, b"filter\0"),
        attribute(2, b"FORWARD\0"),
        attribute(3, &7_u64.to_be_bytes()),
        attribute(4, &expressions.concat()),
    ];
    Raw {
        kind: 0,
        family: 2,
        attributes: attributes.concat(),
    }
}

#[test]
fn a_prefix_that_was_loaded_in_part_is_read_as_one() {
    let number = |value: u32| value.to_be_bytes().to_vec();
    let load = expression(
        "payload",
        &[
            (1, number(1)),
            (2, number(1)),
            (3, number(16)),
            (4, number(2)),
        ],
    );
    let compare = expression(
        "cmp",
        &[(1, number(1)), (2, number(0)), (3, attribute(1, &[10, 2]))],
    );
    let drop = attribute(2, &attribute(1, &number(0)));
    let verdict = expression("immediate", &[(1, number(0)), (2, drop)]);
    let (_, rule) = rule(&raw(&[load, compare, verdict])).unwrap();
    assert_eq!(rule.said(), "ip daddr 10.2.0.0/16 drop");
}

#[test]
fn whatever_is_told_is_read_without_harm() {
    const NAMES: [&str; 14] = [
        "payload",
        "cmp",
        "bitwise",
        "lookup",
        "immediate",
        "nat",
        "match",
        "target",
        "range",
        "meta",
        "ct",
        "fib",
        "byteorder",
        "redir",
    ];
    const XT: [&[u8]; 8] = [
        b"conntrack\0",
        b"multiport\0",
        b"iprange\0",
        b"addrtype\0",
        b"tcp\0",
        b"DNAT\0",
        b"REDIRECT\0",
        b"mark\0",
    ];
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % below
    };
    for _ in 0..20_000 {
        let mut parts = vec![];
        for _ in 0..1 + random(6) {
            let mut data = vec![];
            for kind in 1..6_u16 {
                let len = [0, 1, 4, 8, 40, 160][random(6)];
                let mut content: Vec<u8> = (0..len).map(|_| random(256) as u8).collect();
                match random(4) {
                    0 => content = (random(24) as u32).to_be_bytes().into(),
                    1 => content = attribute(random(3) as u16, &content),
                    2 if kind == 1 => content = XT[random(XT.len())].into(),
                    _ => {}
                }
                data.push((kind, content));
            }
            parts.push(expression(NAMES[random(NAMES.len())], &data));
        }
        let mut one = raw(&parts);
        let end = random(one.attributes.len() * 2);
        one.attributes.truncate(end);
        if let Some((_, rule)) = rule(&one) {
            let _ = rule.said();
        }
        let _ = (chain(&one), set(&[one]));
    }
}
