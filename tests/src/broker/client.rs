//! A client of a broker that can do what no honest program does: come from any address, say things
//! in any order, stop half way. What it says is made by `proto`, so it also is a second reader of
//! the protocol beside `node`.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use proto::codec::{decode, encode};
use proto::enrolment::JoinProof;
use proto::entry::SignedEntry;
use proto::frame::{FrameReader, frame};
use proto::hello::{ALPN, EXPORTER, Hello, SPOKEN, Welcome};
use proto::key::{Domain, Hash, MeshId, PublicKey, SigningKey};
use proto::message::{Answer, Authenticate, Call, Enrol, Push, Refusal, Reply, Request, Who};
use proto::record::{Member, Record, SignedRecord};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::cast::Actor;

/// How long anything that is asked for may take.
const LIMIT: Duration = Duration::from_secs(60);
/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const ED25519_INFO: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Where a broker is, and whose it must be.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub pin: PublicKey,
    pub mesh: MeshId,
}

pub struct Client {
    stream: TlsStream<TcpStream>,
    frames: FrameReader,
    pushes: VecDeque<Push>,
    exporter: [u8; 32],
    number: u32,
    pub welcome: Welcome,
}

impl Target {
    /// TCP only; `from` is the address to come from.
    pub async fn reach(&self, from: Option<IpAddr>) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = timeout(LIMIT, socket.connect(self.address))
            .await
            .context("connecting takes too long")??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// TCP, TLS and the hellos.
    pub async fn connect(&self, from: Option<IpAddr>) -> Result<Client> {
        let mut client = self.shake_hands(from).await?;
        let hello = Hello {
            versions: SPOKEN,
            mesh: self.mesh,
        };
        client.send_bytes(&hello.write()).await?;
        client.welcome = Welcome::read(&client.frame().await?)?;
        Ok(client)
    }

    /// TCP and TLS; what comes then is the caller's.
    pub async fn shake_hands(&self, from: Option<IpAddr>) -> Result<Client> {
        let stream = self.reach(from).await?;
        let connector = TlsConnector::from(Arc::new(configuration(self.pin)?));
        let name = ServerName::from(self.address.ip());
        let stream = timeout(LIMIT, connector.connect(name, stream))
            .await
            .context("the TLS handshake takes too long")??;
        let mut exporter = [0; 32];
        stream
            .get_ref()
            .1
            .export_keying_material(&mut exporter, EXPORTER, None)?;
        Ok(Client {
            stream,
            frames: FrameReader::new(),
            pushes: VecDeque::new(),
            exporter,
            number: 0,
            welcome: Welcome {
                versions: SPOKEN,
                mesh: self.mesh,
                now: 0,
            },
        })
    }
}

/// What a node was told that wanted to speak.
pub enum Entrance {
    In(Box<Client>),
    Refused(Refusal),
}

impl Target {
    /// Connects and authenticates as a node.
    pub async fn enter(&self, from: Option<IpAddr>, actor: &Actor) -> Result<Entrance> {
        let mut client = self.connect(from).await?;
        let reply = client
            .authenticate(&actor.identity, &actor.enrolment)
            .await?;
        if let Reply::Refused(refusal) = reply {
            return Ok(Entrance::Refused(refusal));
        }
        let Reply::Authenticated { .. } = reply else {
            bail!("not authenticated: {reply:?}");
        };
        Ok(Entrance::In(Box::new(client)))
    }
}

impl Client {
    /// Publishes the next record, or is refused.
    pub async fn publish(&mut self, actor: &mut Actor) -> Result<Result<(), Refusal>> {
        let member = actor.next_member("zone");
        let reply = self.call(Request::Publish { member }).await?;
        if let Reply::Refused(refusal) = reply {
            return Ok(Err(refusal));
        }
        let Reply::Published { .. } = reply else {
            bail!("not published: {reply:?}");
        };
        Ok(Ok(()))
    }

    /// Waits for the broker to end the connection.
    pub async fn wait_until_cut(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let read = timeout(LIMIT, self.stream.read(&mut buffer)).await;
            match read.context("the broker does not end the connection")? {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    /// Any content as a frame.
    pub async fn send_bytes(&mut self, content: &[u8]) -> Result<()> {
        self.send_raw(&frame(content)?).await
    }

    /// Any bytes at all.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        timeout(LIMIT, self.stream.write_all(bytes))
            .await
            .context("the broker takes nothing")??;
        Ok(())
    }

    pub async fn frame(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(content) = self.frames.poll_frame()? {
                return Ok(content);
            }
            let mut buffer = [0; 16 * 1024];
            let length = timeout(LIMIT, self.stream.read(&mut buffer))
                .await
                .context("the broker says nothing")??;
            if length == 0 {
                bail!("the broker has closed the connection");
            }
            self.frames.handle_bytes(&buffer[..length]);
        }
    }

    /// Asks, and keeps what is pushed meanwhile.
    pub async fn call(&mut self, request: Request) -> Result<Reply> {
        let number = self.ask(request).await?;
        loop {
            match decode(&self.frame().await?)? {
                Answer::Push(push) => self.pushes.push_back(push),
                Answer::Reply { number: of, reply } if of == number => return Ok(reply),
                Answer::Reply { number: of, .. } => bail!("a reply to call {of}, not {number}"),
                other @ (Answer::Open { .. } | Answer::Carried { .. }) => {
                    bail!("unasked: {other:?}")
                }
            }
        }
    }

    /// Asks without waiting; the answer comes with [`Client::answer`].
    pub async fn ask(&mut self, request: Request) -> Result<u32> {
        self.number += 1;
        let number = self.number;
        self.send_bytes(&encode(&Call { number, request })?).await?;
        Ok(number)
    }

    /// The next push or reply. Loses nothing when it is dropped half way.
    pub async fn answer(&mut self) -> Result<Answer> {
        if let Some(push) = self.pushes.pop_front() {
            return Ok(Answer::Push(push));
        }
        Ok(decode(&self.frame().await?)?)
    }

    /// This connection, signed.
    pub fn session_of(&self, key: &SigningKey) -> [u8; 64] {
        key.sign(Domain::Session, &self.exporter).0
    }

    /// Takes a use of a grant, or tries to.
    pub async fn enrol(
        &mut self,
        grant: &SignedEntry,
        join_key: &SigningKey,
        identity: &SigningKey,
    ) -> Result<Reply> {
        let grant_id: Hash = grant.hash();
        let proof = JoinProof::sign(self.welcome.mesh, grant_id, join_key, identity);
        let enrol = Enrol {
            grant: grant.bytes().to_owned(),
            proof: proof.write(),
            join_session: self.session_of(join_key),
            identity_session: self.session_of(identity),
        };
        self.call(Request::Enrol(enrol)).await
    }

    pub async fn authenticate(&mut self, identity: &SigningKey, enrolment: &[u8]) -> Result<Reply> {
        let request = Request::Authenticate(Authenticate {
            who: Who::Node {
                identity: *identity.public().as_bytes(),
                enrolment: enrolment.to_owned(),
            },
            session: self.session_of(identity),
        });
        self.call(request).await
    }

    pub async fn authenticate_authority(&mut self, key: &SigningKey) -> Result<Reply> {
        let request = Request::Authenticate(Authenticate {
            who: Who::Authority {
                key: *key.public().as_bytes(),
            },
            session: self.session_of(key),
        });
        self.call(request).await
    }
}

impl Client {
    /// The last sequence of every node that the broker lists.
    pub async fn sequences(&mut self) -> Result<HashMap<PublicKey, u64>> {
        let records = self.records().await?.into_iter();
        Ok(records
            .map(|record| (record.identity, record.sequence))
            .collect())
    }

    /// The record of every node that the broker lists.
    pub async fn records(&mut self) -> Result<Vec<Record>> {
        let mut found: Vec<Record> = Vec::new();
        loop {
            let after = found.last().map(|record| *record.identity.as_bytes());
            let reply = self.call(Request::ListNodes { after }).await?;
            let Reply::Nodes(nodes) = reply else {
                bail!("no list: {reply:?}");
            };
            if nodes.is_empty() {
                return Ok(found);
            }
            for node in nodes {
                let member = Member::read(&node.member)?;
                found.push(SignedRecord::read(&member.record)?.record().clone());
            }
        }
    }
}

/// For tests that are not asynchronous themselves.
pub fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

/// TLS 1.3 with the one raw public key that is pinned.
fn configuration(pin: PublicKey) -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Pinned {
        pin,
        algorithms: provider.signature_verification_algorithms,
    };
    let mut configuration = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    configuration.alpn_protocols = vec![ALPN.to_vec()];
    configuration.enable_sni = false;
    configuration.resumption = rustls::client::Resumption::disabled();
    Ok(configuration)
}

#[derive(Debug)]
struct Pinned {
    pin: PublicKey,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let expected = [&ED25519_INFO[..], self.pin.as_bytes()].concat();
        if end_entity.as_ref() == expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General(
                "another key than the pin".to_owned(),
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
