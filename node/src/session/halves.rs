//! A conversation in two halves, for whoever has to go on reading while he writes.

use proto::codec;
use proto::frame::{FrameReader, frame};
use proto::message::{Answer, Call, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

use super::{READ_SIZE, REPLY_DEADLINE, Session, Stream, Why};

pub(crate) struct Receiving {
    stream: ReadHalf<Box<dyn Stream>>,
    frames: FrameReader,
    buffer: Box<[u8; READ_SIZE]>,
}

pub(crate) struct Sending {
    stream: WriteHalf<Box<dyn Stream>>,
    number: u32,
}

impl Session {
    pub(crate) fn into_halves(self) -> (Receiving, Sending) {
        let (read, write) = tokio::io::split(self.stream);
        let receiving = Receiving {
            stream: read,
            frames: self.frames,
            buffer: self.buffer,
        };
        let sending = Sending {
            stream: write,
            number: self.number,
        };
        (receiving, sending)
    }
}

impl Receiving {
    /// Loses nothing when it is dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Answer, Why> {
        loop {
            if let Some(content) = self.frames.poll_frame()? {
                return Ok(codec::decode(&content)?);
            }
            let length = self.stream.read(&mut self.buffer[..]).await?;
            if length == 0 {
                return Err(Why::Closed);
            }
            self.frames.handle_bytes(&self.buffer[..length]);
        }
    }
}

impl Sending {
    /// Must not be dropped while it waits.
    pub(crate) async fn send(&mut self, request: Request) -> Result<(), Why> {
        self.number = self.number.wrapping_add(1);
        let call = Call {
            number: self.number,
            request,
        };
        let bytes = frame(&codec::encode(&call)?)?;
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match timeout(REPLY_DEADLINE, write).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(Why::Silent(REPLY_DEADLINE)),
        }
    }
}
