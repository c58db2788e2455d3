//! What terminals show and take, and sessions without one.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{
    event::Body, file_action::Kind as File, stdio_data::Direction, system_action::Kind as System,
};
use breakglass_tests::machine::{self, Need};

use crate::{
    case::{Case, Held},
    record::{Record, acted, whole},
    stage::{Deed, Stage, finish},
};

pub const CASES: &[Case] = &[
    Case::operator(
        13,
        "command_of_builtins",
        r#"
        echo printed-$mark
        echo x > "$file"
    "#,
    )
    .done(printed)
    .held(stdio_printed)
    .peers(),
    Case::own(13, "script_on_standard_input", from_input).held(stdio_taken),
    Case::own(13, "copy_to_the_host", copy_there).held(stdio_taken),
    Case::own(14, "second_channel", second_channel),
    Case::own(15, "settings_of_the_login", settings_of_login),
    Case::terminal(16, "writev", r#"HIDDEN=printed-$mark "$attack" tty writev @"#).done(printed).held(shown).peers(),
    Case::terminal(16, "splice", r#"HIDDEN=printed-$mark "$attack" tty splice @"#).done(printed).held(shown).peers(),
    Case::terminal(16, "vmsplice", r#"HIDDEN=printed-$mark "$attack" tty vmsplice @"#)
        .done(printed)
        .held(shown)
        .peers(),
    Case::terminal(16, "sendfile", r#"HIDDEN=printed-$mark "$attack" tty sendfile @"#)
        .done(printed)
        .held(shown)
        .peers(),
    Case::terminal(16, "io_uring", r#"HIDDEN=printed-$mark "$attack" tty uring @"#).done(printed).held(shown).peers(),
    Case::terminal(16, "dev_tty", r#"HIDDEN=printed-$mark "$attack" tty devtty @ >/dev/null"#)
        .done(printed)
        .held(shown)
        .peers(),
    Case::terminal(16, "another_one_s_terminal", ANOTHER).done(printed).held(shown).peers(),
    Case::terminal(
        17,
        "buffer_changes_under_the_probe",
        r#"
        stty -opost
        "$attack" flicker harmless dreadful 3000
        echo printed-$mark
    "#,
    )
    .done(printed)
    .held(shown_as_seen),
    Case::typed(18, "shell_builtins", &["cd /usr/share", "echo mark={mark} > {file}", "printf 'printed-%s\\n' {mark}"])
        .held(typed_and_written),
    Case::typed(18, "interpreter_prompt", &["python3 -q\nopen(\"{file}\", \"w\").write(\"x\")\nexit()"]).held(written),
    Case::root(
        18,
        "sourced_script",
        r#"
        echo ': > "$file"' > "$dir/sourced"
        . "$dir/sourced"
    "#,
    )
    .held(written)
    .peers(),
    Case::terminal(32, "typed_by_ioctl", TYPED).held(injected).peers(),
    Case::own(33, "transfer_without_a_program", sftp).held(stdio_taken),
    Case::terminal(35, "password_in_a_nest_of_terminals", NESTED).done(nested_done).held(nested),
    Case::terminal(42, "shell_over_a_socket", SOCKET_SHELL).held(over_socket).peers().needs(&[Need::Program("bash")]),
    Case::terminal(
        43,
        "terminal_of_its_own",
        r#"
        script -qec "printf 'printed-%s\\n' $mark" /dev/null >/dev/null
        : > "$file"
    "#,
    )
    .held(shown)
    .peers(),
];

const ANOTHER: &str = r#"
        me=$(tty)
        setsid sh -c 'printf "printed-%s\n" "$2" > "$1"' sh "$me" "$mark" < /dev/null > /dev/null 2>&1
        sleep 0.2
    "#;

/// A shell that is typed at by ioctl runs what was typed.
const TYPED: &str = r#""$attack" type "$attack act $file $mark" && read -r line && sh -c "$line""#;

const SOCKET_SHELL: &str = r#"
python3 -c '
import socket, subprocess, sys, threading
s = socket.create_server(("127.0.0.1", 0))
port = s.getsockname()[1]
p = subprocess.Popen(["bash", "-c", "exec bash -s <>/dev/tcp/127.0.0.1/%d >&0 2>&1" % port])
c, _ = s.accept()
c.sendall(("%s act %s %s; echo socket > %s.b; exit\n" % (sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[2])).encode())
p.wait()
' "$attack" "$file" "$mark"
"#;

/// The inner terminal asks without echo; the outer one, which the keys pass first, is raw.
const NESTED: &str = r#"
SECRET=secret-$mark FILE=$file python3 -c '
import os, pty, time
pid, fd = pty.fork()
if pid == 0:
    line = "stty -echo; echo asking; read line; test \"$line\" = \"$SECRET\" && : > \"$FILE\""
    os.execvp("script", ["script", "-qec", line, "/dev/null"])
seen = b""
while b"asking" not in seen:
    seen += os.read(fd, 1000)
time.sleep(0.3)
os.write(fd, os.environ["SECRET"].encode() + b"\n")
try:
    while os.read(fd, 1000): pass
except OSError: pass
'
"#;

fn printed(deed: &Deed) -> bool {
    deed.saw(&format!("printed-{}", deed.mark))
}

fn stdio_printed(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(
        breakglass_tests::terminal::find(
            &record.carried(Direction::Output),
            format!("printed-{}", deed.mark).as_bytes(),
        )
        .is_some(),
    )
}

fn stdio_taken(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(breakglass_tests::terminal::find(&record.carried(Direction::Input), deed.mark.as_bytes()).is_some())
}

fn shown(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.showed(&format!("printed-{}", deed.mark)))
}

/// Byte for byte what the client saw, whatever the buffer held when.
fn shown_as_seen(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.shown().starts_with(&deed.seen))
}

fn typed_and_written(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.showed(&deed.mark) && record.file(File::Opened, &deed.mark))
}

fn written(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.file(File::Opened, &deed.mark))
}

fn injected(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.system(System::TerminalInjected).next().is_some() && acted(record, deed).is_some())
}

fn nested_done(deed: &Deed) -> bool {
    deed.acted()
}

/// The secret is nowhere; that something was typed is there.
fn nested(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let withheld = record.bodies().any(|body| matches!(body, Body::InputWithheld(_)));
    whole(withheld && !record.showed(&format!("secret-{}", deed.mark)))
}

fn over_socket(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let file = format!("{}.b", deed.mark);
    whole(acted(record, deed).is_some() && record.file(File::Opened, &file) && record.connected().next().is_some())
}

/// Runs a channel of the shared connection with something on its standard input.
fn channel(stage: &mut Stage, deed: &mut Deed, line: &str, input: &[u8]) -> Result<()> {
    let mut ssh = stage.ssh(&[]);
    let line = if line.is_empty() { String::new() } else { format!("{line}; /bin/true end-{}", deed.mark) };
    let mut child = ssh.arg(line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(input)?;
    let output = child.wait_with_output()?;
    deed.seen = output.stdout;
    deed.ended = true;
    Ok(())
}

fn from_input(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let script = format!(": > {} # {}\n", deed.file.display(), deed.mark);
    channel(stage, &mut deed, "bash", script.as_bytes())?;
    Ok(deed)
}

fn copy_there(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let local = stage.stack.path("operator/copied");
    std::fs::write(&local, format!("content {}\n", deed.mark))?;
    // The old protocol, which runs a program on the far side.
    run_copy(stage, &deed, Command::new(machine::program("scp")?).arg("-O"), &local)?;
    deed.ended = false;
    Ok(deed)
}

fn sftp(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let local = stage.stack.path("operator/copied");
    std::fs::write(&local, format!("content {}\n", deed.mark))?;
    run_copy(stage, &deed, Command::new(machine::program("scp")?).arg("-s"), &local)?;
    deed.ended = false;
    Ok(deed)
}

fn run_copy(stage: &Stage, deed: &Deed, scp: &mut Command, local: &std::path::Path) -> Result<()> {
    let ssh = stage.ssh(&[]);
    let arguments: Vec<_> =
        ssh.get_args().skip_while(|argument| *argument != "-F").take_while(|argument| *argument != "-p").collect();
    scp.args(arguments).arg("-i").arg(stage.stack.key()).arg("-P").arg(stage.opened.ssh_port.to_string()).arg(local);
    scp.arg(format!("{}@127.0.0.1:{}", stage.opened.account, deed.file.display())).env_remove("SSH_AUTH_SOCK");
    let output = finish(scp)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A second shell while a first one is at its prompt.
fn second_channel(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let mut first = stage.login()?;
    stage.run_alone(&mut deed, "act", "", &[])?;
    first.send("exit\n")?;
    first.finish(std::time::Duration::from_secs(30))?;
    Ok(deed)
}

/// Everything that a login can bring along, and a start-up file of its own.
fn settings_of_login(stage: &mut Stage, case: &Case) -> Result<Deed> {
    let mut deed = stage.prepare(case)?;
    let words = r#"
        BREAKGLASS_CONFIG=/dev/null BREAKGLASS_LOG=off TLOG_REC_SESSION_CONF_TEXT='{"writer":"file"}' RUST_LOG=off SUDO_ASKPASS=/bin/false LD_PRELOAD=/nonexistent.so BASH_ENV=/dev/null
    "#;
    let script = format!("env {words} \"$attack\" act \"$file\" \"$mark\" 2>/dev/null");
    stage.run_alone(&mut deed, &script, "sudo -n ", &[])?;
    Ok(deed)
}
