//! What a data thread does in a mesh only: packets of control, and packets that a sibling sent for
//! another site.

use std::io::IoSlice;

use super::{DataThread, VnetHeader};
use crate::data::inward::Passing;
use crate::data::link::Endpoint;
use crate::data::link_local;
use crate::data::snapshot::LinkPlace;
use crate::drops::DropReason;
use crate::packet::address;

impl DataThread {
    /// A control packet was opened, which goes no further.
    pub(super) fn give_to_control(
        &self,
        place: LinkPlace,
        from: &Endpoint,
        len: usize,
    ) -> Result<(), DropReason> {
        let packet = self.inward.opened(len);
        if self.shared.control.push_packet(place, *from, packet) {
            Ok(())
        } else {
            Err(DropReason::ControlQueueFull)
        }
    }

    /// Nothing came of a datagram; that it was opened may still have to be told.
    #[cold]
    pub(super) fn refused(&mut self, slot: u32, reason: DropReason) {
        self.drops.count(reason);
        let now = self.now;
        if let Some(Some(link)) = self.links.get_mut(slot as usize) {
            link.publish(now);
        }
    }

    /// Brings what was opened to where it goes: to links first, since it lies where the rest does.
    /// Whether there was anything.
    pub(super) fn deliver(&mut self) -> bool {
        let any = !self.inward.is_empty();
        if let Some(mut passing) = self.inward.take_passing() {
            self.pass_on(&mut passing);
            self.inward.give_back(passing);
        }
        self.inward.write(&self.tun, &self.drops);
        any
    }

    fn pass_on(&mut self, passing: &mut Passing) {
        passing.drain(|pieces, packets| {
            if let Err(reason) = self.pass_on_frame(pieces) {
                self.drops.add(reason, packets as u64);
            }
        });
    }

    fn pass_on_frame(&mut self, pieces: &[IoSlice<'_>]) -> Result<(), DropReason> {
        let mut len = 0;
        for piece in pieces {
            let room = self.frame.get_mut(len..len + piece.len());
            room.ok_or(DropReason::InnerMalformed)?
                .copy_from_slice(piece);
            len += piece.len();
        }
        let packet = self
            .frame
            .get(VnetHeader::LEN..len)
            .ok_or(DropReason::InnerMalformed)?;
        let to = address::destination(packet).ok_or(DropReason::InnerMalformed)?;
        if link_local::concerns(packet) {
            return Err(DropReason::SiblingDestination);
        }
        let place = self.snapshot.load().link_for_sibling(to, packet)?;
        self.give_to(place, len);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
