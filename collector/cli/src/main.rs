//! `breakglass`: see the crate's `cli` module.

#![forbid(unsafe_code)]

use std::process::ExitCode;

// One thread does: what there is to do is wait for one connection and print.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    breakglass_cli::cli::main().await
}
