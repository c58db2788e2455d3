//! Compiles the protocol without `protoc`: protox parses, tonic generates.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["event", "ingest", "query", "control", "manage"].map(|name| format!("breakglass/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Served by the reflection service.
    std::fs::write(out.join("breakglass.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".breakglass.v1.AgentMessage.frame").compile_fds(descriptors)?;
    Ok(())
}
