//! An etcd cluster of three with one member in each of three sites: the gateway of the leader's
//! site is killed while all three are written to, nothing acknowledged is lost, and what was seen
//! has an order.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tests::broker::look;
use tests::lab::{Namespace, Process, skip, wait_for};
use tests::mesh::{Mesh, PATIENCE, Plan};

/// Writes that each client must have had acknowledged before a phase of the test is over.
const WRITES: usize = 15;
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
const COUNTER: &str = "counter";

/// The member of one site and the way to speak to it from the machine it runs on.
#[derive(Clone)]
struct Member {
    namespace: Namespace,
    address: IpAddr,
}

impl Member {
    fn start(&self, number: usize, all: &[Member], mesh: &Mesh) -> Result<Process> {
        let url = |member: &Member, port| format!("http://{}:{port}", member.address);
        let members = all.iter().enumerate();
        let cluster: Vec<String> = members
            .map(|(number, member)| format!("m{number}={}", url(member, PEERS)))
            .collect();
        let data = mesh.lab.directory().join(format!("etcd{number}"));
        let [clients, peers] = [CLIENTS, PEERS].map(|port| url(self, port));
        let mut command = self.namespace.command("etcd");
        command
            .args(["--name", &format!("m{number}"), "--log-level", "error"])
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &cluster.join(",")]);
        self.namespace.spawn(command)
    }

    fn call(&self, path: &str, request: &Value) -> Result<Value> {
        let address = SocketAddr::new(self.address, CLIENTS);
        let request = request.to_string();
        let answer = self
            .namespace
            .within(|| look::post(address, path, &request))?;
        let (status, body) = answer?;
        ensure!(status == 200, "{path}: {status} {body}");
        // The answer comes in one chunk, whose length stands before it.
        let (start, end) = body.find('{').zip(body.rfind('}')).context("no answer")?;
        Ok(serde_json::from_str(&body[start..=end])?)
    }

    /// A linearizable read.
    fn read(&self, key: &str) -> Result<Option<u64>> {
        let answer = self.call("/v3/kv/range", &json!({ "key": coded(key) }))?;
        let Some(value) = answer["kvs"][0]["value"].as_str() else {
            return Ok(None);
        };
        let text = String::from_utf8(BASE64.decode(value.as_bytes())?)?;
        Ok(Some(text.parse()?))
    }

    /// Counts one up from `seen` if nobody else did, and leaves a key that tells so.
    fn count_up(&self, seen: u64, key: &str) -> Result<Option<u64>> {
        let next = coded(&(seen + 1).to_string());
        let put = |key: &str| json!({ "requestPut": { "key": coded(key), "value": next } });
        let request = json!({
            "compare": [{ "target": "VALUE", "key": coded(COUNTER), "value": coded(&seen.to_string()) }],
            "success": [put(COUNTER), put(key)],
        });
        let answer = self.call("/v3/kv/txn", &request)?;
        if answer["succeeded"] != true {
            return Ok(None);
        }
        let revision = answer["header"]["revision"]
            .as_str()
            .context("no revision")?;
        Ok(Some(revision.parse()?))
    }

    fn leads(&self) -> bool {
        let status = self.call("/v3/maintenance/status", &json!({}));
        status.is_ok_and(|told| told["leader"] == told["header"]["member_id"])
    }
}

fn coded(text: &str) -> String {
    BASE64.encode(text.as_bytes())
}

/// What one client did and saw.
#[derive(Clone)]
struct Event {
    begin: Instant,
    end: Instant,
    seen: Seen,
}

#[derive(Clone)]
enum Seen {
    Read {
        value: u64,
    },
    Written {
        value: u64,
        revision: u64,
        key: String,
    },
    /// Nobody knows whether it was done.
    Unknown,
}

struct Client {
    acknowledged: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Event>>,
}

impl Client {
    fn start(member: &Member, number: usize) -> Client {
        let acknowledged = Arc::<AtomicUsize>::default();
        let ended = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let (member, count, ended) = (member.clone(), acknowledged.clone(), ended.clone());
            move || work(&member, number, &count, &ended)
        });
        Client {
            acknowledged,
            ended,
            thread,
        }
    }

    fn wait_for_more(&self) -> Result<()> {
        let written = || self.acknowledged.load(Ordering::Relaxed);
        let until = written() + WRITES;
        wait_for("writes are acknowledged", PATIENCE, || written() >= until)
    }

    fn finish(self) -> Vec<Event> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client does not panic")
    }
}

fn work(member: &Member, number: usize, count: &AtomicUsize, ended: &AtomicBool) -> Vec<Event> {
    let mut events = Vec::new();
    for turn in 0.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        let Ok(read) = member.read(COUNTER) else {
            continue;
        };
        let value = read.unwrap_or_default();
        let end = Instant::now();
        let seen = Seen::Read { value };
        events.push(Event { begin, end, seen });
        let key = format!("client-{number}-{turn}");
        let begin = Instant::now();
        let written = member.count_up(value, &key);
        let end = Instant::now();
        let seen = match written {
            Ok(Some(revision)) => {
                count.fetch_add(1, Ordering::Relaxed);
                let value = value + 1;
                Seen::Written {
                    value,
                    revision,
                    key,
                }
            }
            // Another was faster.
            Ok(None) => continue,
            Err(_) => Seen::Unknown,
        };
        events.push(Event { begin, end, seen });
        // Others get a turn, too.
        std::thread::sleep(Duration::from_millis(20));
    }
    events
}

/// That there is one order of all that was seen that agrees with the clock.
fn assert_ordered(events: &[Event]) {
    let mut values = BTreeSet::new();
    for event in events {
        if let Seen::Written { value, .. } = event.seen {
            assert!(values.insert(value), "two counted to {value}");
        }
    }
    for earlier in events {
        let Seen::Written {
            value, revision, ..
        } = &earlier.seen
        else {
            continue;
        };
        for later in events.iter().filter(|later| later.begin > earlier.end) {
            match &later.seen {
                Seen::Read { value: seen } => {
                    assert!(seen >= value, "{seen} was read after {value} was written");
                }
                Seen::Written {
                    value: next,
                    revision: after,
                    ..
                } => {
                    assert!(
                        next > value && after > revision,
                        "{next} came after {value}"
                    );
                }
                Seen::Unknown => {}
            }
        }
    }
}

/// Every member, asked itself, has every key that was acknowledged.
fn assert_kept(members: &[Member], events: &[Event]) {
    let (mut written, mut unknown) = (0, 0);
    for event in events {
        match &event.seen {
            Seen::Written { value, key, .. } => {
                written += 1;
                for member in members {
                    let found = member.read(key).unwrap();
                    assert_eq!(found, Some(*value), "{key} at {}", member.address);
                }
            }
            Seen::Unknown => unknown += 1,
            Seen::Read { .. } => {}
        }
    }
    let counted = members[0].read(COUNTER).unwrap().unwrap();
    println!("{written} writes acknowledged, {unknown} unknown, counted to {counted}");
    assert!((written..=written + unknown).contains(&counted));
}

#[test]
fn a_cluster_over_three_sites_loses_nothing_when_a_gateway_dies() {
    if skip("a_cluster_over_three_sites", &["nft", "etcd"]) {
        return;
    }
    let mut mesh = Mesh::up("etcd", &[Plan::OPEN.agents(1); 3]).unwrap();
    let members: Vec<Member> = mesh
        .sites
        .iter()
        .map(|site| Member {
            namespace: site.worker.clone(),
            address: site.worker_address(),
        })
        .collect();
    let started = members.iter().enumerate();
    let _processes: Vec<Process> = started
        .map(|(number, member)| member.start(number, &members, &mesh).unwrap())
        .collect();
    let first = json!({ "key": coded(COUNTER), "value": coded("0") });
    wait_for("the cluster takes a write", PATIENCE, || {
        members[0].call("/v3/kv/put", &first).is_ok()
    })
    .unwrap();
    let clients = members.iter().enumerate();
    let clients: Vec<Client> = clients
        .map(|(number, member)| Client::start(member, number))
        .collect();
    let more = || {
        clients
            .iter()
            .for_each(|client| client.wait_for_more().unwrap())
    };
    more();
    let leader = members.iter().position(Member::leads).expect("a leader");
    let others: Vec<usize> = (0..3).filter(|site| *site != leader).collect();
    let victim = mesh.busiest(leader, &others).unwrap();
    mesh.gateway(leader, victim).kill();
    let begin = Instant::now();
    more();
    println!(
        "each wrote {WRITES} times more within {:?}",
        begin.elapsed()
    );
    mesh.gateway(leader, victim).start().unwrap();
    mesh.wait_until_up(PATIENCE).unwrap();
    more();
    let mut events = Vec::new();
    for client in clients {
        events.extend(client.finish());
    }
    assert_ordered(&events);
    assert_kept(&members, &events);
    mesh.watch.assert_clean();
}
