//! Frames on a byte stream: four bytes of length, big-endian, then that many bytes.

use thiserror::Error;

/// The longest content of a frame; checked before anything is allocated for it.
pub const MAX_FRAME: usize = 256 * 1024;
pub const HEADER: usize = 4;
/// Memory that a reader keeps when nothing waits in it.
const KEPT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is announced; {MAX_FRAME} are allowed")]
    TooLong(u32),
    #[error("an empty frame")]
    Empty,
}

/// Cuts a stream that arrives in pieces into frames. Holds as much as it is given, so whoever
/// reads takes out the frames before reading on.
#[derive(Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// What lies before was given out.
    start: usize,
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
        // Not for every frame, else many small ones would cost their number squared.
        if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. After an error the stream is of no more use.
    pub fn poll_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let waiting = &self.buffer[self.start..];
        let Some((header, rest)) = waiting.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = announced(*header)?;
        let Some(content) = rest.get(..length) else {
            return Ok(None);
        };
        let content = content.to_vec();
        self.start += HEADER + length;
        if self.start == self.buffer.len() {
            self.start = 0;
            self.buffer.clear();
            // One large frame must not hold its memory for as long as the connection lasts.
            self.buffer.shrink_to(KEPT);
        }
        Ok(Some(content))
    }

    /// Bytes that wait for the rest of their frame.
    pub fn waiting(&self) -> usize {
        self.buffer.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(reader: &mut FrameReader) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| reader.poll_frame().unwrap()).collect()
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_were_cut() {
        let contents: Vec<Vec<u8>> = (1..60u8)
            .map(|length| vec![length; usize::from(length)])
            .collect();
        let stream: Vec<u8> = contents.iter().flat_map(|c| frame(c).unwrap()).collect();
        for piece in [1, 2, 3, 5, 7, 64, 1000, stream.len()] {
            let mut reader = FrameReader::new();
            let mut found = Vec::new();
            for bytes in stream.chunks(piece) {
                reader.handle_bytes(bytes);
                found.extend(drain(&mut reader));
            }
            assert_eq!(found, contents);
            assert_eq!(reader.waiting(), 0);
        }
    }

    #[test]
    fn a_cut_frame_waits_and_is_not_given_out() {
        let whole = frame(b"causeway").unwrap();
        let mut reader = FrameReader::new();
        reader.handle_bytes(&whole[..whole.len() - 1]);
        assert_eq!(reader.poll_frame(), Ok(None));
        assert_eq!(reader.waiting(), whole.len() - 1);
        reader.handle_bytes(&whole[whole.len() - 1..]);
        assert_eq!(reader.poll_frame(), Ok(Some(b"causeway".to_vec())));
    }

    #[test]
    fn a_length_that_is_too_long_is_refused_before_its_content_comes() {
        let too_long = u32::try_from(MAX_FRAME + 1).unwrap();
        let mut reader = FrameReader::new();
        reader.handle_bytes(&too_long.to_be_bytes());
        assert_eq!(reader.poll_frame(), Err(FrameError::TooLong(too_long)));
        assert!(frame(&vec![0; MAX_FRAME + 1]).is_err());
        assert!(announced(u32::MAX.to_be_bytes()).is_err());
    }

    #[test]
    fn the_longest_frame_is_taken_and_its_memory_given_back() {
        let mut reader = FrameReader::new();
        reader.handle_bytes(&frame(&vec![7; MAX_FRAME]).unwrap());
        assert_eq!(reader.poll_frame().unwrap().unwrap().len(), MAX_FRAME);
        assert!(reader.buffer.capacity() <= KEPT);
    }

    #[test]
    fn an_empty_frame_is_refused_by_both_sides() {
        assert_eq!(frame(b""), Err(FrameError::Empty));
        assert_eq!(announced([0; HEADER]), Err(FrameError::Empty));
    }
}
