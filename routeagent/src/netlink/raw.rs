//! Messages of nf_tables as they are: other programs' objects hold what no type here knows.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::NfTablesMessage;

use super::Refused;
use super::nft::{Nft, serialize};
use super::request::{INTERRUPTED, TRIES, attributes};

const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Of one object: its address family and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) kind: u16,
    pub(crate) family: u8,
    pub(crate) attributes: Vec<u8>,
}

impl Nft {
    /// What `each` makes of all that is told; what is read while others change it may be of before
    /// and after.
    pub(crate) fn dump_raw<T: Default>(
        &self,
        family: NetfilterProtoFamily,
        message: &NfTablesMessage,
        each: impl FnMut(&mut T, Raw),
    ) -> Result<T, Refused> {
        let request = serialize(family, NLM_F_REQUEST | NLM_F_DUMP, message.clone(), 1);
        let all = self.ask_often(&request, each);
        all.map_err(|error| Refused {
            what: "nft list".to_owned(),
            error,
        })
    }

    fn ask_often<T: Default>(
        &self,
        request: &[u8],
        mut each: impl FnMut(&mut T, Raw),
    ) -> io::Result<T> {
        let mut left = TRIES;
        loop {
            let mut all = T::default();
            let is_one_state = self.ask(request, |raw| each(&mut all, raw))?;
            left -= 1;
            if is_one_state || left == 0 {
                return Ok(all);
            }
        }
    }

    /// How many transactions there were, whoever made them; it begins anew after the largest number.
    pub(crate) fn generation(&self) -> io::Result<u32> {
        const GET_GENERATION: u16 = (10 << 8) | 16;
        const REQUEST: u16 = 1;
        const LENGTH: u32 = 20;
        const ID: u16 = 1;
        let mut request = LENGTH.to_ne_bytes().to_vec();
        request.extend(GET_GENERATION.to_ne_bytes());
        request.extend(REQUEST.to_ne_bytes());
        request.extend([0; 12]);
        self.clear();
        self.socket().send(&request, 0)?;
        let (bytes, _) = self.socket().recv_from_full()?;
        for message in Messages(&bytes) {
            if message.kind == ERROR {
                told(message.payload)?;
            } else if let Some(raw) = message.raw()
                && let Some((_, id)) = attributes(&raw.attributes).find(|(kind, _)| *kind == ID)
                && let Ok(id) = id.try_into()
            {
                return Ok(u32::from_be_bytes(id));
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Whether it was one state.
    fn ask(&self, request: &[u8], mut each: impl FnMut(Raw)) -> io::Result<bool> {
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
                    _ => message.raw().into_iter().for_each(&mut each),
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
