//! Programs that are run.

use std::{
    ffi::OsString,
    os::unix::{ffi::OsStringExt, fs::PermissionsExt, process::CommandExt, process::ExitStatusExt},
    process::Stdio,
};

use breakglass_api::v1::{Exec, event::Body};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::harness::{Recording, exec_of, execs, is_emulated};
use crate::need_kernel;

/// Runs a command as the account and returns its exec and exit.
fn run(recording: &mut Recording, program: &str, change: impl FnOnce(&mut std::process::Command)) -> Exec {
    let mut command = recording.command(program);
    change(&mut command);
    let mut child = command.spawn().expect("spawn");
    let status = child.wait().expect("wait");
    let exit = recording.until_exit_of(child.id());
    assert_eq!(exit.status as i32, status.code().unwrap_or(0));
    assert_eq!(exit.signal as i32, status.signal().unwrap_or(0));
    exec_of(&recording.seen, child.id()).expect("the exec").clone()
}

fn bytes(text: &[u8]) -> OsString {
    OsString::from_vec(text.to_vec())
}

#[test]
fn one_command_is_recorded_whole() {
    need_kernel!();
    let mut recording = Recording::start();
    let exec = run(&mut recording, "/bin/sh", |command| {
        command.args(["-c", "exit 3"]).current_dir("/usr/share").env("LD_X", "1").env("SECRET", "2");
    });
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    let uid = recording.uid;
    assert_eq!(String::from_utf8_lossy(&exec.exe), shell.to_str().unwrap());
    assert_eq!(exec.filename, b"/bin/sh");
    assert_eq!(exec.cwd, b"/usr/share");
    assert_eq!(exec.argv, [&b"/bin/sh"[..], b"-c", b"exit 3"]);
    assert_eq!(exec.argv_bytes, 18);
    assert_eq!(exec.env, [b"LD_X=1"]);
    assert_eq!(exec.faults, 0);
    assert_eq!(exec.comm, b"sh");
    assert_eq!(exec.parent.unwrap().pid, std::process::id());
    let credentials = exec.credentials.unwrap();
    assert_eq!([credentials.uid, credentials.euid, credentials.gid, credentials.egid], [uid; 4]);
    assert_eq!(credentials.cap_effective, 0);
    let file = exec.file.unwrap();
    let metadata = std::fs::metadata(&shell).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((file.inode, file.mode, u64::from(file.links)), (metadata.ino(), metadata.mode(), metadata.nlink()));
    assert_eq!(
        (u64::from(file.dev >> 20), u64::from(file.dev & 0xf_ffff)),
        (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()),)
    );
    let own = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    let namespaces = exec.namespaces.unwrap();
    assert_eq!(own("mnt"), format!("mnt:[{}]", namespaces.mount));
    assert_eq!(own("pid"), format!("pid:[{}]", namespaces.pid));
    assert_eq!(own("net"), format!("net:[{}]", namespaces.net));
    assert_eq!(own("user"), format!("user:[{}]", namespaces.user));
}

/// 10,000; fewer where the machine is emulated and starts only a few programs a second.
fn affordable_execs() -> usize {
    if !is_emulated() {
        return 10_000;
    }
    eprintln!("this machine is emulated: 200 execs");
    200
}

#[test]
fn ten_thousand_execs_come_complete_and_in_order() {
    need_kernel!();
    let mut recording = Recording::start();
    let count = affordable_execs();
    let script = format!("i=0; while [ $i -lt {count} ]; do i=$((i+1)); /bin/true $i; done");
    let mut child = recording.command("/bin/sh").args(["-c", &script]).spawn().unwrap();
    let mut done = false;
    recording.until("the end of the shell", |_| {
        let last = done;
        done = done || child.try_wait().unwrap().is_some();
        last
    });
    recording.until_exit_of(child.id());
    let numbers: Vec<usize> = execs(&recording.seen)
        .into_iter()
        .filter(|exec| exec.exe.ends_with(b"/true"))
        .map(|exec| String::from_utf8_lossy(&exec.argv[1]).parse().unwrap())
        .collect();
    assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
    recording.settle();
    assert!(recording.gaps().is_empty());
    let counters = recording.kernel().counters().unwrap();
    assert_eq!(recording.accounted(), counters.rings.iter().map(|ring| ring.produced).sum::<u64>());
    assert_eq!(counters.rings[0].dropped, 0);
}

#[test]
fn long_and_odd_arguments_arrive_as_they_are() {
    need_kernel!();
    let mut recording = Recording::start();
    let odd: [&[u8]; 5] = [b"", b"a\nb", b"\x1b]0;x\x07\x01", b"\xff\xfe\x80", b"end"];
    let exec = run(&mut recording, "/bin/true", |command| {
        command.args(odd.map(bytes));
    });
    assert_eq!(exec.argv[1..], odd);

    let exec = run(&mut recording, "/bin/true", |command| {
        command.arg0("");
    });
    assert_eq!(exec.argv, [b""]);
    assert_eq!(exec.argv_bytes, 1);

    let long: Vec<Vec<u8>> = (0..16u8).map(|i| vec![b'a' + i; 98_000 + usize::from(i)]).collect();
    let exec = run(&mut recording, "/bin/true", |command| {
        command.args(long.iter().map(|arg| bytes(arg)));
    });
    assert_eq!(exec.faults, 0);
    assert!(exec.argv_bytes > 1_500_000);
    assert!(exec.argv[1..] == long, "1.5 MiB of arguments differ");
}

#[test]
fn five_mebibytes_of_arguments_arrive_with_an_unlimited_stack() {
    need_kernel!();
    let (soft, hard) = getrlimit(Resource::RLIMIT_STACK).unwrap();
    if hard != nix::sys::resource::RLIM_INFINITY {
        eprintln!("skipped: the stack's hard limit is {hard}");
        return;
    }
    let mut recording = Recording::start();
    let long: Vec<Vec<u8>> = (0..53u8).map(|i| vec![b'A' + i; 100_800]).collect();
    setrlimit(Resource::RLIMIT_STACK, hard, hard).unwrap();
    let exec = run(&mut recording, "/bin/true", |command| {
        command.args(long.iter().map(|arg| bytes(arg)));
    });
    setrlimit(Resource::RLIMIT_STACK, soft, hard).unwrap();
    assert_eq!(exec.faults, 0);
    assert!(exec.argv_bytes > 5 << 20);
    assert!(exec.argv[1..] == long, "5 MiB of arguments differ");
}

#[test]
fn an_environment_too_long_for_one_record_is_selected_from_whole() {
    need_kernel!();
    let mut recording = Recording::start();
    let exec = run(&mut recording, "/bin/true", |command| {
        command.env("FILLER", "x".repeat(60_000)).env("LD_A", "first").env("SUDO_Z", "z".repeat(30_000));
    });
    assert_eq!(exec.faults, 0);
    assert!(exec.env.contains(&b"LD_A=first".to_vec()));
    assert!(exec.env.iter().any(|entry| entry.starts_with(b"SUDO_Z=z") && entry.len() == 30_007));
    assert_eq!(exec.env.len(), 2);
}

#[test]
fn scripts_deleted_files_and_working_directories_are_what_the_kernel_ran() {
    need_kernel!();
    let mut recording = Recording::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/bin/sh -e\nexit 0\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let exec = run(&mut recording, script.to_str().unwrap(), |command| {
        command.arg("x").current_dir(folder.path());
    });
    assert_eq!(String::from_utf8_lossy(&exec.filename), script.to_str().unwrap());
    assert_eq!(exec.interpreter, b"/bin/sh");
    assert_eq!(exec.argv, [&b"/bin/sh"[..], b"-e", script.to_str().unwrap().as_bytes(), b"x"]);
    assert_eq!(String::from_utf8_lossy(&exec.cwd), folder.path().to_str().unwrap());

    let copy = folder.path().join("copy");
    std::fs::copy("/bin/sh", &copy).unwrap();
    let line = format!("rm -f {0}; cd /; exec /proc/self/exe -c 'exit 0'", copy.display());
    let mut child = recording.command(copy.to_str().unwrap());
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let mut child = child.args(["-c", &line]).spawn().unwrap();
    child.wait().unwrap();
    recording.until_exit_of(child.id());
    let last = execs(&recording.seen).into_iter().rfind(|exec| exec.process.unwrap().pid == child.id()).unwrap();
    assert_eq!(String::from_utf8_lossy(&last.exe), copy.to_str().unwrap());
    assert!(last.file.unwrap().anonymous);
    assert_eq!(last.cwd, b"/");
}

#[test]
fn descendants_are_followed_through_setsid_double_fork_and_another_uid() {
    need_kernel!();
    let mut recording = Recording::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let setpriv = folder.path().join("setpriv");
    std::fs::copy("/usr/bin/setpriv", &setpriv).unwrap();
    std::fs::set_permissions(&setpriv, PermissionsExt::from_mode(0o4755)).unwrap();
    let inner = "setsid sh -c '(/bin/echo deep >/dev/null &) ; exit 0'";
    let program = setpriv.to_str().unwrap();
    run(&mut recording, program, |command| {
        command.args(["--reuid", "0", "--regid", "0", "--clear-groups", "sh", "-c", inner]);
    });
    recording.until("the exit of the deepest", |seen| {
        let deep = execs(seen).into_iter().find(|exec| exec.argv.contains(&b"deep".to_vec()));
        deep.is_some_and(|deep| super::harness::exit_of(seen, deep.process.unwrap().pid).is_some())
    });
    let deep = execs(&recording.seen).into_iter().find(|exec| exec.argv.contains(&b"deep".to_vec())).unwrap();
    assert_eq!(deep.credentials.unwrap().uid, 0);
    let forked = recording
        .seen
        .iter()
        .any(|observed| matches!(&observed.event.body, Some(Body::Fork(fork)) if fork.child == deep.process));
    assert!(forked, "the fork of the deepest");
}

#[test]
fn others_are_not_recorded() {
    need_kernel!();
    let mut recording = Recording::start();
    let status = std::process::Command::new("/bin/true").stdin(Stdio::null()).status().unwrap();
    assert!(status.success());
    run(&mut recording, "/bin/true", |_| {});
    assert_eq!(execs(&recording.seen).len(), 1);
}
