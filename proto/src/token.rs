//! What an operator pastes at a joining node. One line; holds the only secret of a join.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::blob::{BlobError, Reader, Writer};
use crate::entry::{Grant, SignedEntry, is_broker_address, read_broker_address};
use crate::key::{MeshId, PublicKey, SigningKey};

pub const PREFIX: &str = "cwy1.";
pub const MAX_BROKERS: usize = 8;
const VERSION: u8 = 1;
const CHECKSUM: usize = 4;
const SEED: usize = 32;
/// A grant entry of [`crate::entry::MAX_PREFIXES`] prefixes is below 12 KiB.
const MAX_LENGTH: usize = 32 * 1024;

/// No `Clone`, no `Debug` of the secret.
pub struct Token {
    pub mesh: MeshId,
    /// The authority when the token was made.
    pub authority: PublicKey,
    pub brokers: Vec<TokenBroker>,
    grant: SignedEntry,
    seed: Zeroizing<[u8; SEED]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBroker {
    /// `host:port`
    pub address: String,
    /// Its key: the pin.
    pub key: PublicKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    #[error("this is no Causeway token: a token begins with {PREFIX}")]
    NoToken,
    #[error("the token was made by a newer Causeway; upgrade this one")]
    Newer,
    #[error("the token is cut off or damaged; paste all of it, it is one line")]
    Damaged,
    #[error("the token is not valid: {0}")]
    Form(#[from] BlobError),
    #[error("the token's grant is not signed by the authority it names: it is forged")]
    Forged,
    #[error("the token's secret does not belong to its grant: it is forged")]
    Seed,
}

impl Token {
    /// `grant` is a signed grant entry, `seed` the join key it names.
    pub fn new(
        mesh: MeshId,
        authority: PublicKey,
        brokers: Vec<TokenBroker>,
        grant: SignedEntry,
        seed: Zeroizing<[u8; SEED]>,
    ) -> Result<Token, TokenError> {
        let token = Token {
            mesh,
            authority,
            brokers,
            grant,
            seed,
        };
        token.check()?;
        Ok(token)
    }

    fn check(&self) -> Result<(), TokenError> {
        let grant = self.grant.grant().ok_or(BlobError::Field("grant"))?;
        let addresses = self.brokers.iter().all(|at| is_broker_address(&at.address));
        if self.brokers.is_empty() || self.brokers.len() > MAX_BROKERS || !addresses {
            return Err(BlobError::Field("list of brokers").into());
        }
        self.grant
            .verify(&self.authority)
            .map_err(|_| TokenError::Forged)?;
        if self.join_key().public() == grant.join_key {
            Ok(())
        } else {
            Err(TokenError::Seed)
        }
    }

    pub fn grant(&self) -> &Grant {
        self.grant
            .grant()
            .expect("checked when the token was made or read")
    }

    pub fn grant_entry(&self) -> &SignedEntry {
        &self.grant
    }

    pub fn join_key(&self) -> SigningKey {
        SigningKey::from_seed(&self.seed)
    }

    /// The line to paste.
    pub fn encode(&self) -> Zeroizing<String> {
        let mut out = Writer::new();
        out.u8(VERSION)
            .hash(&self.mesh)
            .key(&self.authority)
            .list(&self.brokers, |out, broker| {
                out.text(&broker.address).key(&broker.key);
            })
            .bytes(self.grant.bytes());
        let open = out.finish();
        // Room for everything before the secret is in: growing would leave a copy behind.
        let length = open.len() + self.seed.len() + CHECKSUM;
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        bytes.extend_from_slice(&open);
        bytes.extend_from_slice(&*self.seed);
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        let length = PREFIX.len() + BASE64URL_NOPAD.encode_len(bytes.len());
        let mut text = Zeroizing::new(String::with_capacity(length));
        text.push_str(PREFIX);
        BASE64URL_NOPAD.encode_append(&bytes, &mut text);
        text
    }

    /// White space around the line, and line breaks a mail put into it, do no harm.
    pub fn decode(text: &str) -> Result<Token, TokenError> {
        if text.len() > 2 * MAX_LENGTH {
            return Err(TokenError::NoToken);
        }
        // One piece from the start: a string that grows leaves copies behind.
        let mut line = Zeroizing::new(String::with_capacity(text.len()));
        line.extend(text.chars().filter(|c| !c.is_ascii_whitespace()));
        let Some(encoded) = line.strip_prefix(PREFIX) else {
            let newer = line.strip_prefix("cwy").is_some_and(|rest| {
                rest.split_once('.')
                    .is_some_and(|(version, _)| version.parse::<u32>().is_ok_and(|v| v > 1))
            });
            return Err(if newer {
                TokenError::Newer
            } else {
                TokenError::NoToken
            });
        };
        if encoded.len() > MAX_LENGTH {
            return Err(TokenError::Damaged);
        }
        let length = BASE64URL_NOPAD
            .decode_len(encoded.len())
            .map_err(|_| TokenError::Damaged)?;
        // Wiped too when only part of it could be decoded.
        let mut bytes = Zeroizing::new(vec![0; length]);
        BASE64URL_NOPAD
            .decode_mut(encoded.as_bytes(), &mut bytes)
            .map_err(|_| TokenError::Damaged)?;
        let length = bytes
            .len()
            .checked_sub(CHECKSUM)
            .ok_or(TokenError::Damaged)?;
        let (blob, sum) = bytes.split_at(length);
        if checksum(blob) != sum {
            return Err(TokenError::Damaged);
        }
        let token = Token::read(blob)?;
        token.check()?;
        Ok(token)
    }

    fn read(blob: &[u8]) -> Result<Token, TokenError> {
        let mut from = Reader::new(blob);
        match from.u8()? {
            VERSION => {}
            _ => return Err(TokenError::Newer),
        }
        let mesh = from.hash()?;
        let authority = from.key("authority key")?;
        let brokers = from.list("brokers", MAX_BROKERS, |from| {
            Ok(TokenBroker {
                address: read_broker_address(from)?,
                key: from.key("broker key")?,
            })
        })?;
        let grant = SignedEntry::read(from.bytes()?)?;
        // Straight into what is wiped, not by way of an array of its own.
        let mut seed = Zeroizing::new([0; SEED]);
        seed.copy_from_slice(from.raw(SEED)?);
        from.finish()?;
        Ok(Token {
            mesh,
            authority,
            brokers,
            grant,
            seed,
        })
    }
}

fn checksum(blob: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::digest(blob);
    [digest[0], digest[1], digest[2], digest[3]]
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Token for site {}", self.grant().site)
    }
}

#[cfg(test)]
mod tests;
