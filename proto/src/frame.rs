//! Frames on a byte stream: four bytes of length, big-endian, then that many bytes.

use thiserror::Error;

/// The longest content of a frame; checked before anything is allocated for it.
pub const MAX_FRAME: usize = 256 * 1024;
pub const HEADER: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is announced; {MAX_FRAME} are allowed")]
    TooLong(u32),
    #[error("an empty frame")]
    Empty,
}

/// Cuts a stream that arrives in pieces into frames.
#[derive(Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
}

/// The header for content of this length.
pub fn header(length: usize) -> Result<[u8; HEADER], FrameError> {
    match u32::try_from(length) {
        Ok(0) => Err(FrameError::Empty),
        Ok(announced) if length <= MAX_FRAME => Ok(announced.to_be_bytes()),
        Ok(announced) => Err(FrameError::TooLong(announced)),
        Err(_) => Err(FrameError::TooLong(u32::MAX)),
    }
}

/// Header and content in one piece.
pub fn frame(content: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.extend_from_slice(&header(content.len())?);
    bytes.extend_from_slice(content);
    Ok(bytes)
}

/// The length that a header announces.
pub fn announced(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header);
    match usize::try_from(length) {
        Ok(0) => Err(FrameError::Empty),
        Ok(length) if length <= MAX_FRAME => Ok(length),
        Ok(_) | Err(_) => Err(FrameError::TooLong(length)),
    }
}

impl FrameReader {
    pub fn new() -> FrameReader {
        FrameReader::default()
    }

    /// Takes what has arrived.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. After an error the stream is of no more use.
    pub fn poll_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = announced(*header)?;
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let content = self.buffer[HEADER..HEADER + length].to_vec();
        self.buffer.drain(..HEADER + length);
        Ok(Some(content))
    }

    /// Bytes that wait for the rest of their frame.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }
}
