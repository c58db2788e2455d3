//! Every program that the session runs is in the record, whole and in order.

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{Command, Exec, ExecFault};
use breakglass_tests::{
    argvs,
    stack::{Options, Stack},
};

use crate::{Company, SESSION, SUDO_SESSION, Test};

pub const TESTS: &[Test] = &[
    Test { name: "record::ten_thousand_execs", needs: SESSION, company: Company::None, run: ten_thousand_execs },
    Test {
        name: "record::argument_vectors_arrive_whole",
        needs: SESSION,
        company: Company::Others,
        run: argument_vectors,
    },
    Test {
        name: "record::commands_carry_their_circumstances",
        needs: SESSION,
        company: Company::Others,
        run: circumstances,
    },
    Test {
        name: "record::sudo_and_detached_children_belong_to_the_session",
        needs: SUDO_SESSION,
        company: Company::Others,
        run: descendants,
    },
];

/// Runs in a row, as the issue of completeness is usually put to auditors.
const MANY: u64 = 10_000;

fn ten_thousand_execs() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("ten thousand programs", "10m")?;
        stack.ssh_run(&opened, &format!("{} execs {MANY}", stack.probe().display()))?;
        let session = stack.close_and_collect(&opened)?;
        ensure!(session.gaps == 0, "{} records are missing", session.gaps);
        let commands = stack.query()?.commands(&opened.session)?;
        expect_numbers(&numbers(&commands)?, MANY)?;
        let endless = commands.iter().filter(|command| command.exit.is_none());
        let endless =
            endless.filter(|command| command.exec.as_ref().is_some_and(|exec| exec.exe.ends_with(b"/bin/true")));
        ensure!(endless.count() == 0, "a program that ended has no exit");
        Ok(())
    })
}

/// The running numbers that the probe gave to `/bin/true`, in recorded order.
pub fn numbers(commands: &[Command]) -> Result<Vec<u64>> {
    let execs = commands.iter().filter_map(|command| command.exec.as_ref());
    let counted = execs.filter(|exec| exec.argv.first().is_some_and(|name| name == b"/bin/true"));
    counted.map(|exec| Ok(String::from_utf8(exec.argv.get(1).context("no number")?.clone())?.parse()?)).collect()
}

/// Fails unless `found` counts from 0 to `count`, naming the first place where it does not.
pub fn expect_numbers(found: &[u64], count: u64) -> Result<()> {
    let wrong = found.iter().zip(0..).find(|(found, due)| **found != *due);
    if let Some((found, due)) = wrong {
        anyhow::bail!("number {found} stands where {due} should");
    }
    ensure!(found.len() as u64 == count, "{} of {count} are there", found.len());
    Ok(())
}

fn argument_vectors() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("argument vectors", "10m")?;
        let probe = stack.probe().display().to_string();
        let (middle, largest) = (3 << 19, 5 << 20);
        stack.ssh_run(&opened, &format!("exec {probe} large {middle}"))?;
        stack.ssh_run(&opened, &format!("ulimit -s unlimited && exec {probe} large {largest}"))?;
        stack.ssh_run(&opened, &format!("exec {probe} odd"))?;
        stack.ssh_run(&opened, &format!("exec {probe} nameless"))?;
        stack.close_and_collect(&opened)?;
        let commands = stack.query()?.commands(&opened.session)?;
        let trues: Vec<&Exec> = commands
            .iter()
            .filter_map(|command| command.exec.as_ref())
            .filter(|exec| exec.exe.ends_with(b"/bin/true"))
            .collect();
        // The kernel gives a program that is started with no argument an empty one (since 5.18).
        let large = |bytes| [vec![b"/bin/true".to_vec()], argvs::large(bytes)].concat();
        let expected = [large(middle), large(largest), argvs::odd(), vec![Vec::new()]];
        ensure!(trues.len() == expected.len(), "{} vectors of {}", trues.len(), expected.len());
        for (exec, expected) in trues.into_iter().zip(&expected) {
            check_vector(exec, expected)?;
        }
        Ok(())
    })
}

fn check_vector(exec: &Exec, expected: &[Vec<u8>]) -> Result<()> {
    let bytes: usize = expected.iter().map(|argument| argument.len() + 1).sum();
    ensure!(exec.faults & exec_fault_argv() == 0, "the vector of {bytes} bytes is marked as faulty");
    ensure!(exec.argv_bytes == bytes as u64, "{} bytes instead of {bytes}", exec.argv_bytes);
    ensure!(exec.argv.len() == expected.len(), "{} arguments instead of {}", exec.argv.len(), expected.len());
    let different = exec.argv.iter().zip(expected).position(|(found, expected)| found != expected);
    ensure!(different.is_none(), "argument {different:?} of the vector of {bytes} bytes differs");
    Ok(())
}

fn exec_fault_argv() -> u32 {
    ExecFault::Argv as u32
}

fn circumstances() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("circumstances", "10m")?;
        stack.ssh_run(&opened, "cd /usr/share; /bin/sh -c 'exit 7'; seq 3 | tail -n 1; /etc/passwd; true")?;
        stack.close_and_collect(&opened)?;
        let commands = stack.query()?.commands(&opened.session)?;
        let find = |argv: &[&str]| {
            let wanted: Vec<Vec<u8>> = argv.iter().map(|argument| argument.as_bytes().to_vec()).collect();
            let found = commands.iter().find(|c| c.exec.as_ref().is_some_and(|exec| exec.argv == wanted));
            found.with_context(|| format!("{argv:?} is not in the record"))
        };
        let shell = find(&["/bin/sh", "-c", "exit 7"])?;
        let exec = shell.exec.as_ref().context("no exec")?;
        ensure!(exec.cwd == b"/usr/share", "cwd {:?}", String::from_utf8_lossy(&exec.cwd));
        let credentials = exec.credentials.as_ref().context("no credentials")?;
        ensure!(credentials.uid == stack.account.uid && credentials.loginuid == stack.account.uid, "{credentials:?}");
        ensure!(exec.faults == 0, "faults {:#x}", exec.faults);
        ensure!(shell.exit.as_ref().map(|exit| exit.status) == Some(7), "exit {:?}", shell.exit);
        ensure!(
            shell.exit_wall_ns >= shell.wall_ns && shell.wall_ns > 0,
            "times {} {}",
            shell.wall_ns,
            shell.exit_wall_ns
        );
        find(&["seq", "3"])?;
        find(&["tail", "-n", "1"])?;
        let failed = commands.iter().filter_map(|c| c.failed.as_ref()).find(|f| f.filename == b"/etc/passwd");
        let failed = failed.context("the refused exec is not in the record")?;
        ensure!(failed.errno == nix::errno::Errno::EACCES as u32, "errno {}", failed.errno);
        Ok(())
    })
}

fn descendants() -> Result<()> {
    const PASSWORD: &str = "nine lives of a cat";
    let options = Options { sudo_password: Some(PASSWORD.into()), ..Options::default() };
    Stack::with(options, |stack| {
        let opened = stack.open("descendants", "10m")?;
        let mut terminal = stack.login(&opened)?;
        terminal
            .ask("sudo -k; sudo /bin/sh -c 'setsid sh -c \"/bin/echo from-root >/dev/null\" & wait'", "password for")?;
        terminal.ask(PASSWORD, breakglass_tests::account::PROMPT_SHOWN)?;
        terminal.send("exit\n")?;
        terminal.finish(breakglass_tests::poll::SOON)?;
        stack.close_and_collect(&opened)?;
        let commands = stack.query()?.commands(&opened.session)?;
        let argv = [b"/bin/echo".to_vec(), b"from-root".to_vec()];
        let echo = commands.iter().filter_map(|c| c.exec.as_ref()).find(|exec| exec.argv == argv);
        let echo = echo.context("what root ran under sudo is not in the record")?;
        ensure!(echo.credentials.as_ref().is_some_and(|c| c.euid == 0), "{:?}", echo.credentials);
        Ok(())
    })
}
