//! Terminals that are no pseudo terminals, and what reaches a terminal without a write to it.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use breakglass_agent::config::Tier;
use breakglass_api::v1::{event::Body, system_action::Kind};
use nix::libc::{O_NOCTTY, O_NONBLOCK};

use super::{
    harness::{DEADLINE, Recording},
    terminal::Screen,
};
use crate::need_kernel;

/// The two serial ports of the lab's guest that are wired to each other.
fn wired_ports() -> Option<(PathBuf, PathBuf)> {
    let mut ports: Vec<PathBuf> = fs::read_dir("/sys/class/tty")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ttyS")))
        .filter(|path| fs::canonicalize(path).is_ok_and(|device| device.starts_with("/sys/devices/pci0000:00")))
        .collect();
    ports.sort();
    let device = |path: &PathBuf| Path::new("/dev").join(path.file_name().unwrap_or_default());
    match ports.as_slice() {
        [first, second] => Some((device(first), device(second))),
        _ => None,
    }
}

fn stty(device: &Path, settings: &[&str]) {
    let status = Command::new("stty").arg("-F").arg(device).args(settings).status().unwrap();
    assert!(status.success(), "stty {settings:?} on {}", device.display());
}

fn open(device: &Path, flags: i32) -> File {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(O_NOCTTY | flags).open(device);
    opened.unwrap_or_else(|error| panic!("{}: {error}", device.display()))
}

/// A command of the account at a terminal that is there already.
fn at(recording: &Recording, device: &Path, script: &str) -> Command {
    let terminal = open(device, 0);
    let end = || Stdio::from(terminal.try_clone().unwrap());
    let mut command = recording.command("/usr/bin/setsid");
    command.args(["--ctty", "--wait", "/bin/sh", "-c", script]).stdin(end()).stdout(end()).stderr(end());
    command
}

/// Somebody who sits at the other end of the wire.
struct Visitor {
    line: File,
    shown: Vec<u8>,
}

impl Visitor {
    fn until(&mut self, text: &[u8]) {
        let limit = Instant::now() + DEADLINE;
        while !self.shown.ends_with(text) {
            let shown = String::from_utf8_lossy(&self.shown);
            assert!(Instant::now() < limit, "{:?} was not shown; {shown:?}", String::from_utf8_lossy(text));
            let mut buffer = [0; 4096];
            match self.line.read(&mut buffer) {
                Ok(read) if read > 0 => self.shown.extend_from_slice(&buffer[..read]),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

#[test]
fn a_serial_console_is_recorded_in_both_directions() {
    need_kernel!();
    let Some((console, far_end)) = wired_ports() else {
        eprintln!("skipped: no two serial ports are wired to each other, as they are in the lab");
        return;
    };
    let line = open(&far_end, O_NONBLOCK);
    stty(&far_end, &["raw", "-echo", "115200", "clocal"]);
    let held = open(&console, O_NONBLOCK);
    stty(&console, &["sane", "115200", "clocal"]);
    let mut recording = Recording::start();
    recording.kernel().begin_session(51).unwrap();
    // Never more at once than the other end's port holds: nothing on this wire holds back who sends, and an emulator may be slow to
    // take it out. The last pause is for the end: what a line has not sent yet when its session ends is thrown away.
    let script = "printf 'name: '; read n; stty -echo; printf 'secret: '; read s; stty echo; echo; \
                  for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.2; done; echo \"bye $n\"; sleep 1";
    let mut child = at(&recording, &console, script).spawn().unwrap();
    let mut visitor = Visitor { line, shown: Vec::new() };
    visitor.until(b"name: ");
    visitor.line.write_all(b"carol\r").unwrap();
    visitor.until(b"secret: ");
    visitor.line.write_all(b"swordfish\r").unwrap();
    visitor.until(b"bye carol\r\n");
    child.wait().unwrap();
    drop(held);
    recording.until_exit_of(child.id());
    recording.settle();
    let recorded = String::from_utf8_lossy(&recording.output()).into_owned();
    if recording.kernel().info().tier == Tier::Basic {
        assert!(recorded.ends_with("bye carol\n") && recorded.starts_with("name: secret: "), "{recorded}");
    } else {
        assert_eq!(recorded, String::from_utf8_lossy(&visitor.shown));
        assert_eq!(recording.input(), (b"carol\r".to_vec(), 10));
    }
    let index = recording.seen.iter().find_map(|observed| match &observed.event.body {
        Some(Body::TerminalOutput(output)) => Some(output.index),
        _ => None,
    });
    assert_eq!(index.map(|index| index >> 20), Some(4), "the device number of a serial line");
    recording.kernel().end_session(51).unwrap();
}

#[test]
fn a_virtual_console_is_recorded_and_what_is_painted_on_it() {
    need_kernel!();
    let console = Path::new("/dev/tty9");
    let Ok(_console) = OpenOptions::new().write(true).custom_flags(O_NOCTTY).open(console) else {
        eprintln!("skipped: no virtual consoles");
        return;
    };
    let Ok(screen) = OpenOptions::new().write(true).open("/dev/vcs9") else {
        eprintln!("skipped: no /dev/vcs9");
        return;
    };
    let mut recording = Recording::start();
    recording.kernel().begin_session(52).unwrap();
    let mut command = at(&recording, console, "echo on the console; printf painted >&2");
    let mut child = command.stderr(Stdio::from(screen)).spawn().unwrap();
    child.wait().unwrap();
    recording.until_exit_of(child.id());
    recording.settle();
    let newline: &[u8] = if recording.kernel().info().tier == Tier::Basic { b"\n" } else { b"\r\n" };
    assert_eq!(recording.output(), [b"on the console", newline].concat());
    let painted = recording.seen.iter().find_map(|observed| match &observed.event.body {
        Some(Body::SystemAction(action)) if action.kind() == Kind::ScreenPainted => Some(action.clone()),
        _ => None,
    });
    let painted = painted.expect("what was painted");
    assert_eq!((&painted.name[..], painted.value, painted.value2), (&b"painted"[..], 9, 7));
    recording.kernel().end_session(52).unwrap();
}

/// Lets tasks type for others, and puts back what was.
struct Typing(Option<String>);

impl Typing {
    const SWITCH: &str = "/proc/sys/dev/tty/legacy_tiocsti";

    fn allow() -> Self {
        let before = fs::read_to_string(Self::SWITCH).ok();
        if before.is_some() {
            fs::write(Self::SWITCH, "1").unwrap();
        }
        Self(before)
    }
}

impl Drop for Typing {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            fs::write(Self::SWITCH, before.trim()).unwrap();
        }
    }
}

#[test]
fn what_a_task_types_for_its_user_is_recorded() {
    need_kernel!();
    let _typing = Typing::allow();
    let mut recording = Recording::start();
    recording.kernel().begin_session(53).unwrap();
    let script = "exec perl -e 'ioctl(STDIN, 0x5412, $_) or die \"$!\" for split //, \"forged\\n\"; print \"read \", scalar <STDIN>'";
    let mut screen = Screen::start(&mut recording, script);
    screen.until(b"read forged\r\n");
    screen.until_end();
    recording.until_exit_of(screen.child.id());
    recording.settle();
    let controlled = |observed: &&breakglass_agent::recorder::source::Observed| matches!(&observed.event.body, Some(Body::SystemAction(action)) if action.kind() == Kind::TerminalInjected);
    assert_eq!(recording.seen.iter().filter(controlled).count(), 7);
    let basic = recording.kernel().info().tier == Tier::Basic;
    assert_eq!(recording.input(), (if basic { Vec::new() } else { b"forged\n".to_vec() }, 0));
    assert_eq!(recording.output(), screen.shown);
    recording.kernel().end_session(53).unwrap();
}

#[test]
fn what_is_spliced_out_of_a_terminal_is_reported_where_it_cannot_be_seen() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(54).unwrap();
    // The account has both ends: openpty, a line written at the slave, and 6 bytes spliced from the master into a pipe.
    let script = "use Fcntl; sysopen(my $m, '/dev/ptmx', O_RDWR | O_NOCTTY) or die; my $n = pack('i', 0); \
        ioctl($m, 0x40045431, $n) or die; ioctl($m, 0x80045430, $n) or die; my $i = unpack('i', $n); \
        sysopen(my $s, \"/dev/pts/$i\", O_RDWR | O_NOCTTY) or die \"$!\"; syswrite($s, 'abcdef'); pipe(my $r, my $w); \
        my $got = syscall(275, fileno($m), 0, fileno($w), 0, 64, 0); exit($got == 6 ? 0 : 9)";
    let status = recording.command("/usr/bin/perl").args(["-e", script]).status().unwrap();
    if status.code() == Some(9) {
        eprintln!("skipped: this kernel splices nothing out of a terminal");
        recording.kernel().end_session(54).unwrap();
        return;
    }
    assert!(status.success(), "{status}");
    recording.settle();
    let (mut shown, mut missing) = (Vec::new(), 0);
    for observed in &recording.seen {
        if let Some(Body::TerminalOutput(output)) = &observed.event.body {
            shown.extend_from_slice(&output.data);
            missing += output.missing;
        }
    }
    let basic = recording.kernel().info().tier == Tier::Basic;
    assert_eq!((&shown[..], missing), if basic { (&b""[..], 6) } else { (&b"abcdef"[..], 0) });
    recording.kernel().end_session(54).unwrap();
}
