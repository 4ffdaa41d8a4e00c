//! A MariaDB primary in one site and replicas in two others, by private addresses: rows are written
//! from both of the others, and go on being written and replicated when the gateway that carries
//! them is killed.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::lab::{Namespace, Process, skip, wait_for};
use tests::mesh::{Layout, Mesh, PATIENCE, Plan};

const PROGRAMS: [&str; 4] = ["nft", "mariadbd", "mariadb", "mariadb-install-db"];
const SITES: [Layout; 3] = [
    Plan::OPEN.agents(1),
    Plan::ONE.agents(1),
    Plan::ONE.agents(1),
];
/// Room for the rows of one writer.
const RANGE: u64 = 1_000_000;
/// Rows a writer must have had acknowledged before a phase of the test is over.
const ROWS: u64 = 30;
/// Far longer than a gateway may be missed, far shorter than any timeout of the database.
const STANDSTILL: Duration = Duration::from_secs(5);

/// One server in the namespace of a worker.
struct Database {
    namespace: Namespace,
    socket: PathBuf,
    _process: Process,
}

impl Database {
    fn start(mesh: &Mesh, site: usize, template: &Path) -> Result<Database> {
        let namespace = mesh.sites[site].worker.clone();
        let data = mesh.lab.directory().join(format!("db{site}"));
        let paths = [template, &data].map(|path| path.display().to_string());
        namespace.run("cp", &["-r", &paths[0], &paths[1]])?;
        let socket = data.join("sock");
        let mut command = namespace.command("mariadbd");
        command.args(["--no-defaults", "--user=root", "--skip-name-resolve"]);
        command.args(SMALL);
        command.args(["--log-bin=bin", "--binlog-format=ROW", "--sync-binlog=1"]);
        command.arg(format!("--datadir={}", data.display()));
        command.arg(format!("--socket={}", socket.display()));
        command.arg(format!("--pid-file={}", data.join("pid").display()));
        command.arg(format!(
            "--bind-address={}",
            mesh.sites[site].worker_address()
        ));
        command.arg(format!("--server-id={}", site + 1));
        let database = Database {
            _process: namespace.spawn(command)?,
            namespace,
            socket,
        };
        wait_for("MariaDB answers", PATIENCE, || {
            database.ask("SELECT 1").is_ok()
        })?;
        Ok(database)
    }

    /// What a statement of the administrator answers, columns apart by tabs.
    fn ask(&self, statement: &str) -> Result<String> {
        let socket = format!("--socket={}", self.socket.display());
        let arguments = ["--no-defaults", &socket, "--user=root", "-N", "-B", "-e"];
        let answer = self
            .namespace
            .run("mariadb", &[&arguments[..], &[statement]].concat())?;
        Ok(answer.trim().to_owned())
    }

    /// How many rows there are, and a sum over all that is in them.
    fn content(&self) -> Result<String> {
        self.ask("SELECT COUNT(*), SUM(CRC32(CONCAT(id, body))) FROM app.entries")
    }

    fn follow(&self, primary: IpAddr) -> Result<()> {
        self.ask(&format!(
            "CHANGE MASTER TO MASTER_HOST='{primary}', MASTER_USER='copy', \
             MASTER_PASSWORD='copy', MASTER_USE_GTID=slave_pos, MASTER_CONNECT_RETRY=1; \
             START SLAVE; SET GLOBAL read_only=1"
        ))?;
        let runs = || {
            let status = self.ask("SHOW SLAVE STATUS").unwrap_or_default();
            status.contains("Waiting for master to send event")
        };
        wait_for("the replica follows", PATIENCE, runs)
    }
}

/// What a database of a few rows needs, and no more.
const SMALL: [&str; 4] = [
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=4M",
    "--performance-schema=0",
    "--key-buffer-size=1M",
];

/// A data directory as the package makes it; made once, it is copied for each server.
fn template(mesh: &Mesh) -> Result<PathBuf> {
    let path = mesh.lab.directory().join("template");
    let data = format!("--datadir={}", path.display());
    let fixed = [
        "--no-defaults",
        "--user=root",
        "--skip-test-db",
        "--skip-log-bin",
        &data,
    ];
    let normal = ["--auth-root-authentication-method=normal"];
    let arguments = [&fixed[..], &normal[..], &SMALL[..]].concat();
    mesh.hub.run("mariadb-install-db", &arguments)?;
    Ok(path)
}

/// Inserts rows one after the other over one connection that must last.
struct Writer {
    acknowledged: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Result<Duration>>,
}

/// Ends with its guard, whatever becomes of the test.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Writer {
    fn start(from: &Namespace, primary: IpAddr, first: u64) -> Result<Writer> {
        let mut command = from.command("mariadb");
        command
            .args([
                "--no-defaults",
                "--user=app",
                "--password=app",
                "--skip-reconnect",
            ])
            .args([
                "--unbuffered",
                "-N",
                "-B",
                &format!("--host={primary}"),
                "app",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut client = Client(command.spawn().context("cannot start mariadb")?);
        let input = client.0.stdin.take().context("no input")?;
        let output = BufReader::new(client.0.stdout.take().context("no output")?);
        let acknowledged = Arc::<AtomicU64>::default();
        let ended = Arc::<AtomicBool>::default();
        let (count, flag) = (Arc::clone(&acknowledged), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let _client = client;
            write(input, output, (first, &count), &flag)
        });
        Ok(Writer {
            acknowledged,
            ended,
            thread,
        })
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn wait_for_more(&self) -> Result<()> {
        let until = self.acknowledged() + ROWS;
        wait_for("rows are written", PATIENCE, || {
            self.acknowledged() >= until || self.thread.is_finished()
        })
    }

    /// How many rows were acknowledged, and the longest time that one took.
    fn finish(self) -> Result<(u64, Duration)> {
        self.ended.store(true, Ordering::Relaxed);
        let longest = self.thread.join().expect("the writer does not panic")?;
        Ok((self.acknowledged.load(Ordering::Relaxed), longest))
    }
}

fn write(
    mut input: ChildStdin,
    mut output: BufReader<ChildStdout>,
    (first, count): (u64, &AtomicU64),
    ended: &AtomicBool,
) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    let mut id = first;
    while !ended.load(Ordering::Relaxed) {
        let begin = Instant::now();
        writeln!(
            input,
            "INSERT INTO entries VALUES ({id}, REPEAT('{id} ', 300)); SELECT {id};"
        )?;
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(
            line.trim() == id.to_string(),
            "row {id} was answered with {line:?}"
        );
        longest = longest.max(begin.elapsed());
        count.fetch_add(1, Ordering::Relaxed);
        id += 1;
    }
    Ok(longest)
}

/// The connections by which replicas are fed: their numbers and where they come from.
fn feeds(primary: &Database) -> Result<Vec<String>> {
    let rows = primary.ask(
        "SELECT HOST, ID FROM information_schema.processlist WHERE COMMAND = 'Binlog Dump' \
         ORDER BY HOST",
    )?;
    Ok(rows.lines().map(str::to_owned).collect())
}

#[test]
fn a_replicated_database_lives_through_the_death_of_its_gateway() {
    if skip("a_replicated_database", &PROGRAMS) {
        return;
    }
    let mut mesh = Mesh::up("mariadb", &SITES).unwrap();
    let template = template(&mesh).unwrap();
    let databases = [0, 1, 2].map(|site| Database::start(&mesh, site, &template).unwrap());
    let [primary, replicas @ ..] = &databases;
    let address = mesh.sites[0].worker_address();
    let prepare = "CREATE USER copy@'10.%' IDENTIFIED BY 'copy'; \
        GRANT REPLICATION SLAVE ON *.* TO copy@'10.%'; CREATE DATABASE app; \
        CREATE TABLE app.entries (id BIGINT PRIMARY KEY, body TEXT NOT NULL) ENGINE=InnoDB; \
        CREATE USER app@'10.%' IDENTIFIED BY 'app'; GRANT ALL ON app.* TO app@'10.%'";
    primary.ask(prepare).unwrap();
    for replica in replicas {
        replica.follow(address).unwrap();
    }
    let before = feeds(primary).unwrap();
    for (feed, site) in before.iter().zip([1, 2]) {
        let source = format!("{}:", mesh.sites[site].worker_address());
        assert!(feed.starts_with(&source), "{before:?}");
    }
    let writers = [1, 2].map(|site| {
        let from = &mesh.sites[site].worker;
        Writer::start(from, address, site as u64 * RANGE).unwrap()
    });
    let more = || {
        writers
            .iter()
            .for_each(|writer| writer.wait_for_more().unwrap())
    };
    more();
    let victim = mesh.busiest(0, &[1, 2]).unwrap();
    mesh.gateway(0, victim).kill();
    more();
    mesh.gateway(0, victim).start().unwrap();
    mesh.wait_until_up(PATIENCE).unwrap();
    more();
    for (writer, site) in writers.into_iter().zip([1, 2]) {
        let (acknowledged, longest) = writer.finish().expect("its connection lasts");
        println!("site {site}: {acknowledged} rows, the longest took {longest:?}");
        assert!(longest < STANDSTILL, "{longest:?}");
        let from = site * RANGE;
        let kept = format!(
            "SELECT COUNT(*) FROM app.entries WHERE id BETWEEN {from} AND {}",
            from + acknowledged - 1
        );
        assert_eq!(primary.ask(&kept).unwrap(), acknowledged.to_string());
    }
    let position = primary.ask("SELECT @@gtid_binlog_pos").unwrap();
    for replica in replicas {
        let wait = format!("SELECT MASTER_GTID_WAIT('{position}', 20)");
        assert_eq!(replica.ask(&wait).unwrap(), "0", "{position} does not come");
        assert_eq!(replica.content().unwrap(), primary.content().unwrap());
    }
    // The same two connections as in the beginning: replicas noticed nothing.
    assert_eq!(feeds(primary).unwrap(), before);
    mesh.watch.assert_clean();
}
