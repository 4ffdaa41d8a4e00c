//! The packet filters on its way: causeway's own and those of other programs. Only what is read of
//! their rules is judged; where that does not tell for sure, it is said.

use node::netlink::interfaces::Interface;
use routeagent::guard::Hook;
use routeagent::inspect::{Accept, Finding, Packets, State};
use routeagent::wanted::Family;

use super::super::packet::Protocol;
use super::super::told::Told;
use super::super::verdict::{Decision, End, Reason, dropped};
use super::{Course, Origin, Out};

/// Of rules that may drop it, so many are told.
const MOST: usize = 3;

/// What is asked of all rules there are. Why it cannot be, where they could not be read.
pub(in super::super) struct Filters<'a> {
    pub(in super::super) drops: &'a dyn Fn(&Packets) -> Vec<Finding>,
    pub(in super::super) translations: &'a dyn Fn(&Packets) -> Vec<Finding>,
    pub(in super::super) unread: Option<String>,
}

impl Course<'_> {
    /// On its way from `origin` to where its route leads; to this machine itself if nowhere.
    pub(super) fn filters(&mut self, origin: &Origin, out: Option<Out>) -> Result<(), End> {
        if let Some(why) = &self.kernel.filters.unread {
            let what = format!("not all of the packet filters' rules could be read: {why}");
            self.is_sure = false;
            self.step(Decision::Filter, what);
        }
        for hook in hooks(origin, out.is_some()) {
            let packets = self.packets(*hook, origin, out);
            self.translated(&packets)?;
            self.dropped(&packets)?;
        }
        Ok(())
    }

    fn packets(&self, hook: Hook, origin: &Origin, out: Option<Out>) -> Packets {
        let packet = self.packet;
        let name = |index: u32| -> Option<String> {
            let interface: Option<&Interface> = self.kernel.interfaces.get(&index);
            interface.map(|one| one.name.clone())
        };
        let is_own = matches!(origin, Origin::Own);
        let input = match (hook, origin) {
            (Hook::Prerouting | Hook::Input | Hook::Forward, Origin::By(device)) => name(*device),
            (Hook::Output | Hook::Postrouting, _) | (_, Origin::Own) => None,
        };
        let output = match hook {
            Hook::Forward | Hook::Output | Hook::Postrouting => {
                out.and_then(|(device, _)| name(device))
            }
            Hook::Prerouting | Hook::Input => None,
        };
        let mut packets = Packets::new(hook, Family::of(packet.destination));
        packets.source = vec![packet.source.into()];
        packets.destination = vec![packet.destination.into()];
        packets.source_is_own = is_own;
        packets.destination_is_own = out.is_none();
        packets.input = input;
        packets.output = output;
        packets.next_hop = out.map(|(_, via)| via.unwrap_or(packet.destination));
        packets.protocol = Some(packet.number());
        (packets.source_port, packets.port) = packet.ports().unzip();
        // What a gateway only passes on, causeway keeps from conntrack.
        if !is_own && out.is_some() && matches!(self.told, Told::Gateway(_)) {
            packets.state = State::Untracked;
        }
        packets
    }

    /// A translated destination is not the mesh's any more.
    fn translated(&mut self, packets: &Packets) -> Result<(), End> {
        if !matches!(packets.hook, Hook::Prerouting | Hook::Output) {
            return Ok(());
        }
        let found = (self.kernel.filters.translations)(packets).into_iter();
        let changes = |finding: &Finding| {
            let verdict = &finding.rule.verdict;
            verdict.starts_with("dnat") || verdict.starts_with("redirect")
        };
        for finding in found.filter(changes) {
            let rule = &finding.rule;
            if finding.certain {
                return Err(dropped(
                    Reason::Translated,
                    format!(
                        "a rule gives it another destination, so it never comes to the mesh: {rule}"
                    ),
                    rule.remove.clone().unwrap_or_default(),
                ));
            }
            self.is_sure = false;
            let what = format!("a rule may give it another destination: {rule}");
            self.step(Decision::Filter, what);
        }
        Ok(())
    }

    fn dropped(&mut self, packets: &Packets) -> Result<(), End> {
        let found = (self.kernel.filters.drops)(packets);
        // Of ours all is known that it asks, but for the way back to a source, which is the one that
        // this packet was taken to come by.
        let found = found
            .into_iter()
            .filter(|finding| finding.certain || !finding.rule.is_ours());
        for (number, finding) in found.enumerate() {
            let rule = &finding.rule;
            if finding.certain && rule.is_ours() {
                return Err(dropped(
                    Reason::Guard,
                    format!("causeway's own packet filter drops it: {rule}"),
                    "it lets packets of the mesh go only between this site's addresses and the tunnel, or a gateway; `causeway status` says what it knows of both",
                ));
            }
            if finding.certain {
                return Err(self.by_others(&finding, packets));
            }
            self.is_sure = false;
            if number < MOST {
                let what = format!("a rule may drop it, which cannot be told for sure: {rule}");
                self.step(Decision::Filter, what);
            }
        }
        Ok(())
    }

    fn by_others(&self, finding: &Finding, packets: &Packets) -> End {
        let rule = &finding.rule;
        let mut answers = packets.clone();
        answers.state = State::Established;
        let is_new = packets.state == State::New;
        let passes_later = is_new && (self.kernel.filters.drops)(&answers).is_empty();
        let but = if passes_later {
            ", unless it belongs to a connection that the other end was asked for"
        } else {
            ""
        };
        let open = self
            .opening(packets)
            .map(|accept| finding.opening(&accept))
            .or_else(|| rule.remove.clone());
        dropped(
            Reason::Filter,
            format!("a packet filter of this machine drops it{but}: {rule}"),
            open.unwrap_or_else(|| "let it pass in that chain".to_owned()),
        )
    }

    /// What a person would let through there.
    fn opening(&self, packets: &Packets) -> Option<Accept> {
        let port = self.packet.destination_port;
        match (packets.hook, self.packet.protocol) {
            (Hook::Forward, _) => {
                let to_mesh = packets.output.clone().filter(|name| self.is_tunnel(name));
                let from_mesh = packets.input.clone().map(Accept::From);
                to_mesh.map(Accept::To).or(from_mesh)
            }
            (Hook::Input | Hook::Prerouting, Protocol::Tcp) => Some(Accept::Tcp(port)),
            (Hook::Input | Hook::Prerouting, Protocol::Udp) => Some(Accept::Udp(port)),
            (Hook::Input | Hook::Prerouting, Protocol::Icmp)
            | (Hook::Output | Hook::Postrouting, _) => None,
        }
    }
}

fn hooks(origin: &Origin, goes_out: bool) -> &'static [Hook] {
    match (origin, goes_out) {
        (Origin::Own, true) => &[Hook::Output, Hook::Postrouting],
        // Nothing of the mesh is from here to here.
        (Origin::Own, false) => &[],
        (Origin::By(_), true) => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
        (Origin::By(_), false) => &[Hook::Prerouting, Hook::Input],
    }
}
