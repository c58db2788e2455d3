//! What the tests let the emergency account run: loads of an exact, repeatable shape. Prints one line about what it did.

#![forbid(unsafe_code)]

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    hint,
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use breakglass_tests::{argvs, control::Control};
use clap::Parser;
use nix::sys::{
    resource::{UsageWho, getrusage},
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};

/// Runs a load.
#[derive(Parser)]
enum Load {
    /// Run a program so many times, one after the other, with a running number as its argument; print the nanoseconds taken, and
    /// those of processor time, its own and the programs'.
    Execs {
        /// How many times.
        count: u64,
        /// What to run.
        #[arg(long, default_value = "/bin/true")]
        program: String,
        /// How many a second at most; 0: as fast as possible.
        #[arg(long, default_value_t = 0)]
        rate: u64,
    },
    /// Run a command; print the same.
    Command {
        /// It and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Touch every page of so many bytes of fresh memory, which is what most of the time of starting a program goes into; print the same.
    Memory {
        /// Bytes. From 32 MiB on the memory is sure to be fresh (mallopt(3), `M_MMAP_THRESHOLD`).
        bytes: usize,
    },
    /// Become /bin/true with an argument vector of so many bytes behind its name.
    Large {
        /// Bytes, each argument counted with its end.
        bytes: usize,
    },
    /// Become /bin/true with arguments that printing goes wrong on.
    Odd,
    /// Become /bin/true with no argument at all, not even a name.
    Nameless,
    /// Write so many bytes of ever different lines to standard output.
    Flood {
        /// Bytes.
        bytes: usize,
    },
    /// Have a child connect to the agent and end; then have the agent stopped over what is connected now, and print the answer.
    StopByAChild {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// Connect standard input, and end.
    Connect {
        /// Where to.
        socket: PathBuf,
    },
}

fn main() -> Result<()> {
    match Load::parse() {
        Load::Execs { count, program, rate } => measured(|| execs(count, &program, rate)),
        Load::Command { command } => measured(|| spawn(&command)),
        Load::Memory { bytes } => measured(|| touch(bytes)),
        Load::Large { bytes } => become_true(&[vec![b"/bin/true".to_vec()], argvs::large(bytes)].concat()),
        Load::Odd => become_true(&argvs::odd()),
        Load::Nameless => become_true(&[]),
        Load::Flood { bytes } => flood(bytes),
        Load::StopByAChild { socket } => stop_by_a_child(&socket),
        Load::Connect { socket } => Ok(connect(io::stdin().as_raw_fd(), &UnixAddr::new(&socket)?)?),
    }
}

/// Prints the nanoseconds that it took, and those of processor time.
fn measured(load: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    load()?;
    println!("{} {}", start.elapsed().as_nanos(), processor_time()?.as_nanos());
    Ok(())
}

fn spawn(command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let status = Command::new(program).args(arguments).status().context("cannot run it")?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn execs(count: u64, program: &str, rate: u64) -> Result<()> {
    let start = Instant::now();
    for number in 0..count {
        if let Some(due) = (number * 1_000_000_000).checked_div(rate) {
            thread::sleep(Duration::from_nanos(due).saturating_sub(start.elapsed()));
        }
        let mut command = Command::new(program);
        command.arg(OsStr::from_bytes(number.to_string().as_bytes()));
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().context("cannot run it")?;
        ensure!(status.success(), "run {number} ended with {status}");
    }
    Ok(())
}

fn touch(bytes: usize) -> Result<()> {
    const PAGE: usize = 4096;
    // Page by page, however this machine is set up.
    nix::sys::prctl::set_thp_disable(true)?;
    let mut memory = vec![0_u8; bytes];
    for byte in memory.iter_mut().step_by(PAGE) {
        *byte = 1;
    }
    hint::black_box(&memory);
    Ok(())
}

/// User and system time of this process and of those it waited for.
fn processor_time() -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            sum += Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000);
        }
    }
    Ok(sum)
}

fn become_true(arguments: &[Vec<u8>]) -> Result<()> {
    let arguments = arguments.iter().map(|argument| CString::new(argument.clone())).collect::<Result<Vec<_>, _>>()?;
    nix::unistd::execv(c"/bin/true", &arguments).context("the kernel refused to run it")?;
    Ok(())
}

fn flood(bytes: usize) -> Result<()> {
    let mut out = io::stdout().lock();
    let mut piece = Vec::with_capacity(64 * 1024);
    let (mut line, mut left) = (0_u64, bytes);
    while left > 0 {
        piece.clear();
        while piece.len() < 60 * 1024 {
            writeln!(
                piece,
                "{line:012} the quick brown fox jumps over the lazy dog {:016x}",
                line.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            )?;
            line += 1;
        }
        let length = left.min(piece.len());
        out.write_all(&piece[..length])?;
        left -= length;
    }
    Ok(out.flush()?)
}

fn stop_by_a_child(path: &Path) -> Result<()> {
    let ours = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let mut child = Command::new(env::current_exe()?);
    let status = child.arg("connect").arg(path).stdin(ours.try_clone()?).status()?;
    ensure!(status.success(), "the child ended with {status}");
    println!("{:?}", Control::over(UnixStream::from(ours)).stop("mine", true)?);
    Ok(())
}
