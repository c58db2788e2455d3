//! A real account in the real `/etc/shadow`, a real sshd on a loopback port, with PAM and without: who gets in, and when.
//!
//! Needs root, sshd and useradd; says so and passes where one is missing. Makes one account with a name of its own and
//! removes it, ends the sshd that it started, and removes its folder.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Output, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use breakglass_agent::{
    account::{
        Account,
        keys::{self, KeyGrant, Now},
        shadow::State,
    },
    session::clock,
};

const SSHD: &str = "/usr/sbin/sshd";
/// Longest wait for something that takes well under a second.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, runtime, user] = args.as_slice()
        && verb == "keys"
    {
        print!("{}", keys::keys_for(Path::new(runtime), user, now()).unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    // As the usual harness does: list nothing, and run nothing where a filter names other tests.
    let filtered = args.iter().any(|a| !a.starts_with('-') && !"account_live".contains(a.as_str()));
    if filtered || args.iter().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = unable() {
        println!("account_live: skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    for use_pam in [true, false] {
        let bench = Bench::start(use_pam);
        before_during_after(&bench);
        either_lock_alone_keeps_out(&bench);
        the_deadline_needs_nobody(&bench);
        an_aged_account_still_opens(&bench);
        println!("account_live: ok with UsePAM {}", if use_pam { "yes" } else { "no" });
    }
    ExitCode::SUCCESS
}

fn unable() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    if !Path::new(SSHD).exists() {
        return Some("no sshd (package openssh-server)");
    }
    if Command::new("useradd").arg("--help").output().is_err() {
        return Some("no useradd (package passwd)");
    }
    None
}

fn before_during_after(bench: &Bench) {
    bench.account.lock().unwrap();
    assert_eq!(bench.account.state().unwrap(), State::Locked);
    bench.expect(false, "before");
    bench.enable(PATIENCE * 10);
    bench.expect(true, "during");
    let other = bench.login(&bench.other_key);
    assert!(!other.status.success(), "another key got in");
    bench.account.lock().unwrap();
    bench.expect(false, "after");
}

fn either_lock_alone_keeps_out(bench: &Bench) {
    bench.enable(PATIENCE * 10);
    let key = keys::path_for(&bench.runtime, &bench.name).unwrap();
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    bench.expect(false, "with the account enabled and no key");
    bench.account.lock().unwrap();
    fs::write(&key, kept).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    bench.expect(false, "with a key and the account locked");
    bench.account.lock().unwrap();
}

fn the_deadline_needs_nobody(bench: &Bench) {
    // Long enough for a login on a slow machine.
    let granted = Duration::from_secs(8);
    bench.enable(granted);
    bench.expect(true, "before the deadline");
    let until = Instant::now() + granted + PATIENCE;
    while bench.login(&bench.key).status.success() {
        assert!(Instant::now() < until, "still open after the deadline");
    }
    assert_eq!(bench.account.state().unwrap(), State::Enabled, "nobody locked it");
    bench.account.lock().unwrap();
}

fn an_aged_account_still_opens(bench: &Bench) {
    run(Command::new("chage").args(["-d", "0", "-M", "90", "-I", "7"]).arg(&bench.name));
    bench.enable(PATIENCE * 10);
    bench.expect(true, "with its password past its age");
    bench.account.lock().unwrap();
}

fn now() -> Now {
    let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot_id = uuid::Uuid::parse_str(text.trim()).unwrap_or_default().into_bytes();
    Now { boot_id, boot_ns: clock::boot_ns(), wall_s }
}

struct Bench {
    name: String,
    dir: PathBuf,
    runtime: PathBuf,
    key: PathBuf,
    other_key: PathBuf,
    port: u16,
    account: Account,
    sshd: Child,
}

impl Bench {
    fn start(use_pam: bool) -> Self {
        let name = format!("bglive{}", std::process::id());
        // sshd asks no helper whose folders others may write, as they may /tmp.
        let dir = PathBuf::from(format!("/run/{name}"));
        fs::create_dir(&dir).unwrap();
        let made = MadeAccount { name: name.clone(), dir: dir.clone() };
        run(Command::new("useradd").args(["--no-create-home", "--home-dir", "/", "--shell", "/bin/sh"]).arg(&name));
        let runtime = dir.join("runtime");
        let config = breakglass_agent::config::Account { name: name.clone(), ..Default::default() };
        let account = Account::find(&config, &runtime).unwrap();
        let [key, other_key, host_key] = ["key", "other", "host"].map(|file| new_key(&dir.join(file)));
        let helper = dir.join("helper");
        fs::copy(std::env::current_exe().unwrap(), &helper).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nPidFile none\nUsePAM {}\nAuthenticationMethods publickey\n\
             AuthorizedKeysFile none\nAuthorizedKeysCommand {} keys {} %u\nAuthorizedKeysCommandUser root\n",
            host_key.display(),
            if use_pam { "yes" } else { "no" },
            helper.display(),
            runtime.display(),
        );
        let file = dir.join("sshd_config");
        fs::write(&file, settings).unwrap();
        fs::create_dir_all("/run/sshd").unwrap();
        let log = fs::File::create(dir.join("sshd.log")).unwrap();
        let sshd = Command::new(SSHD).args(["-D", "-e", "-f"]).arg(&file).stderr(log).spawn().unwrap();
        // From here on the bench removes what was made.
        std::mem::forget(made);
        let bench = Self { name, dir, runtime, key, other_key, port, account, sshd };
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "sshd does not listen: {}", bench.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        bench
    }

    fn enable(&self, ttl: Duration) {
        let now = now();
        let public = fs::read_to_string(self.key.with_extension("pub")).unwrap();
        let grant = KeyGrant {
            session: uuid::Uuid::nil(),
            boot_id: now.boot_id,
            deadline_boot_ns: now.boot_ns + ttl.as_nanos() as u64,
            by_code: false,
            verify: false,
            keys: vec![public.trim().to_owned()],
        };
        let started = Instant::now();
        self.account.enable(&grant).unwrap();
        println!("account_live: enabling took {:?}", started.elapsed());
    }

    fn login(&self, key: &Path) -> Output {
        Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"])
            .args(["-o", "KexAlgorithms=curve25519-sha256", "-p", &self.port.to_string(), "-i"])
            .arg(key)
            .arg(format!("{}@127.0.0.1", self.name))
            .arg("echo in")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn expect(&self, allowed: bool, when: &str) {
        let output = self.login(&self.key);
        let is_in = output.status.success() && output.stdout == b"in\n";
        assert_eq!(is_in, allowed, "{when}: {output:?}\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("sshd.log")).unwrap_or_default()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
        drop(MadeAccount { name: self.name.clone(), dir: self.dir.clone() });
    }
}

/// Removes account and folder.
struct MadeAccount {
    name: String,
    dir: PathBuf,
}

impl Drop for MadeAccount {
    fn drop(&mut self) {
        let _ = Command::new("userdel").arg("--force").arg(&self.name).output();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn new_key(path: &Path) -> PathBuf {
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(path));
    path.to_owned()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
