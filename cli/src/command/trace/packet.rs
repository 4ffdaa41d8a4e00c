//! The packet that is followed.

use std::fmt;
use std::net::IpAddr;

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) size: u16,
    /// Not to be sent in pieces.
    pub(super) whole: bool,
}

impl Protocol {
    pub(super) const fn number(self, is_v4: bool) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Icmp if is_v4 => 1,
            Protocol::Icmp => 58,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        }
    }
}

impl Packet {
    pub(super) const fn number(&self) -> u8 {
        self.protocol.number(self.source.is_ipv4())
    }

    pub(super) fn ports(&self) -> Option<(u16, u16)> {
        let has_ports = self.protocol != Protocol::Icmp;
        has_ports.then_some((self.source_port, self.destination_port))
    }

    /// Its headers as far as gateways choose by them.
    pub(super) fn headers(&self) -> Vec<u8> {
        let mut bytes = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut bytes = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, self.number(), 0, 0];
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut bytes = vec![0x60, 0, 0, 0, 0, 8, self.number(), 64];
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => vec![],
        };
        let (source, destination) = self.ports().unwrap_or_default();
        bytes.extend(source.to_be_bytes());
        bytes.extend(destination.to_be_bytes());
        bytes.extend([0; 4]);
        bytes
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (self.source, self.destination);
        write!(out, "{} {source}", self.protocol.name())?;
        if let Some((from, to)) = self.ports() {
            write!(out, " port {from} -> {destination} port {to}")?;
        } else {
            write!(out, " -> {destination}")?;
        }
        write!(out, ", {} bytes", self.size)?;
        if self.whole {
            out.write_str(", not to be sent in pieces")?;
        }
        Ok(())
    }
}
