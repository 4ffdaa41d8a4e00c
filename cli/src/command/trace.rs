//! `causeway trace`: one packet through the decisions of this machine, each named.

mod decide;
mod packet;
mod told;
mod verdict;

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use node::netlink::interfaces::interfaces;
use node::netlink::lookup::{look_up, rule_of};
use routeagent::inspect::Ruleset;

use crate::command::Output;
use crate::local::Place;
use crate::print;
use decide::{Filters, Kernel};
use packet::{Packet, Protocol};
use told::Told;
use verdict::{Trace, Verdict};

/// Follow one packet through the decisions of this machine: route, packet filters, gateway, link,
/// path and size, and where it would be dropped.
///
/// Nothing is sent: the daemon here is asked what it knows, and the kernel where it would send such a
/// packet. Exit code 0: it passes as far as this machine can tell. 1: it is dropped here, or the
/// answer cannot be had.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the packet comes from.
    #[arg(value_name = "SRC")]
    source: IpAddr,
    /// Where it goes.
    #[arg(value_name = "DST")]
    destination: IpAddr,
    /// What is inside.
    #[arg(
        long,
        value_name = "PROTOCOL",
        env = "CAUSEWAY_PROTO",
        default_value = "icmp"
    )]
    proto: Protocol,
    /// Its source port; gateways are chosen by it as well.
    #[arg(
        long,
        value_name = "PORT",
        env = "CAUSEWAY_SPORT",
        default_value_t = 40000
    )]
    sport: u16,
    /// Its destination port.
    #[arg(
        long,
        value_name = "PORT",
        env = "CAUSEWAY_DPORT",
        default_value_t = 80
    )]
    dport: u16,
    /// How large it is, with all headers.
    #[arg(
        long,
        value_name = "BYTES",
        env = "CAUSEWAY_SIZE",
        default_value_t = 84
    )]
    size: u16,
    /// It must not be sent in pieces, as with all of TCP.
    #[arg(long, env = "CAUSEWAY_DF", value_parser = clap::builder::FalseyValueParser::new())]
    df: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let packet = packet(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let told = runtime.block_on(told::ask(&arguments.place))?;
    let interfaces = interfaces().context("the interfaces of this machine cannot be read")?;
    let (ruleset, unread) = match Ruleset::read_whole() {
        Ok(ruleset) => {
            let unread = ruleset.unread.clone();
            (ruleset, unread)
        }
        Err(error) => (Ruleset::default(), Some(error.to_string())),
    };
    let kernel = Kernel {
        interfaces,
        look_up: &look_up,
        rule_of: &|table, is_v4| rule_of(table, is_v4).ok().flatten(),
        filters: Filters {
            drops: &|packets| ruleset.drops(packets),
            translations: &|packets| ruleset.translations(packets),
            unread,
        },
    };
    let trace = decide::decide(&told, &packet, &kernel);
    if arguments.output.json {
        print::json(&trace)?;
    } else {
        print::data(&text(&trace, &told))?;
    }
    Ok(if trace.verdict == Verdict::Dropped {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn packet(arguments: &Arguments) -> anyhow::Result<Packet> {
    let (source, destination) = (arguments.source, arguments.destination);
    if source.is_ipv4() != destination.is_ipv4() {
        bail!(crate::command::Usage(format!(
            "{source} and {destination} are not of one family: no packet goes from one to the other"
        )));
    }
    Ok(Packet {
        source,
        destination,
        protocol: arguments.proto,
        source_port: arguments.sport,
        destination_port: arguments.dport,
        size: arguments.size,
        whole: arguments.df || arguments.proto == Protocol::Tcp,
    })
}

fn text(trace: &Trace, told: &Told) -> String {
    let mut text = format!(
        "{} on {} {} of site {}\n",
        print::plain(&trace.packet),
        told.role(),
        print::plain(told.node()),
        print::plain(told.site())
    );
    for step in &trace.steps {
        text += &format!(
            "  {:<12} {}\n",
            step.decision.name(),
            print::plain(&step.what)
        );
    }
    text += &format!(
        "  {:<12} {}\n",
        trace.verdict.name(),
        print::plain(&trace.because)
    );
    if !trace.sure {
        text += "               unless a filter drops it, as said above\n";
    }
    if let Some(next) = &trace.next {
        text += &format!("  {:<12} {}\n", "next", print::plain(next));
    }
    text
}
