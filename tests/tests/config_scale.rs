//! Large configurations come back exactly (netns.sh 40 to 45).

#![cfg(test)]
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tests::lab::Lab;
use tests::shown::allowed_ips;
use tests::subject::{missing, subject};
use tests::wireguard::{Device, Keys};

fn alone(tag: &str) -> (Device, Lab) {
    let lab = Lab::new(tag).unwrap();
    let namespace = lab.namespace("a").unwrap();
    (Device::start(&namespace, subject(), 51820).unwrap(), lab)
}

fn public_key(device: &Device) -> String {
    Keys::generate(device.namespace()).unwrap().public
}

fn peer_section(public: &str, prefixes: &[String]) -> String {
    let mut section = format!("[Peer]\nPublicKey = {public}\n");
    // wg reads lines of any length, but people look at these when a test fails.
    for line in prefixes.chunks(100) {
        writeln!(section, "AllowedIPs = {}", line.join(", ")).unwrap();
    }
    section
}

fn set(items: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    items.into_iter().collect()
}

/// netns.sh 40.
#[test]
fn a_hundred_thousand_prefixes_of_one_peer_come_back() {
    if missing(&[]) {
        return;
    }
    let (device, _lab) = alone("many");
    let peer = public_key(&device);
    let pairs = || (0..=254).flat_map(|high| (0..=255).map(move |low| (high, low)));
    let prefixes: Vec<String> = pairs()
        .map(|(high, low)| format!("10.{high}.{low}.0/24"))
        .chain(pairs().map(|(high, low)| {
            format!("fd00:{high:x}:{low:x}::/48")
                .replace(":0:0::", "::")
                .replace(":0::/48", "::/48")
        }))
        .collect();
    assert_eq!(prefixes.len(), 2 * 65_280);
    device.configure(&peer_section(&peer, &prefixes)).unwrap();
    let found = set(allowed_ips(&device, &peer).unwrap());
    let expected = set(prefixes);
    let differing: Vec<_> = found.symmetric_difference(&expected).take(5).collect();
    assert!(differing.is_empty(), "among others {differing:?}");
}

/// netns.sh 41 and 42.
#[test]
fn many_peers_with_and_without_prefixes_come_back() {
    if missing(&[]) {
        return;
    }
    let (device, _lab) = alone("peers");
    let mut expected = BTreeSet::new();
    let mut configuration = String::new();
    for high in 0..40 {
        let peer = public_key(&device);
        let prefixes: Vec<String> = (0..52).map(|low| format!("10.{high}.{low}.0/24")).collect();
        configuration += &peer_section(&peer, &prefixes);
        expected.extend(prefixes.iter().map(|prefix| format!("{peer} {prefix}")));
    }
    let bare: Vec<String> = (0..29).map(|_| public_key(&device)).collect();
    for peer in &bare {
        configuration += &peer_section(peer, &[]);
        expected.insert(format!("{peer} (none)"));
    }
    device.configure(&configuration).unwrap();
    let shown = device.show("allowed-ips").unwrap();
    let found = set(shown.lines().flat_map(|line| {
        let mut words = line.split_whitespace();
        let peer = words.next().unwrap_or_default();
        words.map(move |prefix| format!("{peer} {prefix}"))
    }));
    assert_eq!(found, expected);
    assert_eq!(shown.lines().count(), 69);
}

/// netns.sh 43.
#[test]
fn a_peer_with_none_and_a_peer_with_197_prefixes_come_back() {
    if missing(&[]) {
        return;
    }
    let (device, _lab) = alone("197");
    let (bare, full) = (public_key(&device), public_key(&device));
    let prefixes: Vec<String> = (1..=197).map(|low| format!("192.168.{low}.0/24")).collect();
    let configuration = peer_section(&bare, &[]) + &peer_section(&full, &prefixes);
    device.configure(&configuration).unwrap();
    assert_eq!(allowed_ips(&device, &bare).unwrap(), ["(none)"]);
    assert_eq!(set(allowed_ips(&device, &full).unwrap()), set(prefixes));
}

/// netns.sh 44: the `-` of newer tools, which the tools of a stable system do not know, is sent over
/// the configuration socket itself.
#[test]
fn single_prefixes_are_taken_away() {
    if missing(&["socat"]) {
        return;
    }
    let (device, _lab) = alone("minus");
    let peer = public_key(&device);
    let mut prefixes: Vec<String> = (1..=197)
        .flat_map(|low| {
            [
                format!("192.168.{low}.0/24"),
                format!("2001:db8:{low:x}::/48"),
            ]
        })
        .collect();
    device.configure(&peer_section(&peer, &prefixes)).unwrap();
    let gone = [1, 100, 197].map(|low| {
        [
            format!("192.168.{low}.0/24"),
            format!("2001:db8:{low:x}::/48"),
        ]
    });
    let gone: Vec<String> = gone.into_iter().flatten().collect();
    let hex = tests::shown::hex(&peer).unwrap();
    let mut request = format!("set=1\npublic_key={hex}\nupdate_only=true\n");
    for prefix in &gone {
        writeln!(request, "allowed_ip=-{prefix}").unwrap();
    }
    request.push('\n');
    let socket = format!("UNIX-CONNECT:{}", device.socket().display());
    let answer = device
        .namespace()
        .run_with_input("socat", &["-t5", "-", &socket], &request)
        .unwrap();
    assert_eq!(answer.trim(), "errno=0");
    prefixes.retain(|prefix| !gone.contains(prefix));
    assert_eq!(prefixes.len(), 388);
    assert_eq!(set(allowed_ips(&device, &peer).unwrap()), set(prefixes));
}

/// netns.sh 45.
#[test]
fn a_device_that_does_not_exist_is_an_error() {
    if missing(&[]) {
        return;
    }
    let (device, _lab) = alone("none");
    let outcome = device.namespace().run("wg", &["show", "doesnotexist"]);
    assert!(outcome.is_err());
}

/// `wg syncconf` to the same configuration changes nothing, and to another one only what differs.
#[test]
fn a_synchronised_configuration_is_the_one_that_was_given() {
    if missing(&[]) {
        return;
    }
    let (device, _lab) = alone("sync");
    let [kept, gone, fresh] = [(); 3].map(|()| public_key(&device));
    let own = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\n",
        device.keys().private
    );
    let prefix = |at: u8| vec![format!("10.{at}.0.0/16")];
    let first = own.clone() + &peer_section(&kept, &prefix(1)) + &peer_section(&gone, &prefix(2));
    let second = own + &peer_section(&kept, &prefix(1)) + &peer_section(&fresh, &prefix(2));
    for command in ["setconf", "syncconf"] {
        let apply = |configuration: &str| {
            let arguments = [command, device.interface(), "/dev/stdin"];
            device
                .namespace()
                .run_with_input("wg", &arguments, configuration)
                .unwrap();
        };
        apply(&first);
        assert_eq!(allowed_ips(&device, &gone).unwrap(), prefix(2));
        apply(&second);
        assert_eq!(allowed_ips(&device, &fresh).unwrap(), prefix(2));
        assert_eq!(allowed_ips(&device, &kept).unwrap(), prefix(1));
        assert!(tests::shown::peers(&device).unwrap().len() == 2);
    }
    assert_eq!(device.show("listen-port").unwrap().trim(), "51820");
}
