use std::fmt::Write as _;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::drops::DropReason;
use crate::keys::{self, PresharedKey, PrivateKey, PublicKey};
use crate::wg::device::{AllowedIp, Device, PeerRequest, Prefix};

const KEY: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";

fn no_scope(_: &str) -> Option<u32> {
    None
}

fn read(text: &str) -> Result<Request, ConfigError> {
    parse_request(text.as_bytes(), no_scope)
}

fn read_set(lines: &str) -> Result<SetRequest, ConfigError> {
    read(&format!("set=1\n{lines}\n\n")).map(|request| match request {
        Request::Set(request) => request,
        Request::Get | Request::Drops => panic!("not a set"),
    })
}

fn read_peer(line: &str) -> Result<PeerRequest, ConfigError> {
    read_set(&format!("public_key={KEY}\n{line}")).map(|mut request| request.peers.remove(0))
}

fn device(text: &str) -> Device {
    match read(text) {
        Ok(Request::Set(request)) => Device::default().apply(&request).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What was got, as a set request that would make the same device.
fn as_set(answer: &str) -> String {
    let read_only = ["last_handshake_time_", "tx_bytes", "rx_bytes", "errno"];
    let kept = answer
        .lines()
        .filter(|line| !read_only.iter().any(|key| line.starts_with(key)));
    let lines: String = kept.map(|line| format!("{line}\n")).collect();
    format!("set=1\n{lines}")
}

fn print(device: &Device) -> String {
    print_get(device, device.listen_port, |_| PeerStats::default()).to_string()
}

#[test]
fn the_three_requests_are_told_apart() {
    assert_eq!(read("get=1\n\n"), Ok(Request::Get));
    assert_eq!(read("get_drops=1\n\n"), Ok(Request::Drops));
    assert_eq!(read("set=1\n\n"), Ok(Request::Set(SetRequest::default())));
}

#[test]
fn every_key_of_a_device_is_read() {
    let request = read_set(&format!(
        "private_key={KEY}\nlisten_port=65535\nfwmark=4294967295\nreplace_peers=true"
    ));
    let expected = SetRequest {
        private_key: Some(PrivateKey::new(keys::parse_hex(KEY).unwrap())),
        listen_port: Some(65535),
        fwmark: Some(u32::MAX),
        replace_peers: true,
        peers: vec![],
    };
    assert_eq!(request, Ok(expected));
    assert_eq!(read_set("fwmark=0x1f").unwrap().fwmark, Some(0x1f));
    assert_eq!(read_set("fwmark=0").unwrap().fwmark, Some(0));
}

#[test]
fn every_key_of_a_peer_is_read() {
    let lines = format!(
        "protocol_version=1\nupdate_only=true\nremove=true\npreshared_key={KEY}\nendpoint=192.0.2.1:51820\n\
         persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n\
         allowed_ip=-fd00::/8\n-allowed_ip=::/0"
    );
    let prefix = |addr: &str, len| Prefix::new(addr.parse().unwrap(), len).unwrap();
    let expected = PeerRequest {
        public_key: PublicKey::from_hex(KEY).unwrap(),
        remove: true,
        update_only: true,
        preshared_key: Some(PresharedKey::new(keys::parse_hex(KEY).unwrap())),
        endpoint: Some("192.0.2.1:51820".parse().unwrap()),
        keepalive: Some(25),
        replace_allowed_ips: true,
        allowed_ips: vec![
            AllowedIp::Add(prefix("10.0.0.0", 8)),
            AllowedIp::Remove(prefix("fd00::", 8)),
            AllowedIp::Remove(prefix("::", 0)),
        ],
    };
    assert_eq!(read_peer(&lines), Ok(expected));
}

#[test]
fn endpoints_of_both_families_are_read() {
    let endpoint = |text: &str| {
        let text = format!("set=1\npublic_key={KEY}\nendpoint={text}\n\n");
        match parse_request(text.as_bytes(), |name| (name == "eth0").then_some(7)) {
            Ok(Request::Set(request)) => request.peers[0]
                .endpoint
                .map(|endpoint| endpoint.to_string()),
            _ => None,
        }
    };
    assert_eq!(
        endpoint("[2001:db8::1]:1").as_deref(),
        Some("[2001:db8::1]:1")
    );
    assert_eq!(endpoint("[fe80::1%3]:2").as_deref(), Some("[fe80::1%3]:2"));
    assert_eq!(
        endpoint("[fe80::1%eth0]:2").as_deref(),
        Some("[fe80::1%7]:2")
    );
    assert_eq!(
        endpoint("[::ffff:192.0.2.1]:2").as_deref(),
        Some("192.0.2.1:2")
    );
    assert_eq!(endpoint("[fe80::1%eth1]:2"), None);
    for bad in [
        "",
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:65536",
        "192.0.2.1:+1",
        "2001:db8::1:1",
        "[2001:db8::1]",
        "[192.0.2.1]:1",
        "host:1",
        "192.0.2.1%3:1",
    ] {
        assert_eq!(endpoint(bad), None, "{bad}");
    }
}

#[test]
fn bad_values_are_refused() {
    for line in [
        "private_key=",
        "private_key=00",
        "listen_port=65536",
        "listen_port=-1",
        "listen_port=+1",
        "listen_port=",
        "fwmark=4294967296",
        "fwmark=0x",
        "fwmark=0x+1",
        "fwmark=x",
        "replace_peers=false",
        "replace_peers=1",
        "public_key=00",
        "public_key=",
    ] {
        assert_eq!(read_set(line).unwrap_err().errno, libc::EINVAL, "{line}");
    }
    for line in [
        "preshared_key=0",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=off",
        "remove=false",
        "update_only=yes",
        "replace_allowed_ips=",
        "allowed_ip=10.0.0.0",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=::/129",
        "allowed_ip=10.0.0.0/",
        "allowed_ip=10.0.0/8",
        "allowed_ip=10.0.0.0/+8",
        "allowed_ip=--10.0.0.0/8",
        "-allowed_ip=-10.0.0.0/8",
        "allowed_ip=10.0.0.0/8/8",
        "allowed_ip=10.0.0.0/256",
    ] {
        assert_eq!(read_peer(line).unwrap_err().errno, libc::EINVAL, "{line}");
    }
    assert_eq!(
        read_peer("protocol_version=2").unwrap_err().errno,
        libc::EPROTONOSUPPORT
    );
}

#[test]
fn keys_that_are_unknown_twice_or_out_of_order_are_refused() {
    for line in [
        "mtu=1",
        "=",
        "allowed_ip=10.0.0.0/8",
        "endpoint=192.0.2.1:1",
        "listen_port=1\nlisten_port=1",
        "get=1",
        "set=1",
    ] {
        assert_eq!(read_set(line).unwrap_err().errno, libc::EINVAL, "{line}");
    }
    for line in [
        "listen_port=1",
        "private_key=",
        "mtu=1",
        "remove=true\nremove=true",
        "endpoint=192.0.2.1:1\nendpoint=192.0.2.1:1",
    ] {
        assert_eq!(read_peer(line).unwrap_err().errno, libc::EINVAL, "{line}");
    }
    assert_eq!(
        read("get=1\nlisten_port=1\n\n").unwrap_err().errno,
        libc::EINVAL
    );
}

#[test]
fn what_is_not_the_protocol_is_refused_as_such() {
    for text in [
        "\n",
        "hello\n\n",
        "set\n\n",
        "listen_port=1\n\n",
        "set=1\r\n\r\n\n",
        "",
        "get=1",
        "get=1\n",
        "get=1\n\nget=1\n\n",
        "set=1\nlisten_port=1\n",
    ] {
        let error = read(text).unwrap_err();
        assert!(
            [libc::EPROTO, libc::EPROTONOSUPPORT].contains(&error.errno),
            "{text:?}: {error:?}"
        );
    }
    assert_eq!(
        parse_request(b"set=1\nfwmark=\xff\n\n", no_scope)
            .unwrap_err()
            .errno,
        libc::EPROTO
    );
    for text in ["get=2\n\n", "set=0\n\n", "get_drops=\n\n"] {
        assert_eq!(
            read(text).unwrap_err().errno,
            libc::EPROTONOSUPPORT,
            "{text:?}"
        );
    }
}

#[test]
fn a_line_has_a_limit_however_it_arrives() {
    let line = |length: usize| format!("fwmark={}7", "0".repeat(length - 8));
    assert_eq!(read_set(&line(MAX_LINE)).unwrap().fwmark, Some(7));
    assert_eq!(
        read_set(&line(MAX_LINE + 1)).unwrap_err().errno,
        libc::E2BIG
    );
    let mut reader = RequestReader::new(no_scope);
    reader.handle_bytes(b"set=1\n");
    for _ in 0..100 {
        assert_eq!(reader.handle_bytes(&[b'0'; 1000]), (1000, None));
        assert!(reader.line.capacity() <= MAX_LINE);
    }
    assert_eq!(
        reader.handle_bytes(b"\n\n").1.unwrap().unwrap_err().errno,
        libc::E2BIG
    );
}

#[test]
fn a_request_has_a_limit() {
    let mut reader = RequestReader::new(no_scope);
    reader.handle_bytes(format!("set=1\npublic_key={KEY}\n").as_bytes());
    let lines = "persistent_keepalive_interval_of_nobody=1\n".repeat(1 << 12);
    let protocol_lines = "protocol_version=1\n".repeat(1 << 12);
    for _ in 0..MAX_REQUEST / protocol_lines.len() + 1 {
        assert_eq!(reader.handle_bytes(protocol_lines.as_bytes()).1, None);
    }
    reader.handle_bytes(lines.as_bytes());
    assert_eq!(
        reader.handle_bytes(b"\n").1.unwrap().unwrap_err().errno,
        libc::E2BIG
    );
    assert_eq!(
        reader.handle_bytes(b"get=1\n\n").1,
        Some(Ok(Request::Get)),
        "the next request starts anew"
    );
}

#[test]
fn after_a_refused_request_the_next_one_is_understood() {
    let text = b"set=1\nbogus=1\nlisten_port=1\n\xff\n\nget=1\n\n";
    let mut reader = RequestReader::new(no_scope);
    let (taken, first) = reader.handle_bytes(text);
    assert_eq!(first.unwrap().unwrap_err().errno, libc::EINVAL);
    assert_eq!(
        reader.handle_bytes(&text[taken..]),
        (text.len() - taken, Some(Ok(Request::Get)))
    );
    assert!(reader.is_idle());
}

#[test]
fn an_end_between_requests_is_good_and_within_one_is_not() {
    let mut reader = RequestReader::new(no_scope);
    assert_eq!(reader.handle_end(), Ok(()));
    for cut_off in ["s", "set=1", "set=1\n", "set=1\nlisten_port=1\n"] {
        assert_eq!(reader.handle_bytes(cut_off.as_bytes()).1, None);
        assert_eq!(
            reader.handle_end().unwrap_err().errno,
            libc::EPROTO,
            "{cut_off:?}"
        );
    }
}

#[test]
fn a_refusal_names_the_line_and_no_secret() {
    let secret = "deadbeef";
    let error = read_set(&format!("listen_port=1\nprivate_key={secret}")).unwrap_err();
    assert_eq!(
        error.what,
        "line 3 of the request: the value of private_key is not 64 hexadecimal digits"
    );
    let error = read_peer(&format!("preshared_key={secret}")).unwrap_err();
    assert!(!error.what.contains(secret));
    let error = read_set(&format!("{}\u{1b}[2J=1", "x".repeat(1000))).unwrap_err();
    assert!(
        error.what.len() < 200 && !error.what.contains('\u{1b}'),
        "{}",
        error.what
    );
}

#[test]
fn an_answer_has_everything_in_its_order() {
    let device = device(&format!(
        "set=1\nprivate_key={KEY}\nfwmark=5\npublic_key={KEY}\npreshared_key={KEY}\nendpoint=192.0.2.1:1\n\
         persistent_keepalive_interval=25\nallowed_ip=fd00::/8\nallowed_ip=10.0.0.0/8\n\n"
    ));
    let stats = PeerStats {
        endpoint: Some("[2001:db8::1]:2".parse().unwrap()),
        last_handshake: Some((1_700_000_000, 42)),
        tx_bytes: 3,
        rx_bytes: u64::MAX,
    };
    let clamped = format!("00{}60", &KEY[2..62]);
    assert_eq!(
        *print_get(&device, 51820, |_| stats),
        format!(
            "private_key={clamped}\nlisten_port=51820\nfwmark=5\npublic_key={KEY}\npreshared_key={KEY}\n\
             protocol_version=1\nendpoint=[2001:db8::1]:2\nlast_handshake_time_sec=1700000000\n\
             last_handshake_time_nsec=42\ntx_bytes=3\nrx_bytes=18446744073709551615\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\nerrno=0\n\n"
        )
    );
    assert_eq!(*print_get(&Device::default(), 0, |_| stats), "errno=0\n\n");
}

#[test]
fn failures_carry_the_sign_that_wg_expects() {
    let error = ConfigError::new(libc::EINVAL, "");
    assert_eq!(*print_set(None), "errno=0\n\n");
    assert_eq!(*print_set(Some(&error)), "errno=-22\n\n");
    assert_eq!(*print_get_error(&error), "errno=22\n\n");
}

#[test]
fn drop_counters_are_read_back() {
    let answer = print_drops(|reason| reason as u64);
    let drops = parse_drops(&answer).unwrap();
    assert_eq!(drops.len(), DropReason::ALL.len());
    assert_eq!(drops[3], (DropReason::ALL[3].label(), 3));
    for bad in [
        "",
        "errno=-22\n\n",
        "a=b\nerrno=0\n\n",
        "a\"=1\nerrno=0\n\n",
        "errno=1\nerrno=0\n\n",
        "private_key\nerrno=0\n\n",
    ] {
        assert_eq!(parse_drops(bad), None, "{bad}");
    }
}

#[test]
fn two_times_65280_allowed_ips_come_back_as_they_went() {
    let mut text = format!("set=1\npublic_key={KEY}\n");
    for high in 1..=255 {
        for low in 0..=255 {
            writeln!(
                text,
                "allowed_ip=10.{high}.{low}.0/24\nallowed_ip=fd00:{high:x}:{low:x}::/48"
            )
            .unwrap();
        }
    }
    let device = device(&format!("{text}\n"));
    assert_eq!(device.routes().count(), 2 * 65_280);
    let answer = print(&device);
    let again = self::device(&as_set(&answer));
    assert!(print(&again) == answer);
    assert!(again.routes().eq(device.routes()));
}

#[test]
fn forty_peers_of_52_allowed_ips_and_thirty_of_none_or_one_come_back_as_they_went() {
    let mut text = String::from("set=1\n");
    for peer in 0..40 {
        writeln!(text, "public_key={:064x}", peer + 1).unwrap();
        for route in 0..52 {
            writeln!(text, "allowed_ip=10.{peer}.{route}.0/24").unwrap();
        }
    }
    for peer in 0..29 {
        writeln!(text, "public_key={:064x}", peer + 1000).unwrap();
    }
    writeln!(text, "public_key={:064x}\nallowed_ip=fd00::1/128\n", 2000).unwrap();
    let device = device(&text);
    assert_eq!(
        (device.peers.len(), device.routes().count()),
        (70, 40 * 52 + 1)
    );
    let again = self::device(&as_set(&print(&device)));
    assert_eq!(print(&again), print(&device));
}

/// Lines that mean something, in any order, and now and then one that does not.
fn any_line() -> impl Strategy<Value = String> {
    let words = proptest::sample::select(vec![
        "get=1",
        "set=1",
        "get_drops=1",
        "",
        "listen_port=1",
        "fwmark=0x2",
        "replace_peers=true",
        "remove=true",
        "update_only=true",
        "replace_allowed_ips=true",
        "endpoint=192.0.2.1:1",
        "protocol_version=1",
        "bogus",
        "x=\u{1b}",
    ]);
    prop_oneof![
        4 => words.prop_map(str::to_owned),
        2 => (0..4u8).prop_map(|key| format!("public_key={}", format!("{key:02x}").repeat(32))),
        2 => (any::<u8>(), 0..40u8).prop_map(|(byte, len)| format!("allowed_ip=10.{byte}.0.0/{len}")),
        1 => ".{0,40}",
    ]
}

/// Everything that comes of these bytes when they arrive in pieces of these sizes.
fn read_in_pieces(mut bytes: &[u8], sizes: &[usize]) -> Vec<Result<Request, ConfigError>> {
    let mut reader = RequestReader::new(no_scope);
    let mut requests = Vec::new();
    let mut sizes = sizes.iter().cycle();
    while !bytes.is_empty() {
        let size = bytes.len().min(*sizes.next().unwrap());
        let (piece, rest) = bytes.split_at(size);
        let (taken, request) = reader.handle_bytes(piece);
        bytes = if request.is_some() {
            &bytes[taken..]
        } else {
            rest
        };
        requests.extend(request);
    }
    requests.extend(reader.handle_end().err().map(Err));
    requests
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_read_the_same_and_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        lines in proptest::collection::vec(any_line(), 0..30),
        sizes in proptest::collection::vec(1..50usize, 1..5),
    ) {
        for input in [bytes, lines.join("\n").into_bytes()] {
            prop_assert_eq!(read_in_pieces(&input, &sizes), read_in_pieces(&input, &[usize::MAX]));
        }
    }

    #[test]
    fn any_changes_of_allowed_ips_agree_with_a_naive_model(
        steps in proptest::collection::vec((0..4u8, 0..8u8, 0..6u8, 6..10u8), 0..60),
    ) {
        let mut text = String::from("set=1\n");
        let mut model = Vec::<(Prefix, PublicKey)>::new();
        for (peer, step, byte, len) in steps {
            let key = PublicKey([peer; 32]);
            let prefix = Prefix::new(IpAddr::from([byte, 255, 0, 1]), len).unwrap();
            writeln!(text, "public_key={key}").unwrap();
            match step {
                0 => model.retain(|(_, owner)| *owner != key),
                1 | 2 => model.retain(|route| *route != (prefix, key)),
                _ => {
                    model.retain(|(known, _)| *known != prefix);
                    model.push((prefix, key));
                }
            }
            match (step, peer % 2) {
                (0, 0) => writeln!(text, "remove=true").unwrap(),
                (0, _) => writeln!(text, "replace_allowed_ips=true").unwrap(),
                (1, _) => writeln!(text, "allowed_ip=-{prefix}").unwrap(),
                (2, _) => writeln!(text, "-allowed_ip={prefix}").unwrap(),
                _ => writeln!(text, "allowed_ip={prefix}").unwrap(),
            }
        }
        let device = device(&format!("{text}\n"));
        model.sort();
        prop_assert!(device.routes().map(|(prefix, key)| (prefix, *key)).eq(model.iter().copied()));
        let owned: usize = device.peers.values().map(|peer| peer.allowed_ips.len()).sum();
        prop_assert_eq!(owned, model.len());
        prop_assert_eq!(print(&self::device(&as_set(&print(&device)))), print(&device));
    }
}
