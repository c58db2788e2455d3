//! One line to the system's log, RFC 3164 over `/dev/log`, as syslog(3) writes it. Never waits.

use std::{os::unix::net::UnixDatagram, path::Path};

/// Where the log daemon, or journald, listens.
pub const SOCKET: &str = "/dev/log";

/// Longest line, bytes: what every daemon takes whole.
const LINE_MAX: usize = 1024;

/// Facility authpriv, RFC 3164 section 4.1.1.
const AUTHPRIV: u8 = 10;

/// How much it matters, RFC 3164 section 4.1.1.
#[derive(Clone, Copy, Debug)]
pub enum Priority {
    /// Somebody must act.
    Alert = 1,
    /// Out of the ordinary.
    Warning = 4,
    /// Ordinary, and of interest.
    Notice = 5,
}

/// Sends a line, as far as that goes at once.
pub fn send(priority: Priority, message: &str) {
    send_to(Path::new(SOCKET), priority, message);
}

/// The same to another daemon.
pub fn send_to(socket_path: &Path, priority: Priority, message: &str) {
    let line = line(priority, message);
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(&line, socket_path)
    });
    if let Err(error) = sent {
        tracing::debug!(%error, "no line to the system's log");
    }
}

fn line(priority: Priority, message: &str) -> Vec<u8> {
    let number = AUTHPRIV * 8 + priority as u8;
    let plain: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut line = format!("<{number}>breakglass[{}]: {plain}", std::process::id());
    while line.len() > LINE_MAX {
        line.pop();
    }
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_whatever_it_says() {
        let line = line(Priority::Alert, &format!("a\nb\x1b{}", "é".repeat(2000)));
        assert!(line.starts_with(b"<81>breakglass[") && line.len() <= LINE_MAX && !line.contains(&b'\n'));
        assert!(std::str::from_utf8(&line).is_ok());
    }
}
