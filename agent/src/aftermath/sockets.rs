//! Who listens: the kernel's tables of sockets in the network namespace of the first process.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use breakglass_api::v1::left_behind::Category;

use super::{
    files::Host,
    snapshot::{Item, Sink},
    text::{printable, shown},
    tree::{beyond_limit, unreadable},
};

/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const LISTENING: &[u8] = b"0A";
/// `TCP_CLOSE`, the state of a datagram socket that is connected to nobody.
const UNCONNECTED: &[u8] = b"07";
/// `__SO_ACCEPTCON` of `include/uapi/linux/net.h`, as `/proc/net/unix` prints it.
const ACCEPTS: u32 = 0x10000;
/// `SOCK_DGRAM`.
const DATAGRAM: u32 = 2;

/// A socket that waits for others. Ordered, so that several on one address with one owner count once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    /// Such as `tcp 0.0.0.0:22` or `unix /run/x`.
    name: Vec<u8>,
    facts: Vec<String>,
}

/// A parsed table.
#[derive(Debug, Default)]
pub(super) struct Table {
    listeners: BTreeSet<Listener>,
    /// The last line was of a connection: of a table that puts listeners first, none can follow.
    past_listeners: bool,
}

type Parser = fn(&[u8]) -> Table;

/// Tables and what reads them.
const TABLES: &[(&[u8], Parser)] = &[
    (b"/proc/1/net/tcp", |text| inet(text, "tcp", LISTENING)),
    (b"/proc/1/net/tcp6", |text| inet(text, "tcp", LISTENING)),
    (b"/proc/1/net/udp", |text| inet(text, "udp", UNCONNECTED)),
    (b"/proc/1/net/udp6", |text| inet(text, "udp", UNCONNECTED)),
    (b"/proc/1/net/raw", |text| inet(text, "raw", UNCONNECTED)),
    (b"/proc/1/net/raw6", |text| inet(text, "raw", UNCONNECTED)),
    (b"/proc/1/net/unix", unix),
    (b"/proc/1/net/packet", packet),
];

/// Adds every listener.
pub(super) fn sockets(host: &Host, sink: &mut Sink) {
    for &(path, parse) in TABLES {
        match host.read_path(path) {
            Ok(Some(contents)) => {
                let table = parse(&contents.bytes);
                if !contents.whole && !table.past_listeners {
                    // The keys are no paths, so the cut is of the category.
                    beyond_limit(sink, Category::Socket, b"", contents.bytes.len());
                }
                for listener in table.listeners {
                    sink.add(
                        Item::new(Category::Socket, &listener.name, listener.facts.clone())
                            .part(listener.facts.join(", ")),
                    );
                }
            }
            Ok(None) => {}
            Err(error) => unreadable(sink, Category::Socket, path, error),
        }
    }
}

/// `/proc/net/{tcp,udp,raw}{,6}`: slot, local and remote address, state, queues, timer, retransmits, uid, … (proc_pid_net(5)).
fn inet(text: &[u8], protocol: &str, wanted: &[u8]) -> Table {
    let mut table = Table::default();
    for line in text.split(|&byte| byte == b'\n').skip(1) {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let (local, state, uid) = (fields.nth(1), fields.nth(1), fields.nth(3));
        let (Some(local), Some(state), Some(uid)) = (local, state, uid) else { continue };
        table.past_listeners = protocol == "tcp" && state != wanted;
        if let Some(address) = address(local).filter(|_| state == wanted) {
            let name = format!("{protocol} {address}").into_bytes();
            table.listeners.insert(Listener { name, facts: vec![format!("uid {}", shown(uid))] });
        }
    }
    table
}

/// `ADDRESS:PORT`, hexadecimal; the address as 32-bit words in the host's byte order.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let (address, port) = std::str::from_utf8(text).ok()?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let address = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// `/proc/net/unix`: number, references, protocol, flags, type, state, inode, name. Those that accept, and datagram sockets with a name.
fn unix(text: &[u8]) -> Table {
    let mut table = Table::default();
    for line in text.split(|&byte| byte == b'\n').skip(1) {
        let mut rest = line;
        let fields: Vec<_> = (0..7).map_while(|_| next_field(&mut rest)).collect();
        let &[_, _, _, flags, kind, _, _] = fields.as_slice() else { continue };
        let (Some(flags), Some(kind)) = (hexadecimal(flags), hexadecimal(kind)) else { continue };
        let name = rest.strip_prefix(b" ").unwrap_or_default();
        if !name.is_empty() && (flags & ACCEPTS != 0 || kind == DATAGRAM) {
            let what = if kind == DATAGRAM { "datagrams" } else { "connections" };
            table.listeners.insert(Listener { name: [b"unix ", name].concat(), facts: vec![format!("takes {what}")] });
        }
    }
    table
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let start = rest.trim_ascii_start();
    let end = start.iter().position(u8::is_ascii_whitespace).unwrap_or(start.len());
    let (field, after) = start.split_at_checked(end)?;
    *rest = after;
    (!field.is_empty()).then_some(field)
}

fn hexadecimal(text: &[u8]) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

/// `/proc/net/packet`: pointer, references, type, protocol, interface, running, memory, user, inode.
fn packet(text: &[u8]) -> Table {
    let mut table = Table::default();
    for line in text.split(|&byte| byte == b'\n').skip(1) {
        let fields: Vec<_> = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).collect();
        let &[_, _, _, protocol, interface, _, _, uid, _] = fields.as_slice() else { continue };
        let name = format!("packet protocol {} on interface {}", printable(protocol), printable(interface));
        table.listeners.insert(Listener { name: name.into_bytes(), facts: vec![format!("uid {}", shown(uid))] });
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(table: &Table) -> Vec<String> {
        table.listeners.iter().map(|l| format!("{} ({})", printable(&l.name), l.facts.join(", "))).collect()
    }

    #[test]
    fn listeners_and_nobody_else() {
        let text = b"  sl  local_address rem_address   st\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 1\n\
            1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12346 1\n\
            2: 0100007F:8000 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n";
        let table = inet(text, "tcp", LISTENING);
        assert_eq!(names(&table), ["tcp 127.0.0.1:8080 (uid 1000)"]);
        assert!(table.past_listeners);
        let six = b"h\n 0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1 1\n";
        assert_eq!(names(&inet(six, "tcp", LISTENING)), ["tcp [::1]:22 (uid 0)"]);
    }

    #[test]
    fn unix_sockets_with_hostile_names() {
        let text = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff: 00000002 00000000 00010000 0001 01 100 /run/a b\x1b\n\
            ffff: 00000003 00000000 00000000 0001 03 101 /run/a b\x1b\n\
            ffff: 00000002 00000000 00000000 0002 01 102 /dev/log\n\
            ffff: 00000002 00000000 00000000 0002 01 103\nfake\n";
        assert_eq!(names(&unix(text)), ["unix /dev/log (takes datagrams)", r"unix /run/a b\x1b (takes connections)"]);
    }

    #[test]
    fn packet_sockets() {
        let text = b"sk RefCnt Type Proto Iface R Rmem User Inode\nffff 3 3 0003 2 1 0 0 9\n";
        assert_eq!(names(&packet(text)), ["packet protocol 0003 on interface 2 (uid 0)"]);
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            let text = [&b"\n"[..], &noise].concat();
            let _ = (inet(&text, "tcp", LISTENING), unix(&text), packet(&text), address(&noise));
        }
    }
}
