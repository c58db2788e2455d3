//! Sessions without a terminal: commands, scripts and file transfers are in the record byte for byte.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{event::Body, file_action::Kind as File, stdio_data::Direction};
use breakglass_tests::stack::{Options, Stack};

use crate::{Company, SESSION, Test};

pub const TESTS: &[Test] = &[
    Test { name: "stdio::a_script_and_what_it_prints", needs: SESSION, company: Company::Others, run: script },
    Test { name: "stdio::a_transfer_without_a_program", needs: SESSION, company: Company::Others, run: transfer },
];

/// What a stream of a session's logins carried.
fn carried(bodies: &[Body], direction: Direction, stream: u32) -> Vec<u8> {
    let of_stream = bodies.iter().filter_map(|body| match body {
        Body::StdioData(data) if (data.direction(), data.stream) == (direction, stream) => Some(&data.data[..]),
        _ => None,
    });
    of_stream.collect::<Vec<_>>().concat()
}

fn bodies(stack: &Stack, session: &str) -> Result<Vec<Body>> {
    let events = stack.query()?.events(session)?;
    Ok(events.into_iter().filter_map(|recorded| recorded.event?.body).collect())
}

fn script() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("a script on standard input", "10m")?;
        let script = "echo builtin; seq 20000; echo trouble >&2; umask 077; echo x > \"$HOME/left here\"\n";
        let mut ssh = stack.ssh(&opened);
        let mut child = ssh.arg("bash").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(script.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let session = stack.close_and_collect(&opened)?;
        ensure!(session.terminals.is_empty() && session.gaps == 0, "{session:?}");
        ensure!(stack.replay_raw(&opened.session)? == output.stdout, "the replay is not what was printed");
        let bodies = bodies(stack, &opened.session)?;
        ensure!(carried(&bodies, Direction::Input, 0) == script.as_bytes(), "the script is not what was recorded");
        ensure!(carried(&bodies, Direction::Output, 2) == output.stderr, "standard error differs");
        ensure!(session.stdio_output_bytes == (output.stdout.len() + output.stderr.len()) as u64, "{session:?}");
        let found = stack.reviewed(&["search", "left here", "--kind", "file"])?;
        ensure!(found.contains("left here"), "{found}");
        let shown = stack.reviewed(&["show", &opened.session, "--all"])?;
        ensure!(shown.contains("written to") && shown.contains("left here"), "{shown}");
        Ok(())
    })
}

fn transfer() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("a file transfer", "10m")?;
        let secret: Vec<u8> = (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let local = stack.path("operator/upload");
        fs::write(&local, &secret)?;
        let ssh = stack.ssh(&opened);
        // The options of ssh up to the port, which scp calls -P, and the account, which it wants with the host.
        let arguments: Vec<_> = ssh.get_args().take_while(|argument| *argument != "-p").collect();
        let key = ssh.get_args().skip_while(|argument| *argument != "-i").nth(1).context("no key")?;
        let mut scp = Command::new("scp");
        scp.args(arguments).arg("-P").arg(opened.ssh_port.to_string()).arg("-i").arg(key).arg(&local);
        scp.arg(format!("{}@127.0.0.1:uploaded", opened.account)).env_remove("SSH_AUTH_SOCK");
        breakglass_tests::machine::run(&mut scp)?;
        let session = stack.close_and_collect(&opened)?;
        ensure!(session.gaps == 0, "{session:?}");
        let bodies = bodies(stack, &opened.session)?;
        let input = carried(&bodies, Direction::Input, 0);
        // The protocol puts its own headers between pieces of the file.
        const PIECE: usize = 4096;
        let whole = secret.chunks_exact(PIECE).filter(|piece| contains(&input, piece)).count();
        let pieces = secret.len() / PIECE;
        ensure!(whole * 10 >= pieces * 8, "{whole} of {pieces} pieces of the file are in {} bytes", input.len());
        let opened_files = bodies.iter().filter(|body| {
            matches!(body, Body::FileAction(file) if file.kind() == File::Opened && file.path.ends_with(b"/uploaded"))
        });
        ensure!(opened_files.count() == 1, "the file that was written is not in the record");
        Ok(())
    })
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
