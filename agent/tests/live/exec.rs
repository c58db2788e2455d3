//! Programs that are run.

use super::harness::{Recording, exec_of};
use crate::need_kernel;

#[test]
fn one_command_is_recorded_whole() {
    need_kernel!();
    let mut recording = Recording::start();
    let mut child = recording.command("/bin/sh").args(["-c", "exit 3"]).current_dir("/usr/share").spawn().unwrap();
    child.wait().unwrap();
    let exit = recording.until_exit_of(child.id());
    assert_eq!((exit.status, exit.signal), (3, 0));
    let exec = exec_of(&recording.seen, child.id()).expect("the exec").clone();
    println!("{exec:#?}");
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    assert_eq!(String::from_utf8_lossy(&exec.exe), shell.to_str().unwrap());
    assert_eq!(exec.cwd, b"/usr/share");
    assert_eq!(exec.filename, b"/bin/sh");
    assert_eq!(exec.argv, [&b"/bin/sh"[..], b"-c", b"exit 3"]);
    assert_eq!(exec.faults, 0);
}
