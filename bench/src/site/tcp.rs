//! TCP goodput, and the processor time it costs.

use anyhow::Result;

use super::Visit;
use crate::iperf::{self, Traffic};
use crate::measure::{Measure, Tcp};
use crate::topology::FAR_WORKER;

/// One sample of one kind of transfer.
pub(crate) fn sample(visit: &Visit<'_>, tcp: Tcp, seconds: u32) -> Result<[(Measure, f64); 3]> {
    let before = visit.meter.read()?;
    let worker = &visit.topology.near.worker;
    let transfer = iperf::run(worker, FAR_WORKER, traffic(tcp), seconds)?;
    let used = visit.meter.since(before)?;
    let gigabits = transfer.gigabits();
    Ok([
        (Measure::TcpRate(tcp), transfer.gigabits_per_second()),
        (
            Measure::TcpMachineCpu(tcp),
            used.machine.as_secs_f64() / gigabits,
        ),
        (
            Measure::TcpGatewayCpu(tcp),
            used.gateways.as_secs_f64() / gigabits,
        ),
    ])
}

fn traffic(tcp: Tcp) -> Traffic {
    Traffic::Tcp {
        streams: if tcp == Tcp::Four { 4 } else { 1 },
        reverse: tcp == Tcp::Reverse,
        rate: None,
    }
}
