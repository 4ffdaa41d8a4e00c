//! Rules of the iptables that came before nf_tables, from what their own program saves: they are
//! in the kernel beside it.

use ip_network::IpNetwork;

use super::rules::{Act, Base, Chain, Field, Key, NAME_LEN, Rule, Rules, Step, Translation, Value};
use super::save::save;
use super::xtables::{own_type, ports, state, target_text};

/// Before the name of a table, which nf_tables may have as well.
pub(super) const LEGACY: &str = "legacy ";

/// Family in the kernel's numbers, what lists the tables in use, and the programs.
const FAMILIES: [(u8, &str, [&str; 2]); 2] = [
    (
        2,
        "/proc/thread-self/net/ip_tables_names",
        ["iptables-legacy-save", "iptables-save"],
    ),
    (
        10,
        "/proc/thread-self/net/ip6_tables_names",
        ["ip6tables-legacy-save", "ip6tables-save"],
    ),
];

/// Adds them to `rules`; the error names rules that could not be read.
pub(super) fn read(rules: &mut Rules) -> Result<(), String> {
    let mut failed = Ok(());
    for (family, names, programs) in FAMILIES {
        let used = std::fs::read_to_string(names).unwrap_or_default();
        if used.trim().is_empty() {
            continue;
        }
        match save(&programs) {
            Ok(text) => parse(family, &text, rules),
            Err(why) => {
                failed = Err(format!(
                    "tables of the old iptables are in use ({}), and {} {why}",
                    used.split_whitespace().collect::<Vec<_>>().join(", "),
                    programs[0]
                ));
            }
        }
    }
    failed
}

pub(super) fn parse(family: u8, text: &str, rules: &mut Rules) {
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = format!("{LEGACY}{}", name.trim());
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            if let Some(name) = words.next() {
                let base = base(&table, name, words.next() == Some("DROP"));
                let rules_of = vec![];
                let chain = Chain {
                    base,
                    rules: rules_of,
                };
                rules.chains.insert(key(family, &table, name), chain);
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let Some((name, rest)) = rule.split_once(' ') else {
                continue;
            };
            if let Some(chain) = rules.chains.get_mut(&key(family, &table, name)) {
                chain.rules.push(Rule {
                    handle: 0,
                    steps: steps(&split(rest)),
                    text: Some(rest.trim().to_owned()),
                });
            }
        }
    }
}

fn key(family: u8, table: &str, name: &str) -> Key {
    (family, table.to_owned(), name.to_owned())
}

fn base(table: &str, chain: &str, drops: bool) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => 0,
        "INPUT" => 1,
        "FORWARD" => 2,
        "OUTPUT" => 3,
        "POSTROUTING" => 4,
        _ => return None,
    };
    let kind = table.strip_prefix(LEGACY)?;
    let priority = match (kind, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", 0 | 3) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    };
    Some(Base {
        hook,
        priority,
        is_nat: kind == "nat",
        drops,
    })
}

/// Words, of which those in quotes are one.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![];
    let mut word = String::new();
    let (mut quoted, mut begun) = (false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            '\\' => word.extend(letters.next()),
            ' ' if !quoted => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => word.push(letter),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

fn steps(words: &[String]) -> Vec<Step> {
    let mut steps = vec![];
    let mut rest = words.iter().map(String::as_str).peekable();
    let mut is = true;
    while let Some(word) = rest.next() {
        if word == "!" {
            is = false;
            continue;
        }
        if word == "-j" || word == "-g" {
            let target = rest.next().unwrap_or_default();
            let options: Vec<&str> = rest.collect();
            steps.extend(target_step(target, word == "-g", &options).map(Step::Act));
            return steps;
        }
        // Names of matches alone ask nothing; what they ask follows.
        if word == "-m" {
            rest.next();
            is = true;
            continue;
        }
        let value = match rest.peek() {
            Some(next) if !next.starts_with('-') && *next != "!" => rest.next(),
            Some(_) | None => None,
        };
        if word != "--comment" {
            let step = value.and_then(|value| test(word, value, is));
            let unknown = || Step::Unsure(format!("{word} {}", value.unwrap_or_default()));
            steps.push(step.unwrap_or_else(unknown));
        }
        is = true;
    }
    steps
}

fn test(word: &str, value: &str, is: bool) -> Option<Step> {
    Some(match word {
        "-s" => addresses(value, is, (12, 8))?,
        "-d" => addresses(value, is, (16, 24))?,
        "-i" => device(Field::InputName, value, is),
        "-o" => device(Field::OutputName, value, is),
        "-p" => Value::new(Field::Protocol, 1).is(is, vec![protocol(value)?]),
        "--sport" | "--sports" => ports(0, is, &spans(value)?),
        "--dport" | "--dports" => ports(2, is, &spans(value)?),
        "--ctstate" | "--state" => state(states(value)?, 256, is),
        "--src-type" => own_type(Field::SourceType, kinds(value)?, is),
        "--dst-type" => own_type(Field::DestinationType, kinds(value)?, is),
        "--mark" => mark(value, is)?,
        _ => return None,
    })
}

fn addresses(value: &str, is: bool, (v4, v6): (usize, usize)) -> Option<Step> {
    let network: IpNetwork = match value.parse() {
        Ok(network) => network,
        Err(_) => value
            .parse::<std::net::IpAddr>()
            .map(IpNetwork::from)
            .ok()?,
    };
    let (low, high) = super::walk::ends(network);
    let field = if network.is_ipv4() { v4 } else { v6 };
    Some(Value::new(Field::Network(field), low.len()).lies(is, low, high))
}

fn device(field: Field, value: &str, is: bool) -> Step {
    let bytes = match value.strip_suffix('+') {
        Some(begin) => begin.as_bytes().to_vec(),
        None => {
            let mut bytes = value.as_bytes().to_vec();
            bytes.resize(NAME_LEN, 0);
            bytes
        }
    };
    Value::new(field, NAME_LEN).is(is, bytes)
}

fn protocol(value: &str) -> Option<u8> {
    Some(match value {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "icmpv6" | "ipv6-icmp" => 58,
        other => other.parse().ok()?,
    })
}

fn spans(value: &str) -> Option<Vec<(u16, u16)>> {
    let spans = value.split(',').map(|part| match part.split_once(':') {
        Some((low, high)) => Some((low.parse().ok()?, high.parse().ok()?)),
        None => part.parse().ok().map(|port| (port, port)),
    });
    spans.collect()
}

fn states(value: &str) -> Option<u32> {
    let bits = value.split(',').map(|word| {
        Some(match word {
            "INVALID" => 1,
            "ESTABLISHED" => 2,
            "RELATED" => 4,
            "NEW" => 8,
            "UNTRACKED" => 256,
            _ => return None,
        })
    });
    bits.sum()
}

fn kinds(value: &str) -> Option<u16> {
    let bits = value.split(',').map(|word| {
        Some(match word {
            "UNICAST" => 1 << 1,
            "LOCAL" => 1 << 2,
            "BROADCAST" => 1 << 3,
            "MULTICAST" => 1 << 5,
            _ => return None,
        })
    });
    bits.sum()
}

fn mark(value: &str, is: bool) -> Option<Step> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let (mark, mask) = match value.split_once('/') {
        Some((mark, mask)) => (number(mark)?, number(mask)?),
        None => (number(value)?, u32::MAX),
    };
    let mut value = Value::new(Field::Mark, 4);
    value.mask = Some((mask.to_ne_bytes().into(), vec![0; 4]));
    Some(value.is(is, mark.to_ne_bytes().into()))
}

fn target_step(target: &str, is_goto: bool, options: &[&str]) -> Option<Act> {
    let option = |name: &str| {
        let at = options.iter().position(|word| *word == name)?;
        options.get(at + 1).map(|word| (*word).to_owned())
    };
    Some(match target {
        "ACCEPT" => Act::Accept,
        "DROP" => Act::Drop,
        "REJECT" => Act::Reject,
        "RETURN" => Act::Return,
        "NFQUEUE" | "QUEUE" => Act::Queue,
        "DNAT" => Act::Translate(
            Translation::Destination,
            option("--to-destination").unwrap_or_default(),
        ),
        "NETMAP" => Act::Translate(Translation::Destination, option("--to").unwrap_or_default()),
        "REDIRECT" => {
            let port = option("--to-ports");
            let to = port.map_or_else(String::new, |port| target_text("", Some(&port)));
            Act::Translate(Translation::Redirect, to)
        }
        "TPROXY" => Act::Translate(Translation::Redirect, "a proxy of this node".to_owned()),
        "SNAT" => Act::Translate(
            Translation::Source,
            option("--to-source").unwrap_or_default(),
        ),
        "MASQUERADE" => Act::Translate(Translation::Masquerade, String::new()),
        "NOTRACK" => Act::Untrack,
        "CT" if options.contains(&"--notrack") => Act::Untrack,
        "MARK" | "CONNMARK" => Act::Mark,
        "CT" | "LOG" | "NFLOG" | "TCPMSS" | "CLASSIFY" | "DSCP" | "TOS" | "TTL" | "HL"
        | "CHECKSUM" | "TRACE" | "AUDIT" | "ULOG" | "SET" | "TEE" | "SECMARK" | "CONNSECMARK" => {
            return None;
        }
        chain if is_goto => Act::Goto(chain.to_owned()),
        chain => Act::Jump(chain.to_owned()),
    })
}
