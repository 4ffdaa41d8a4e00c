//! Frames in and out of one connection, with a limit that grows once the caller is known and a
//! deadline for a caller that does not read.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use proto::frame::{self, FrameError, HEADER};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// For one frame.
const READS_WITHIN: Duration = Duration::from_secs(10);
const CLOSES_WITHIN: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 4096;

pub(crate) struct Frames<S> {
    stream: S,
    buffer: BytesMut,
    most: usize,
}

#[derive(Debug, Error)]
pub(crate) enum LinkError {
    #[error("the caller has gone")]
    Gone,
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("a frame of {0} bytes before the caller is known")]
    TooSoon(usize),
    #[error("the caller does not read")]
    Slow,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub(crate) fn new(stream: S, most: usize) -> Frames<S> {
        Frames {
            stream,
            buffer: BytesMut::new(),
            most,
        }
    }

    pub(crate) fn allow(&mut self, most: usize) {
        self.most = most;
    }

    /// The next whole frame. Loses nothing when it is dropped while it waits.
    pub(crate) async fn read(&mut self) -> Result<Bytes, LinkError> {
        loop {
            let wanted = match self.buffer.first_chunk::<HEADER>() {
                None => HEADER,
                Some(header) => {
                    let length = frame::announced(*header)?;
                    if length > self.most {
                        return Err(LinkError::TooSoon(length));
                    }
                    if self.buffer.len() >= HEADER + length {
                        self.buffer.advance(HEADER);
                        return Ok(self.buffer.split_to(length).freeze());
                    }
                    HEADER + length
                }
            };
            // Little at a time: what is announced need not come.
            self.buffer
                .reserve((wanted - self.buffer.len()).min(AT_ONCE));
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(LinkError::Gone);
            }
        }
    }

    pub(crate) async fn write(&mut self, content: &[u8]) -> Result<(), LinkError> {
        let header = frame::header(content.len())?;
        let stream = &mut self.stream;
        let sent = timeout(READS_WITHIN, async move {
            stream.write_all(&header).await?;
            stream.write_all(content).await?;
            stream.flush().await
        });
        match sent.await {
            Ok(done) => Ok(done?),
            Err(_) => Err(LinkError::Slow),
        }
    }

    /// Says goodbye, if the caller listens.
    pub(crate) async fn close(mut self) {
        drop(timeout(CLOSES_WITHIN, self.stream.shutdown()).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_that_come_a_byte_at_a_time_are_whole() {
        let (mut caller, broker) = tokio::io::duplex(1);
        let sent = tokio::spawn(async move {
            for content in [&b"one"[..], b"another"] {
                let frame = frame::frame(content).unwrap();
                caller.write_all(&frame).await.unwrap();
            }
        });
        let mut frames = Frames::new(broker, 64);
        assert_eq!(frames.read().await.unwrap(), &b"one"[..]);
        assert_eq!(frames.read().await.unwrap(), &b"another"[..]);
        assert!(matches!(frames.read().await, Err(LinkError::Gone)));
        sent.await.unwrap();
    }

    #[tokio::test]
    async fn a_frame_too_long_for_a_stranger_is_refused_by_its_header() {
        let (mut caller, broker) = tokio::io::duplex(64);
        caller.write_all(&[0, 0, 0, 65]).await.unwrap();
        let mut frames = Frames::new(broker, 64);
        assert!(matches!(frames.read().await, Err(LinkError::TooSoon(65))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_read_is_given_up() {
        let (_caller, broker) = tokio::io::duplex(16);
        let mut frames = Frames::new(broker, 64);
        assert!(matches!(
            frames.write(&[0; 100]).await,
            Err(LinkError::Slow)
        ));
    }
}
