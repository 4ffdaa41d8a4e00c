//! The virtio network header that stands before every frame of a TUN opened with `IFF_VNET_HDR`.

const FLAG_NEEDS_CSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What the payload is to be cut into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    #[default]
    None,
    Tcp4,
    Tcp6,
    /// Datagrams of one size (`VIRTIO_NET_HDR_GSO_UDP_L4`), not the fragments of the older type 3.
    Udp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// From `csum_start` to the end is yet to be summed; the field holds the pseudo-header's sum.
    pub needs_csum: bool,
    /// The kernel has verified the checksum.
    pub data_valid: bool,
    pub gso: Gso,
    /// The first TCP segment carries CWR.
    pub ecn: bool,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes of the header as the kernel writes it for a TUN (`struct virtio_net_hdr`).
    pub const LEN: usize = 10;

    /// `None` for a kind of segmentation that was never asked for.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<VnetHeader> {
        let [flags, kind, fields @ ..] = *bytes;
        let gso = match kind & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCP4 => Gso::Tcp4,
            GSO_TCP6 => Gso::Tcp6,
            GSO_UDP => Gso::Udp,
            _ => return None,
        };
        let field = |at: usize| u16::from_le_bytes([fields[at], fields[at + 1]]);
        Some(VnetHeader {
            needs_csum: flags & FLAG_NEEDS_CSUM != 0,
            data_valid: flags & FLAG_DATA_VALID != 0,
            gso,
            ecn: kind & GSO_ECN != 0,
            hdr_len: field(0),
            gso_size: field(2),
            csum_start: field(4),
            csum_offset: field(6),
        })
    }

    pub fn write(&self) -> [u8; Self::LEN] {
        let needs_csum = if self.needs_csum { FLAG_NEEDS_CSUM } else { 0 };
        let data_valid = if self.data_valid { FLAG_DATA_VALID } else { 0 };
        let kind = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCP4,
            Gso::Tcp6 => GSO_TCP6,
            Gso::Udp => GSO_UDP,
        };
        let ecn = if self.ecn { GSO_ECN } else { 0 };
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [
            needs_csum | data_valid,
            kind | ecn,
            h0,
            h1,
            g0,
            g1,
            s0,
            s1,
            o0,
            o1,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_kernel_puts_them() {
        let bytes = [1, 0x81, 54, 0, 0x78, 0x05, 20, 0, 16, 0];
        let header = VnetHeader {
            needs_csum: true,
            data_valid: false,
            gso: Gso::Tcp4,
            ecn: true,
            hdr_len: 54,
            gso_size: 1400,
            csum_start: 20,
            csum_offset: 16,
        };
        assert_eq!(VnetHeader::parse(&bytes), Some(header));
        assert_eq!(header.write(), bytes);
    }

    #[test]
    fn every_kind_survives_writing_and_parsing() {
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            for data_valid in [false, true] {
                let header = VnetHeader {
                    gso,
                    data_valid,
                    ..VnetHeader::default()
                };
                assert_eq!(VnetHeader::parse(&header.write()), Some(header));
            }
        }
    }

    #[test]
    fn kinds_that_were_never_asked_for_are_refused() {
        for kind in [2, 3, 6, 0x20, 0x41, 0x7f, 0x83] {
            assert_eq!(
                VnetHeader::parse(&[0, kind, 0, 0, 0, 0, 0, 0, 0, 0]),
                None,
                "{kind}"
            );
        }
    }
}
