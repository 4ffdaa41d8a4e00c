//! The demo itself: what is made, shown and measured, in the order in which it is told.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use serde::Serialize;

use super::cast::Cast;
use super::echo::{self, Seen, Watch};
use super::mesh::{Mesh, PATIENCE};
use super::plan::{self, Machine, Role, SITES};
use super::story::Story;
use super::table;
use super::transfer;

const BEFORE: Duration = Duration::from_millis(700);
const AFTER: Duration = Duration::from_millis(2000);

/// What was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    /// From the first `token create` to the first answer from worker to worker.
    token_to_first_ping_ms: f64,
    links: usize,
    pings: usize,
    pings_unanswered: usize,
    ping_slowest_ms: f64,
    untunnelled_gbit_s: f64,
    tunnelled_gbit_s: f64,
    source_kept: bool,
    kill: Kill,
    took_s: f64,
}

#[derive(Debug, Default, Serialize)]
struct Kill {
    gateway: String,
    pings_sent: usize,
    pings_answered: usize,
    /// Of the ping that it hit hardest.
    gap_ms: f64,
}

pub(super) fn run(story: &Story) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    story.say(PICTURE.trim_end());
    let cast = Cast::build()?;
    let tour = Tour {
        story,
        cast: &cast,
        mesh: Mesh::new(&cast),
    };
    figures.untunnelled_gbit_s = tour.bare_wires()?;
    tour.join(&mut figures)?;
    tour.ping_all(&mut figures)?;
    tour.transfer(&mut figures)?;
    figures.kill = tour.kill_one()?;
    tour.status()?;
    figures.took_s = story.elapsed().as_secs_f64();
    tour.sum_up(&figures);
    // Namespaces and daemons go with this process, not before.
    std::mem::forget(tour);
    std::mem::forget(cast);
    Ok(figures)
}

const PICTURE: &str = "\
Three private networks in three clouds, joined by Causeway. All of it runs on this machine, in network namespaces that nothing else sees.

    aws-frankfurt  10.1.0.0/16 ── gateway-1, gateway-2 ──┐
    azure-dublin   10.2.0.0/16 ── gateway-1, gateway-2 ──┼── internet ── broker
    gcp-zurich     10.3.0.0/16 ── gateway-1, gateway-2 ──┘
                                  behind a NAT

In each are two workers too, which have no way to the internet. Network 10.N.0.0/16 has fd00:0:N::/48 beside it.
";

struct Tour<'a> {
    story: &'a Story,
    cast: &'a Cast,
    mesh: Mesh<'a>,
}

impl Tour<'_> {
    /// How fast these wires are without any tunnel.
    fn bare_wires(&self) -> anyhow::Result<f64> {
        let [from, to] = [SITES[0], SITES[1]].map(|site| site.machine(Role::Worker, 1));
        let speed = self.cast.untunnelled([from.site, to.site], || {
            let places = (self.cast.place(from)?, self.cast.place(to)?);
            transfer::measure(places.0, places.1, to.v4().into())
        })?;
        Ok(gbit(speed.bytes_per_s))
    }

    fn join(&self, figures: &mut Figures) -> anyhow::Result<()> {
        self.mesh.start_broker()?;
        self.story
            .say("The broker runs. One token for the gateways of each site, one for its workers:");
        let begun = Instant::now();
        let mut tokens = vec![];
        for site in SITES {
            for role in [Role::Gateway, Role::Worker] {
                let (token, words) = self.mesh.token(site, role)?;
                self.story.show(&format!("$ {words}"));
                tokens.push((site, role, token));
            }
        }
        self.story
            .say("Each machine joins with its token, makes its own keys, and starts:");
        self.story
            .show("gateways   $ causeway join && causeway gateway run");
        self.story.show(
            "workers    $ causeway join --via GATEWAY && causeway routeagent run\n\
             Workers have no way to the broker but through a gateway of their site.",
        );
        in_parallel(tokens, |(site, role, token)| {
            in_parallel(vec![1, 2], |number| {
                let machine = site.machine(role, number);
                self.mesh.join(machine, &token)?;
                self.mesh.start(machine)
            })
        })?;
        let [from, to] = [SITES[0], SITES[2]].map(|site| site.machine(Role::Worker, 1));
        let answered = self
            .cast
            .place(from)?
            .within(|| echo::first(to.v4().into(), PATIENCE))?;
        answered.with_context(|| {
            format!(
                "{} does not reach {}:\n{}",
                from.name(),
                to.name(),
                self.mesh.log_of(from)
            )
        })?;
        let took = begun.elapsed();
        figures.token_to_first_ping_ms = millis(took);
        figures.links = self.mesh.wait_until_whole()?;
        self.story.say(&format!(
            "Three sites have joined, and all {} links between their gateways are up. The first ping from a worker to another site's was answered {:.1} s after the first token was asked for.",
            figures.links,
            took.as_secs_f64()
        ));
        Ok(())
    }

    fn ping_all(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let all: Vec<Machine> = plan::machines().collect();
        let mut times = self.round(&all, |machine| machine.v4().into())?;
        self.story.say(
            "Everyone pings everyone by private addresses; round trips in milliseconds, IPv4:",
        );
        self.story.show(&table::matrix(&all, &times));
        if plan::has_v6() {
            let v6 = self.round(&all, |machine| machine.v6().into())?;
            let summary = table::summary(&to_others(&v6));
            self.story.tell(&format!("The same over IPv6: {summary}."));
            times.extend(v6);
        }
        let times = to_others(&times);
        figures.pings = times.len();
        figures.pings_unanswered = times.iter().filter(|time| time.is_none()).count();
        let slowest = times.iter().flatten().max();
        figures.ping_slowest_ms = slowest.map_or(0.0, |time| millis(*time));
        if figures.pings_unanswered > 0 {
            bail!(
                "{} of {} pings were not answered",
                figures.pings_unanswered,
                figures.pings
            );
        }
        Ok(())
    }

    /// All at once; a row for each that asks.
    fn round(
        &self,
        all: &[Machine],
        address: fn(Machine) -> IpAddr,
    ) -> anyhow::Result<Vec<Vec<Option<Duration>>>> {
        in_parallel(all.to_vec(), |from| {
            self.cast.place(from)?.within(|| {
                let targets = all.iter();
                targets
                    .map(|to| echo::ping(address(*to), PATIENCE / 2))
                    .collect()
            })
        })
    }

    fn transfer(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let [from, to] = [SITES[0], SITES[1]].map(|site| site.machine(Role::Worker, 1));
        let places = (self.cast.place(from)?, self.cast.place(to)?);
        let done = transfer::measure(places.0, places.1, to.v4().into())?;
        figures.tunnelled_gbit_s = gbit(done.bytes_per_s);
        figures.source_kept = done.from == IpAddr::from(from.v4());
        self.story.say(&format!(
            "{} sends to {} for two seconds over one TCP connection:",
            from.name(),
            to.name()
        ));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.story.show(&format!(
            "{:6.2} Gbit/s through the mesh: workers, gateways and encryption share {}\n{:6.2} Gbit/s over the same wires before: plain routes, no encryption",
            figures.tunnelled_gbit_s,
            crate::print::count(cores, "core", "cores"),
            figures.untunnelled_gbit_s
        ));
        if !figures.source_kept {
            bail!(
                "{} saw the connection come from {}, which is not {}",
                to.name(),
                done.from,
                from.v4()
            );
        }
        self.story.tell(&format!(
            "{} saw it come from {}, the other worker's own address.",
            to.name(),
            done.from
        ));
        Ok(())
    }

    fn kill_one(&self) -> anyhow::Result<Kill> {
        let [from, to] = [SITES[0], SITES[1]];
        let workers = [1, 2].map(|number| from.machine(Role::Worker, number));
        let targets = [1, 2].map(|number| to.machine(Role::Worker, number));
        let mut pings = vec![];
        let mut watches = vec![];
        for worker in workers {
            for target in targets {
                let watch = Arc::new(Watch::new());
                watches.push(Arc::clone(&watch));
                pings.push(
                    self.cast
                        .place(worker)?
                        .keep_within(move || echo::running(target.v4().into(), &watch))?,
                );
            }
        }
        let gateway = self.busiest(from, BEFORE)?;
        self.mesh.kill(gateway)?;
        wait_for_answers(&watches);
        watches.iter().for_each(|watch| watch.end());
        let mut kill = Kill {
            gateway: gateway.name(),
            ..Kill::default()
        };
        let mut gap = Duration::ZERO;
        for ping in pings {
            let seen: Seen = ping
                .join()
                .map_err(|_| anyhow!("a ping's thread ended"))??;
            kill.pings_sent += seen.sent;
            kill.pings_answered += seen.answered;
            gap = gap.max(seen.gap);
        }
        kill.gap_ms = millis(gap);
        self.mesh.start(gateway)?;
        self.story.say(&format!(
            "Both workers of {} ping both of {}, a hundred times a second each. Meanwhile {}, which carries most of it, is killed (kill -9):",
            from.name, to.name, gateway.name()
        ));
        self.story.tell(&format!(
            "{} pings sent, {} answered; the longest time without an answer was {:.0} ms.",
            kill.pings_sent, kill.pings_answered, kill.gap_ms
        ));
        let begun = Instant::now();
        self.mesh.wait_until_whole()?;
        self.story.show(&format!(
            "Started again, all its links were up after {:.1} s.",
            begun.elapsed().as_secs_f64()
        ));
        Ok(kill)
    }

    /// Of the site's gateways, the one that sends most meanwhile.
    fn busiest(&self, site: plan::Site, lasts: Duration) -> anyhow::Result<Machine> {
        let gateways = [1, 2].map(|number| site.machine(Role::Gateway, number));
        let sent = || -> anyhow::Result<Vec<u64>> {
            let bytes = gateways.iter().map(|gateway| {
                let status = self.mesh.status(*gateway)?;
                Ok(status.links.iter().map(|link| link.tx_bytes).sum())
            });
            bytes.collect()
        };
        let before = sent()?;
        std::thread::sleep(lasts);
        let after = sent()?;
        let grown = |at: usize| after[at].saturating_sub(before[at]);
        Ok(gateways[usize::from(grown(1) > grown(0))])
    }

    fn status(&self) -> anyhow::Result<()> {
        for seen_by in [
            SITES[1].machine(Role::Gateway, 1),
            SITES[0].machine(Role::Worker, 1),
        ] {
            self.story
                .say(&format!("What {} says of the mesh now:", seen_by.name()));
            self.story.show("$ causeway status");
            self.story.show(&self.mesh.status_text(seen_by)?);
        }
        Ok(())
    }

    fn sum_up(&self, figures: &Figures) {
        self.story.say(&format!(
            "Shown in {:.0} seconds: three private networks became one, all {} pings between {} machines were answered, a connection kept its source address and ran at {:.2} Gbit/s, all of it encrypted between the sites, and a gateway's death cost {:.0} ms.",
            figures.took_s,
            figures.pings,
            plan::machines().count(),
            figures.tunnelled_gbit_s,
            figures.kill.gap_ms
        ));
    }
}

/// Until all that lost their way have had time to find another, and have.
fn wait_for_answers(watches: &[Arc<Watch>]) {
    let begun = Instant::now();
    std::thread::sleep(AFTER);
    let is_silent = |watch: &Arc<Watch>| watch.silence() > Duration::from_millis(100);
    while watches.iter().any(is_silent) && begun.elapsed() < PATIENCE / 4 {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One thread for each; the first error in their order.
fn in_parallel<I: Send, T: Send>(
    items: Vec<I>,
    work: impl Fn(I) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items
            .into_iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        let ended = |_| Err(anyhow!("a thread ended"));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(ended))
            .collect()
    })
}

/// Without the pings of those that asked themselves.
fn to_others(rows: &[Vec<Option<Duration>>]) -> Vec<Option<Duration>> {
    let mut all = vec![];
    for (from, row) in rows.iter().enumerate() {
        let own = from % row.len();
        all.extend(row.iter().enumerate().filter(|(to, _)| *to != own));
    }
    all.into_iter().map(|(_, time)| *time).collect()
}

fn gbit(bytes_per_s: f64) -> f64 {
    bytes_per_s * 8.0 / 1e9
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
