//! The wire: protocol messages, services and the frame format. No behaviour beyond encoding and decoding.
//!
//! The messages are documented in `proto/breakglass/v1/*.proto`, which is the reference; `v1` only ever grows.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod evidence;
pub mod frame;
pub mod grant;

/// Version 1 of the protocol, generated from `proto/breakglass/v1`.
#[allow(missing_docs, clippy::all, reason = "generated; documented in the .proto files")]
pub mod v1 {
    tonic::include_proto!("breakglass.v1");

    /// The compiled descriptors, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/breakglass.v1.bin"));
}

/// SSHSIG namespace of a signed request to break the glass.
pub const GRANT_NAMESPACE: &str = "breakglass-grant@v1";

/// SSHSIG namespace of a request that is signed ahead and carried by hand.
pub const PREPARED_NAMESPACE: &str = "breakglass-prepared@v1";

/// SSHSIG namespace of somebody else's consent to a request to break the glass.
pub const COSIGN_NAMESPACE: &str = "breakglass-cosign@v1";

/// SSHSIG namespace of a signed request to close a session.
pub const CLOSE_NAMESPACE: &str = "breakglass-close@v1";

/// Largest control message that either side accepts, in bytes. A grant is under 2 KiB and an armoured RSA-4096 signature
/// under 2 KiB; the rest is room for co-signatures.
pub const CONTROL_MESSAGE_MAX: usize = 64 * 1024;

/// Largest gRPC message, in bytes: one frame and its envelope.
pub const GRPC_MESSAGE_MAX: usize = frame::PAYLOAD_MAX + 64 * 1024;
