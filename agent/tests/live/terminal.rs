//! What terminals show and what is typed at them.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use breakglass_agent::config::Tier;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{Winsize, openpty},
};

use super::harness::{DEADLINE, Recording, exec_of, is_emulated};
use crate::need_kernel;

/// A command of the account on a pseudo terminal whose master is the test's, as sshd has it.
pub struct Screen {
    master: File,
    pub child: Child,
    pub shown: Vec<u8>,
}

impl Screen {
    pub fn start(recording: &mut Recording, script: &str) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let child = recording
            .command("/usr/bin/setsid")
            .args(["--ctty", "--wait", "/bin/sh", "-c", script])
            .stdin(slave(&pty.slave))
            .stdout(slave(&pty.slave))
            .stderr(slave(&pty.slave))
            .spawn()
            .unwrap();
        Self { master: File::from(pty.master), child, shown: Vec::new() }
    }

    /// Reads what the screen shows until it ends with `text`.
    pub fn until(&mut self, text: &[u8]) {
        let limit = Instant::now() + DEADLINE;
        while !self.shown.ends_with(text) {
            assert!(Instant::now() < limit, "{:?} was not shown", String::from_utf8_lossy(text));
            self.read();
        }
    }

    /// Reads until the other end is closed.
    pub fn until_end(&mut self) {
        while self.read() {}
        self.child.wait().unwrap();
    }

    fn read(&mut self) -> bool {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(DEADLINE).unwrap();
        assert!(poll(&mut fds, timeout).unwrap() > 0, "the terminal is silent");
        let mut buffer = [0; 65_536];
        // EIO: nobody has the other end open.
        let read = self.master.read(&mut buffer).unwrap_or(0);
        self.shown.extend_from_slice(&buffer[..read]);
        read > 0
    }

    pub fn type_in(&mut self, text: &[u8]) {
        self.master.write_all(text).unwrap();
    }
}

#[test]
fn what_the_master_reads_is_what_is_recorded() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(4).unwrap();
    let mut screen = Screen::start(&mut recording, "printf 'first> '; read x; echo \"second $x\"; tty");
    screen.until(b"first> ");
    screen.type_in(b"typed\n");
    screen.until_end();
    let pid = screen.child.id();
    recording.until_exit_of(pid);
    recording.settle();
    assert_eq!(String::from_utf8_lossy(&recording.output()), String::from_utf8_lossy(&screen.shown));
    assert_eq!(recording.input(), (b"typed\n".to_vec(), 0));
    let shown = recording.seen.iter().find_map(|observed| match &observed.event.body {
        Some(breakglass_api::v1::event::Body::TerminalOutput(output)) => Some((observed.slot, output.clone())),
        _ => None,
    });
    let (slot, output) = shown.unwrap();
    assert_eq!((slot, output.rows, output.cols), (4, 33, 99));
    let tail = format!("/dev/pts/{}\r\n", output.index);
    assert!(screen.shown.ends_with(tail.as_bytes()));
    let shell = super::harness::execs(&recording.seen).into_iter().find(|exec| exec.argv[0] == b"/bin/sh").unwrap();
    assert_eq!(shell.terminal, output.terminal);
    assert_eq!(shell.tty, (136 << 20) | output.index);
    recording.kernel().end_session(4).unwrap();
}

#[test]
fn sixteen_megabytes_are_recorded_byte_for_byte() {
    need_kernel!();
    // An emulated machine's reader cannot keep up with its kernel: there, as much as the ring holds.
    let bytes: usize = if is_emulated() { 1 << 20 } else { 16 << 20 };
    let mut recording = Recording::start();
    recording.kernel().begin_session(6).unwrap();
    let script = format!("head -c {} /dev/urandom | base64", bytes / 4 * 3);
    let mut screen = Screen::start(&mut recording, &script);
    let reading = std::thread::spawn(move || {
        screen.until_end();
        screen
    });
    recording.until("the end of the output", |_| reading.is_finished());
    let screen = reading.join().unwrap();
    recording.settle();
    assert!(screen.shown.len() > bytes);
    let counters = recording.kernel().counters().unwrap();
    assert_eq!(counters.rings[2].dropped, 0);
    assert!(recording.output() == screen.shown, "{} recorded, {} shown", recording.output().len(), screen.shown.len());
    recording.kernel().end_session(6).unwrap();
}

#[test]
fn a_password_is_a_count() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(8).unwrap();
    let script = "printf 'name: '; read n; stty -echo; printf 'password: '; read p; stty echo; printf 'more: '; read m";
    let mut screen = Screen::start(&mut recording, script);
    screen.until(b"name: ");
    screen.type_in(b"alice\n");
    screen.until(b"password: ");
    screen.type_in(b"hunter2 hunter2\n");
    screen.until(b"more: ");
    screen.type_in(b"fine\n");
    screen.until_end();
    recording.until_exit_of(screen.child.id());
    recording.settle();
    assert_eq!(recording.input(), (b"alice\nfine\n".to_vec(), 16));
    let everything = format!("{:?}", recording.seen.iter().map(|o| format!("{:?}", o.event)).collect::<Vec<_>>());
    let secret = format!("{:?}", b"hunter2".to_vec());
    assert!(!everything.contains(secret.trim_matches(['[', ']'])));
    recording.kernel().end_session(8).unwrap();
}

/// Perl that takes single keys until Enter at `p> `, in these input modes, and shows an asterisk for each; then one line at `q> `.
fn asks_by_key(modes: &str) -> String {
    format!(
        r#"exec perl -MPOSIX -e '
            $| = 1; $t = POSIX::Termios->new; $t->getattr(0); ($local, $input) = ($t->getlflag, $t->getiflag);
            sub modes {{ $t->setlflag($_[0]); $t->setiflag($_[1]); $t->setattr(0, TCSANOW) }}
            modes($local & ~(ECHO | ICANON), {modes});
            print "p> "; while (sysread(STDIN, $key, 1)) {{ last if $key =~ /[\r\n]/; print "*" }}
            modes($local, $input); print "q> "; <STDIN>; select undef, undef, undef, 0.05'"#
    )
}

/// Types `hunter2` and Enter key by key at `p> `, `fine` at `q> `. What is recorded of it, and how many bytes are not.
fn typed_by_key(modes: &str) -> (String, u64) {
    let mut recording = Recording::start();
    recording.kernel().begin_session(13).unwrap();
    let mut screen = Screen::start(&mut recording, &asks_by_key(modes));
    screen.until(b"p> ");
    for key in b"hunter2" {
        screen.type_in(&[*key]);
        screen.until(b"*");
    }
    screen.type_in(b"\r");
    screen.until(b"q> ");
    screen.type_in(b"fine\n");
    screen.until_end();
    recording.until_exit_of(screen.child.id());
    recording.settle();
    assert!(recording.gaps().is_empty());
    let (typed, withheld) = recording.input();
    recording.kernel().end_session(13).unwrap();
    (String::from_utf8_lossy(&typed).into_owned(), withheld)
}

/// As sudo's `pwfeedback`, sudo-rs and systemd-ask-password ask: they leave signals on, and Enter a newline.
#[test]
fn a_password_that_is_shown_as_asterisks_is_a_count() {
    need_kernel!();
    assert_eq!(typed_by_key("$input"), ("fine\n".into(), 8));
    assert_eq!(typed_by_key("$input | ICRNL"), ("fine\n".into(), 8));
}

/// As readline and fish take keys, and zsh and libedit.
#[test]
fn keys_of_a_line_editor_are_kept() {
    need_kernel!();
    for modes in ["$input & ~ICRNL", "$input | ICRNL | INLCR"] {
        assert_eq!(typed_by_key(modes), ("hunter2\rfine\n".into(), 0), "{modes}");
    }
}

/// Perl that hides what is typed for one line at `p> `, shows it again at once, reads on until a line says `end`, and then reads one more
/// at `q> `, so many times. After that it rests, so that it hides nothing while that line is being written: such a line is withheld as well.
fn asks_for_passwords(times: usize) -> String {
    format!(
        r#"exec perl -MPOSIX -e '
            $| = 1; $t = POSIX::Termios->new; $t->getattr(0); $shows = $t->getlflag;
            sub modes {{ $t->setlflag($_[0]); $t->setattr(0, TCSANOW) }}
            for (1..{times}) {{
                modes($shows & ~ECHO); print "p> "; <STDIN>; modes($shows);
                while (<STDIN>) {{ last if /end/ }}
                print "q> "; <STDIN>; select undef, undef, undef, 0.005
            }}'"#
    )
}

#[test]
fn a_password_is_a_count_however_soon_echo_is_back() {
    need_kernel!();
    let times = if is_emulated() { 100 } else { 1000 };
    let mut recording = Recording::start();
    recording.kernel().begin_session(9).unwrap();
    let mut screen = Screen::start(&mut recording, &asks_for_passwords(times));
    for _ in 0..times {
        screen.until(b"p> ");
        screen.type_in(b"hunter2\nend\n");
        screen.until(b"q> ");
        screen.type_in(b"fine\n");
    }
    screen.until_end();
    recording.until_exit_of(screen.child.id());
    recording.settle();
    let (typed, withheld) = recording.input();
    assert_eq!(String::from_utf8_lossy(&typed), "fine\n".repeat(times));
    assert_eq!(withheld, 12 * times as u64);
    recording.kernel().end_session(9).unwrap();
}

/// What was `pasted` in one write that began with a password is a count, and what was typed otherwise is not. Where the kernel allows programs
/// at function exits they see the write in pieces (drivers/tty/tty_io.c, `iterate_tty_write`), of which those that came with echo are kept.
fn expect_withheld(recording: &mut Recording, pasted: usize, otherwise: &str) {
    let tier = recording.kernel().info().tier;
    let (typed, withheld) = recording.input();
    let text = String::from_utf8_lossy(&typed);
    assert!(!text.contains("hunter2"), "{text:.200}");
    assert_eq!(typed.len() as u64 + withheld, (pasted + otherwise.len()) as u64);
    if tier == Tier::Basic {
        assert_eq!(text, otherwise);
    } else {
        assert!(text.ends_with("fine\n"), "{text:.200}");
    }
}

/// Answers `p> ` in one write of far more than a terminal holds, so that echo is back long before it returns, and `q> ` with `fine`. Returns how many
/// bytes the first was.
fn paste_password(screen: &mut Screen) -> usize {
    let pasted = [b"hunter2\n".as_slice(), &b"more\n".repeat(30_000), b"end\n"].concat();
    let bytes = pasted.len();
    screen.until(b"p> ");
    let mut master = screen.master.try_clone().unwrap();
    let typing = std::thread::spawn(move || master.write(&pasted).unwrap());
    screen.until(b"q> ");
    assert_eq!(typing.join().unwrap(), bytes, "it is one write");
    screen.type_in(b"fine\n");
    bytes
}

#[test]
fn a_write_that_began_with_a_password_is_a_count_even_if_it_ends_with_echo() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(10).unwrap();
    let mut screen = Screen::start(&mut recording, &asks_for_passwords(2));
    let pasted = paste_password(&mut screen) + paste_password(&mut screen);
    screen.until_end();
    recording.until_exit_of(screen.child.id());
    recording.settle();
    expect_withheld(&mut recording, pasted, "fine\nfine\n");
    recording.kernel().end_session(10).unwrap();
}

/// The same where the terminal goes over to another session leader meanwhile, and is known anew.
#[test]
fn a_write_that_began_with_a_password_is_a_count_even_if_its_terminal_is_taken_over() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(11).unwrap();
    // TIOCNOTTY, then TIOCSCTTY by a new leader.
    let script = r#"exec perl -MPOSIX -e '
        $| = 1; $SIG{HUP} = "IGNORE"; $t = POSIX::Termios->new; $t->getattr(0); $shows = $t->getlflag;
        sub modes { $t->setlflag($_[0]); $t->setattr(0, TCSANOW) }
        modes($shows & ~ECHO); print "p> "; <STDIN>; modes($shows);
        ioctl(STDIN, 0x5422, 0);
        if (!fork) {
            POSIX::setsid(); ioctl(STDIN, 0x540e, 0) or die; print "taken over\n";
            while (<STDIN>) { last if /end/ }
            print "q> "; <STDIN>; exit
        }
        wait'"#;
    let mut screen = Screen::start(&mut recording, script);
    let pasted = paste_password(&mut screen);
    screen.until_end();
    recording.until_exit_of(screen.child.id());
    recording.settle();
    expect_withheld(&mut recording, pasted, "fine\n");
    recording.kernel().end_session(11).unwrap();
}

#[test]
fn a_terminal_inside_a_terminal_is_recorded_by_its_own_master() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(2).unwrap();
    let output =
        recording.command("/usr/bin/script").args(["-qec", "echo inner; exit 4", "/dev/null"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    recording.settle();
    assert_eq!(String::from_utf8_lossy(&recording.output()), String::from_utf8_lossy(&output.stdout));
    assert!(recording.output().ends_with(b"inner\r\n"));
    recording.kernel().end_session(2).unwrap();
}

#[test]
fn somebody_elses_terminal_is_left_alone() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(11).unwrap();
    let output = std::process::Command::new("/usr/bin/script")
        .args(["-qec", "echo private", "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    let mut child = recording.command("/bin/true").spawn().unwrap();
    child.wait().unwrap();
    let pid = child.id();
    recording.until("the exec", |seen| exec_of(seen, pid).is_some());
    recording.pump(Duration::from_millis(50));
    assert!(recording.output().is_empty());
    recording.kernel().end_session(11).unwrap();
}

#[test]
fn a_terminal_that_gets_another_session_leader_is_still_recorded() {
    need_kernel!();
    let mut recording = Recording::start();
    recording.kernel().begin_session(12).unwrap();
    // TIOCNOTTY, then TIOCSCTTY by a new leader; nothing is executed after the change.
    let script = "exec perl -MPOSIX -e '$SIG{HUP} = \"IGNORE\"; ioctl(STDIN, 0x5422, 0); if (!fork) { POSIX::setsid(); \
                  ioctl(STDIN, 0x540e, 0) or die; syswrite(STDOUT, \"taken over\\n\"); exit } wait'";
    let mut screen = Screen::start(&mut recording, script);
    screen.until_end();
    recording.until_exit_of(screen.child.id());
    recording.settle();
    assert!(screen.shown.ends_with(b"taken over\r\n"), "{}", String::from_utf8_lossy(&screen.shown));
    assert_eq!(String::from_utf8_lossy(&recording.output()), String::from_utf8_lossy(&screen.shown));
    recording.kernel().end_session(12).unwrap();
}
