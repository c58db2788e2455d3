//! What of files and sockets can be searched for.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use breakglass_api::v1::{SearchKind, SocketAction, event::Body};

use crate::quote::{bounded, command_line};

/// The searchable line of an action; `None` where it has none.
pub fn line(body: &Body) -> Option<(SearchKind, String)> {
    match body {
        Body::FileAction(file) if file.other.is_empty() => Some((SearchKind::File, command_line(&[&file.path]))),
        Body::FileAction(file) => Some((SearchKind::File, command_line(&[&file.path, &file.other]))),
        Body::SocketAction(socket) => address(socket).map(|text| (SearchKind::Net, bounded(text))),
        _ => None,
    }
}

/// An address as people write it; `None` for families that have none.
fn address(socket: &SocketAction) -> Option<String> {
    if !socket.path.is_empty() {
        // An abstract name is written with an @ for its NUL.
        let name = match socket.path.strip_prefix(&[0]) {
            Some(name) => [b"@", name].concat(),
            None => socket.path.clone(),
        };
        return Some(command_line(&[name]));
    }
    let port = u16::try_from(socket.port).ok()?;
    let address = match socket.address.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(&socket.address[..]).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(&socket.address[..]).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &[u8], path: &[u8]) -> Option<String> {
        let socket = SocketAction { address: address.to_vec(), port: 443, path: path.to_vec(), ..Default::default() };
        line(&Body::SocketAction(socket)).map(|(_, text)| text)
    }

    #[test]
    fn addresses_are_as_people_write_them() {
        assert_eq!(of(&[10, 0, 0, 5], b"").as_deref(), Some("10.0.0.5:443"));
        assert_eq!(of(&[0; 16], b"").as_deref(), Some("[::]:443"));
        assert_eq!(of(&[], b"/run/x.sock").as_deref(), Some("/run/x.sock"));
        assert_eq!(of(&[], b"\0hidden").as_deref(), Some("@hidden"));
        assert_eq!(of(&[1, 2], b""), None);
    }
}
