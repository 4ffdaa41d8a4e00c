//! Load by iperf3, and what it reports.

use std::net::Ipv4Addr;
use std::time::Duration;

use ::tests::lab::{Namespace, Process};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// What one run is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Traffic {
    Tcp {
        streams: u8,
        reverse: bool,
        /// Bits per second; `None` is as fast as it goes.
        rate: Option<f64>,
    },
    Udp {
        /// Payload bytes.
        size: u16,
        /// Datagrams per second; `None` is as fast as it goes.
        rate: Option<f64>,
    },
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Transfer {
    pub(crate) seconds: f64,
    pub(crate) received_bytes: f64,
    pub(crate) packets: f64,
    pub(crate) lost_packets: f64,
}

impl Transfer {
    pub(crate) fn gigabits(&self) -> f64 {
        self.received_bytes * 8.0 / 1e9
    }

    pub(crate) fn gigabits_per_second(&self) -> f64 {
        self.gigabits() / self.seconds
    }

    pub(crate) fn offered_packets_per_second(&self) -> f64 {
        self.packets / self.seconds
    }

    pub(crate) fn delivered_packets(&self) -> f64 {
        self.packets - self.lost_packets
    }

    pub(crate) fn loss(&self) -> f64 {
        if self.packets > 0.0 {
            self.lost_packets / self.packets
        } else {
            1.0
        }
    }
}

/// Starts a server that takes any number of runs, one after the other.
pub(crate) fn server(namespace: &Namespace) -> Result<Process> {
    let mut command = namespace.command("iperf3");
    command.args(["--server", "--json"]);
    let process = namespace.spawn(command)?;
    ::tests::lab::wait_for("the iperf3 server", Duration::from_secs(5), || {
        namespace
            .sh("ss --no-header --listening --tcp --numeric 'sport = 5201'")
            .is_ok_and(|listed| !listed.is_empty())
    })?;
    Ok(process)
}

/// A client that has been started.
pub(crate) struct Client {
    process: Process,
    limit: Duration,
}

impl Client {
    pub(crate) fn start(
        namespace: &Namespace,
        server: Ipv4Addr,
        traffic: Traffic,
        seconds: u32,
    ) -> Result<Client> {
        let mut command = namespace.command("iperf3");
        command
            .args(["--json", "--connect-timeout", "3000", "--client"])
            .arg(server.to_string())
            .args(["--time", &seconds.to_string()])
            .args(arguments(traffic));
        let process = namespace.spawn(command)?;
        // A starved control connection takes a while to end.
        let limit = Duration::from_secs(u64::from(seconds) + 10);
        Ok(Client { process, limit })
    }

    pub(crate) fn finish(self) -> Result<Transfer> {
        self.process.wait_timeout(self.limit)?;
        parse(&self.process.output())
    }
}

/// Runs one client to its end.
pub(crate) fn run(
    namespace: &Namespace,
    server: Ipv4Addr,
    traffic: Traffic,
    seconds: u32,
) -> Result<Transfer> {
    Client::start(namespace, server, traffic, seconds)?.finish()
}

fn arguments(traffic: Traffic) -> Vec<String> {
    match traffic {
        Traffic::Tcp {
            streams,
            reverse,
            rate,
        } => {
            let mut words = vec![format!("--parallel={streams}")];
            words.extend(reverse.then(|| "--reverse".to_owned()));
            words.extend(rate.map(|bits| format!("--bitrate={bits:.0}")));
            words
        }
        Traffic::Udp { size, rate } => {
            // 0 is iperf3's word for no limit.
            let bits = rate.map_or(0.0, |packets| packets * f64::from(size) * 8.0);
            vec![
                "--udp".to_owned(),
                format!("--length={size}"),
                format!("--bitrate={bits:.0}"),
                format!("--window={}", socket_buffer()),
            ]
        }
    }
}

/// A receiver that waits for its turn on a busy processor must not be what loses packets.
fn socket_buffer() -> u64 {
    let limit = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let allowed = limit("rmem_max").min(limit("wmem_max")).unwrap_or(212_992);
    allowed.min(4 << 20)
}

#[derive(Deserialize)]
struct Report {
    error: Option<String>,
    end: End,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct End {
    sum: Sum,
    sum_received: Sum,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sum {
    seconds: f64,
    bytes: f64,
    packets: f64,
    lost_packets: f64,
}

fn parse(json: &str) -> Result<Transfer> {
    let report: Report = serde_json::from_str(json)
        .with_context(|| format!("iperf3 did not write a report: {}", json.trim()))?;
    if let Some(error) = report.error {
        bail!("iperf3: {error}");
    }
    let received = report.end.sum_received;
    if received.seconds <= 0.0 {
        bail!("iperf3 says that nothing arrived");
    }
    Ok(Transfer {
        seconds: received.seconds,
        received_bytes: received.bytes,
        packets: report.end.sum.packets,
        lost_packets: report.end.sum.lost_packets,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcp_report_gives_what_the_receiver_counted() {
        let json = r#"{"end":{"sum_sent":{"seconds":2.0,"bytes":600000000},
            "sum_received":{"seconds":2.0,"bytes":500000000}}}"#;
        let transfer = parse(json).unwrap();
        assert!((transfer.gigabits() - 4.0).abs() < 1e-9);
        assert!((transfer.gigabits_per_second() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_udp_report_gives_rate_and_loss() {
        let json = r#"{"end":{"sum":{"seconds":0.5,"bytes":64000,"packets":1000,"lost_packets":20},
            "sum_received":{"seconds":0.5,"bytes":62720,"packets":1000,"lost_packets":20}}}"#;
        let transfer = parse(json).unwrap();
        assert!((transfer.offered_packets_per_second() - 2000.0).abs() < 1e-9);
        assert!((transfer.delivered_packets() - 980.0).abs() < 1e-9);
        assert!((transfer.loss() - 0.02).abs() < 1e-9);
    }

    #[test]
    fn what_iperf_complains_of_is_passed_on() {
        let error = parse(r#"{"start":{},"end":{},"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error}");
        assert!(parse("Segmentation fault").is_err());
        assert!(parse(r#"{"end":{}}"#).is_err());
    }

    #[test]
    fn datagrams_per_second_become_bits_of_payload() {
        let udp = Traffic::Udp {
            size: 300,
            rate: Some(1000.0),
        };
        assert!(arguments(udp).contains(&"--bitrate=2400000".to_owned()));
        let blast = Traffic::Udp {
            size: 64,
            rate: None,
        };
        assert!(arguments(blast).contains(&"--bitrate=0".to_owned()));
    }
}
