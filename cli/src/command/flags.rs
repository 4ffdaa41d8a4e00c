//! Flags that gateways and agents share.

use std::net::{IpAddr, SocketAddr};

/// What of this machine's kernel is used.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Kernel {
    /// The routing table for the mesh's prefixes; the next two are used too.
    #[arg(long, value_name = "N", env = "CAUSEWAY_TABLE", value_parser = table, default_value = "7100")]
    pub(crate) table: u32,
    /// Of the rule that leads to that table; the two numbers before it are used too.
    #[arg(long, value_name = "N", env = "CAUSEWAY_RULE_PRIORITY", value_parser = priority, default_value = "100")]
    pub(crate) rule_priority: u32,
    /// Value and mask that causeway's own outer packets carry, so that they stay out of the mesh.
    #[arg(long, value_name = "V/M", env = "CAUSEWAY_FWMARK", value_parser = fwmark, default_value = "0x1000/0x1000")]
    fwmark: Fwmark,
    /// The UDP port on which agents reach their gateways by VXLAN; the same on all nodes of a site.
    #[arg(long, value_name = "PORT", env = "CAUSEWAY_VXLAN_PORT", value_parser = clap::value_parser!(u16).range(1..), default_value = "7803")]
    pub(crate) vxlan_port: u16,
}

impl Kernel {
    pub(crate) fn fwmark(&self) -> (u32, u32) {
        (self.fwmark.0, self.fwmark.1)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Metrics(pub(crate) Option<SocketAddr>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fwmark(pub(crate) u32, pub(crate) u32);

pub(crate) fn lan_address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .ok()
        .filter(|address: &IpAddr| {
            !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
        })
        .ok_or_else(|| "an address of this machine in its site's network, like 10.1.0.2".to_owned())
}

/// 0 and those above 252 are the kernel's own.
fn table(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(table) if (1..=251).contains(&table) || (256..u32::MAX).contains(&table) => Ok(table),
        Ok(_) | Err(_) => Err(
            "the number of a routing table that nobody else uses: 1 to 251, or 256 and above"
                .to_owned(),
        ),
    }
}

fn priority(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(priority) if (3..32766).contains(&priority) => Ok(priority),
        Ok(_) | Err(_) => Err("a number from 3 to 32765".to_owned()),
    }
}

pub(crate) fn fwmark(text: &str) -> Result<Fwmark, String> {
    let wrong = || "a value and a mask, like 0x1000/0x1000".to_owned();
    let (value, mask) = text.split_once('/').unwrap_or((text, text));
    let (value, mask) = (
        number(value).ok_or_else(wrong)?,
        number(mask).ok_or_else(wrong)?,
    );
    if value == 0 || value & mask != value {
        return Err("the value must not be 0, and must lie within the mask".to_owned());
    }
    Ok(Fwmark(value, mask))
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

pub(crate) fn metrics(text: &str) -> Result<Metrics, String> {
    if text == "off" {
        return Ok(Metrics(None));
    }
    text.parse()
        .map(|address| Metrics(Some(address)))
        .map_err(|_| "an address and a port, like 127.0.0.1:9780, or the word off".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_lies_within_its_mask() {
        assert_eq!(fwmark("0x1000/0xf000"), Ok(Fwmark(0x1000, 0xf000)));
        assert_eq!(fwmark("7"), Ok(Fwmark(7, 7)));
        for text in ["0/0", "0x1000/0x0f00", "x", "1/", ""] {
            assert!(fwmark(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tables_of_the_kernel_are_refused() {
        for text in ["0", "254", "255", "-1", "4294967295"] {
            assert!(table(text).is_err(), "{text}");
        }
        assert_eq!(table("7100"), Ok(7100));
    }
}
