//! `causeway routes`: what to enter on the router of a site whose machines run no agent.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::bail;
use clap::ValueEnum;
use ip_network::IpNetwork;
use node::follow::{Cached, View, cached};
use node::state::StateDir;
use proto::entry::Role;
use proto::ledger::PrefixState;
use proto::record::Record;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::command::Output;
use crate::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What this machine keeps; any node of the site knows enough.
    #[arg(
        long,
        value_name = "D",
        env = "CAUSEWAY_STATE_DIR",
        default_value = "/var/lib/causeway"
    )]
    state_dir: PathBuf,
    /// Whose commands to print.
    #[arg(long = "for", value_name = "WHAT", env = "CAUSEWAY_FOR", value_enum)]
    router: Router,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Router {
    Linux,
    Aws,
    Azure,
    Gcp,
}

/// Of this site, with an address in its network for each family it has one of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Gateway {
    name: String,
    addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Remote {
    prefix: String,
    site: String,
    #[serde(skip)]
    network: IpNetwork,
}

#[derive(Debug, Serialize)]
struct Shown {
    r#for: String,
    site: String,
    gateways: Vec<Gateway>,
    prefixes: Vec<Remote>,
    /// In their order; each is one line of shell.
    commands: Vec<String>,
    /// What a person must know besides.
    notes: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let node = StateDir::open(&arguments.state_dir)?.joined()?;
    let known = cached(&node);
    let shown = show(&known, arguments.router);
    if shown.prefixes.is_empty() {
        bail!(
            "no other site's prefix is known here; if there are other sites, start this node's daemon so that it asks a broker, then repeat"
        );
    }
    if shown.gateways.is_empty() {
        bail!(
            "no gateway of site {} with an address in its network is known here; start one (`causeway gateway run`), then repeat",
            shown.site
        );
    }
    if arguments.output.json {
        return print::json(&shown);
    }
    for note in &shown.notes {
        eprintln!("{note}");
    }
    print::data(&(shown.commands.join("\n") + "\n"))
}

fn show(known: &Cached, router: Router) -> Shown {
    let view = &known.view;
    let gateways = gateways(known);
    let prefixes = prefixes(view);
    let mut shown = Shown {
        r#for: router.name().to_owned(),
        site: view.site.to_string(),
        commands: router.head(&gateways),
        notes: router.notes(&gateways),
        gateways,
        prefixes,
    };
    for remote in &shown.prefixes {
        let via = by_family(&shown.gateways, remote.network);
        if via.is_empty() {
            shown.notes.push(format!(
                "{} is left out: no gateway of this site has an address of its family in the site's network",
                remote.prefix
            ));
        } else {
            shown.commands.extend(router.route(remote, &via));
        }
    }
    shown
}

fn prefixes(view: &View) -> Vec<Remote> {
    let owned = view.prefixes.iter();
    let remote = owned
        .filter(|held| held.state == PrefixState::Owned)
        .filter(|held| held.site != view.site);
    let unique: BTreeSet<(IpNetwork, String)> = remote
        .map(|held| (held.prefix, held.site.to_string()))
        .collect();
    let remote = unique.into_iter().map(|(network, site)| Remote {
        prefix: network.to_string(),
        site,
        network,
    });
    remote.collect()
}

/// This node itself among them, if it is one.
fn gateways(known: &Cached) -> Vec<Gateway> {
    let view = &known.view;
    let owned = view.prefixes.iter().filter(|held| held.site == view.site);
    let site: Vec<IpNetwork> = owned.map(|held| held.prefix).collect();
    let others = view.peers.values().map(|peer| &peer.node.record);
    let all = others.chain(known.own.as_ref());
    let here = all.filter(|record| record.site == view.site && record.role == Role::Gateway);
    let mut gateways: Vec<Gateway> = here.filter_map(|record| gateway(record, &site)).collect();
    gateways.sort_by(|one, other| one.name.cmp(&other.name));
    gateways
}

/// Its LAN address, and of the other family what lies in the site's network.
fn gateway(record: &Record, site: &[IpNetwork]) -> Option<Gateway> {
    let presence = record.presence()?;
    let is_inside = |address: &IpAddr| site.iter().any(|prefix| prefix.contains(*address));
    let candidates = presence.candidates.iter().map(|candidate| candidate.ip());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in presence.lan_address.into_iter().chain(candidates) {
        let has_family = addresses
            .iter()
            .any(|one| one.is_ipv4() == address.is_ipv4());
        if is_inside(&address) && !has_family {
            addresses.push(address);
        }
    }
    addresses.sort_unstable();
    (!addresses.is_empty()).then(|| Gateway {
        name: record.node.to_string(),
        addresses,
    })
}

fn by_family(gateways: &[Gateway], prefix: IpNetwork) -> Vec<(&Gateway, IpAddr)> {
    let all = gateways.iter().filter_map(|gateway| {
        let mut addresses = gateway.addresses.iter();
        let address = addresses.find(|address| address.is_ipv4() == prefix.is_ipv4())?;
        Some((gateway, *address))
    });
    all.collect()
}

/// Names that clouds allow for a route.
fn route_name(prefix: &str) -> String {
    let parts = prefix.split(['.', '/', ':']);
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    format!("causeway-{}", parts.join("-"))
}

/// Google takes no more letters, and none of them from another one's route: a longer name is cut,
/// and a hash of all of it makes it one of its own.
fn gcp_name(prefix: &str, gateway: &str) -> String {
    const MOST: usize = 63;
    const HASH: usize = 10;
    let whole = format!("{}-{gateway}", route_name(prefix));
    if whole.len() <= MOST {
        return whole;
    }
    let hash = Sha256::digest(&whole);
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    // What it is made of is ASCII: addresses and names of nodes.
    let start: String = whole.chars().take(MOST - HASH - 1).collect();
    format!("{}-{}", start.trim_end_matches('-'), &hash[..HASH])
}

impl Router {
    fn name(self) -> &'static str {
        match self {
            Router::Linux => "linux",
            Router::Aws => "aws",
            Router::Azure => "azure",
            Router::Gcp => "gcp",
        }
    }

    /// What is done once: which table, and that gateways may forward.
    fn head(self, gateways: &[Gateway]) -> Vec<String> {
        let first = |gateway: &Gateway| gateway.addresses[0];
        match self {
            Router::Linux => Vec::new(),
            Router::Aws => {
                let table = ": \"${ROUTE_TABLE:?set it to the id of the route table of the site's subnets, like rtb-0123}\"";
                let allow = gateways.iter().map(|gateway| {
                    format!(
                        "aws ec2 modify-network-interface-attribute --no-source-dest-check --network-interface-id {}",
                        aws_interface(first(gateway))
                    )
                });
                [table.to_owned()].into_iter().chain(allow).collect()
            }
            Router::Azure => {
                let table = ": \"${GROUP:?set it to the resource group}\" \"${ROUTE_TABLE:?set it to the name of the route table of the site's subnets}\"";
                let allow = gateways.iter().map(|gateway| {
                    let address = first(gateway);
                    format!(
                        "az network nic update --ip-forwarding true --ids $(az network nic list --resource-group \"$GROUP\" --query \"[?ipConfigurations[?privateIPAddress=='{address}']].id\" --output tsv)"
                    )
                });
                [table.to_owned()].into_iter().chain(allow).collect()
            }
            Router::Gcp => {
                vec![": \"${NETWORK:?set it to the name of the site's VPC network}\"".to_owned()]
            }
        }
    }

    fn route(self, remote: &Remote, via: &[(&Gateway, IpAddr)]) -> Vec<String> {
        let prefix = &remote.prefix;
        let is_v4 = remote.network.is_ipv4();
        let (_, first) = via[0];
        let name = route_name(prefix);
        match self {
            Router::Linux => {
                let ip = if is_v4 { "ip" } else { "ip -6" };
                let hops: Vec<String> = match via {
                    [(_, one)] => vec![format!("via {one}")],
                    many => many
                        .iter()
                        .map(|(_, hop)| format!("nexthop via {hop}"))
                        .collect(),
                };
                vec![format!("{ip} route replace {prefix} {}", hops.join(" "))]
            }
            Router::Aws => {
                let block = if is_v4 { "cidr" } else { "ipv6-cidr" };
                vec![format!(
                    "aws ec2 create-route --route-table-id \"$ROUTE_TABLE\" --destination-{block}-block {prefix} --network-interface-id {}",
                    aws_interface(first)
                )]
            }
            Router::Azure => vec![format!(
                "az network route-table route create --resource-group \"$GROUP\" --route-table-name \"$ROUTE_TABLE\" --name {name} --address-prefix {prefix} --next-hop-type VirtualAppliance --next-hop-ip-address {first}"
            )],
            Router::Gcp => {
                let each = via.iter().map(|(gateway, hop)| {
                    format!(
                        "gcloud compute routes create {} --network \"$NETWORK\" --destination-range {prefix} --next-hop-address {hop}",
                        gcp_name(prefix, &gateway.name)
                    )
                });
                each.collect()
            }
        }
    }

    fn notes(self, gateways: &[Gateway]) -> Vec<String> {
        let mut notes = vec![
            "Only for machines without an agent: one that runs `causeway routeagent run` needs none of this, and leaves a dead gateway by itself.".to_owned(),
        ];
        let several = gateways.len() > 1;
        match self {
            Router::Linux if several => notes.push("Flows are spread over the gateways; one that is dead has to be taken out of these routes by hand.".to_owned()),
            Router::Linux => {}
            Router::Aws | Router::Azure => {
                notes.push("The instances of the gateways must be allowed to forward: the first commands see to that.".to_owned());
                if several {
                    notes.push("Such a table has one next hop for a prefix: the first gateway takes all, and if it dies the routes have to be given to another by hand.".to_owned());
                }
            }
            Router::Gcp => notes.push("The instances of the gateways must be allowed to forward (canIpForward), which Google sets when an instance is made: `gcloud compute instances create --can-ip-forward`.".to_owned()),
        }
        notes
    }
}

/// The interface with this address, asked for when the command runs.
fn aws_interface(address: IpAddr) -> String {
    let filter = match address {
        IpAddr::V4(_) => "addresses.private-ip-address",
        IpAddr::V6(_) => "ipv6-addresses.ipv6-address",
    };
    format!(
        "$(aws ec2 describe-network-interfaces --filters Name={filter},Values={address} --query 'NetworkInterfaces[0].NetworkInterfaceId' --output text)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(prefix: &str) -> Remote {
        Remote {
            prefix: prefix.to_owned(),
            site: "paris".to_owned(),
            network: prefix.parse().unwrap(),
        }
    }

    fn gateways(number: usize) -> Vec<Gateway> {
        let all = (1..=number).map(|at| Gateway {
            name: format!("g{at}"),
            addresses: vec![
                format!("10.1.0.{at}").parse().unwrap(),
                format!("fd00::{at}").parse().unwrap(),
            ],
        });
        all.collect()
    }

    fn routes(router: Router, number: usize, prefix: &str) -> Vec<String> {
        let (gateways, remote) = (gateways(number), remote(prefix));
        router.route(&remote, &by_family(&gateways, remote.network))
    }

    #[test]
    fn each_router_is_told_in_its_own_words() {
        assert_eq!(
            routes(Router::Linux, 1, "10.2.0.0/16"),
            ["ip route replace 10.2.0.0/16 via 10.1.0.1"]
        );
        assert_eq!(
            routes(Router::Linux, 2, "fd02::/48"),
            ["ip -6 route replace fd02::/48 nexthop via fd00::1 nexthop via fd00::2"]
        );
        for (router, word) in [
            (Router::Aws, "--destination-ipv6-cidr-block fd02::/48"),
            (
                Router::Azure,
                "--name causeway-fd02-48 --address-prefix fd02::/48",
            ),
            (Router::Gcp, "causeway-fd02-48-g1 --network"),
        ] {
            let commands = routes(router, 1, "fd02::/48");
            assert_eq!(commands.len(), 1);
            assert!(commands[0].contains(word), "{}", commands[0]);
            assert!(commands[0].contains("fd00::1"), "{}", commands[0]);
        }
        assert_eq!(routes(Router::Gcp, 2, "10.2.0.0/16").len(), 2);
    }

    #[test]
    fn a_long_name_is_cut_and_stays_one_of_its_own() {
        let prefix = "fd00:1234:5678:9abc::/64";
        let host = "ip-10-0-1-12-eu-central-1-compute-internal";
        let one = gcp_name(prefix, host);
        assert!(one.len() <= 63 && !one.contains("--"), "{one}");
        assert!(
            one.starts_with("causeway-fd00-1234-5678-9abc-64-ip-10-0"),
            "{one}"
        );
        assert_eq!(one, gcp_name(prefix, host));
        assert_ne!(one, gcp_name(prefix, &format!("{host}2")));
        assert_eq!(gcp_name("10.2.0.0/16", "g1"), "causeway-10-2-0-0-16-g1");
        let is_allowed =
            |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        assert!(one.chars().all(is_allowed), "{one}");
    }

    #[test]
    fn a_prefix_whose_family_no_gateway_has_gets_no_hop() {
        let mut gateways = gateways(1);
        gateways[0].addresses.truncate(1);
        assert!(by_family(&gateways, "fd02::/48".parse().unwrap()).is_empty());
    }
}
