//! The node's two keys as files: one line each.

use std::path::Path;

use boringtun::x25519;
use data_encoding::{BASE64, BASE64URL_NOPAD, Encoding};
use proto::key::{SigningKey, WireguardKey};
use zeroize::Zeroizing;

use super::{IDENTITY, StateError, WIREGUARD, check, failed};
use crate::durable;

/// The private X25519 key of this node's tunnels. Wiped when dropped; never printed.
pub struct WireguardSecret(Zeroizing<[u8; 32]>);

impl WireguardSecret {
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn public(&self) -> WireguardKey {
        let secret = x25519::StaticSecret::from(*self.0);
        WireguardKey::new(x25519::PublicKey::from(&secret).to_bytes())
            .expect("a clamped secret times the base point is of high order")
    }

    /// What both nodes' keys give; all zeros if `other` is a key of low order.
    pub fn agree(&self, other: &WireguardKey) -> Zeroizing<[u8; 32]> {
        let secret = x25519::StaticSecret::from(*self.0);
        let shared = secret.diffie_hellman(&x25519::PublicKey::from(*other.as_bytes()));
        Zeroizing::new(shared.to_bytes())
    }
}

/// Makes both, durable once it returns.
pub(super) fn create(directory: &Path) -> Result<(), StateError> {
    for (name, encoding) in [(IDENTITY, BASE64URL_NOPAD), (WIREGUARD, BASE64)] {
        let path = directory.join(name);
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret)
            .map_err(|error| failed(&path, std::io::Error::other(error)))?;
        let mut line = Zeroizing::new(String::with_capacity(48));
        encoding.encode_append(&*secret, &mut line);
        line.push('\n');
        durable::create(&path, line.as_bytes()).map_err(|error| failed(&path, error))?;
    }
    durable::sync_directory(directory).map_err(|error| failed(directory, error))
}

pub(super) fn read_identity(directory: &Path) -> Result<SigningKey, StateError> {
    let seed = read(directory, IDENTITY, &BASE64URL_NOPAD)?;
    Ok(SigningKey::from_seed(&seed))
}

pub(super) fn read_wireguard(directory: &Path) -> Result<WireguardSecret, StateError> {
    read(directory, WIREGUARD, &BASE64).map(WireguardSecret)
}

fn read(
    directory: &Path,
    name: &str,
    encoding: &Encoding,
) -> Result<Zeroizing<[u8; 32]>, StateError> {
    let path = directory.join(name);
    let damaged = |why: &str| StateError::Damaged {
        path: path.clone(),
        why: why.to_owned(),
        directory: directory.to_owned(),
    };
    let content = Zeroizing::new(check::read(&path)?.ok_or_else(|| damaged("it is missing"))?);
    let bytes = encoding
        .decode(content.trim_ascii())
        .map(Zeroizing::new)
        .map_err(|_| damaged("it is no key in base64"))?;
    let mut key = Zeroizing::new([0; 32]);
    if bytes.len() != key.len() {
        return Err(damaged("it is not 32 bytes in base64"));
    }
    key.copy_from_slice(&bytes);
    Ok(key)
}
