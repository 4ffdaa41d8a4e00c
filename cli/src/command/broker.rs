//! `causeway broker init | run | add | remove | list`.

mod etcd;
mod init;

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use broker::directory::StoreUrl;
use clap::builder::{ArgAction, FalseyValueParser};
use proto::entry::{Body, Broker, StoreId};
use proto::key::PublicKey;
use proto::ledger::GrantState;
use serde::Serialize;

use crate::brokers::Brokers;
use crate::command::{Directories, Output, Signing, Usage};
use crate::outlook::Outlook;
use crate::parse;
use crate::print::{self, Table};
use crate::signing::Desk;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a mesh with its authority and first broker, or a further broker of one.
    Init(init::Arguments),
    /// Serve nodes until told to end.
    Run(Run),
    /// Enter a further broker, or new addresses of one, in the ledger.
    Add(Add),
    /// Take a broker out of the ledger.
    Remove(Remove),
    /// Show the brokers of the mesh.
    List(List),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    directories: Directories,
    /// Where nodes reach it, TCP and UDP.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "CAUSEWAY_LISTEN",
        value_parser = listen,
        default_value = "[::]:7800"
    )]
    listen: SocketAddr,
    /// Another store than `broker init` chose: redb, or etcds://H:P,H:P/PREFIX (etcd:// without TLS).
    #[arg(long, value_name = "STORE", env = "CAUSEWAY_STORE", value_parser = store)]
    store: Option<StoreUrl>,
    #[command(flatten)]
    etcd: etcd::Etcd,
    /// Metrics and health, for this machine only; `off` for neither.
    #[arg(long, value_name = "ADDRESS:PORT", env = "CAUSEWAY_HTTP", value_parser = http, default_value = "127.0.0.1:7880")]
    http: Http,
    /// Do not forward datagrams of gateways whose paths fail: those that reach each other only by a
    /// relay then need another broker with one.
    #[arg(long, env = "CAUSEWAY_NO_RELAY", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    no_relay: bool,
}

#[derive(Clone, Copy, Debug)]
struct Http(Option<SocketAddr>);

#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    #[command(flatten)]
    signing: Signing,
    /// The broker's key: its pin, as `broker init` printed it.
    #[arg(value_name = "KEY", value_parser = parse::key, allow_hyphen_values = true)]
    key: PublicKey,
    /// The id of its store, as `broker init` printed it; not needed for a broker that is known.
    #[arg(long, value_name = "ID", env = "CAUSEWAY_STORE_ID", value_parser = store_id)]
    store_id: Option<StoreId>,
    /// Where nodes reach it; may be given several times, and replaces what was there.
    #[arg(long, value_name = "H:P", env = "CAUSEWAY_ADDRESS", value_parser = parse::address, value_delimiter = ',', required = true)]
    address: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    signing: Signing,
    /// The broker's key, or one of its addresses.
    #[arg(value_name = "KEY", allow_hyphen_values = true)]
    broker: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init(arguments) => init::run(&arguments),
        Command::Run(arguments) => serve(arguments),
        Command::Add(arguments) => add(&arguments),
        Command::Remove(arguments) => remove(&arguments),
        Command::List(arguments) => list(&arguments),
    }
}

fn store(text: &str) -> Result<StoreUrl, String> {
    text.parse()
        .map_err(|error: broker::directory::DirectoryError| error.to_string())
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "an address of this machine and a port, like [::]:7800 or 192.0.2.1:7800; a name is not enough".to_owned())
}

fn http(text: &str) -> Result<Http, String> {
    if text == "off" {
        return Ok(Http(None));
    }
    text.parse()
        .map(|address| Http(Some(address)))
        .map_err(|_| "an address and a port, like 127.0.0.1:7880, or the word off".to_owned())
}

fn store_id(text: &str) -> Result<StoreId, String> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    bytes
        .map(StoreId)
        .ok_or("a store id has 32 hex digits, as `causeway broker init` prints it".to_owned())
}

fn serve(arguments: Run) -> anyhow::Result<()> {
    let options = broker::run::Options {
        state_directory: arguments.directories.state_dir,
        runtime_directory: arguments.directories.runtime_dir,
        listen: arguments.listen,
        store: arguments.store,
        etcd: arguments.etcd.into(),
        http: arguments.http.0,
        relay: !arguments.no_relay,
    };
    broker::run::run(options, |_| ()).map_err(what_next)
}

fn what_next(error: broker::run::Error) -> anyhow::Error {
    let error = anyhow::Error::new(error);
    let mut causes = error.chain();
    let fault = causes.find_map(|cause| cause.downcast_ref::<io::Error>());
    let next = match fault.map(io::Error::kind) {
        Some(io::ErrorKind::AddrInUse) => {
            "`ss -lntup` shows which program has it: end that one, or give another address with --listen or --http"
        }
        Some(io::ErrorKind::AddrNotAvailable) => {
            "`ip address` shows those this machine has; give one of them, or [::]:7800 for all"
        }
        Some(_) | None => return error,
    };
    anyhow::anyhow!("{}; {next}", print::error(&error))
}

#[derive(Serialize)]
struct Shown {
    key: String,
    store_id: String,
    addresses: Vec<String>,
    /// `None` if nobody asked.
    answers: Option<bool>,
}

fn show(broker: &Broker) -> Shown {
    Shown {
        key: broker.key.to_string(),
        store_id: broker.store.to_string(),
        addresses: broker.addresses.clone(),
        answers: None,
    }
}

fn add(arguments: &Add) -> anyhow::Result<()> {
    let mut desk = Desk::open(&arguments.signing)?;
    let known = desk.charter().broker(&arguments.key);
    let store = match (arguments.store_id, known) {
        (Some(store), _) => store,
        (None, Some(known)) => known.store,
        (None, None) => bail!(Usage(
            "the ledger does not know this broker yet: give the id of its store with --store-id, as `causeway broker init` printed it there".to_owned()
        )),
    };
    let broker = Broker {
        key: arguments.key,
        store,
        addresses: arguments.address.clone(),
    };
    desk.sign(Body::Broker(broker.clone()))
        .with_context(|| format!("broker {} was not entered", arguments.key))?;
    eprintln!(
        "Broker {} is in the ledger with {}.",
        arguments.key,
        print::list(&arguments.address)
    );
    // Only now is it among those of the ledger: it may be waiting for just this.
    desk.reach_again()?;
    desk.hand_over();
    if arguments.output.json {
        print::json(&show(&broker))?;
    }
    Ok(())
}

fn remove(arguments: &Remove) -> anyhow::Result<()> {
    let mut desk = Desk::open(&arguments.signing)?;
    let broker = find(&desk.charter().brokers, &arguments.broker)?.clone();
    let others = desk.charter().brokers.len() - 1;
    desk.sign(Body::BrokerRemoved { key: broker.key })?;
    eprintln!(
        "Broker {} is out of the ledger: nodes leave it when they learn of it.",
        broker.key
    );
    if others == 0 {
        eprintln!(
            "It was the last one. Nodes go on with what they have; add another with `causeway broker add`."
        );
    }
    say_open_grants(&desk, &broker);
    desk.hand_over();
    if arguments.output.json {
        print::json(&show(&broker))?;
    }
    Ok(())
}

/// What it counted cannot be told from what it counts after it was taken.
fn say_open_grants(desk: &Desk, broker: &Broker) {
    let charter = desk.charter();
    if charter
        .brokers
        .iter()
        .any(|other| other.store == broker.store)
    {
        return;
    }
    let open: Vec<String> = charter
        .grants
        .iter()
        .filter(|(_, standing)| {
            standing.grant.store == broker.store && standing.state == GrantState::Open
        })
        .map(|(id, _)| id.short())
        .collect();
    if !open.is_empty() {
        eprintln!(
            "Its store counted the uses of these tokens, and no other broker does: {}. If its key may be in other hands, close them: causeway token revoke ID",
            print::list(&open)
        );
    }
}

fn find<'a>(known: &'a [Broker], text: &str) -> anyhow::Result<&'a Broker> {
    let by_address = |broker: &&Broker| broker.addresses.iter().any(|other| other == text);
    let by_key = |broker: &&Broker| broker.key.to_string() == text;
    known
        .iter()
        .find(|broker| by_key(broker) || by_address(broker))
        .with_context(|| {
            format!("there is no broker {text} in the ledger; `causeway broker list` shows those there are")
        })
}

fn list(arguments: &List) -> anyhow::Result<()> {
    let mut outlook = Outlook::open(&arguments.signing)?;
    let asked = !arguments.signing.offline;
    let known = outlook.charter().brokers.clone();
    let brokers = outlook.brokers();
    let shown: Vec<Shown> = known
        .iter()
        .map(|broker| Shown {
            answers: asked.then(|| brokers.has_reached(&broker.key)),
            ..show(broker)
        })
        .collect();
    if arguments.output.json {
        return print::json(&shown);
    }
    let mut table = Table::new(["key", "addresses", "store id", "answers"]);
    for broker in shown {
        let answers = match broker.answers {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        table.row([
            broker.key,
            print::list(&broker.addresses),
            broker.store_id,
            answers.to_owned(),
        ]);
    }
    print::data(&table.text())?;
    say_what_is_odd(&known, &arguments.signing, outlook.brokers());
    Ok(())
}

fn say_what_is_odd(known: &[Broker], signing: &Signing, brokers: &Brokers) {
    for why in brokers.failures() {
        eprintln!("causeway: {why}");
    }
    if brokers.is_stranger_here() {
        eprintln!(
            "causeway: a broker of this mesh answers on {}; to see which one, give the --state-dir it runs with",
            signing.directories.broker_socket().display()
        );
    }
    for broker in known.iter().filter(|broker| broker.addresses.is_empty()) {
        eprintln!("causeway: {}", no_address(&broker.key));
    }
}

/// A mesh is often made before anyone knows by which name its broker will be reached.
pub(crate) fn no_address(broker: &PublicKey) -> String {
    format!(
        "the ledger has no address of broker {broker}, so nodes cannot find it; add where it is reached: causeway broker add {broker} --address HOST:7800"
    )
}

/// So that what a broker keeps is not made open to others by the parents it makes.
fn make_state_directory(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent)
            .map_err(|error| crate::private::explain(error, "make the directory", parent))?;
    }
    crate::private::make_directory(path)
}
