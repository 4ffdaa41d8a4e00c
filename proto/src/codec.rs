//! The one place that knows how a message becomes bytes: bincode 2, with a limit, nothing left
//! over. A successor is a change of this file and of its golden vectors.

use bincode::{Decode, Encode, config};
use thiserror::Error;

use crate::frame::MAX_FRAME;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    #[error("a message cannot be read")]
    Unreadable,
    #[error("bytes follow the end of a message")]
    Long,
    #[error("a message is larger than a frame")]
    TooLarge,
}

fn configuration() -> impl config::Config {
    // The limit counts memory, which for lists of lists is more than bytes on the wire.
    config::standard()
        .with_little_endian()
        .with_variable_int_encoding()
        .with_limit::<{ 4 * MAX_FRAME }>()
}

pub fn encode(message: &impl Encode) -> Result<Vec<u8>, CodecError> {
    let bytes =
        bincode::encode_to_vec(message, configuration()).map_err(|_| CodecError::TooLarge)?;
    if bytes.len() > MAX_FRAME {
        return Err(CodecError::TooLarge);
    }
    Ok(bytes)
}

pub fn decode<M: Decode<()>>(bytes: &[u8]) -> Result<M, CodecError> {
    let (message, used) =
        bincode::decode_from_slice(bytes, configuration()).map_err(|_| CodecError::Unreadable)?;
    if used == bytes.len() {
        Ok(message)
    } else {
        Err(CodecError::Long)
    }
}
