//! One login without a terminal that runs script after script: a login of its own for each costs more time than most attacks.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use breakglass_tests::{terminal::Terminal, undo::Run};

use crate::stage::Deed;

/// A shell at the far end that takes lines.
pub struct Shell {
    terminal: Terminal,
}

impl Shell {
    /// Starts one through `ssh`.
    pub fn start(run: &Run, ssh: &mut Command) -> Result<Self> {
        Ok(Self { terminal: Terminal::start_piped(run, ssh.arg("exec sh"))? })
    }

    /// Runs a script as root, marks its end on record, and keeps what it printed.
    pub fn run(&mut self, deed: &mut Deed, script: &Path, complaints: &Path, limit: Duration) -> Result<()> {
        let before = self.terminal.seen_len();
        let (script, errors, mark) = (script.display(), complaints.display(), &deed.mark);
        // What is printed stays apart from what is complained of, which standard error of ssh would drop.
        let line =
            format!("sudo -n /bin/sh {script} </dev/null 2>{errors}; /bin/true end-{mark}; echo; echo over-{mark}\n");
        self.terminal.send(line)?;
        let over = format!("\nover-{mark}\n");
        let result = self.terminal.expect_within(&over, limit);
        let seen = self.terminal.seen();
        let seen = seen.get(before..).unwrap_or_default();
        deed.seen = seen.strip_suffix(over.as_bytes()).unwrap_or(seen).to_vec();
        deed.complaint = fs::read_to_string(complaints).unwrap_or_default();
        result.context("the shell did not come back")
    }
}
