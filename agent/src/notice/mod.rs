//! Notices from the host itself, for when nobody looks at the collector.

pub mod syslog;
