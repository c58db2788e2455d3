//! Running the built command.

use std::process::{Command, Output};

use crate::fake::Fake;

/// The command with a configuration of the fake's, in UTC, and nothing of the caller's environment that it would heed.
pub fn breakglass(fake: &Fake, config: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakglass"));
    command.arg("--config").arg(fake.path().join(config)).arg("--utc").env_remove("NO_COLOR");
    command
}

/// Runs it.
pub fn run(fake: &Fake, args: &[&str]) -> Output {
    breakglass(fake, "config.toml").args(args).output().unwrap()
}

/// Runs it, wants success, and returns what it printed.
pub fn printed(fake: &Fake, args: &[&str]) -> String {
    let output = run(fake, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it and returns exit code and message.
pub fn complained(fake: &Fake, config: &str, args: &[&str]) -> (i32, String) {
    let output = breakglass(fake, config).args(args).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
}
