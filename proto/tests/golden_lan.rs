//! What agents and gateways of a site send each other, byte by byte.

#[path = "golden/check.rs"]
mod check;

use proto::key::{Hash, PublicKey, SigningKey};
use proto::lan::{
    Answer, Ask, Heard, Message, Mode, PairKey, Probe, ProbeBy, Site, Sites, probe_addresses,
    site_hash, tag_of,
};

fn identity(seed: u8) -> PublicKey {
    SigningKey::from_seed(&[seed; 32]).public()
}

fn key() -> PairKey {
    let (one, other) = (identity(1), identity(2));
    PairKey::derive(&[9; 32], &Hash([7; 32]), &one, &other).expect("not all zeros")
}

fn ask() -> Ask {
    Ask {
        boot: 0x0102_0304_0506_0708,
        number: 9,
        interval: 50,
        heard: Some(Heard {
            boot: 0x1112_1314_1516_1718,
            number: 10,
        }),
        table: 3,
        parts: 0b101,
        mode: Mode::Vxlan,
        passes: Some(true),
        other_lan: Some("fd00::7".parse().expect("an address")),
        shows_other: false,
    }
}

fn answer() -> Answer {
    Answer {
        boot: 0x1112_1314_1516_1718,
        number: 11,
        to: Heard {
            boot: 0x0102_0304_0506_0708,
            number: 9,
        },
        interval: 250,
        table: 3,
        leaving: true,
        forwards: true,
        other_lan: None,
    }
}

fn messages() -> Vec<(&'static str, Message)> {
    let berlin = site_hash(&"berlin".parse().expect("a name"));
    let bare = Ask {
        heard: None,
        mode: Mode::Undecided,
        passes: None,
        other_lan: None,
        shows_other: true,
        ..ask()
    };
    let going_on = Answer {
        leaving: false,
        forwards: false,
        other_lan: Some([10, 1, 0, 1].into()),
        ..answer()
    };
    let site = |mtu, by_sibling| Site {
        hash: berlin,
        mtu,
        by_sibling,
    };
    let sites = Sites {
        boot: 0x1112_1314_1516_1718,
        table: 3,
        part: 1,
        of: 2,
        sites: vec![site(1420, false), site(1280, true)],
    };
    let probe = |by| Probe {
        nonce: 0x2122_2324_2526_2728,
        by,
        heard: Heard {
            boot: 0x1112_1314_1516_1718,
            number: 12,
        },
    };
    vec![
        ("ask", Message::Ask(ask())),
        ("ask-bare", Message::Ask(bare)),
        ("answer", Message::Answer(answer())),
        ("answer-going-on", Message::Answer(going_on)),
        ("sites", Message::Sites(sites)),
        ("probe", Message::Probe(probe(ProbeBy::Direct))),
        ("probe-answer", Message::ProbeAnswer(probe(ProbeBy::Vxlan))),
    ]
}

#[test]
fn every_message_between_agents_and_gateways() {
    let mut made = Vec::new();
    for (name, message) in messages() {
        let datagram = message.seal(tag_of(&identity(1)), &key());
        assert_eq!(Message::open(&datagram, &key()), Ok(message), "{name}");
        made.push((name.to_owned(), datagram));
    }
    for (name, by) in [("direct", ProbeBy::Direct), ("vxlan", ProbeBy::Vxlan)] {
        let (v4, v6) = probe_addresses(&identity(2), by);
        made.push((format!("address-{name}-v4"), v4.octets().to_vec()));
        made.push((format!("address-{name}-v6"), v6.octets().to_vec()));
    }
    check::check("lan.txt", &made);
}
