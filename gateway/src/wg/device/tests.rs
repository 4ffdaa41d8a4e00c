//! Requests as text in, the wanted state as text out: the rules read as `wg` would meet them.

use super::*;
use crate::wg::protocol::{Request, parse_request};

/// Letters stand for keys: `peer a` is `public_key=0a0a…`.
fn request(lines: &str) -> SetRequest {
    let mut text = String::from("set=1\n");
    for line in lines
        .split_terminator(['\n', ';'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        match line.strip_prefix("peer ") {
            Some(letter) => text += &format!("public_key={}\n", key(letter)),
            None => text += &format!("{line}\n"),
        }
    }
    match parse_request(format!("{text}\n").as_bytes(), |_| None) {
        Ok(Request::Set(request)) => request,
        other => panic!("{lines}: {other:?}"),
    }
}

fn key(letter: &str) -> PublicKey {
    PublicKey([u8::from_str_radix(letter, 16).unwrap(); 32])
}

fn device(steps: &[&str]) -> Device {
    steps.iter().fold(Device::default(), |device, step| {
        device.apply(&request(step)).unwrap()
    })
}

/// `a: 10.0.0.0/8 fd00::/64, b:`; checked against the table of owners on the way.
fn peers(device: &Device) -> String {
    let mut owners = BTreeMap::new();
    let mut lines = Vec::new();
    for (key, peer) in &device.peers {
        owners.extend(peer.allowed_ips.iter().map(|prefix| (*prefix, *key)));
        let prefixes: String = peer
            .allowed_ips
            .iter()
            .map(|prefix| format!(" {prefix}"))
            .collect();
        lines.push(format!("{:x}:{prefixes}", key.0[0]));
    }
    assert_eq!(
        owners, *device.owners,
        "two peers own one prefix, or the table forgot one"
    );
    assert!(
        device
            .routes()
            .eq(owners.iter().map(|(prefix, key)| (*prefix, key)))
    );
    lines.join(", ")
}

#[test]
fn host_bits_are_cleared_in_both_families() {
    let device = device(&[
        "peer a; allowed_ip=192.168.4.77/24; allowed_ip=2001:db8::dead:beef/33; \
                           allowed_ip=10.255.255.255/0; allowed_ip=ffff::1/0; allowed_ip=10.0.0.1/32; \
                           allowed_ip=fd00::1/128; allowed_ip=10.255.255.255/9",
    ]);
    assert_eq!(
        peers(&device),
        "a: 0.0.0.0/0 10.0.0.1/32 10.128.0.0/9 192.168.4.0/24 ::/0 2001:db8::/33 fd00::1/128"
    );
}

#[test]
fn a_prefix_moves_to_the_peer_that_named_it_last() {
    let device = device(&[
        "peer a; allowed_ip=10.0.0.0/8; allowed_ip=10.1.0.0/16; peer b; allowed_ip=10.0.0.5/8",
    ]);
    assert_eq!(peers(&device), "a: 10.1.0.0/16, b: 10.0.0.0/8");
}

#[test]
fn prefixes_that_contain_each_other_live_side_by_side() {
    let device = device(&[
        "peer a; allowed_ip=10.0.0.0/8; peer b; allowed_ip=10.0.0.0/9; peer c; allowed_ip=10.0.0.0/32",
    ]);
    assert_eq!(
        peers(&device),
        "a: 10.0.0.0/8, b: 10.0.0.0/9, c: 10.0.0.0/32"
    );
}

#[test]
fn both_spellings_of_a_removal_take_a_prefix_away() {
    let device = device(&[
        "peer a; allowed_ip=10.0.0.0/8; allowed_ip=fd00::/8; allowed_ip=10.0.0.0/9",
        "peer a; allowed_ip=-10.1.1.1/8; -allowed_ip=fd00::1/8",
    ]);
    assert_eq!(peers(&device), "a: 10.0.0.0/9");
}

#[test]
fn removing_what_another_peer_has_or_nobody_has_does_nothing() {
    let device = device(&[
        "peer a; allowed_ip=10.0.0.0/8; peer b",
        "peer b; allowed_ip=-10.0.0.0/8; allowed_ip=-10.0.0.0/9; allowed_ip=-::/0",
    ]);
    assert_eq!(peers(&device), "a: 10.0.0.0/8, b:");
}

#[test]
fn steps_of_one_peer_are_taken_in_their_order() {
    let device = device(&[
        "peer a; allowed_ip=10.0.0.0/8; allowed_ip=-10.0.0.0/8; allowed_ip=-fd00::/8; allowed_ip=fd00::/8",
    ]);
    assert_eq!(peers(&device), "a: fd00::/8");
}

#[test]
fn replacing_allowed_ips_keeps_only_the_new_ones_wherever_it_is_said() {
    let device = device(&[
        "peer a; allowed_ip=10.0.0.0/8; allowed_ip=11.0.0.0/8; peer b; allowed_ip=12.0.0.0/8",
        "peer a; allowed_ip=12.0.0.0/8; replace_allowed_ips=true",
    ]);
    assert_eq!(peers(&device), "a: 12.0.0.0/8, b:");
    let device = device
        .apply(&request("peer a; replace_allowed_ips=true"))
        .unwrap();
    assert_eq!(peers(&device), "a:, b:");
}

#[test]
fn one_key_may_come_more_than_once_in_a_request() {
    let device = device(&[
        "peer a; allowed_ip=10.0.0.0/8; peer b; peer a; allowed_ip=11.0.0.0/8; peer b; remove=true",
    ]);
    assert_eq!(peers(&device), "a: 10.0.0.0/8 11.0.0.0/8");
}

#[test]
fn a_removed_peer_takes_its_prefixes_with_it_and_its_other_lines_mean_nothing() {
    let start = device(&["peer a; allowed_ip=10.0.0.0/8; peer b; allowed_ip=11.0.0.0/8"]);
    let device = start
        .apply(&request(
            "peer a; allowed_ip=11.0.0.0/8; remove=true; peer c; remove=true",
        ))
        .unwrap();
    assert_eq!(peers(&device), "b: 11.0.0.0/8");
    assert_eq!(
        changes(&start, &device),
        [Change::PeerRemoved(key("a")), Change::Routes]
    );
}

#[test]
fn update_only_changes_a_peer_and_makes_none() {
    let device = device(&[
        "peer a",
        "peer a; update_only=true; allowed_ip=10.0.0.0/8; peer b; update_only=true; allowed_ip=11.0.0.0/8",
    ]);
    assert_eq!(peers(&device), "a: 10.0.0.0/8");
}

#[test]
fn replacing_peers_forgets_all_that_are_not_named() {
    let start = device(&["peer a; allowed_ip=10.0.0.0/8; peer b; allowed_ip=11.0.0.0/8"]);
    let device = start
        .apply(&request(
            "replace_peers=true; peer c; allowed_ip=11.0.0.0/8",
        ))
        .unwrap();
    assert_eq!(peers(&device), "c: 11.0.0.0/8");
    let gone = [Change::PeerRemoved(key("a")), Change::PeerRemoved(key("b"))];
    assert_eq!(
        changes(&start, &device),
        [&gone[..], &[Change::PeerAdded(key("c")), Change::Routes]].concat()
    );
}

#[test]
fn a_peer_replaced_by_itself_is_a_new_peer() {
    let lines = "replace_peers=true; peer a; endpoint=192.0.2.1:1; allowed_ip=10.0.0.0/8";
    let start = device(&[lines]);
    let device = start.apply(&request(lines)).unwrap();
    assert_eq!(peers(&device), peers(&start));
    let expected = [
        Change::PeerRemoved(key("a")),
        Change::PeerAdded(key("a")),
        Change::Routes,
    ];
    assert_eq!(changes(&start, &device), expected);
}

#[test]
fn our_own_public_key_is_never_a_peer() {
    let own = PrivateKey::new([7; 32]).unwrap().public_key();
    let private = format!("private_key={}", "07".repeat(32));
    let added = device(&[
        &private,
        &format!("public_key={own}; allowed_ip=10.0.0.0/8; peer a"),
    ]);
    assert_eq!(peers(&added), "a:");
    let start = device(&[&format!("public_key={own}; allowed_ip=10.0.0.0/8; peer a")]);
    let device = start.apply(&request(&private)).unwrap();
    assert_eq!(peers(&device), "a:");
    assert_eq!(
        changes(&start, &device),
        [Change::PrivateKey, Change::PeerRemoved(own), Change::Routes]
    );
}

#[test]
fn keys_of_zeros_are_no_keys() {
    let psk = format!("preshared_key={}", "11".repeat(32));
    let start = device(&[&format!("private_key={}; peer a; {psk}", "22".repeat(32))]);
    assert!(start.private_key.is_some() && start.peers[&key("a")].preshared_key.is_some());
    let zeros = "00".repeat(32);
    let device = start
        .apply(&request(&format!(
            "private_key={zeros}; peer a; preshared_key={zeros}"
        )))
        .unwrap();
    assert!(device.private_key.is_none() && device.peers[&key("a")].preshared_key.is_none());
    assert_eq!(
        changes(&start, &device),
        [Change::PrivateKey, Change::PresharedKey(key("a"))]
    );
}

#[test]
fn what_a_request_does_not_say_stays() {
    let all = "listen_port=7; fwmark=8; peer a; endpoint=192.0.2.1:1; persistent_keepalive_interval=9; allowed_ip=10.0.0.0/8";
    let start = device(&[all]);
    let device = start.apply(&request("peer a")).unwrap();
    assert_eq!((device.listen_port, device.fwmark), (7, 8));
    assert_eq!(device.peers[&key("a")].keepalive, 9);
    assert_eq!(peers(&device), "a: 10.0.0.0/8");
    assert_eq!(changes(&start, &device), []);
}

#[test]
fn each_setting_is_a_change_of_its_own() {
    let start = device(&["peer a; endpoint=192.0.2.1:1; peer b"]);
    let change = |lines: &str| changes(&start, &start.apply(&request(lines)).unwrap());
    assert_eq!(change("listen_port=1"), [Change::ListenPort]);
    assert_eq!(change("fwmark=0x1"), [Change::Fwmark]);
    assert_eq!(
        change("peer b; persistent_keepalive_interval=1"),
        [Change::Keepalive(key("b"))]
    );
    assert_eq!(
        change("peer b; endpoint=[2001:db8::1]:1"),
        [Change::Endpoint(key("b"))]
    );
    assert_eq!(change("peer b; allowed_ip=10.0.0.0/8"), [Change::Routes]);
    assert_eq!(
        change("peer c; endpoint=192.0.2.1:1"),
        [Change::PeerAdded(key("c"))]
    );
    assert_eq!(change("peer c; remove=true"), []);
    assert_eq!(change(""), []);
}

#[test]
fn an_endpoint_set_to_the_same_value_again_is_a_change() {
    let start = device(&["peer a; endpoint=192.0.2.1:1"]);
    let device = start
        .apply(&request("peer a; endpoint=192.0.2.1:1"))
        .unwrap();
    assert_eq!(changes(&start, &device), [Change::Endpoint(key("a"))]);
}

#[test]
fn a_request_that_fails_half_way_leaves_nothing_behind() {
    let mut full = device(&["peer a; allowed_ip=10.0.0.0/8"]);
    let filler = Arc::new(Peer::default());
    for number in 0..MAX_PEERS as u32 - 1 {
        let mut key = [0xee; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        full.peers.insert(PublicKey(key), Arc::clone(&filler));
    }
    let error = full
        .apply(&request(
            "listen_port=5; peer a; allowed_ip=11.0.0.0/8; peer b",
        ))
        .unwrap_err();
    assert_eq!(error.errno, libc::ENOMEM);
    assert_eq!(
        (full.listen_port, full.peers.len(), full.routes().count()),
        (0, MAX_PEERS, 1)
    );
    assert!(
        full.apply(&request("peer a; remove=true; peer b")).is_ok(),
        "there is room once a peer went"
    );
}

#[test]
fn a_change_of_one_peer_copies_no_other() {
    let start = device(&["peer a; allowed_ip=10.0.0.0/8; peer b; allowed_ip=11.0.0.0/8"]);
    let device = start
        .apply(&request("peer a; persistent_keepalive_interval=1"))
        .unwrap();
    assert!(Arc::ptr_eq(
        &start.peers[&key("b")],
        &device.peers[&key("b")]
    ));
    assert!(Arc::ptr_eq(&start.owners, &device.owners));
}

#[test]
fn lengths_beyond_the_family_are_no_prefixes() {
    assert_eq!(Prefix::new("10.0.0.0".parse().unwrap(), 33), None);
    assert_eq!(Prefix::new("::".parse().unwrap(), 129), None);
}
