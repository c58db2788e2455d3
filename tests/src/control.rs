//! The agent's control protocol, spoken by hand, so that tests can say what the command would not.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use breakglass_api::{
    CONTROL_MESSAGE_MAX,
    v1::{
        Challenge, ChallengeRequest, CloseRequest, Closed, ControlRequest, ControlResponse, OpenRequest, Opened,
        Refused, Status, StatusRequest, StopRequest, Stopping, control_request, control_response,
    },
};
use prost::Message;

use crate::poll;

/// A connection to the agent.
pub struct Control<S = UnixStream> {
    stream: S,
}

impl<S> std::fmt::Debug for Control<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Control")
    }
}

impl<S: Read + Write> Control<S> {
    /// Speaks over a stream that is open.
    pub fn over(stream: S) -> Self {
        Self { stream }
    }
}

impl Control<UnixStream> {
    /// Connects.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(poll::SOON))?;
        stream.set_write_timeout(Some(poll::SOON))?;
        Ok(Self { stream })
    }
}

impl<S: Read + Write> Control<S> {
    /// Asks what the host is doing.
    pub fn status(&mut self) -> Result<Status> {
        match self.ask(control_request::Body::Status(StatusRequest {}))? {
            control_response::Body::Status(status) => Ok(status),
            other => bail!("not a status: {other:?}"),
        }
    }

    /// Asks for a challenge.
    pub fn challenge(&mut self) -> Result<Challenge> {
        match self.ask(control_request::Body::Challenge(ChallengeRequest::default()))? {
            control_response::Body::Challenge(challenge) => Ok(challenge),
            other => bail!("not a challenge: {other:?}"),
        }
    }

    /// Hands in a proof.
    pub fn open(&mut self, grant_text: &[u8], signature: &[u8]) -> Result<Result<Opened, Refused>> {
        let request =
            OpenRequest { grant_text: grant_text.to_vec(), signature: signature.to_vec(), ..OpenRequest::default() };
        match self.ask(control_request::Body::Open(request))? {
            control_response::Body::Opened(opened) => Ok(Ok(opened)),
            control_response::Body::Refused(refused) => Ok(Err(refused)),
            other => bail!("neither opened nor refused: {other:?}"),
        }
    }

    /// Closes as root on the host.
    pub fn close(&mut self) -> Result<Closed> {
        match self.ask(control_request::Body::Close(CloseRequest::default()))? {
            control_response::Body::Closed(closed) => Ok(closed),
            other => bail!("not closed: {other:?}"),
        }
    }

    /// Asks the agent to stop, as root on the host.
    pub fn stop(&mut self, reason: &str, force: bool) -> Result<Result<Stopping, Refused>> {
        match self.ask(control_request::Body::Stop(StopRequest { reason: reason.to_owned(), force }))? {
            control_response::Body::Stopping(stopping) => Ok(Ok(stopping)),
            control_response::Body::Refused(refused) => Ok(Err(refused)),
            other => bail!("neither stopping nor refused: {other:?}"),
        }
    }

    /// Sends bytes as one message, whatever they are, claiming `length`. The agent may refuse after the length and read no further;
    /// then its answer is there to be received.
    pub fn send_raw(&mut self, length: u32, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(&length.to_be_bytes())?;
        match self.stream.write_all(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Reads one answer.
    pub fn receive(&mut self) -> Result<control_response::Body> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).context("the agent closed the connection")?;
        let length = u32::from_be_bytes(length) as usize;
        ensure!(length <= CONTROL_MESSAGE_MAX, "an answer of {length} bytes");
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        ControlResponse::decode(bytes.as_slice())?.body.context("an empty answer")
    }

    fn ask(&mut self, body: control_request::Body) -> Result<control_response::Body> {
        let bytes = ControlRequest { body: Some(body) }.encode_to_vec();
        self.send_raw(u32::try_from(bytes.len())?, &bytes)?;
        self.receive()
    }
}
