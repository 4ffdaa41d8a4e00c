//! Every figure of a site run: its name, its unit and which way is better.

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use crate::subject::Subject;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tcp {
    One,
    Four,
    Reverse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    Idle,
    Fixed,
}

/// One figure. Rates are goodput as iperf3's receiver counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    /// Gb/s
    TcpRate(Tcp),
    /// CPU-seconds of the whole machine per gigabit
    TcpMachineCpu(Tcp),
    /// CPU-seconds of both gateway processes per gigabit
    TcpGatewayCpu(Tcp),
    /// Thousands of datagrams of this many bytes offered per second with under 1 % loss
    UdpRate(u16),
    /// Microseconds of both gateway processes per delivered datagram at that rate
    UdpGatewayCpu(u16),
    /// Round trip in milliseconds that this per cent of all do not exceed
    RoundTrip(Load, u8),
    /// Gb/s that went through beside the round trips under load
    LoadReached,
    /// MiB mapped and present in one gateway process
    Resident,
    /// The same with shared pages split among their users
    Proportional,
}

pub(crate) const TCP: [Tcp; 3] = [Tcp::One, Tcp::Four, Tcp::Reverse];
/// Payload bytes of the datagrams offered.
pub(crate) const UDP_SIZES: [u16; 3] = [64, 300, 1200];
const PER_CENTS: [u8; 2] = [50, 99];

impl Tcp {
    fn name(self) -> &'static str {
        match self {
            Tcp::One => "one",
            Tcp::Four => "four",
            Tcp::Reverse => "reverse",
        }
    }
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Load::Idle => "idle",
            Load::Fixed => "loaded",
        }
    }
}

impl Measure {
    /// All of them in the order of the table.
    pub(crate) fn all() -> Vec<Measure> {
        let mut all: Vec<Measure> = TCP.map(Measure::TcpRate).to_vec();
        all.extend(TCP.map(Measure::TcpMachineCpu));
        all.extend(TCP.map(Measure::TcpGatewayCpu));
        all.extend(UDP_SIZES.map(Measure::UdpRate));
        all.extend(UDP_SIZES.map(Measure::UdpGatewayCpu));
        for load in [Load::Idle, Load::Fixed] {
            all.extend(PER_CENTS.map(|per_cent| Measure::RoundTrip(load, per_cent)));
        }
        all.extend([
            Measure::LoadReached,
            Measure::Resident,
            Measure::Proportional,
        ]);
        all
    }

    /// The name in tables and in the JSON.
    pub(crate) fn name(self) -> String {
        match self {
            Measure::TcpRate(tcp) => format!("tcp {}", tcp.name()),
            Measure::TcpMachineCpu(tcp) => format!("machine cpu, tcp {}", tcp.name()),
            Measure::TcpGatewayCpu(tcp) => format!("gateway cpu, tcp {}", tcp.name()),
            Measure::UdpRate(size) => format!("udp {size}"),
            Measure::UdpGatewayCpu(size) => format!("gateway cpu, udp {size}"),
            Measure::RoundTrip(load, per_cent) => {
                format!("round trip {}, p{per_cent}", load.name())
            }
            Measure::LoadReached => "load reached".to_owned(),
            Measure::Resident => "resident memory".to_owned(),
            Measure::Proportional => "proportional memory".to_owned(),
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Measure::TcpRate(_) | Measure::LoadReached => "Gb/s",
            Measure::TcpMachineCpu(_) | Measure::TcpGatewayCpu(_) => "s/Gb",
            Measure::UdpRate(_) => "kpkt/s",
            Measure::UdpGatewayCpu(_) => "us/pkt",
            Measure::RoundTrip(..) => "ms",
            Measure::Resident | Measure::Proportional => "MiB",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        match self {
            Measure::TcpRate(_) | Measure::UdpRate(_) | Measure::LoadReached => true,
            Measure::TcpMachineCpu(_)
            | Measure::TcpGatewayCpu(_)
            | Measure::UdpGatewayCpu(_)
            | Measure::RoundTrip(..)
            | Measure::Resident
            | Measure::Proportional => false,
        }
    }
}

impl Serialize for Measure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Measure", 2)?;
        fields.serialize_field("name", &self.name())?;
        fields.serialize_field("unit", self.unit())?;
        fields.end()
    }
}

/// One value of one subject in one round.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) subject: Subject,
    pub(crate) measure: Measure,
    pub(crate) value: f64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_measures_share_a_name() {
        let all = Measure::all();
        let names: BTreeSet<String> = all.iter().map(|measure| measure.name()).collect();
        assert_eq!(names.len(), all.len());
    }
}
