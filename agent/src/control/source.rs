//! Where a request came from.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// Where a request came from, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The Unix socket: credentials of the process that connected.
    Unix {
        /// Its process id; 0 where the kernel does not say.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// TLS over TCP.
    Tcp(SocketAddr),
}

/// Sources that are taken for one when limits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// A local user.
    User(u32),
    /// An IPv4 address, or the /64 of an IPv6 address: whoever has one address of it has all.
    Net(IpAddr),
    /// Too many to tell apart.
    Many,
}

impl Source {
    /// Whether it came over the Unix socket.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Unix { .. })
    }

    /// What limits are kept by.
    pub fn group(&self) -> Group {
        match self {
            Self::Unix { uid, .. } => Group::User(*uid),
            Self::Tcp(address) => Group::Net(match address.ip().to_canonical() {
                IpAddr::V6(ip) => {
                    let [a, b, c, d, ..] = ip.segments();
                    Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
                }
                v4 => v4,
            }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { pid, uid } => write!(f, "unix:pid={pid},uid={uid}"),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups() {
        let group = |text: &str| Source::Tcp(text.parse().unwrap()).group();
        assert_eq!(group("10.0.0.1:1"), group("10.0.0.1:2"));
        assert_eq!(group("10.0.0.1:1"), group("[::ffff:10.0.0.1]:2"));
        assert_ne!(group("10.0.0.1:1"), group("10.0.0.2:1"));
        assert_eq!(group("[2001:db8:1:2::1]:1"), group("[2001:db8:1:2:ffff::9]:1"));
        assert_ne!(group("[2001:db8:1:2::1]:1"), group("[2001:db8:1:3::1]:1"));
    }
}
