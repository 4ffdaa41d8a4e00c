//! Frames that are larger than their link carries.

use std::hash::{BuildHasher, RandomState};

use super::DataThread;
use crate::drops::DropReason;
use crate::packet::fit::{Fit, Fragments, fit};
use crate::packet::split::{SPARE, Segments};
use crate::packet::unreachable;
use crate::packet::vnet::VnetHeader;

/// What cutting needs beside the frame.
pub(super) struct Fitter {
    /// One piece; empty until there is one.
    piece: Vec<u8>,
    /// Numbers IPv6 packets that go in pieces. From a random one on, as ours must not meet the
    /// sender's own.
    identification: u32,
}

impl Default for Fitter {
    fn default() -> Fitter {
        Fitter {
            piece: Vec::new(),
            identification: RandomState::new().hash_one(0) as u32,
        }
    }
}

/// A frame whose packets do not all pass.
pub(super) struct TooLarge {
    pub(super) slot: u32,
    pub(super) header: VnetHeader,
    pub(super) hops: u8,
    pub(super) mtu: usize,
}

impl DataThread {
    /// `buffer[..len]` is what `Segments` took under the header, and has completed.
    #[cold]
    pub(super) fn transmit_fitted(&mut self, large: &TooLarge, buffer: &mut [u8], len: usize) {
        let (header, apart) = match fit(large.header, &mut buffer[..len], large.mtu) {
            Fit::Cut(header) => (header, false),
            Fit::Apart(header) => (header, true),
        };
        let mut segments = match Segments::new(header, buffer, len) {
            Ok(segments) => segments,
            Err(reason) => return self.drops.count(reason),
        };
        if !apart {
            return self.seal_all(large, &mut segments);
        }
        let mut piece = std::mem::take(&mut self.fitter.piece);
        piece.resize(piece.len().max(large.mtu + SPARE), 0);
        let mut told = false;
        while let Some(packet) = segments.next_padded(0) {
            let number = self.fitter.identification;
            match Fragments::new(packet, large.mtu, number) {
                Some(mut fragments) => self.transmit_pieces(large, &mut fragments, &mut piece),
                None => {
                    self.drops.count(DropReason::TooBig);
                    if !told {
                        let mtu = u16::try_from(large.mtu).unwrap_or(u16::MAX);
                        self.complain(|answer| unreachable::build_too_big(packet, mtu, answer));
                    }
                    told = true;
                }
            }
            self.fitter.identification = number.wrapping_add(1);
        }
        self.fitter.piece = piece;
    }

    fn transmit_pieces(
        &mut self,
        large: &TooLarge,
        fragments: &mut Fragments<'_>,
        piece: &mut [u8],
    ) {
        let whole = VnetHeader {
            data_valid: true,
            ..VnetHeader::default()
        };
        while let Some(len) = fragments.next_into(&mut piece[..large.mtu]) {
            match Segments::new(whole, piece, len) {
                Ok(mut segments) => self.seal_all(large, &mut segments),
                Err(reason) => self.drops.count(reason),
            }
        }
    }

    fn seal_all(&mut self, large: &TooLarge, segments: &mut Segments<'_>) {
        self.with_link(large.slot, |link, work| {
            link.transmit(segments, large.hops, work)
        });
    }
}
