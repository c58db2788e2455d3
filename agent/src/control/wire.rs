//! Messages on the wire: four bytes of length, big-endian, then that many bytes of protobuf.

use std::{io, time::Duration};

use breakglass_api::{
    CONTROL_MESSAGE_MAX,
    v1::{ControlRequest, ControlResponse},
};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// How long a connection may say nothing. A client that needs longer (for a touch of a FIDO key) connects anew.
pub const IDLE: Duration = Duration::from_secs(30);
/// How long one message may take from its first byte to its last.
pub const MESSAGE: Duration = Duration::from_secs(5);
/// How long the other side may take to accept an answer.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Why there is no next request.
#[derive(Debug)]
pub enum ReadError {
    /// The other side is done, gone, or too slow. There is nobody to answer.
    Gone,
    /// A message above [`CONTROL_MESSAGE_MAX`]; nothing of it was read.
    TooLarge(usize),
    /// Not a request.
    Garbage(String),
}

/// Reads one request. Allocates only for messages within the limit.
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<ControlRequest, ReadError> {
    let first = within(IDLE, reader.read_u8()).await?;
    let message = async {
        let mut rest = [0; 3];
        reader.read_exact(&mut rest).await?;
        let length = u32::from_be_bytes([first, rest[0], rest[1], rest[2]]) as usize;
        if length > CONTROL_MESSAGE_MAX {
            return Ok(Err(ReadError::TooLarge(length)));
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).await?;
        Ok(ControlRequest::decode(bytes.as_slice()).map_err(|e| ReadError::Garbage(e.to_string())))
    };
    within(MESSAGE, message).await?
}

/// Writes one answer.
pub async fn write<W: AsyncWrite + Unpin>(writer: &mut W, answer: &ControlResponse) -> io::Result<()> {
    let body = answer.encode_to_vec();
    let length = u32::try_from(body.len()).map_err(|_| io::Error::other("the answer is too long"))?;
    // One write: with TLS each would be a record of its own, and with TCP perhaps a delayed packet.
    let message = [&length.to_be_bytes()[..], &body].concat();
    let send = async {
        writer.write_all(&message).await?;
        writer.flush().await
    };
    timeout(ANSWER, send).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn within<T>(limit: Duration, read: impl Future<Output = io::Result<T>>) -> Result<T, ReadError> {
    match timeout(limit, read).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) | Err(_) => Err(ReadError::Gone),
    }
}

#[cfg(test)]
mod tests {
    use breakglass_api::v1::{StatusRequest, control_request::Body};
    use proptest::prelude::*;

    use super::*;

    fn read_all(mut bytes: &[u8]) -> Result<ControlRequest, ReadError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(read(&mut bytes))
    }

    #[test]
    fn limits() {
        let most = u32::try_from(CONTROL_MESSAGE_MAX).unwrap();
        assert!(
            matches!(read_all(&(most + 1).to_be_bytes()), Err(ReadError::TooLarge(n)) if n == CONTROL_MESSAGE_MAX + 1)
        );
        assert!(matches!(read_all(&u32::MAX.to_be_bytes()), Err(ReadError::TooLarge(_))));
        assert!(matches!(read_all(&most.to_be_bytes()), Err(ReadError::Gone)));
        assert!(matches!(read_all(&[0, 0, 0, 3, 0xff, 0xff, 0xff]), Err(ReadError::Garbage(_))));
        assert_eq!(read_all(&[0, 0, 0, 0]).unwrap(), ControlRequest::default());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_messages_and_silence_end() {
        let (mut near, mut far) = tokio::io::duplex(64);
        assert!(matches!(read(&mut near).await, Err(ReadError::Gone)), "silence");
        far.write_all(&[0, 0]).await.unwrap();
        assert!(matches!(read(&mut near).await, Err(ReadError::Gone)), "half a length");
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = read_all(&bytes);
            let _ = read_all(&[&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat());
        }

        #[test]
        fn every_cut_is_noticed(cut in 0usize..6) {
            let body = ControlRequest { body: Some(Body::Status(StatusRequest {})) }.encode_to_vec();
            let message = [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat();
            let whole = read_all(message.get(..cut).unwrap_or(&message));
            prop_assert_eq!(whole.is_ok(), cut >= message.len());
        }
    }
}
