//! The same things done the slow and obvious way, for tests to compare with: packets built field by
//! field from scratch, and superpackets cut by copying. Shares no code with what it checks.

use crate::packet::vnet::{Gso, VnetHeader};

pub(crate) const ACK: u8 = 0x10;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const URG: u8 = 0x20;
pub(crate) const CWR: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    pub(crate) source: u8,
    pub(crate) destination: u8,
    pub(crate) ports: (u16, u16),
}

impl Flow {
    const fn new(v6: bool, tcp: bool) -> Flow {
        Flow {
            v6,
            tcp,
            source: 1,
            destination: 2,
            ports: (40_000, 5201),
        }
    }
    pub(crate) const fn v4_tcp() -> Flow {
        Flow::new(false, true)
    }
    pub(crate) const fn v4_udp() -> Flow {
        Flow::new(false, false)
    }
    pub(crate) const fn v6_tcp() -> Flow {
        Flow::new(true, true)
    }
    pub(crate) const fn v6_udp() -> Flow {
        Flow::new(true, false)
    }
    pub(crate) const ALL: [Flow; 4] = [
        Flow::v4_tcp(),
        Flow::v4_udp(),
        Flow::v6_tcp(),
        Flow::v6_udp(),
    ];

    fn addresses(&self) -> Vec<u8> {
        let width = if self.v6 { 16 } else { 4 };
        let address = |host: u8| {
            let mut address = vec![0; width];
            address[0] = if self.v6 { 0xfd } else { 10 };
            address[width - 1] = host;
            address
        };
        [address(self.source), address(self.destination)].concat()
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }
}

/// All that a TCP or UDP packet says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) flow: Flow,
    pub(crate) traffic_class: u8,
    pub(crate) hops: u8,
    pub(crate) flow_label: u32,
    pub(crate) identification: u16,
    pub(crate) dont_fragment: bool,
    /// IPv4 options, or whole IPv6 extension headers before the transport, which name `extension` first.
    pub(crate) ip_options: Vec<u8>,
    pub(crate) extension: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) tcp_options: Vec<u8>,
    /// UDP without a checksum.
    pub(crate) unsummed: bool,
    pub(crate) payload: Vec<u8>,
}

impl Default for Packet {
    fn default() -> Packet {
        Packet {
            flow: Flow::v4_tcp(),
            traffic_class: 0,
            hops: 64,
            flow_label: 0,
            identification: 1,
            dont_fragment: true,
            ip_options: Vec::new(),
            extension: 0,
            sequence: 1000,
            acknowledgement: 2000,
            flags: ACK,
            window: 512,
            urgent: 0,
            tcp_options: Vec::new(),
            unsummed: false,
            payload: Vec::new(),
        }
    }
}

impl Packet {
    pub(crate) fn ip_header_length(&self) -> usize {
        self.ip_options.len() + if self.flow.v6 { 40 } else { 20 }
    }

    pub(crate) fn transport_header_length(&self) -> usize {
        if self.flow.tcp {
            20 + self.tcp_options.len()
        } else {
            8
        }
    }

    pub(crate) fn checksum_offset(&self) -> usize {
        if self.flow.tcp { 16 } else { 6 }
    }

    /// The finished packet.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut transport = self.transport_without_checksum();
        if !self.unsummed {
            let sum = !ones_complement(&transport, self.pseudo_header(transport.len()));
            let sum = if sum == 0 && !self.flow.tcp {
                0xffff
            } else {
                sum
            };
            let at = self.checksum_offset();
            transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        self.with_ip_header(&transport)
    }

    /// The packet as the kernel hands it out unfinished: the field holds the pseudo-header's sum.
    pub(crate) fn bytes_with_partial_sum(&self) -> Vec<u8> {
        let mut transport = self.transport_without_checksum();
        let seed = ones_complement(&[], self.pseudo_header(transport.len()));
        let at = self.checksum_offset();
        transport[at..at + 2].copy_from_slice(&seed.to_be_bytes());
        self.with_ip_header(&transport)
    }

    /// The header that goes with the partial sum. `size` 0 is a packet that is not to be cut.
    pub(crate) fn vnet(&self, size: usize) -> VnetHeader {
        let gso = match (size, self.flow.tcp, self.flow.v6) {
            (0, _, _) => Gso::None,
            (_, true, false) => Gso::Tcp4,
            (_, true, true) => Gso::Tcp6,
            (_, false, _) => Gso::Udp,
        };
        VnetHeader {
            needs_csum: true,
            gso,
            ecn: gso != Gso::None && self.flow.tcp && self.flags & CWR != 0,
            hdr_len: (self.ip_header_length() + self.transport_header_length()) as u16,
            gso_size: size as u16,
            csum_start: self.ip_header_length() as u16,
            csum_offset: self.checksum_offset() as u16,
            ..VnetHeader::default()
        }
    }

    /// The packets that this one stands for when its payload is cut into pieces of `size`.
    pub(crate) fn segments(&self, size: usize) -> Vec<Packet> {
        let count = self.payload.len().div_ceil(size).max(1);
        (0..count)
            .map(|index| {
                let start = index * size;
                let end = (start + size).min(self.payload.len());
                let mut segment = Packet {
                    payload: self.payload[start..end].to_vec(),
                    ..self.clone()
                };
                segment.identification = self.identification.wrapping_add(index as u16);
                segment.sequence = self.sequence.wrapping_add(start as u32);
                if index > 0 {
                    segment.flags &= !CWR;
                }
                if index + 1 < count {
                    segment.flags &= !(FIN | PSH);
                }
                segment
            })
            .collect()
    }

    fn pseudo_header(&self, length: usize) -> u64 {
        let mut bytes = self.flow.addresses();
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend([0, 0, 0, self.flow.protocol()]);
        u64::from(ones_complement(&bytes, 0))
    }

    fn transport_without_checksum(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.flow.ports.0.to_be_bytes());
        bytes.extend(self.flow.ports.1.to_be_bytes());
        if self.flow.tcp {
            assert_eq!(self.tcp_options.len() % 4, 0);
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.acknowledgement.to_be_bytes());
            bytes.push(((5 + self.tcp_options.len() / 4) << 4) as u8);
            bytes.push(self.flags);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(self.urgent.to_be_bytes());
            bytes.extend(&self.tcp_options);
        } else {
            bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn with_ip_header(&self, transport: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let protocol = self.flow.protocol();
        if self.flow.v6 {
            let first =
                (6 << 28) | (u32::from(self.traffic_class) << 20) | (self.flow_label & 0xf_ffff);
            bytes.extend(first.to_be_bytes());
            bytes.extend(((self.ip_options.len() + transport.len()) as u16).to_be_bytes());
            bytes.push(if self.ip_options.is_empty() {
                protocol
            } else {
                self.extension
            });
            bytes.push(self.hops);
        } else {
            let length = self.ip_header_length();
            bytes.extend([0x40 | (length / 4) as u8, self.traffic_class]);
            bytes.extend(((length + transport.len()) as u16).to_be_bytes());
            bytes.extend(self.identification.to_be_bytes());
            bytes.extend([if self.dont_fragment { 0x40 } else { 0 }, 0]);
            bytes.extend([self.hops, protocol, 0, 0]);
        }
        bytes.extend(self.flow.addresses());
        bytes.extend(&self.ip_options);
        if !self.flow.v6 {
            let sum = !ones_complement(&bytes, 0);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        bytes.extend(transport);
        bytes
    }
}

/// The folded sum, one word after another.
pub(crate) fn ones_complement(bytes: &[u8], initial: u64) -> u16 {
    let mut sum = initial;
    for (index, byte) in bytes.iter().enumerate() {
        sum += u64::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What the kernel makes of a frame written to a TUN, if it cuts and sums it in software.
pub(crate) fn kernel_receives(vnet: &VnetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if vnet.gso == Gso::None {
        let mut packet = frame.to_vec();
        if vnet.needs_csum {
            let sum = !ones_complement(&packet[start..], 0);
            let sum = if sum == 0 && vnet.csum_offset == 6 {
                0xffff
            } else {
                sum
            };
            packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        }
        return vec![packet];
    }
    assert!(
        vnet.needs_csum,
        "a superpacket's checksum is always left to the kernel"
    );
    let header_length = match vnet.gso {
        Gso::Udp => start + 8,
        Gso::Tcp4 | Gso::Tcp6 | Gso::None => start + usize::from(frame[start + 12] >> 4) * 4,
    };
    assert_eq!(usize::from(vnet.hdr_len), header_length);
    let (header, payload) = frame.split_at(header_length);
    let count = payload.len().div_ceil(usize::from(vnet.gso_size));
    assert!(count > 1, "the kernel refuses a superpacket of one segment");
    payload
        .chunks(usize::from(vnet.gso_size))
        .enumerate()
        .map(|(index, payload)| cut_one(vnet, header, payload, index, index + 1 == count))
        .collect()
}

fn cut_one(
    vnet: &VnetHeader,
    header: &[u8],
    payload: &[u8],
    index: usize,
    is_last: bool,
) -> Vec<u8> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let mut packet = [header, payload].concat();
    let length = packet.len();
    let whole: usize;
    if packet[0] >> 4 == 6 {
        whole = 40 + usize::from(word(&packet, 4)) - start;
        packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    } else {
        assert_eq!(
            ones_complement(&header[..start], 0),
            0xffff,
            "the kernel refuses a bad IP header"
        );
        whole = usize::from(word(&packet, 2)) - start;
        let identification = word(&packet, 4).wrapping_add(index as u16);
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
        packet[10..12].fill(0);
        let sum = !ones_complement(&packet[..start], 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    if vnet.gso == Gso::Udp {
        assert_eq!(usize::from(word(header, start + 4)), whole);
        packet[start + 4..start + 6].copy_from_slice(&((length - start) as u16).to_be_bytes());
    } else {
        let at = start + 4;
        let first =
            u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let sequence = first.wrapping_add(index as u32 * u32::from(vnet.gso_size));
        packet[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        let not_first = if index > 0 { CWR } else { 0 };
        let not_last = if is_last { 0 } else { FIN | PSH };
        packet[start + 13] &= !(not_first | not_last);
    }
    // The seed covers the length of the whole; a segment's own takes its place.
    let seed =
        u64::from(word(header, field)) + u64::from(!(whole as u16)) + (length - start) as u64;
    packet[field..field + 2].fill(0);
    let sum = !ones_complement(&packet[start..], seed);
    let sum = if sum == 0 && vnet.gso == Gso::Udp {
        0xffff
    } else {
        sum
    };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}
