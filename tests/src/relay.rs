//! A wire in user space between two UDP endpoints: it records, doubles, swaps and injects.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce};

use crate::lab::Namespace;

/// What the wire does to datagrams, of a thousand each.
#[derive(Clone, Copy, Debug)]
pub struct Mischief {
    /// Printed by whoever fails, to repeat the run.
    pub seed: u64,
    pub doubled: u64,
    /// Held back until up to `depth` later ones have passed.
    pub held: u64,
    pub depth: u64,
}

impl Mischief {
    /// An honest wire.
    pub const NONE: Mischief = Mischief {
        seed: 0,
        doubled: 0,
        held: 0,
        depth: 0,
    };
}

/// Which way a datagram went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// From whoever sends to the relay's address to the target.
    Target,
    Sender,
}

/// A datagram that passed.
#[derive(Clone, Debug)]
pub struct Passed {
    pub toward: Toward,
    pub bytes: Vec<u8>,
}

/// Runs until it is dropped.
pub struct Relay {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    address: SocketAddr,
}

struct Shared {
    /// Faces the sender.
    front: UdpSocket,
    /// Faces the target, and is connected to it.
    back: UdpSocket,
    sender: Mutex<Option<SocketAddr>>,
    /// `None` unless asked to record.
    passed: Option<Mutex<Vec<Passed>>>,
    ended: AtomicBool,
}

impl Relay {
    /// Passes what comes to `listen` on to `target`, and back.
    pub fn start(
        namespace: &Namespace,
        listen: SocketAddr,
        target: SocketAddr,
        mischief: Mischief,
    ) -> Result<Relay> {
        Relay::with_record(namespace, (listen, target), mischief, false)
    }

    /// The same, and keeps all that passes.
    pub fn recording(
        namespace: &Namespace,
        listen: SocketAddr,
        target: SocketAddr,
    ) -> Result<Relay> {
        Relay::with_record(namespace, (listen, target), Mischief::NONE, true)
    }

    fn with_record(
        namespace: &Namespace,
        (listen, target): (SocketAddr, SocketAddr),
        mischief: Mischief,
        record: bool,
    ) -> Result<Relay> {
        let (front, back) = namespace
            .within(|| open(listen, target))?
            .with_context(|| format!("no relay from {listen} to {target}"))?;
        let address = front.local_addr()?;
        let shared = Arc::new(Shared {
            front,
            back,
            sender: Mutex::default(),
            passed: record.then(Mutex::default),
            ended: AtomicBool::new(false),
        });
        let threads = [Toward::Target, Toward::Sender]
            .into_iter()
            .map(|toward| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.pass(toward, mischief))
            })
            .collect();
        Ok(Relay {
            shared,
            threads,
            address,
        })
    }

    /// Where to send.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the target hears the sender from.
    pub fn outward(&self) -> Result<SocketAddr> {
        Ok(self.shared.back.local_addr()?)
    }

    /// All that passed so far.
    pub fn passed(&self) -> Vec<Passed> {
        self.shared
            .passed
            .as_ref()
            .map_or_else(Vec::new, |passed| locked(passed).clone())
    }

    /// Sends a datagram as if it had just come.
    pub fn inject(&self, toward: Toward, bytes: &[u8]) -> Result<()> {
        self.shared
            .send(toward, bytes)
            .context("cannot inject a datagram")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn pass(&self, toward: Toward, mischief: Mischief) {
        let mut random = Random(mischief.seed ^ 0x5851_f42d_4c95_7f2d ^ toward as u64);
        let mut held: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
        let mut buffer = vec![0; 1 << 16];
        while !self.ended.load(Ordering::Relaxed) {
            let Some(length) = self.receive(toward, &mut buffer) else {
                // Nothing more comes that could overtake them.
                for (_, datagram) in held.drain(..) {
                    let _ = self.send(toward, &datagram);
                }
                continue;
            };
            let datagram = &buffer[..length];
            if let Some(passed) = &self.passed {
                locked(passed).push(Passed {
                    toward,
                    bytes: datagram.to_vec(),
                });
            }
            if random.happens(mischief.held) {
                held.push_back((1 + random.next() % mischief.depth, datagram.to_vec()));
                continue;
            }
            // A full or refusing socket loses a datagram, as wires do.
            let _ = self.send(toward, datagram);
            if random.happens(mischief.doubled) {
                let _ = self.send(toward, datagram);
            }
            held.retain_mut(|(remaining, datagram)| {
                *remaining -= 1;
                if *remaining == 0 {
                    let _ = self.send(toward, datagram);
                }
                *remaining > 0
            });
        }
    }

    fn receive(&self, toward: Toward, buffer: &mut [u8]) -> Option<usize> {
        match toward {
            Toward::Target => {
                let (length, from) = self.front.recv_from(buffer).ok()?;
                *locked(&self.sender) = Some(from);
                Some(length)
            }
            Toward::Sender => self.back.recv(buffer).ok(),
        }
    }

    fn send(&self, toward: Toward, bytes: &[u8]) -> std::io::Result<()> {
        match toward {
            Toward::Target => self.back.send(bytes).map(drop),
            Toward::Sender => match *locked(&self.sender) {
                Some(sender) => self.front.send_to(bytes, sender).map(drop),
                None => Ok(()),
            },
        }
    }
}

fn open(listen: SocketAddr, target: SocketAddr) -> Result<(UdpSocket, UdpSocket)> {
    let front = UdpSocket::bind(listen)?;
    let any = if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let back = UdpSocket::bind(any)?;
    back.connect(target)?;
    for socket in [&front, &back] {
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        setsockopt(socket, RcvBufForce, &(8 << 20))?;
        setsockopt(socket, SndBufForce, &(8 << 20))?;
    }
    Ok((front, back))
}

/// xorshift64: repeatable from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn happens(&mut self, of_thousand: u64) -> bool {
        of_thousand > 0 && self.next() % 1000 < of_thousand
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
