//! What every link of this gateway shares: who we are, the dice, and what is to be sent and told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use proto::control::{self, Control};
use proto::key::PublicKey;

use super::dice::Dice;
use super::paths::Strangers;
use super::prefixes::Prefixes;
use super::{Change, Event, Local, Transmit};

pub(super) struct Desk {
    pub(super) local: Local,
    pub(super) own: PublicKey,
    pub(super) dice: Dice,
    /// Where we can be found, as told to others.
    pub(super) own_addresses: Vec<SocketAddr>,
    pub(super) prefixes: Arc<Prefixes>,
    pub(super) refused_addresses: u64,
    pub(super) strangers: Strangers,
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) events: VecDeque<Event>,
}

impl Desk {
    pub(super) fn new(local: Local, seed: u64) -> Desk {
        Desk {
            own: local.identity.public(),
            prefixes: Arc::new(Prefixes::new(local.site.clone(), Vec::new())),
            refused_addresses: 0,
            strangers: Strangers::default(),
            local,
            dice: Dice::new(seed),
            own_addresses: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// By the path in use.
    pub(super) fn say(&mut self, to: &PublicKey, control: &Control) {
        self.say_by(to, None, control, 0);
    }

    pub(super) fn say_by(
        &mut self,
        to: &PublicKey,
        path: Option<SocketAddr>,
        control: &Control,
        size: usize,
    ) {
        let packet = control::packet(control, &self.own, to, size);
        self.transmits.push_back(Transmit {
            to: *to,
            path,
            packet,
        });
    }

    pub(super) fn changed(&mut self, of: &PublicKey, change: Change) {
        self.events.push_back(Event::Changed { of: *of, change });
    }
}
