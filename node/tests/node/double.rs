//! A broker of the tests' own: a real TLS server that says what a test wants it to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use proto::codec;
use proto::enrolment::JoinProof;
use proto::entry::SignedEntry;
use proto::frame::frame;
use proto::hello::{ALPN, Hello, SPOKEN, Versions, Welcome};
use proto::key::{Hash, MeshId, PublicKey, SigningKey};
use proto::ledger::Ledger;
use proto::message::{Answer, Call, Position, Push, Refusal, Reply, Request};
use proto::record::{Member, SignedRecord};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a double does on its own; a test changes it at any time.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) mesh: MeshId,
    pub(crate) clock: u64,
    /// What it says that it speaks.
    pub(crate) versions: Versions,
    /// What it answers every enrolment with, instead of counting.
    pub(crate) refuse_enrol: Option<Refusal>,
    /// And this, as if it were the enrolment that was asked for.
    pub(crate) enrol_with: Option<Vec<u8>>,
    /// Counts the use, then closes the connection without a word.
    pub(crate) close_after_enrol: bool,
    pub(crate) use_number: u32,
    pub(crate) refuse_login: Option<Refusal>,
    pub(crate) refuse_publish: Option<Refusal>,
    pub(crate) ledger: Vec<Vec<u8>>,
    /// What is pushed when somebody watches.
    pub(crate) on_watch: Vec<Sent>,
    /// Hangs up on so many connections before it serves one.
    pub(crate) hang_up: u32,
    /// Takes connections and says nothing at all.
    pub(crate) hung: bool,
    /// Reads, and answers nothing after the login.
    pub(crate) deaf: bool,
}

#[derive(Clone)]
pub(crate) enum Sent {
    Push(Push),
    /// Bytes as they go onto the connection.
    Raw(Vec<u8>),
}

/// What has happened at it.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) enrolled: Vec<PublicKey>,
    pub(crate) uses: BTreeMap<PublicKey, u32>,
    pub(crate) published: Vec<(u64, Vec<u8>)>,
    /// Taken or not.
    pub(crate) offered: Vec<(u64, Vec<u8>)>,
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) watches: Vec<Option<Position>>,
    pub(crate) connections: usize,
    pub(crate) pings: usize,
}

pub(crate) struct Double {
    pub(crate) key: PublicKey,
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    key: SigningKey,
    script: Mutex<Script>,
    seen: Mutex<Seen>,
    watchers: Mutex<Vec<mpsc::UnboundedSender<Option<Sent>>>>,
    ended: tokio::sync::watch::Sender<u64>,
}

impl Script {
    /// Honest, with this ledger and no nodes.
    pub(crate) fn honest(ledger: &Ledger) -> Script {
        Script {
            mesh: ledger.mesh(),
            clock: node::now(),
            versions: SPOKEN,
            refuse_enrol: None,
            enrol_with: None,
            close_after_enrol: false,
            use_number: 0,
            refuse_login: None,
            refuse_publish: None,
            ledger: ledger
                .entries()
                .map(|entry| entry.bytes().to_vec())
                .collect(),
            on_watch: vec![Sent::Push(snapshot(Vec::new(), 1))],
            hang_up: 0,
            hung: false,
            deaf: false,
        }
    }
}

/// All there is, in one batch.
pub(crate) fn snapshot(members: Vec<Vec<u8>>, revision: u64) -> Push {
    Push {
        reset: true,
        ..delta(members, revision)
    }
}

pub(crate) fn delta(members: Vec<Vec<u8>>, revision: u64) -> Push {
    Push {
        reset: false,
        entries: Vec::new(),
        members,
        forgotten: Vec::new(),
        position: Position {
            epoch: [9; 16],
            revision,
        },
        caught_up: true,
    }
}

pub(crate) fn entries(entries: Vec<Vec<u8>>, revision: u64) -> Push {
    Push {
        entries,
        ..delta(Vec::new(), revision)
    }
}

impl Double {
    pub(crate) async fn start(key: &SigningKey, script: Script) -> Double {
        Double::start_at(key, script, "127.0.0.1:0").await
    }

    pub(crate) async fn start_at(key: &SigningKey, script: Script, at: &str) -> Double {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            key: SigningKey::from_seed(&key.seed()),
            script: Mutex::new(script),
            seen: Mutex::default(),
            watchers: Mutex::default(),
            ended: tokio::sync::watch::Sender::new(0),
        });
        let acceptor = TlsAcceptor::from(Arc::new(tls(key)));
        let accepting = tokio::spawn(accept(listener, acceptor, shared.clone()));
        Double {
            key: key.public(),
            address,
            shared,
            accepting,
        }
    }

    pub(crate) fn at(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().unwrap());
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.shared.seen.lock().unwrap())
    }

    /// To all who watch.
    pub(crate) fn send(&self, sent: Sent) {
        let watchers = self.shared.watchers.lock().unwrap();
        for watcher in watchers.iter() {
            watcher.send(Some(sent.clone())).ok();
        }
    }

    pub(crate) fn push(&self, push: Push) {
        self.send(Sent::Push(push));
    }

    /// Ends all connections, and takes new ones.
    pub(crate) fn cut(&self) {
        self.shared.ended.send_modify(|count| *count += 1);
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        let mut ended = shared.ended.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = serve(stream, acceptor, shared) => {}
                _ = ended.changed() => {}
            }
        });
    }
}

fn take_one(left: &mut u32) -> bool {
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) -> Option<()> {
    shared.seen.lock().unwrap().connections += 1;
    if shared.script.lock().unwrap().hung {
        return std::future::pending().await;
    }
    let mut stream = acceptor.accept(stream).await.ok()?;
    if take_one(&mut shared.script.lock().unwrap().hang_up) {
        return None;
    }
    Hello::read(&read(&mut stream).await?).ok()?;
    let welcome = {
        let script = shared.script.lock().unwrap();
        Welcome {
            versions: script.versions,
            mesh: script.mesh,
            now: script.clock,
        }
    };
    write(&mut stream, &welcome.write()).await?;
    let (sender, mut watch) = mpsc::unbounded_channel();
    let mut sender = Some(sender);
    let mut frames = proto::frame::FrameReader::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        while let Some(content) = frames.poll_frame().ok()? {
            let call = codec::decode(&content).ok()?;
            answer(&mut stream, &shared, call, &mut sender).await?;
        }
        tokio::select! {
            length = stream.read(&mut chunk) => match length {
                Ok(length) if length > 0 => frames.handle_bytes(&chunk[..length]),
                Ok(_) | Err(_) => return None,
            },
            sent = watch.recv() => tell(&mut stream, sent??).await?,
        }
    }
}

async fn answer(
    stream: &mut TlsStream<TcpStream>,
    shared: &Shared,
    call: Call,
    watcher: &mut Option<mpsc::UnboundedSender<Option<Sent>>>,
) -> Option<()> {
    let watches = matches!(call.request, Request::Watch { .. });
    let Some(reply) = shared.reply(call.request) else {
        return Some(());
    };
    let enrolled = matches!(reply, Reply::Enrolled { .. });
    if enrolled && shared.script.lock().unwrap().close_after_enrol {
        return None;
    }
    if watches {
        // Before the reply: who has seen it gets what is sent from then on.
        shared.watchers.lock().unwrap().extend(watcher.take());
    }
    let answer = Answer::Reply {
        number: call.number,
        reply,
    };
    write(stream, &codec::encode(&answer).unwrap()).await?;
    if watches {
        let on_watch = shared.script.lock().unwrap().on_watch.clone();
        for sent in on_watch {
            tell(stream, sent).await?;
        }
    }
    Some(())
}

impl Shared {
    /// `None` for no answer.
    fn reply(&self, request: Request) -> Option<Reply> {
        let script = self.script.lock().unwrap().clone();
        let mut seen = self.seen.lock().unwrap();
        let refused = |refusal: &Option<Refusal>| refusal.clone().map(Reply::Refused);
        if script.deaf && !matches!(request, Request::Authenticate(_)) {
            return None;
        }
        Some(match request {
            Request::Enrol(enrol) => {
                let proof = JoinProof::read(&enrol.proof).unwrap();
                seen.enrolled.push(proof.identity);
                refused(&script.refuse_enrol).unwrap_or_else(|| {
                    let next = script.use_number + u32::try_from(seen.uses.len()).unwrap();
                    let number = *seen.uses.entry(proof.identity).or_insert(next);
                    let counted = proof.enrol(number, &self.key).write();
                    Reply::Enrolled {
                        enrolment: script.enrol_with.clone().unwrap_or(counted),
                    }
                })
            }
            Request::Authenticate(_) => {
                refused(&script.refuse_login).unwrap_or(Reply::Authenticated { now: script.clock })
            }
            Request::Publish { member } => {
                seen.offered.push((sequence(&member), member.clone()));
                refused(&script.refuse_publish).unwrap_or_else(|| {
                    seen.published.push((sequence(&member), member));
                    Reply::Published { revision: 1 }
                })
            }
            Request::Watch { resume, .. } => {
                seen.watches.push(resume);
                Reply::Watching
            }
            Request::Ledger { heads } => ledger(&script, &heads),
            Request::PutLedger { entries } => {
                seen.entries.extend(entries);
                Reply::LedgerTaken { heads: Vec::new() }
            }
            Request::Ping => {
                seen.pings += 1;
                Reply::Pong
            }
            Request::Carry { .. } => return None,
            Request::Reflect
            | Request::Relay { .. }
            | Request::ListNodes { .. }
            | Request::ListUses { .. } => Reply::Refused(Refusal::NotAllowed),
        })
    }
}

fn ledger(script: &Script, heads: &[[u8; 32]]) -> Reply {
    let mut ledger = Ledger::new(script.mesh);
    let mut all_fit = true;
    for bytes in &script.ledger {
        all_fit &= SignedEntry::read(bytes).is_ok_and(|entry| ledger.insert(entry).is_ok());
    }
    if !all_fit {
        // What a hostile broker has is sent as it is.
        return Reply::Ledger {
            entries: script.ledger.clone(),
            heads: Vec::new(),
            more: false,
        };
    }
    let known: Vec<Hash> = heads.iter().map(|head| Hash(*head)).collect();
    let missing = ledger.missing(&known);
    Reply::Ledger {
        entries: missing
            .into_iter()
            .map(|entry| entry.bytes().to_vec())
            .collect(),
        heads: ledger.heads().into_iter().map(|head| head.0).collect(),
        more: false,
    }
}

fn sequence(member: &[u8]) -> u64 {
    let member = Member::read(member).unwrap();
    SignedRecord::read(&member.record)
        .unwrap()
        .record()
        .sequence
}

async fn tell(stream: &mut TlsStream<TcpStream>, sent: Sent) -> Option<()> {
    match sent {
        Sent::Push(push) => write(stream, &codec::encode(&Answer::Push(push)).unwrap()).await,
        Sent::Raw(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.flush().await.ok()
        }
    }
}

async fn read(stream: &mut TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let length = stream.read_u32().await.ok()?;
    let mut content = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut content).await.ok()?;
    Some(content)
}

async fn write(stream: &mut TlsStream<TcpStream>, content: &[u8]) -> Option<()> {
    stream.write_all(&frame(content).unwrap()).await.ok()?;
    stream.flush().await.ok()
}

fn tls(key: &SigningKey) -> ServerConfig {
    // PKCS #8 of an Ed25519 key (RFC 8410) is this and the seed.
    let mut pkcs8 = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    pkcs8.extend_from_slice(&*key.seed());
    let mut spki = node::tls::SPKI_PREFIX.to_vec();
    spki.extend_from_slice(key.public().as_bytes());
    let signer = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).unwrap();
    let certified = CertifiedKey::new(vec![CertificateDer::from(spki)], signer);
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(
            certified,
        ))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}
