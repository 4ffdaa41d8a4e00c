//! `causeway broker init`: a mesh is made once, so everything is there afterwards or nothing is.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use broker::directory::{self, About, New, StoreUrl};
use proto::entry::{Body, Broker, SignedEntry, StoreId};
use proto::key::{PublicKey, SigningKey};
use proto::ledger::Ledger;
use serde::Serialize;

use crate::authority;
use crate::command::{Output, Usage};
use crate::parse;
use crate::print;
use crate::private;
use crate::secret;
use crate::time;

use super::etcd::Etcd;

const DEFAULT_PORT: &str = "7800";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What this machine keeps; the broker goes to D/broker.
    #[arg(
        long,
        value_name = "D",
        env = "CAUSEWAY_STATE_DIR",
        default_value = "/var/lib/causeway"
    )]
    state_dir: PathBuf,
    /// Where the authority's key and ledger go, best elsewhere than the broker; D/authority if not given.
    #[arg(
        long,
        value_name = "DIR",
        env = "CAUSEWAY_AUTHORITY",
        conflicts_with = "mesh"
    )]
    authority: Option<PathBuf>,
    /// What keeps the records: redb, a file of its own, or etcds://H:P,H:P/PREFIX (etcd:// without TLS).
    #[arg(long, env = "CAUSEWAY_STORE", value_parser = super::store, default_value = "redb")]
    store: StoreUrl,
    #[command(flatten)]
    etcd: Etcd,
    /// Where nodes reach this broker; may be given several times.
    #[arg(long, value_name = "H:P", env = "CAUSEWAY_ADDRESS", value_parser = parse::address, value_delimiter = ',')]
    address: Vec<String>,
    /// Make a further broker of the mesh with this authority.
    #[arg(long, value_name = "AUTHORITY_KEY", env = "CAUSEWAY_MESH", value_parser = parse::key, allow_hyphen_values = true)]
    mesh: Option<PublicKey>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Made {
    /// `None` for a further broker, which learns it from the authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<String>,
    authority_key: String,
    broker_key: String,
    store_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority_dir: Option<PathBuf>,
    state_dir: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let store = arguments
        .store
        .clone()
        .with(arguments.etcd.clone().into())?;
    match arguments.mesh {
        Some(authority) => further(arguments, store, authority),
        None => first(arguments, store),
    }
}

/// What every new broker has of its own.
struct Fresh {
    key: SigningKey,
    store_id: StoreId,
}

fn fresh(store: &StoreUrl) -> anyhow::Result<Fresh> {
    Ok(Fresh {
        store_id: directory::claim_store(store)
            .context("nothing was made; see to the store, then run the same command again")?,
        key: SigningKey::from_seed(&*authority::new_seed()?),
    })
}

fn further(arguments: &Arguments, store: StoreUrl, authority: PublicKey) -> anyhow::Result<()> {
    refuse_broker(&arguments.state_dir)?;
    let Fresh { key, store_id } = fresh(&store)?;
    super::make_state_directory(&arguments.state_dir)?;
    let broker_key = key.public();
    let about = About {
        mesh: None,
        authority,
        store_id,
        store,
        authority_directory: None,
    };
    let new = New {
        key,
        about,
        entries: Vec::new(),
    };
    directory::init(&arguments.state_dir, &new)?;
    let made = Made {
        mesh: None,
        authority_key: authority.to_string(),
        broker_key: broker_key.to_string(),
        store_id: store_id.to_string(),
        recovery_key: None,
        authority_dir: None,
        state_dir: arguments.state_dir.clone(),
    };
    print_made(&made, arguments.output)?;
    let address = match arguments.address.as_slice() {
        [] => "HOST:PORT".to_owned(),
        addresses => addresses.join(","),
    };
    eprintln!(
        "A further broker. It waits for its ledger: start it, then enter it where the authority is:\n  causeway broker run --state-dir {}{}\n  causeway broker add {broker_key} --store-id {store_id} --address {address}",
        arguments.state_dir.display(),
        listen(&arguments.address)
    );
    Ok(())
}

/// What `run` needs to be found where it is said to be.
fn listen(addresses: &[String]) -> String {
    let mut ports = addresses
        .iter()
        .filter_map(|address| address.rsplit_once(':'))
        .map(|(_, port)| port);
    match ports.next() {
        Some(port) if port != DEFAULT_PORT && ports.all(|other| other == port) => {
            format!(" --listen [::]:{port}")
        }
        Some(_) | None => String::new(),
    }
}

fn first(arguments: &Arguments, store: StoreUrl) -> anyhow::Result<()> {
    let authority_directory = arguments
        .authority
        .clone()
        .unwrap_or_else(|| arguments.state_dir.join("authority"));
    refuse_existing(&arguments.state_dir, &authority_directory)?;
    let Fresh { key, store_id } = fresh(&store)?;
    super::make_state_directory(&arguments.state_dir)?;
    let authority = SigningKey::from_seed(&*authority::new_seed()?);
    let recovery = SigningKey::from_seed(&*authority::new_seed()?);
    let broker = Broker {
        key: key.public(),
        store: store_id,
        addresses: arguments.address.clone(),
    };
    let entries = entries(&authority, &recovery, broker)?;
    let mesh = entries[0].hash();
    let made = Made {
        mesh: Some(mesh.to_string()),
        authority_key: authority.public().to_string(),
        broker_key: key.public().to_string(),
        store_id: store_id.to_string(),
        recovery_key: Some(secret::recovery_text(&recovery).to_string()),
        authority_dir: Some(authority_directory.clone()),
        state_dir: arguments.state_dir.clone(),
    };
    let about = About {
        mesh: Some(mesh),
        authority: authority.public(),
        store_id,
        store,
        authority_directory: Some(std::path::absolute(&authority_directory)?),
    };
    let prepared = directory::prepare(
        &arguments.state_dir,
        &New {
            key,
            about,
            entries: entries.clone(),
        },
    )?;
    let staged = authority::stage(&authority_directory, &authority, &entries)?;
    // Before anything counts: a recovery key that nobody has seen is lost for ever.
    print_made(&made, arguments.output)?;
    staged.create()?;
    if let Err(error) = prepared.commit() {
        // Made a moment ago, and nothing was signed with it.
        let _gone = std::fs::remove_dir_all(&authority_directory);
        return Err(anyhow::Error::new(error).context("nothing was made; what was printed is void"));
    }
    eprint!("{}", explain(arguments, &authority_directory));
    Ok(())
}

fn refuse_existing(state: &Path, authority: &Path) -> anyhow::Result<()> {
    let broker = state.join("broker");
    if private::is_there(authority)? && !private::is_there(&broker)? {
        bail!(
            "there is an authority in {} already. For a further broker of its mesh give its key with --mesh, or for another mesh give another --authority. If it was left by a `broker init` that was cut off before it printed anything, remove it and repeat",
            authority.display()
        );
    }
    refuse_broker(state)
}

fn refuse_broker(state: &Path) -> anyhow::Result<()> {
    let broker = state.join("broker");
    if private::is_there(&broker)? {
        bail!(
            "there is a broker in {} already; start it with `causeway broker run --state-dir {}`, or give another --state-dir",
            broker.display(),
            state.display()
        );
    }
    Ok(())
}

/// Entry 0 and the broker.
fn entries(
    authority: &SigningKey,
    recovery: &SigningKey,
    broker: Broker,
) -> anyhow::Result<Vec<SignedEntry>> {
    let now = time::now();
    if broker.addresses.len() > proto::entry::MAX_BROKER_ADDRESSES {
        bail!(Usage(format!(
            "a broker has at most {} addresses",
            proto::entry::MAX_BROKER_ADDRESSES
        )));
    }
    let genesis = Ledger::genesis(now, authority.public(), &recovery.public()).sign(authority);
    let mut ledger = Ledger::new(genesis.hash());
    ledger.insert(genesis.clone())?;
    let entry = ledger.next(now, Body::Broker(broker))?.sign(authority);
    ledger.insert(entry.clone())?;
    Ok(vec![genesis, entry])
}

fn print_made(made: &Made, output: Output) -> anyhow::Result<()> {
    if output.json {
        return print::json(made);
    }
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<14}{value}\n"));
    if let Some(mesh) = &made.mesh {
        line("mesh", mesh);
    }
    line("authority key", &made.authority_key);
    line("broker key", &made.broker_key);
    line("store id", &made.store_id);
    if let Some(recovery) = &made.recovery_key {
        line("recovery key", recovery);
    }
    print::data(&text)
}

fn explain(arguments: &Arguments, authority: &Path) -> String {
    let state = arguments.state_dir.display();
    let address = if arguments.address.is_empty() {
        " --broker HOST:7800"
    } else {
        ""
    };
    let elsewhere = if arguments.authority.is_some() {
        format!(" --authority {}", authority.display())
    } else {
        String::new()
    };
    format!(
        "Write the recovery key down and keep it away from this machine: it is shown only now and is the only way to replace a lost or stolen authority.\n\
         The authority's key is in {}. Whoever has it rules the mesh; the broker never opens it, and it is best moved to another machine.\n\
         Next, start the broker and make a token for a site:\n  \
         causeway broker run --state-dir {state}{listen}\n  \
         causeway token create --state-dir {state}{elsewhere}{address} --site NAME --cidr 10.1.0.0/16\n",
        authority.display(),
        listen = listen(&arguments.address)
    )
}
