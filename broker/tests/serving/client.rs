//! A caller that says what a test wants said.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::codec;
use proto::enrolment::JoinProof;
use proto::entry::SignedEntry;
use proto::frame::{FrameReader, frame};
use proto::hello::{ALPN, EXPORTER, Hello, SPOKEN, Welcome};
use proto::key::{Domain, Hash, MeshId, PublicKey, SigningKey};
use proto::message::{
    Answer, Authenticate, Call, Enrol, Position, Push, Refusal, Relay, Reply, Request, Who,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, NamedGroup, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cast::Ticket;

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub(crate) struct Client {
    stream: Box<dyn Stream>,
    frames: FrameReader,
    pushes: VecDeque<Push>,
    relayed: VecDeque<Answer>,
    exporter: [u8; 32],
    number: u32,
    pub(crate) welcome: Welcome,
    pub(crate) group: Option<NamedGroup>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, pin: PublicKey, mesh: MeshId) -> Client {
        let stream = TcpStream::connect(address).await.unwrap();
        Client::connect_on(stream, pin, mesh).await.unwrap()
    }

    pub(crate) async fn connect_on(
        stream: TcpStream,
        pin: PublicKey,
        mesh: MeshId,
    ) -> std::io::Result<Client> {
        let name = ServerName::from(stream.peer_addr()?.ip());
        let connector = TlsConnector::from(Arc::new(configuration(pin)));
        let stream = connector.connect(name, stream).await?;
        let (_, connection) = stream.get_ref();
        let exporter = connection
            .export_keying_material([0; 32], EXPORTER, None)
            .unwrap();
        let group = connection.negotiated_key_exchange_group();
        let group = group.map(|group| group.name());
        Client::greet(Box::new(stream), exporter, group, mesh).await
    }

    pub(crate) async fn connect_local(path: &Path, mesh: MeshId) -> Client {
        let stream = UnixStream::connect(path).await.unwrap();
        Client::greet(Box::new(stream), [0; 32], None, mesh)
            .await
            .unwrap()
    }

    async fn greet(
        stream: Box<dyn Stream>,
        exporter: [u8; 32],
        group: Option<NamedGroup>,
        mesh: MeshId,
    ) -> std::io::Result<Client> {
        let mut client = Client {
            stream,
            frames: FrameReader::new(),
            pushes: VecDeque::new(),
            relayed: VecDeque::new(),
            exporter,
            number: 0,
            welcome: Welcome {
                versions: SPOKEN,
                mesh,
                now: 0,
            },
            group,
        };
        let hello = Hello {
            versions: SPOKEN,
            mesh,
        };
        client.send_bytes(&hello.write()).await?;
        let welcome = client.frame().await?;
        client.welcome = Welcome::read(&welcome).unwrap();
        Ok(client)
    }

    pub(crate) async fn send_bytes(&mut self, content: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(&frame(content).unwrap()).await?;
        self.stream.flush().await
    }

    async fn frame(&mut self) -> std::io::Result<Vec<u8>> {
        loop {
            if let Some(content) = self.frames.poll_frame().unwrap() {
                return Ok(content);
            }
            let mut buffer = [0; 16 * 1024];
            let read = timeout(LIMIT, self.stream.read(&mut buffer))
                .await
                .expect("the broker says nothing")?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.frames.handle_bytes(&buffer[..read]);
        }
    }

    /// `None` when the broker has hung up.
    pub(crate) async fn try_call(&mut self, request: Request) -> Option<Result<Reply, Refusal>> {
        self.number += 1;
        let number = self.number;
        let call = Call { number, request };
        self.send_bytes(&codec::encode(&call).unwrap()).await.ok()?;
        loop {
            match codec::decode(&self.frame().await.ok()?).unwrap() {
                Answer::Push(push) => self.pushes.push_back(push),
                relayed @ (Answer::Open { .. } | Answer::Carried { .. }) => {
                    self.relayed.push_back(relayed);
                }
                Answer::Reply { number: of, reply } => {
                    assert_eq!(of, number);
                    return Some(match reply {
                        Reply::Refused(refusal) => Err(refusal),
                        reply => Ok(reply),
                    });
                }
            }
        }
    }

    pub(crate) async fn call(&mut self, request: Request) -> Result<Reply, Refusal> {
        let reply = self.try_call(request).await;
        reply.expect("the broker has hung up")
    }

    pub(crate) async fn push(&mut self) -> Push {
        if let Some(push) = self.pushes.pop_front() {
            return push;
        }
        match codec::decode(&self.frame().await.unwrap()).unwrap() {
            Answer::Push(push) => push,
            other => panic!("{other:?} to nothing"),
        }
    }

    /// What the relay has for this caller.
    pub(crate) async fn relayed(&mut self) -> Answer {
        if let Some(answer) = self.relayed.pop_front() {
            return answer;
        }
        codec::decode(&self.frame().await.unwrap()).unwrap()
    }

    pub(crate) async fn relay(&mut self, peers: &[(u32, PublicKey)]) -> Result<Relay, Refusal> {
        let peers = peers.iter().map(|(at, peer)| (*at, *peer.as_bytes()));
        let request = Request::Relay {
            peers: peers.collect(),
        };
        match self.call(request).await? {
            Reply::Relay(relay) => Ok(relay),
            other => panic!("{other:?}"),
        }
    }

    /// Has no reply.
    pub(crate) async fn carry(&mut self, channel: u32, datagram: &[u8]) {
        let request = Request::Carry {
            channel,
            datagram: datagram.to_vec(),
        };
        let call = Call { number: 0, request };
        self.send_bytes(&codec::encode(&call).unwrap())
            .await
            .unwrap();
    }

    /// Everything up to the point where the broker says that there is no more.
    pub(crate) async fn caught_up(&mut self) -> Push {
        let mut all = self.push().await;
        while !all.caught_up {
            let next = self.push().await;
            all.entries.extend(next.entries);
            all.members.extend(next.members);
            all.forgotten.extend(next.forgotten);
            all.position = next.position;
            all.caught_up = next.caught_up;
        }
        all
    }

    pub(crate) fn proof(&self, ticket: &Ticket, identity: &SigningKey) -> Enrol {
        let hash: Hash = ticket.entry.hash();
        let proof = JoinProof::sign(self.welcome.mesh, hash, &ticket.join_key, identity);
        Enrol {
            grant: ticket.entry.bytes().to_vec(),
            proof: proof.write(),
            join_session: ticket.join_key.sign(Domain::Session, &self.exporter).0,
            identity_session: identity.sign(Domain::Session, &self.exporter).0,
        }
    }

    pub(crate) async fn enrol(
        &mut self,
        ticket: &Ticket,
        identity: &SigningKey,
    ) -> Result<Vec<u8>, Refusal> {
        let asked = self.proof(ticket, identity);
        match self.call(Request::Enrol(asked)).await? {
            Reply::Enrolled { enrolment } => Ok(enrolment),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn authenticate(
        &mut self,
        identity: &SigningKey,
        enrolment: &[u8],
    ) -> Result<(), Refusal> {
        let who = Who::Node {
            identity: *identity.public().as_bytes(),
            enrolment: enrolment.to_vec(),
        };
        self.show(who, identity).await
    }

    pub(crate) async fn authenticate_authority(&mut self, key: &SigningKey) -> Result<(), Refusal> {
        let who = Who::Authority {
            key: *key.public().as_bytes(),
        };
        self.show(who, key).await
    }

    async fn show(&mut self, who: Who, key: &SigningKey) -> Result<(), Refusal> {
        let session = key.sign(Domain::Session, &self.exporter).0;
        let asked = Authenticate { who, session };
        match self.call(Request::Authenticate(asked)).await? {
            Reply::Authenticated { .. } => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn publish(&mut self, member: Vec<u8>) -> Result<u64, Refusal> {
        match self.call(Request::Publish { member }).await? {
            Reply::Published { revision } => Ok(revision),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn watch(&mut self, resume: Option<Position>, heads: Vec<[u8; 32]>) -> Push {
        let reply = self.call(Request::Watch { resume, heads }).await.unwrap();
        assert_eq!(reply, Reply::Watching);
        self.caught_up().await
    }

    pub(crate) async fn put(&mut self, entries: &[SignedEntry]) -> Result<Vec<[u8; 32]>, Refusal> {
        let entries = entries.iter().map(|entry| entry.bytes().to_vec()).collect();
        match self.call(Request::PutLedger { entries }).await? {
            Reply::LedgerTaken { heads } => Ok(heads),
            other => panic!("{other:?}"),
        }
    }

    /// Reads until the broker hangs up.
    pub(crate) async fn wait_until_cut(&mut self) {
        while self.frame().await.is_ok() {}
    }
}

/// What is behind the head of an HTTP response.
pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn configuration(pin: PublicKey) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut configuration = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(pin)))
        .with_no_client_auth();
    configuration.alpn_protocols = vec![ALPN.to_vec()];
    configuration
}

#[derive(Debug)]
struct Pinned(PublicKey);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // RFC 8410: twelve bytes say that an Ed25519 key follows.
        assert_eq!(shown[12..], *self.0.as_bytes());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        panic!("the broker speaks TLS 1.3 only");
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
