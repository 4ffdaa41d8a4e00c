//! Joins packets of one flow into superpackets for the TUN, where they lie.
//!
//! What comes out is cut again by the receiver's kernel, so two packets are joined only if that cut
//! gives back exactly what was put in. A transport checksum is verified before anything is joined,
//! so that nothing damaged gets a fresh valid one.

mod candidate;
mod flows;
mod run;
#[cfg(test)]
mod tests;

use std::io::IoSlice;

use crate::packet::vnet::VnetHeader;
use candidate::{Candidate, Reading};
use flows::Flows;
use run::{Piece, Run};

/// Packets of one batch on their way to the TUN. Memory is kept from batch to batch.
#[derive(Debug)]
pub struct Coalescer {
    tcp: bool,
    udp: bool,
    /// In the order of writing.
    frames: Vec<Frame>,
    runs: Vec<Run>,
    pieces: Vec<Piece>,
    /// The last run of each flow, if it takes more. What comes later of a flow goes into that run or
    /// into a later frame, so packets of one flow keep their order.
    flows: Flows,
}

/// What becomes one write.
#[derive(Debug)]
enum Frame {
    /// Passed on as it is.
    Alone { at: usize, length: usize },
    /// Its index.
    Run(usize),
}

impl Default for Coalescer {
    fn default() -> Self {
        Coalescer::new()
    }
}

impl Coalescer {
    pub fn new() -> Coalescer {
        Coalescer {
            tcp: true,
            udp: true,
            frames: Vec::new(),
            runs: Vec::new(),
            pieces: Vec::new(),
            flows: Flows::new(),
        }
    }

    /// Whether the TUN takes TCP superpackets.
    pub fn set_tcp(&mut self, on: bool) {
        self.tcp = on;
    }

    /// Whether the TUN takes UDP superpackets.
    pub fn set_udp(&mut self, on: bool) {
        self.udp = on;
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes the packet at `arena[at..at + length]`, which must stay there until `drain`. Bytes
    /// behind the packet's own length, such as padding, are left out.
    #[inline]
    pub fn push(&mut self, arena: &[u8], at: usize, length: usize) {
        match candidate::read(arena, at, length) {
            Reading::Candidate(candidate) => {
                let is_wanted = if candidate.is_tcp() {
                    self.tcp
                } else {
                    self.udp
                };
                if is_wanted {
                    self.take(arena, &candidate);
                } else {
                    self.frames.push(Frame::Alone {
                        at,
                        length: candidate.length,
                    });
                }
            }
            Reading::Alone { length } => self.frames.push(Frame::Alone { at, length }),
            Reading::Barrier { length } => {
                self.flows.forget_all();
                self.frames.push(Frame::Alone { at, length });
            }
        }
    }

    #[inline]
    fn take(&mut self, arena: &[u8], candidate: &Candidate) {
        let runs = &mut self.runs;
        let place = self.flows.find(candidate.hash(arena), |run| {
            runs[run].head.is_same_flow(candidate, arena)
        });
        if !candidate.may_join || !candidate.verify(arena) {
            self.flows.remove(place.slot);
            self.frames.push(Frame::Alone {
                at: candidate.at,
                length: candidate.length,
            });
            return;
        }
        if let Some(found) = place.run
            && let Some(ids) = runs[found].accepts(candidate, arena)
        {
            let takes_more = runs[found].join(candidate, ids, &mut self.pieces);
            if !takes_more {
                self.flows.remove(place.slot);
            }
            return;
        }
        if candidate.ends_run() {
            self.flows.remove(place.slot);
        } else {
            self.flows.set(&place, runs.len());
        }
        self.frames.push(Frame::Run(runs.len()));
        runs.push(Run::new(*candidate));
    }

    /// Hands every frame to `write` in the order of creation, and empties. A frame is its vnet header
    /// (the first slice holds the same bytes), the head packet, and the payloads joined to it; the
    /// last argument counts its packets. Headers of head packets are rewritten in the arena.
    pub fn drain(
        &mut self,
        arena: &mut [u8],
        mut write: impl FnMut(&VnetHeader, &[IoSlice<'_>], usize),
    ) {
        self.flows.forget_all();
        for frame in self.frames.drain(..) {
            match frame {
                Frame::Alone { at, length } => {
                    let vnet = VnetHeader::default();
                    let packet = &arena[at..at + length];
                    write(
                        &vnet,
                        &[IoSlice::new(&vnet.write()), IoSlice::new(packet)],
                        1,
                    );
                }
                Frame::Run(index) => self.runs[index].hand_out(arena, &self.pieces, &mut write),
            }
        }
        self.runs.clear();
        self.pieces.clear();
    }
}
