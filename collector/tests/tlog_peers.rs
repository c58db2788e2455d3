//! The transparency log and the witness against implementations of the same specifications by others, from the Python
//! package registry: `aics-tlog` verifies our log, `aics-witness` cosigns it, and our witness cosigns a log of theirs.
//!
//! Needs Python 3.12 or later (`BREAKGLASS_TEST_PYTHON` names one) and the registry or a cache of it; says so and passes
//! where one is missing.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use breakglass_api::checkpoint::{Kind, NUMBERS_MAX, Number, Signed, Statement, reason};
use breakglass_collector::settings::Layout;
use breakglass_collector::tlog::LogService;
use breakglass_collector::tlog::settings::WitnessSettings;
use ed25519_dalek::{Signer, SigningKey};
use tokio::sync::watch;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the packages may take to arrive.
const INSTALL_DEADLINE: Duration = Duration::from_secs(180);
/// Their versions, so that a new one does not change what this test says.
const PACKAGES: [&str; 2] = ["aics-tlog==0.2.1", "aics-witness==0.1.0"];
const FEED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/feed.py");

/// A process that ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end; kills it at the deadline.
fn run(command: &mut Command, deadline: Duration) -> Result<Output, String> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Running(child.map_err(|error| format!("{command:?}: {error}"))?);
    let started = Instant::now();
    // What these commands print fits into a pipe.
    while child.0.try_wait().map_err(|error| error.to_string())?.is_none() {
        if started.elapsed() > deadline {
            return Err(format!("{command:?} did not end in {} s", deadline.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let read = |pipe: Option<&mut dyn std::io::Read>| {
        let mut bytes = Vec::new();
        pipe.map(|pipe| pipe.read_to_end(&mut bytes));
        bytes
    };
    let stdout = read(child.0.stdout.as_mut().map(|pipe| pipe as &mut dyn std::io::Read));
    let stderr = read(child.0.stderr.as_mut().map(|pipe| pipe as &mut dyn std::io::Read));
    let status = child.0.wait().map_err(|error| error.to_string())?;
    Ok(Output { status, stdout, stderr })
}

#[track_caller]
fn run_ok(command: &mut Command) -> String {
    let output = run(command, DEADLINE).unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    out.trim().to_owned()
}

fn collector(arguments: &[&str]) -> String {
    run_ok(Command::new(env!("CARGO_BIN_EXE_breakglass-collector")).args(arguments))
}

/// Starts a server and waits for the line that says where it listens.
fn start(command: &mut Command, stderr: bool) -> (Running, String) {
    let (out, err) = if stderr { (Stdio::null(), Stdio::piped()) } else { (Stdio::piped(), Stdio::inherit()) };
    let mut child = Running(command.stdout(out).stderr(err).spawn().unwrap());
    let lines: Box<dyn BufRead> = match stderr {
        true => Box::new(BufReader::new(child.0.stderr.take().unwrap())),
        false => Box::new(BufReader::new(child.0.stdout.take().unwrap())),
    };
    for line in lines.lines().map_while(Result::ok) {
        if let Some((_, address)) = line.split_once("listening on ") {
            let address = address.split_whitespace().next().unwrap().trim_start_matches("http://").to_owned();
            return (child, format!("http://{address}"));
        }
    }
    panic!("{command:?} ended before it was listening");
}

/// The interpreter of an environment that holds the peers, made once.
fn python() -> Result<&'static Path, &'static str> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    MADE.get_or_init(make_environment).as_ref().map(PathBuf::as_path).map_err(String::as_str)
}

fn make_environment() -> Result<PathBuf, String> {
    let base = find_python().ok_or("there is no Python 3.12 or later (name one with BREAKGLASS_TEST_PYTHON)")?;
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tlog-peers");
    let (python, complete) = (dir.join("bin/python"), dir.join(PACKAGES.join("+")));
    if complete.exists() {
        return Ok(python);
    }
    let _ = std::fs::remove_dir_all(&dir);
    let made = run(Command::new(base).args(["-m", "venv"]).arg(&dir), INSTALL_DEADLINE)?;
    if !made.status.success() {
        return Err(format!("cannot make a Python environment: {}", String::from_utf8_lossy(&made.stderr).trim()));
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]);
    let installed = run(pip.args(PACKAGES), INSTALL_DEADLINE)?;
    if !installed.status.success() {
        let said = String::from_utf8_lossy(&installed.stderr).into_owned();
        return Err(format!("cannot install {}: {}", PACKAGES.join(", "), said.lines().last().unwrap_or_default()));
    }
    std::fs::write(complete, "").map_err(|error| error.to_string())?;
    Ok(python)
}

fn find_python() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let versions = std::fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten().flatten();
    let named = std::env::var_os("BREAKGLASS_TEST_PYTHON").map(PathBuf::from);
    let usual = ["python3", "python3.14", "python3.13", "python3.12"].map(PathBuf::from);
    let mut candidates =
        named.into_iter().chain(usual).chain(versions.map(|version| version.path().join("bin/python")));
    candidates.find(|python| {
        let check = "import sys, venv; sys.exit(sys.version_info < (3, 12))";
        run(Command::new(python).args(["-c", check]), DEADLINE).is_ok_and(|output| output.status.success())
    })
}

/// The interpreter, or a note that the test is skipped.
macro_rules! python_or_skip {
    ($test:literal) => {
        match python() {
            Ok(python) => python,
            Err(reason) => {
                eprintln!("skipped: {}: {reason}", $test);
                return;
            }
        }
    };
}

/// `aics-witness`, running, told of a log; its address and verifier key.
fn their_witness(python: &Path, dir: &Path, log_key: &str) -> (Running, String, String) {
    let config = dir.join("witness.json");
    let witness = |arguments: &[&str]| {
        let mut command = Command::new(python);
        command.args(["-m", "aics_witness", arguments[0], "--config"]).arg(&config).args(&arguments[1..]);
        command
    };
    let key = run_ok(&mut witness(&["init", "--name", "their.example/w1", "--listen", "127.0.0.1:0"]));
    let origin = log_key.split('+').next().unwrap();
    run_ok(&mut witness(&["add-log", "--origin", origin, "--vkey", log_key]));
    let (running, url) = start(&mut witness(&["serve"]), true);
    (running, url, key)
}

/// What a host signed when it had recorded `n` frames; of a host with many CPUs now and then.
fn leaf(n: u64) -> Vec<u8> {
    let key = SigningKey::from_bytes(&[7; 32]);
    let numbers = if n % 256 == 2 { NUMBERS_MAX as u32 } else { 2 };
    let statement = Statement {
        kind: Kind::Checkpoint,
        reasons: reason::ACTIVITY,
        host_id: [1; 16],
        host_key: key.verifying_key().to_bytes(),
        epoch: 0,
        stream_id: [2; 16],
        seq: n + 1,
        hash: [3; 32],
        boot_id: [4; 16],
        boot_ns: n,
        wall_ns: 0,
        session: [0; 16],
        session_seq: 0,
        numbers: (0..numbers).map(|cpu| Number { ring: 0, cpu, upto: n }).collect(),
    };
    let signature = key.sign(&Statement::signing_input(&statement.encode())).to_bytes();
    Signed { statement, signature }.encode()
}

/// Our log with their witness: every checkpoint needs its cosignature.
struct OurLog {
    dir: tempfile::TempDir,
    service: LogService,
    key: String,
    url: String,
    witness_key: String,
    stop: watch::Sender<bool>,
    _witness: Running,
}

impl OurLog {
    async fn start(python: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("collector");
        let home_text = home.to_str().unwrap();
        let arguments = ["init", "--dir", home_text, "--log-origin", "our.example/log", "--log-listen", "127.0.0.1:0"];
        collector(&arguments);
        let status: serde_json::Value =
            serde_json::from_str(&collector(&["log", "status", "--dir", home_text, "--json"])).unwrap();
        let key = status["key"].as_str().unwrap().to_owned();
        let (witness, url, witness_key) = their_witness(python, dir.path(), &key);
        let layout = Layout::new(&home);
        let mut settings = layout.settings().unwrap();
        settings.log.quorum = 1;
        settings.log.witnesses = vec![WitnessSettings { key: witness_key.clone(), url }];
        std::fs::write(layout.config(), toml::to_string(&settings).unwrap()).unwrap();
        let settings = layout.settings().unwrap();
        let stop = watch::Sender::new(false);
        let service =
            LogService::start(&layout.log(), &layout.log_key(), &settings.log, stop.subscribe()).await.unwrap();
        let url = format!("http://{}/", service.address().unwrap());
        Self { dir, service, key, url, witness_key, stop, _witness: witness }
    }

    fn home(&self) -> String {
        self.dir.path().join("collector").to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Appends leaves up to a size and waits until a checkpoint with them is served.
    async fn grow(&self, from: u64, to: u64) {
        let leaves: Vec<Vec<u8>> = (from..to).map(leaf).collect();
        assert_eq!(self.service.log().append(&leaves).await.unwrap(), (from..to).collect::<Vec<_>>());
        let mut status = self.service.status();
        let published = status.wait_for(|status| status.published_size == to);
        let published = tokio::time::timeout(DEADLINE, published).await;
        assert!(published.is_ok(), "{:?}", self.service.status().borrow());
    }

    /// Runs a command of theirs against our log.
    fn verify(&self, python: &Path, command: &str, arguments: &[&str]) {
        let mut verify = Command::new(python);
        verify.args(["-m", "aics_tlog", command, "--tiles", &self.url, "--log-key", &self.key]);
        run_ok(verify.args(["--witness-key", &self.witness_key, "--quorum", "1"]).args(arguments));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn their_client_verifies_our_log_that_their_witness_cosigns() {
    let python = python_or_skip!("their_client_verifies_our_log_that_their_witness_cosigns");
    let log = OurLog::start(python).await;
    let saved = log.file("saved.note");
    log.grow(0, 3).await;
    log.verify(python, "verify-checkpoint", &["--max-age", "60", "--save-checkpoint", &saved]);
    for (from, to) in [(3, 256), (256, 257), (257, 600)] {
        log.grow(from, to).await;
        log.verify(python, "verify-consistency", &["--old-checkpoint", &saved, "--save-checkpoint", &saved]);
        for index in [0, 2, from, to - 1] {
            let entry = log.file("entry");
            log.verify(python, "verify-inclusion", &["--index", &index.to_string(), "--entry-out", &entry]);
            assert_eq!(std::fs::read(&entry).unwrap(), leaf(index));
        }
    }
    proofs_of_the_command_line_verify(python, &log);
    let audited = collector(&[
        "log",
        "audit",
        "--url",
        &log.url,
        "--log-key",
        &log.key,
        "--witness-key",
        &log.witness_key,
        "--since",
        &saved,
    ]);
    assert!(audited.contains("600 leaves, all there") && audited.contains("600 statements"), "{audited}");
    let said = collector(&["log", "status", "--dir", &log.home()]);
    assert!(
        said.contains("600 of 600 leaves") && said.contains("1 of 1 witnesses, 1 needed: their.example/w1"),
        "{said}"
    );
    log.stop.send_replace(true);
}

/// `log proof` is a C2SP tlog-proof; its parts go into their verifier one by one.
fn proofs_of_the_command_line_verify(python: &Path, log: &OurLog) {
    let proof = collector(&["log", "proof", "--dir", &log.home(), "--leaf", "511"]);
    let (head, note) = proof.split_once("\n\n").unwrap();
    let hashes = head.strip_prefix("c2sp.org/tlog-proof@v1\nindex 511\n").unwrap();
    let [leaf, hashes_file] = [log.file("leaf"), log.file("proof")];
    std::fs::write(&leaf, self::leaf(511)).unwrap();
    std::fs::write(&hashes_file, format!("{hashes}\n")).unwrap();
    let mut lines = note.lines();
    let (Some("our.example/log"), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
        panic!("{note}")
    };
    let mut verify = Command::new(python);
    verify.args(["-m", "aics_tlog", "verify-inclusion", "--leaf", &leaf, "--index", "511", "--size", size]);
    run_ok(verify.args(["--root", root, "--proof", &hashes_file]));

    let consistency = collector(&["log", "proof", "--dir", &log.home(), "--from-size", "256"]);
    assert!(!consistency.is_empty() && consistency.lines().all(|line| line.len() == 44), "{consistency}");
}

#[test]
fn our_witness_cosigns_their_log() {
    let python = python_or_skip!("our_witness_cosigns_their_log");
    let dir = tempfile::tempdir().unwrap();
    let feed = |arguments: &[&str]| run_ok(Command::new(python).arg(FEED).args(arguments));
    let home = dir.path().to_str().unwrap();
    let log_key = feed(&["key", home]);
    let witness_dir = dir.path().join("witness");
    let witness_dir = witness_dir.to_str().unwrap();
    let name = "our.example/w1";
    let key = collector(&["witness", "init", "--dir", witness_dir, "--name", name, "--log", &log_key]);
    assert!(key.starts_with("our.example/w1+"), "{key}");
    let mut serve = Command::new(env!("CARGO_BIN_EXE_breakglass-collector"));
    serve.args(["witness", "--dir", witness_dir, "--listen", "127.0.0.1:0"]).env("BREAKGLASS_LOG", "warn");
    let (_running, url) = start(&mut serve, false);
    assert_eq!(feed(&["feed", home, &url, &key]), "ok");
}
