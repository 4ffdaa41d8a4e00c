//! One connection to one endpoint, with TLS or without, and what people are told when there is
//! none.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::access::{Tls, host};

const PLAIN: &str = "write etcd:// and leave out --etcd-ca";

pub(super) type Sender = SendRequest<Full<Bytes>>;

/// `address` is the endpoint's name, which its certificate must have.
pub(super) async fn dial(
    found: &[SocketAddr],
    address: &str,
    tls: Option<&Tls>,
) -> Result<Sender, String> {
    let stream = TcpStream::connect(found).await.map_err(to_text)?;
    // Without it small requests wait for acknowledgements.
    stream.set_nodelay(true).map_err(to_text)?;
    let Some(tls) = tls else {
        return begin(stream).await.map_err(to_text);
    };
    let name = ServerName::try_from(host(address).to_owned())
        .map_err(|_| "the host is no name that a certificate can have".to_owned())?;
    let stream = TlsConnector::from(tls.config.clone())
        .connect(name, stream)
        .await
        .map_err(|error| why_no_handshake(&error, tls))?;
    begin(stream).await.map_err(|error| why(&error, Some(tls)))
}

async fn begin<T>(stream: T) -> hyper::Result<Sender>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender; its errors reach who waits for the answer.
    tokio::spawn(connection);
    Ok(sender)
}

fn to_text(error: impl Display) -> String {
    error.to_string()
}

/// etcd without TLS may hang up on a handshake, or answer it in HTTP.
fn why_no_handshake(error: &io::Error, tls: &Tls) -> String {
    use io::ErrorKind::{ConnectionReset, UnexpectedEof};
    if matches!(error.kind(), ConnectionReset | UnexpectedEof) {
        return format!("{error}: if etcd is without TLS there, {PLAIN}");
    }
    why(error, Some(tls))
}

/// What failed below HTTP. A client certificate is judged by etcd after the handshake, so that
/// also the first answer may fail for it.
pub(super) fn why(error: &(dyn Error + 'static), tls: Option<&Tls>) -> String {
    match (find_tls_error(error), tls) {
        (Some(error), Some(tls)) => explain(error, tls),
        (_, Some(_)) => innermost(error),
        // etcd ends a connection that does not begin with a handshake.
        (_, None) if is_cut_short(error) => format!(
            "{}: if etcd speaks TLS there, write etcds:// and give --etcd-ca FILE",
            innermost(error)
        ),
        (_, None) => innermost(error),
    }
}

/// An I/O error hides what it was made from: its source is that of the error within.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(within) => Some(within),
        None => error.source(),
    }
}

fn find_tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    std::iter::successors(Some(error), |error| inner(*error))
        .find_map(|error| error.downcast_ref::<rustls::Error>())
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let last = std::iter::successors(Some(error), |error| inner(*error)).last();
    last.map_or_else(|| error.to_string(), |last| last.to_string())
}

fn is_cut_short(error: &(dyn Error + 'static)) -> bool {
    let hyper = error.downcast_ref::<hyper::Error>();
    let reset = inner(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    hyper.is_some_and(|error| error.is_incomplete_message() || error.is_parse())
        || reset.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what rustls may say besides is open, and says itself what it is"
)]
fn explain(error: &rustls::Error, tls: &Tls) -> String {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(reason) => untrusted(reason, tls),
        // Nothing that begins like TLS came back.
        E::InvalidMessage(_) => {
            format!("it does not speak TLS; if it is meant to be without, {PLAIN}")
        }
        E::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown,
        ) => match &tls.certificate {
            None => {
                "it asks for a client certificate: give one with --etcd-cert FILE and --etcd-key FILE"
                    .to_owned()
            }
            Some(file) => format!(
                "it does not accept the client certificate {} ({error}): have it signed by the CA \
                 of etcd's --trusted-ca-file, for client authentication, and see that it has not \
                 expired",
                file.display()
            ),
        },
        E::AlertReceived(AlertDescription::ProtocolVersion) => {
            "it does not speak TLS 1.3: leave out etcd's --tls-max-version".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what rustls may say besides is open, and says itself what it is"
)]
fn untrusted(reason: &CertificateError, tls: &Tls) -> String {
    use CertificateError as C;
    let ca = tls.ca.display();
    match reason {
        C::UnknownIssuer => format!(
            "its certificate is not trusted: it is not signed by the CA in {ca}; give the \
             certificate of the CA that signed it with --etcd-ca"
        ),
        C::BadSignature => format!(
            "its certificate is not trusted: the CA in {ca} has the name of its issuer, but \
             another key"
        ),
        C::NotValidForName | C::NotValidForNameContext { .. } => format!(
            "its certificate is not trusted: it is not made out for this host ({reason}); use an \
             address that the certificate names, or have it made anew with this one as a subject \
             alternative name"
        ),
        other => format!("its certificate is not trusted, with the CA in {ca}: {other}"),
    }
}
