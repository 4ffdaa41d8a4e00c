//! Messages of nf_tables as they are: other programs' objects hold what no type here knows.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::NfTablesMessage;

use super::Refused;
use super::nft::{Nft, serialize};

const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Something changed while it was read.
const INTERRUPTED: u16 = 0x10;
/// So often a ruleset is read that changes meanwhile.
const TRIES: usize = 5;

/// Of one object: its address family and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) kind: u16,
    pub(crate) family: u8,
    pub(crate) attributes: Vec<u8>,
}

impl Nft {
    /// All that is told of; what is read while others change it may be of before and after.
    pub(crate) fn dump_raw(
        &self,
        family: NetfilterProtoFamily,
        message: &NfTablesMessage,
    ) -> Result<Vec<Raw>, Refused> {
        let mut all = vec![];
        for _ in 0..TRIES {
            let request = serialize(family, NLM_F_REQUEST | NLM_F_DUMP, message.clone(), 1);
            let one_state = self.ask(&request, &mut all);
            let failed = |error| Refused {
                what: "nft list".to_owned(),
                error,
            };
            if one_state.map_err(failed)? {
                break;
            }
        }
        Ok(all)
    }

    /// Whether it was one state.
    fn ask(&self, request: &[u8], all: &mut Vec<Raw>) -> io::Result<bool> {
        all.clear();
        self.clear();
        self.socket().send(request, 0)?;
        let mut one_state = true;
        loop {
            let bytes = match self.socket().recv_from_full() {
                Ok((bytes, _)) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(one_state),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for message in Messages(&bytes) {
                one_state &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    DONE => return Ok(one_state),
                    ERROR => told(message.payload)?,
                    _ => all.extend(message.raw()),
                }
            }
        }
    }
}

/// The kernel's error number; zero is none.
fn told(payload: &[u8]) -> io::Result<()> {
    let number = payload
        .first_chunk::<4>()
        .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if number == 0 {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(number.saturating_neg()))
}

/// Messages as they follow each other in what one read brings.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

pub(crate) struct Message<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let [l0, l1, l2, l3, k0, k1, f0, f1, ..] = *self.0 else {
            return None;
        };
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let payload = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            payload,
        })
    }
}

impl Message<'_> {
    pub(crate) fn raw(&self) -> Option<Raw> {
        Some(Raw {
            kind: self.kind,
            family: *self.payload.first()?,
            attributes: self.payload.get(FAMILY_HEADER..)?.to_vec(),
        })
    }
}
