//! TLS as brokers speak it: 1.3 only, hybrid post-quantum key exchange first, and a raw public
//! key (RFC 7250) that must be the pin. There is no other way to trust a broker.

use std::sync::{Arc, Mutex, PoisonError};

use proto::hello::ALPN;
use proto::key::PublicKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible,
    SignatureScheme, version,
};

/// What stands before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
pub const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The key that a server showed instead of the pin, for the error that names it.
#[derive(Debug, Default)]
pub(crate) struct Shown(Mutex<Option<PublicKey>>);

#[derive(Debug)]
struct Pinned {
    pin: PublicKey,
    shown: Arc<Shown>,
    provider: Arc<CryptoProvider>,
}

/// For one connection to the broker with this key.
pub(crate) fn client(pin: PublicKey, shown: Arc<Shown>) -> Result<Arc<ClientConfig>, Error> {
    // The provider's own order has X25519MLKEM768 first.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Pinned {
        pin,
        shown,
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Each connection is judged by the pin; nothing is resumed and no name is sent.
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

impl Shown {
    pub(crate) fn key(&self) -> Option<PublicKey> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: PublicKey) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = shown
            .strip_prefix(&SPKI_PREFIX)
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .and_then(|key| PublicKey::new(key).ok())
            .ok_or(CertificateError::BadEncoding)?;
        if key == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        self.shown.remember(key);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key.as_ref()),
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
