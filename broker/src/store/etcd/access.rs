//! What etcd asks for besides an address: whom to trust, a client certificate, a login. All of it
//! is in files, read once, before the process shuts itself out of them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::keys::Location;

const MAX_FILE: u64 = 1 << 20;

/// Names only; `broker.json` remembers them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessFiles {
    /// Who signs etcd's certificates (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// This broker's certificate, and what leads from it to the CA that etcd trusts (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Holds the password and nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<PathBuf>,
}

/// What was in the files.
#[derive(Clone, Debug, Default)]
pub struct Access {
    pub(super) tls: Option<Tls>,
    pub(super) user: Option<User>,
}

#[derive(Clone)]
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// For the text of errors.
    pub(super) ca: PathBuf,
    pub(super) certificate: Option<PathBuf>,
}

#[derive(Clone)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: Arc<Zeroizing<String>>,
    pub(super) password_file: PathBuf,
}

#[derive(Debug, Error)]
pub enum AccessError {
    #[error("cannot read {what} {}: {error}; {flag} names it", .path.display())]
    Read {
        what: &'static str,
        flag: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{what} {} cannot be used: {why}; put it right, or name another with {flag}", .path.display())]
    Content {
        what: &'static str,
        flag: &'static str,
        path: PathBuf,
        why: String,
    },
    #[error("{given} is given and {missing} is not: one is of no use without the other")]
    Half {
        given: &'static str,
        missing: &'static str,
    },
    #[error(
        "{0} is spoken to with TLS, and nothing says whom to trust: give the certificate of the CA \
         that signs etcd's certificates with --etcd-ca FILE"
    )]
    NoCa(String),
    #[error(
        "{flag} is given, and {location} is without TLS: write etcds:// instead of etcd://, or \
         leave {flag} out"
    )]
    NoTls {
        flag: &'static str,
        location: String,
    },
    #[error(
        "a password is not sent to {0} without TLS: write etcds:// and give --etcd-ca FILE, or \
         use an etcd on a loopback address"
    )]
    PlainLogin(String),
    #[error("{0} is for a store in etcd, and the store of this broker is a file: leave it out")]
    NotEtcd(&'static str),
    #[error("the name of the file {} is not text in UTF-8; give it another", .0.display())]
    Name(PathBuf),
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
}

const CA: &str = "--etcd-ca";
const CERTIFICATE: &str = "--etcd-cert";
const KEY: &str = "--etcd-key";
const USER: &str = "--etcd-user";
const PASSWORD: &str = "--etcd-password-file";

impl AccessFiles {
    /// What is given here, else what is there.
    #[must_use]
    pub fn or(self, other: AccessFiles) -> AccessFiles {
        AccessFiles {
            ca: self.ca.or(other.ca),
            certificate: self.certificate.or(other.certificate),
            key: self.key.or(other.key),
            user: self.user.or(other.user),
            password: self.password.or(other.password),
        }
    }

    /// Names that hold wherever the broker is started, fit to be remembered.
    pub fn absolute(self) -> Result<AccessFiles, AccessError> {
        let absolute = |path: Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => match std::path::absolute(&path) {
                Ok(whole) if whole.to_str().is_some() => Ok(Some(whole)),
                Ok(_) | Err(_) => Err(AccessError::Name(path)),
            },
        };
        Ok(AccessFiles {
            ca: absolute(self.ca)?,
            certificate: absolute(self.certificate)?,
            key: absolute(self.key)?,
            user: self.user,
            password: absolute(self.password)?,
        })
    }

    /// For a store that asks for nothing.
    pub fn check_empty(&self) -> Result<(), AccessError> {
        match self.given().next() {
            Some(flag) => Err(AccessError::NotEtcd(flag)),
            None => Ok(()),
        }
    }

    fn given(&self) -> impl Iterator<Item = &'static str> {
        [
            (CA, self.ca.is_some()),
            (CERTIFICATE, self.certificate.is_some()),
            (KEY, self.key.is_some()),
            (USER, self.user.is_some()),
            (PASSWORD, self.password.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, is_given)| is_given.then_some(flag))
    }
}

impl Access {
    /// Reads the files that the location names.
    pub fn read(location: &Location) -> Result<Access, AccessError> {
        let files = &location.access;
        let tls_flag = files
            .given()
            .find(|flag| [CA, CERTIFICATE, KEY].contains(flag));
        let tls = match (location.is_tls, tls_flag) {
            (true, _) => Some(read_tls(location)?),
            (false, None) => None,
            (false, Some(flag)) => {
                return Err(AccessError::NoTls {
                    flag,
                    location: location.to_string(),
                });
            }
        };
        let user = read_user(files)?;
        if user.is_some() && !location.is_tls && !location.is_loopback() {
            return Err(AccessError::PlainLogin(location.to_string()));
        }
        Ok(Access { tls, user })
    }
}

fn read_tls(location: &Location) -> Result<Tls, AccessError> {
    let files = &location.access;
    let Some(ca) = &files.ca else {
        return Err(AccessError::NoCa(location.to_string()));
    };
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("the CA certificate", CA, ca)? {
        roots
            .add(certificate)
            .map_err(|error| wrong("the CA certificate", CA, ca)(error.to_string()))?;
    }
    // Every key exchange that etcd may offer is good enough here; no default of the process decides.
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(AccessError::Setup)?
        .with_root_certificates(roots);
    let config = match (&files.certificate, &files.key) {
        (None, None) => config.with_no_client_auth(),
        (Some(_), None) => return Err(half(CERTIFICATE, KEY)),
        (None, Some(_)) => return Err(half(KEY, CERTIFICATE)),
        (Some(certificate), Some(key)) => {
            let chain = read_certificates("the client certificate", CERTIFICATE, certificate)?;
            config
                .with_client_auth_cert(chain, read_key(key)?)
                .map_err(|error| {
                    wrong("the client certificate", CERTIFICATE, certificate)(format!(
                        "it does not go with the key {}: {error}",
                        key.display()
                    ))
                })?
        }
    };
    Ok(Tls {
        config: Arc::new(config),
        ca: ca.clone(),
        certificate: files.certificate.clone(),
    })
}

fn read_certificates(
    what: &'static str,
    flag: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let text = read_file(what, flag, path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(what, flag, path)(format!("it is no PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(wrong(what, flag, path)(
            "it holds no certificate in PEM".to_owned(),
        ));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, AccessError> {
    let what = "the client key";
    let text = read_file(what, KEY, path)?;
    warn_if_open(what, path);
    // The error is of its form only, and tells nothing of its content.
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| wrong(what, KEY, path)("it holds no private key in PEM".to_owned()))
}

fn read_user(files: &AccessFiles) -> Result<Option<User>, AccessError> {
    let (name, path) = match (&files.user, &files.password) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(half(USER, PASSWORD)),
        (None, Some(_)) => return Err(half(PASSWORD, USER)),
        (Some(name), Some(path)) => (name, path),
    };
    let what = "the password";
    let text = read_file(what, PASSWORD, path)?;
    warn_if_open(what, path);
    let wrong = |why: &str| wrong(what, PASSWORD, path)(why.to_owned());
    let text = std::str::from_utf8(&text).map_err(|_| wrong("it is not text in UTF-8"))?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains('\n') {
        return Err(wrong("it must hold one line, the password"));
    }
    Ok(Some(User {
        name: name.clone(),
        password: Arc::new(Zeroizing::new(line.to_owned())),
        password_file: path.clone(),
    }))
}

fn read_file(
    what: &'static str,
    flag: &'static str,
    path: &Path,
) -> Result<Zeroizing<Vec<u8>>, AccessError> {
    let mut content = Zeroizing::new(Vec::new());
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut content))
        .map_err(|error| AccessError::Read {
            what,
            flag,
            path: path.to_owned(),
            error,
        })?;
    Ok(content)
}

/// Not refused: secrets that a container is given are often readable to all in it.
fn warn_if_open(what: &str, path: &Path) {
    let mode = std::fs::metadata(path).map_or(0, |found| found.mode());
    if mode & 0o007 != 0 {
        tracing::warn!(
            "{what} {} can be read by every user of this machine: `chmod o= {}`",
            path.display(),
            path.display()
        );
    }
}

fn wrong(
    what: &'static str,
    flag: &'static str,
    path: &Path,
) -> impl FnOnce(String) -> AccessError + use<> {
    let path = path.to_owned();
    move |why| AccessError::Content {
        what,
        flag,
        path,
        why,
    }
}

fn half(given: &'static str, missing: &'static str) -> AccessError {
    AccessError::Half { given, missing }
}

impl Location {
    fn is_loopback(&self) -> bool {
        self.endpoints.iter().all(|endpoint| {
            let host = host(endpoint);
            host == "localhost"
                || host
                    .parse::<IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        })
    }
}

/// Of `HOST:PORT`, an IPv6 address without its brackets.
pub(super) fn host(endpoint: &str) -> &str {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    host.strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(host)
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Tls").field("ca", &self.ca).finish()
    }
}

impl fmt::Debug for User {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("User").field("name", &self.name).finish()
    }
}
