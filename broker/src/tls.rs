//! TLS as the broker speaks it: version 1.3 only, a hybrid post-quantum key exchange first, the
//! broker's Ed25519 key as a raw public key (RFC 7250), which callers compare with their pin. No
//! resumption and no early data: every connection proves the key anew.

use std::sync::Arc;

use proto::hello::{ALPN, EXPORTER};
use proto::key::SigningKey;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, KeyProvider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use thiserror::Error;
use zeroize::Zeroizing;

/// What both sides sign to prove their keys on this connection.
pub(crate) type Exporter = [u8; 32];

/// RFC 8410: an Ed25519 private key in PKCS #8, up to the seed.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("TLS cannot use the broker's key: {0}")]
    Key(#[source] rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
}

pub(crate) fn server(key: &SigningKey) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let certified = certified(key, provider.key_provider)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

pub(crate) fn exporter(connection: &rustls::ServerConnection) -> Result<Exporter, rustls::Error> {
    connection.export_keying_material([0; 32], EXPORTER, None)
}

/// Given explicitly, so that no default of the process decides.
fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    }
}

fn certified(
    key: &SigningKey,
    provider: &'static dyn KeyProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let mut pkcs8 = Zeroizing::new(Vec::with_capacity(PKCS8.len() + 32));
    pkcs8.extend_from_slice(&PKCS8);
    pkcs8.extend_from_slice(&*key.seed());
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
    let signer = provider
        .load_private_key(private.clone_key())
        .map_err(TlsError::Key)?;
    let public = signer
        .public_key()
        .ok_or(TlsError::Key(rustls::Error::NoCertificatesPresented))?;
    let shown = CertificateDer::from(public.as_ref().to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![shown], signer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_shows_its_own_key_as_it_is_pinned() {
        let key = SigningKey::from_seed(&[5; 32]);
        let certified = certified(&key, provider().key_provider).unwrap();
        let shown = certified.end_entity_cert().unwrap();
        // RFC 8410: twelve bytes say that an Ed25519 key follows.
        assert_eq!(shown[12..], *key.public().as_bytes());
    }

    #[test]
    fn the_post_quantum_key_exchange_comes_first() {
        let groups: Vec<_> = provider()
            .kx_groups
            .iter()
            .map(|group| group.name())
            .collect();
        assert_eq!(groups[0], rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(groups.len(), 2);
    }
}
