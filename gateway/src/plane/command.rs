//! What the daemon tells the plane.

use std::net::SocketAddr;
use std::sync::Arc;

use proto::key::{PublicKey, WireguardKey};
use proto::name::Name;

use super::Control;
use super::links::OwnKey;
use crate::data::link::LinkShared;
use crate::data::mailbox;
use crate::drops::DropReason;
use crate::io::boottime;
use crate::table::Table;

pub enum Command {
    AddLink(NewLink),
    RemoveLink(PublicKey),
    /// Its tunnel is its own: what comes through it may be taken.
    Proven(PublicKey),
    /// One initiation, sent to each of these.
    Initiate {
        to: PublicKey,
        addresses: Vec<SocketAddr>,
    },
    /// A control packet, to be sealed; `None` is the path in use.
    Transmit {
        to: PublicKey,
        path: Option<SocketAddr>,
        packet: Box<[u8]>,
    },
    UsePath {
        of: PublicKey,
        address: SocketAddr,
    },
    Mtu {
        of: PublicKey,
        mtu: u16,
    },
    Table(Arc<Table>),
    /// A datagram as it is, from the tunnel's own port.
    Ask {
        to: SocketAddr,
        datagram: Box<[u8]>,
    },
    /// A whole packet for this host's kernel, by the queue of this thread.
    ToTun {
        thread: usize,
        packet: Box<[u8]>,
    },
    Stop,
}

pub struct NewLink {
    pub identity: PublicKey,
    pub wireguard: WireguardKey,
    pub site: Name,
    pub shared: Arc<LinkShared>,
}

impl Control {
    pub(super) fn obey(&mut self) {
        let mut is_changed = false;
        while let Ok(command) = self.waiting.try_recv() {
            is_changed |= self.apply(command);
        }
        let mut lost = 0;
        for (mailbox, told) in self.shared.mailboxes.iter().zip(&mut self.told) {
            lost += mailbox.commands(told);
        }
        self.drops[self.drops.len() - 1].add(DropReason::RingFull, lost);
        if is_changed {
            self.publish();
        }
    }

    /// Whether the snapshot says something else now.
    fn apply(&mut self, command: Command) -> bool {
        match command {
            Command::AddLink(new) => {
                let limiter = self.screen.open_limiter();
                return limiter.is_some_and(|limiter| {
                    let own = OwnKey {
                        private: self.settings.wireguard.clone(),
                        limiter,
                    };
                    self.links.add(new, own, &self.shared, boottime())
                });
            }
            Command::RemoveLink(identity) => {
                return self.links.remove(&identity, &self.shared, boottime());
            }
            Command::Proven(identity) => {
                return self
                    .links
                    .handle_proven(&identity, &self.shared, boottime());
            }
            Command::Table(table) => {
                self.table = table;
                return true;
            }
            Command::Initiate { to, addresses } => {
                self.links.initiate(&to, &addresses);
                self.tell(&to, |slot| mailbox::Command::Initiate {
                    slot,
                    to: addresses,
                })
            }
            Command::Transmit { to, path, packet } => {
                self.tell(&to, |slot| mailbox::Command::SendControl {
                    slot,
                    packet,
                    to: path,
                })
            }
            Command::UsePath { of, address } => {
                self.links.use_path(&of, address);
                self.tell(&of, |slot| mailbox::Command::Endpoint {
                    slot,
                    remote: address,
                });
            }
            Command::Mtu { of, mtu } => {
                self.links.use_mtu(&of, mtu);
                self.tell(&of, |slot| mailbox::Command::LinkMtu { slot, mtu });
            }
            Command::Ask { to, datagram } => {
                self.shared.control.handle_question(to);
                self.screen.send(to, &datagram);
            }
            Command::ToTun { thread, packet } => {
                if let Some(told) = self.told.get_mut(thread) {
                    told.push(mailbox::Command::ToTun(packet));
                }
            }
            Command::Stop => self.stopping = true,
        }
        false
    }

    /// A thread hears all at once: to wake it for each would cost more than what is to be done.
    fn tell(&mut self, of: &PublicKey, command: impl FnOnce(u32) -> mailbox::Command) {
        if let Some(place) = self.links.place_of(of) {
            self.told[place.thread as usize].push(command(place.slot));
        }
    }
}
