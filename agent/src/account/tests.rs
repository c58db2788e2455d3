//! On copies of the account files: nothing of the system's own is touched.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{replace::Step, *};

const SHADOW: &str = "root:*:20228:0:99999:7:::\nbg:!:20228:0:99999:7:::\nlast:!*:20228:0:99999:7:::\n";
const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nbg:x:1234:1234::/home/bg:/bin/sh\ntoor:x:0:0::/:/bin/sh\n";

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(files.shadow(), SHADOW).unwrap();
        fs::set_permissions(files.shadow(), fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(files.dir.path().join("passwd"), PASSWD).unwrap();
        files
    }

    fn shadow(&self) -> PathBuf {
        self.dir.path().join("shadow")
    }

    fn find(&self, name: &str) -> Result<Account, AccountError> {
        let config = crate::config::Account { name: name.into(), shadow: self.shadow(), ..Default::default() };
        Account::find(&config, &self.dir.path().join("run"))
    }

    fn account(&self) -> Account {
        self.find("bg").unwrap()
    }

    /// The account's line as enabling writes it.
    fn enabled_by_hand(&self) {
        fs::write(self.shadow(), shadow::enable(SHADOW.as_bytes(), "bg").unwrap()).unwrap();
    }

    fn text(&self) -> String {
        fs::read_to_string(self.shadow()).unwrap()
    }
}

fn grant() -> KeyGrant {
    KeyGrant {
        session: uuid::Uuid::nil(),
        boot_id: [1; 16],
        deadline_boot_ns: 1,
        by_code: false,
        verify: false,
        keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g".into()],
    }
}

/// Fails at the n-th step and at every later one, like a disk that went away.
struct FailFrom {
    left: Arc<AtomicUsize>,
}

impl Checkpoint for FailFrom {
    fn before(&self, step: Step, path: &Path) -> io::Result<()> {
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        before.map(drop).map_err(|_| io::Error::other(format!("no {step:?} of {}", path.display())))
    }
}

#[test]
fn enable_and_lock() {
    let files = Files::new();
    let account = files.account();
    assert_eq!((account.name(), account.uid()), ("bg", 1234));
    assert!(matches!(account.state().unwrap(), State::Unknown(_)));
    account.lock().unwrap();
    assert_eq!(account.state().unwrap(), State::Locked);
    let inode = fs::metadata(files.shadow()).unwrap().ino();
    account.lock().unwrap();
    assert_eq!(fs::metadata(files.shadow()).unwrap().ino(), inode, "nothing to do, nothing written");

    account.enable(&grant()).unwrap();
    assert_eq!(account.state().unwrap(), State::Enabled);
    assert!(account.has_key());
    assert_eq!(files.text(), SHADOW.replace("bg:!:20228:0:99999:7:::", "bg:*:20228:0::7:::"));
    assert_eq!(fs::metadata(files.shadow()).unwrap().mode() & 0o7777, 0o640);

    account.lock().unwrap();
    assert!(!account.has_key());
    assert_eq!(files.text(), SHADOW.replace("bg:!:20228:0:99999:7:::", "bg:!*:20228:0::7::0:"));
}

#[test]
fn accounts_that_cannot_be_used() {
    let files = Files::new();
    for (name, expected) in
        [("nobody", "no such account"), ("toor", "must not be root"), ("../bg", "characters"), ("", "characters")]
    {
        let message = files.find(name).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
    }
    fs::write(files.dir.path().join("passwd"), "bg:x:1:1:::\nbg:x:2:2:::\n").unwrap();
    assert!(files.find("bg").err().unwrap().to_string().contains("2 times"));
}

#[test]
fn a_damaged_shadow_file_is_not_touched_but_the_key_goes() {
    let files = Files::new();
    let account = files.account();
    for damaged in ["", "root:*:1::::::\n", "bg:*:1\n", "bg:!:1::::::\nbg:!:1::::::\n", "bg:!:1::::::\n\0"] {
        account.enable(&grant()).ok();
        fs::write(files.shadow(), SHADOW).unwrap();
        account.enable(&grant()).unwrap();
        fs::write(files.shadow(), damaged).unwrap();
        let message = account.lock().unwrap_err().to_string();
        assert!(message.contains("shadow is left as it is"), "{message}");
        assert!(!account.has_key());
        assert_eq!(files.text(), damaged);
    }
}

#[test]
fn a_link_instead_of_the_file_is_refused() {
    let files = Files::new();
    let account = files.account();
    let real = files.dir.path().join("real");
    fs::rename(files.shadow(), &real).unwrap();
    std::os::unix::fs::symlink(&real, files.shadow()).unwrap();
    assert!(account.lock().is_err());
    assert_eq!(fs::read_to_string(&real).unwrap(), SHADOW);
}

#[test]
fn somebody_else_at_the_account_files_is_waited_for_and_then_named() {
    let files = Files::new();
    let mut account = files.account();
    files.enabled_by_hand();
    account.wait = Duration::from_millis(30);
    let held = PwdLock::take(&pwd_lock::path_beside(&files.shadow()), Duration::ZERO).unwrap();
    let message = account.lock().unwrap_err().to_string();
    assert!(message.contains(".pwd.lock") && message.contains("useradd"), "{message}");
    drop(held);
    account.lock().unwrap();
}

/// Stopped before every step in turn: the shadow file is the old or the new one, whole; a key is there only in an enabled
/// account; and locking afterwards works.
#[test]
fn a_failure_at_any_step_leaves_no_half_open_door() {
    let (mut steps, mut ended) = (0, false);
    while !ended {
        assert!(steps < 100, "there is no end of steps");
        let files = Files::new();
        files.account().lock().unwrap();
        let locked = files.text();
        let mut account = files.account();
        account.checkpoint = Box::new(FailFrom { left: Arc::new(AtomicUsize::new(steps)) });
        let result = account.enable(&grant());
        ended = result.is_ok();
        let text = files.text();
        let enabled = String::from_utf8(shadow::enable(locked.as_bytes(), "bg").unwrap()).unwrap();
        assert!(text == locked || text == enabled, "step {steps}: {text}");
        assert!(!account.has_key() || text == enabled, "step {steps}: a key without an account");

        files.account().enable(&grant()).unwrap();
        let mut account = files.account();
        account.checkpoint = Box::new(FailFrom { left: Arc::new(AtomicUsize::new(steps)) });
        if account.lock().is_err() {
            ended = false;
        }
        assert!([&locked, &enabled].contains(&&files.text()) || files.text().contains("bg:!*:"), "step {steps}");

        files.account().lock().unwrap();
        assert_eq!(files.account().state().unwrap(), State::Locked);
        assert!(!files.account().has_key());
        steps += 1;
    }
    assert!(steps > 8, "only {steps} steps were tried");
}

/// Says that a test runs in a mount namespace of its own.
const NAMESPACE: &str = "BREAKGLASS_TEST_NAMESPACE";

/// Runs a test of this module again in a mount namespace of its own; whether this is that run.
fn in_namespace(test: &str) -> bool {
    if std::env::var_os(NAMESPACE).is_some() {
        return true;
    }
    let unshare = || {
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command
    };
    if !unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no mount namespace can be made here");
        return false;
    }
    let output = unshare()
        .arg(std::env::current_exe().unwrap())
        .args([&format!("account::tests::{test}"), "--exact", "--nocapture"])
        .env(NAMESPACE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn mount(arguments: &[&str], place: &Path) {
    let output = std::process::Command::new("mount").args(arguments).arg(place).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Account files on a disk of their own, with the runtime folder elsewhere.
fn on_a_disk(prepare: impl FnOnce(&Path)) -> (tempfile::TempDir, tempfile::TempDir, Account) {
    let (etc, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    mount(&["-t", "tmpfs", "-o", "size=64k", "none"], etc.path());
    fs::write(etc.path().join("shadow"), SHADOW).unwrap();
    fs::write(etc.path().join("passwd"), PASSWD).unwrap();
    let account = seen_here(etc.path(), run.path());
    account.lock().unwrap();
    prepare(etc.path());
    (etc, run, account)
}

fn seen_here(etc: &Path, run: &Path) -> Account {
    let config = crate::config::Account { name: "bg".into(), shadow: etc.join("shadow"), ..Default::default() };
    let mut account = Account::find(&config, run).unwrap();
    account.overlay.host_root = "/proc/self/root".into();
    account
}

fn fill(etc: &Path) {
    let mut file = File::create(etc.join("full")).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
}

#[test]
fn a_file_that_cannot_be_changed_is_covered() {
    if !in_namespace("a_file_that_cannot_be_changed_is_covered") {
        return;
    }
    let read_only: fn(&Path) = |etc| mount(&["-o", "remount,ro"], etc);
    for prepare in [read_only, fill] {
        let (etc, run, account) = on_a_disk(prepare);
        assert_eq!(account.enable(&grant()).unwrap(), Way::Overlay);
        assert_eq!(account.state().unwrap(), State::Enabled);
        assert!(account.has_key() && account.overlay.is_mounted().unwrap());
        assert_eq!(account.enable(&grant()).unwrap(), Way::Shadow, "covered already, nothing to change");
        // One more, as two agents would leave that were killed one after the other.
        let copy = run.path().join("overlay/breakglass-shadow-overlay");
        mount(&["--bind", copy.to_str().unwrap()], &etc.path().join("shadow"));
        let next = seen_here(etc.path(), run.path());
        next.lock().unwrap();
        assert_eq!(next.state().unwrap(), State::Locked);
        assert!(!next.has_key() && !next.overlay.is_mounted().unwrap());
        next.lock().unwrap();
        assert_eq!(fs::read_dir(run.path().join("overlay")).unwrap().count(), 0, "the copy holds hashes and is gone");
    }
}

#[test]
fn a_cover_that_the_host_does_not_see_is_refused() {
    if !in_namespace("a_cover_that_the_host_does_not_see_is_refused") {
        return;
    }
    let (_etc, _run, mut account) = on_a_disk(|etc| mount(&["-o", "remount,ro"], etc));
    account.overlay.host_root = "/proc/1/root".into();
    let message = account.enable(&grant()).unwrap_err().to_string();
    assert!(message.contains("mount a copy over"), "{message}");
    assert_eq!(account.state().unwrap(), State::Locked);
    assert!(!account.has_key() && !account.overlay.is_mounted().unwrap());
}

#[test]
fn who_holds_the_account_files_does_not_keep_the_operator_waiting() {
    if !in_namespace("who_holds_the_account_files_does_not_keep_the_operator_waiting") {
        return;
    }
    let (etc, _run, mut account) = on_a_disk(|_| {});
    account.enable_wait = Duration::from_millis(30);
    let held = PwdLock::take(&pwd_lock::path_beside(&etc.path().join("shadow")), Duration::ZERO).unwrap();
    assert_eq!(account.enable(&grant()).unwrap(), Way::Overlay);
    account.lock().unwrap();
    drop(held);
    assert_eq!(account.state().unwrap(), State::Locked);
}

/// Left by an agent that was killed in the middle of a replacement.
#[test]
fn leftovers_are_overwritten() {
    let files = Files::new();
    let left = files.dir.path().join(".shadow.breakglass-new");
    fs::write(&left, "half").unwrap();
    files.account().lock().unwrap();
    assert!(!left.exists());
    assert_eq!(files.account().state().unwrap(), State::Locked);
}

#[test]
fn extended_attributes_are_carried_over() {
    let files = Files::new();
    let file = File::open(files.shadow()).unwrap();
    if rustix::fs::fsetxattr(&file, "user.test", b"label", rustix::fs::XattrFlags::empty()).is_err() {
        println!("skipped: this file system has no extended attributes");
        return;
    }
    files.account().lock().unwrap();
    let mut value = [0; 16];
    let length = rustix::fs::fgetxattr(File::open(files.shadow()).unwrap(), "user.test", &mut value).unwrap();
    assert_eq!(&value[..length], b"label");
}
