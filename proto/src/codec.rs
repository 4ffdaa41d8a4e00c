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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_as_few_bytes_as_they_need_and_least_significant_first() {
        assert_eq!(encode(&250u32), Ok(vec![250]));
        assert_eq!(encode(&0x0102u32), Ok(vec![251, 0x02, 0x01]));
        assert_eq!(decode::<u32>(&[251, 0x02, 0x01]), Ok(0x0102));
    }

    #[test]
    fn a_list_is_not_allocated_for_what_it_only_announces() {
        let mut lie = vec![253];
        lie.extend_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(decode::<Vec<u8>>(&lie), Err(CodecError::Unreadable));
        // Within the limit, and still more than there is.
        let announced = u32::try_from(2 * MAX_FRAME).unwrap();
        let mut lie = vec![252];
        lie.extend_from_slice(&announced.to_le_bytes());
        assert_eq!(decode::<Vec<u8>>(&lie), Err(CodecError::Unreadable));
        assert_eq!(decode::<Vec<Vec<u8>>>(&lie), Err(CodecError::Unreadable));
    }

    #[test]
    fn what_is_larger_than_a_frame_is_not_written() {
        assert_eq!(encode(&vec![0u8; MAX_FRAME + 1]), Err(CodecError::TooLarge));
    }
}
