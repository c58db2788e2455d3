//! Calling cargo.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// The cargo that runs this, in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The repository's root.
pub fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Builds everything as the tests want it: they drive the programs that lie beside them, which cargo does not build for them.
pub fn everything() -> Result<()> {
    let status = cargo().args(["build", "--workspace", "--all-targets"]).status().context("cannot run cargo")?;
    ensure!(status.success(), "the build failed");
    Ok(())
}

/// Builds every program of the workspace and gives their paths by name.
pub fn programs(release: bool) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = cargo();
    command.args(["build", "--workspace", "--bins", "--message-format=json-render-diagnostics"]);
    if release {
        command.arg("--release");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("no pipe from cargo")?;
    let mut programs = BTreeMap::new();
    for line in BufReader::new(output).lines() {
        programs.extend(program(&line?));
    }
    ensure!(child.wait()?.success(), "the build failed");
    Ok(programs)
}

/// Name and path of the program that one of cargo's messages says was built.
fn program(message: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?;
    Some((message.get("target")?.get("name")?.as_str()?.to_owned(), path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_other_messages() {
        let built = r#"{"reason":"compiler-artifact","target":{"name":"breakglass"},"executable":"/t/breakglass"}"#;
        assert_eq!(program(built), Some(("breakglass".into(), "/t/breakglass".into())));
        for other in [r#"{"reason":"compiler-artifact","target":{"name":"x"},"executable":null}"#, "{}", "not JSON"] {
            assert_eq!(program(other), None, "{other}");
        }
    }
}
