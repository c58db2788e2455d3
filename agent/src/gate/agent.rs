//! What the gate says to the running agent, over its Unix socket.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use breakglass_api::{
    CONTROL_MESSAGE_MAX,
    v1::{
        CodeRequest, ControlRequest, ControlResponse, LoginNotice, LoginPlace, control_request::Body as Request,
        control_response::Body as Answer,
    },
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use prost::Message;

use crate::codes::paper::INPUT_MAX;

/// How long a login may be held up to have it told.
const TELL_LIMIT: Duration = Duration::from_millis(30);

/// How long the agent may take over a code: it hashes, writes, and may wait for others who change the account files.
const ANSWER_LIMIT: Duration = Duration::from_secs(18);

/// Hands what was typed to the agent, which opens if it is a code.
pub fn authenticate(socket: &Path, place: &LoginPlace) -> Result<(), String> {
    let code = typed().map_err(|e| format!("what was typed cannot be read: {e}"))?;
    let request = CodeRequest { code, login: Some(place.clone()), ..CodeRequest::default() };
    let unreachable = |e: io::Error| format!("the agent does not answer at {}: {e}", socket.display());
    let mut stream = connected(socket).map_err(unreachable)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(unreachable)?;
    stream.set_write_timeout(Some(ANSWER_LIMIT)).map_err(unreachable)?;
    stream.write_all(&framed(Request::Code(request))).map_err(unreachable)?;
    match answer(&mut stream).map_err(unreachable)? {
        Answer::Opened(_) => Ok(()),
        Answer::Refused(refused) => Err(refused.message),
        _ => Err("the agent answered something else; it is of another version".into()),
    }
}

/// Tells the agent of a login. Its answer is not waited for, and a failure changes nothing: the kernel records the login all the same.
pub fn tell(socket: &Path, notice: LoginNotice) {
    let told = connected(socket).and_then(|mut stream| {
        stream.set_write_timeout(Some(TELL_LIMIT))?;
        stream.write_all(&framed(Request::Login(notice)))
    });
    if let Err(error) = told {
        crate::notice::syslog::send(
            crate::notice::syslog::Priority::Warning,
            &format!("gate: the agent could not be told of a login: {error}"),
        );
    }
}

/// What pam_exec's `expose_authtok` passes: the password and a zero byte.
fn typed() -> io::Result<String> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the gate is for pam_exec with expose_authtok"));
    }
    let mut bytes = Vec::new();
    stdin.lock().take(INPUT_MAX as u64 + 1).read_to_end(&mut bytes)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text"))
}

/// Connects without waiting: an agent whose queue is full is as good as none.
fn connected(path: &Path) -> io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn framed(request: Request) -> Vec<u8> {
    let body = ControlRequest { body: Some(request) }.encode_to_vec();
    // Every field is bounded by what PAM may say; the length cannot overflow.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &body].concat()
}

fn answer(stream: &mut UnixStream) -> io::Result<Answer> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > CONTROL_MESSAGE_MAX {
        return Err(invalid(format!("an answer of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    let answer = ControlResponse::decode(bytes.as_slice()).map_err(|e| invalid(e.to_string()))?;
    answer.body.ok_or_else(|| invalid("an empty answer".into()))
}
