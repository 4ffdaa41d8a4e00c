//! The configuration socket: any bytes, in any pieces.

use std::collections::BTreeSet;

use gateway::wg::device::{ConfigError, Device, changes};
use gateway::wg::protocol::{PeerStats, Request, RequestReader, parse_request, print_get};

/// Bytes from 0x80 on stand for these, so that the fuzzer need not find each letter; 0xf8 and above
/// stand for themselves.
const WORDS: [&str; 34] = [
    "set=1\n",
    "get=1\n",
    "get_drops=1\n",
    "\n",
    "private_key=",
    "listen_port=",
    "fwmark=",
    "replace_peers=true\n",
    "public_key=",
    "remove=true\n",
    "update_only=true\n",
    "preshared_key=",
    "endpoint=",
    "persistent_keepalive_interval=",
    "replace_allowed_ips=true\n",
    "allowed_ip=",
    "-allowed_ip=",
    "allowed_ip=-",
    "protocol_version=1\n",
    "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a\n",
    "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a\n",
    "0000000000000000000000000000000000000000000000000000000000000000\n",
    "0100000000000000000000000000000000000000000000000000000000000000\n",
    "1111111111111111111111111111111111111111111111111111111111111111\n",
    "10.0.0.0/8\n",
    "10.1.0.0/16\n",
    "0.0.0.0/0\n",
    "2001:db8::/32\n",
    "::/0\n",
    "192.0.2.1:51820\n",
    "[2001:db8::1]:51820\n",
    "[fe80::1%7]:1\n",
    "[::ffff:192.0.2.1]:1\n",
    "65535\n",
];

/// Requests as they may reach the socket, the first byte saying in pieces of what size.
///
/// # Panics
/// If reading panics or depends on the pieces, if a request changes a state that it was only applied
/// to, or if what is printed of a state does not make the same state.
pub fn config_socket(input: &[u8]) {
    let Some((size, input)) = input.split_first() else {
        return;
    };
    let text = expand(input);
    let requests = read(&text, usize::from(*size) + 1);
    assert_eq!(requests, read(&text, text.len().max(1)));
    let mut device = Device::default();
    for request in requests {
        let Ok(Request::Set(request)) = request else {
            continue;
        };
        let before = print(&device);
        let applied = device.apply(&request);
        assert_eq!(print(&device), before, "applying changes a copy");
        if let Ok(next) = applied {
            check(&device, &next);
            device = next;
        }
    }
}

fn expand(input: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in input {
        match byte.checked_sub(0x80) {
            Some(word) if *byte < 0xf8 => {
                text.extend(WORDS[usize::from(word) % WORDS.len()].bytes());
            }
            _ => text.push(*byte),
        }
    }
    text
}

/// Every request of a text that comes in pieces of this size, and what its end is worth.
fn read(text: &[u8], size: usize) -> Vec<Result<Request, ConfigError>> {
    let mut reader = RequestReader::new(|_| None);
    let mut requests = Vec::new();
    for mut piece in text.chunks(size) {
        while !piece.is_empty() {
            let (taken, request) = reader.handle_bytes(piece);
            assert!(taken > 0 && taken <= piece.len());
            requests.extend(request);
            piece = &piece[taken..];
        }
    }
    if let Err(error) = reader.handle_end() {
        requests.push(Err(error));
    }
    assert!(reader.is_idle());
    requests
}

fn print(device: &Device) -> String {
    print_get(device, device.listen_port, |_| PeerStats::default()).to_string()
}

fn check(before: &Device, device: &Device) {
    assert!(changes(device, device).is_empty());
    let differences = changes(before, device);
    let text = print(device);
    assert!(!differences.is_empty() || text == print(before), "{text}");
    let of_peers: BTreeSet<_> = device
        .peers
        .iter()
        .flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |prefix| (*prefix, *key)))
        .collect();
    let of_device: BTreeSet<_> = device
        .routes()
        .map(|(prefix, key)| (prefix, *key))
        .collect();
    assert_eq!(of_peers, of_device);
    assert_eq!(print(&set_again(&text)), text);
}

/// What `wg setconf` would make of what `wg showconf` got.
fn set_again(text: &str) -> Device {
    let mut again = String::from("set=1\nreplace_peers=true\n");
    for line in text.lines().filter(|line| is_settable(line)) {
        again.push_str(line);
        again.push('\n');
    }
    again.push('\n');
    let Ok(Request::Set(request)) = parse_request(again.as_bytes(), |_| None) else {
        panic!("what we print we do not read:\n{again}");
    };
    Device::default()
        .apply(&request)
        .expect("a state that exists can be set")
}

fn is_settable(line: &str) -> bool {
    let shown = [
        "last_handshake_time_sec=",
        "last_handshake_time_nsec=",
        "tx_bytes=",
        "rx_bytes=",
        "errno=",
    ];
    !line.is_empty() && !shown.iter().any(|key| line.starts_with(key))
}
