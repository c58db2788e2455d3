//! The transparency log and the witness, from the command line.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use breakglass_api::checkpoint::reason;

use crate::evidence::published_size;
use crate::host::Host;
use crate::support::*;

#[track_caller]
fn fails(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_log_with_a_key_of_its_own() {
    let collector = Collector::init();
    let status = ["log", "status", "--dir", collector.home()];
    let said = run_ok(&status);
    assert!(said.contains("origin     collector/log") && said.contains("nothing yet of 0 leaves"), "{said}");
    assert_eq!(mode(&collector.path("collector/log.key")), 0o600);
    let json: serde_json::Value = serde_json::from_str(&run_ok(&[&status[..], &["--json"]].concat())).unwrap();
    assert!(json["key"].as_str().unwrap().starts_with("collector/log+"), "{json}");
    let proof = fails(&["log", "proof", "--dir", collector.home(), "--leaf", "0"], 1);
    assert!(proof.contains("has not published a checkpoint yet"), "{proof}");
    fails(&["log", "proof", "--dir", collector.home()], 2);
    fails(&["init", "--dir", collector.path("x").to_str().unwrap(), "--log-origin", "a b"], 1);
}

#[tokio::test]
async fn a_log_that_cannot_be_right_keeps_the_collector_from_starting() {
    let mut collector = Collector::init();
    let home = collector.home().to_owned();
    let config = collector.path("collector/collector.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    let cases = [
        (good.replace("collector/log", "other/log"), "log.key is that of \"collector/log\""),
        (good.replace("quorum = 0", "quorum = 1"), "no checkpoint would ever be published"),
        (good.replace("quorum = 0", "quorum = 0\n\n[[log.witness]]\nkey = \"w\"\nurl = \"http://w\""), "not a key"),
    ];
    for (text, words) in cases {
        std::fs::write(&config, text).unwrap();
        let said = fails(&["serve", "--dir", &home], 1);
        assert!(said.contains(words), "{said}");
    }
    std::fs::write(&config, good).unwrap();
    collector.serve();
    assert_eq!(collector.stop().await, Some(0));
}

#[test]
fn a_witness_is_made_once_and_does_not_run_without_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("witness");
    let home = home.to_str().unwrap();
    assert!(fails(&["witness"], 2).contains("--dir"));
    assert!(fails(&["witness", "--dir", home], 1).contains("witness init --dir"));
    let key = run_ok(&["witness", "init", "--dir", home, "--name", "w.example/1"]);
    assert!(key.starts_with("w.example/1+") && key.lines().count() == 1, "{key}");
    assert_eq!(mode(&dir.path().join("witness/witness.key")), 0o600);
    assert!(fails(&["witness", "init", "--dir", home, "--name", "w.example/1"], 1).contains("nothing was changed"));
    assert!(fails(&["witness", "init", "--dir", "/nowhere", "--name", "w", "--log", "x"], 1).contains("not a key"));
    std::fs::remove_dir_all(dir.path().join("witness/state")).unwrap();
    let said = fails(&["witness", "--dir", home, "--listen", "127.0.0.1:0"], 1);
    assert!(said.contains("lost its state"), "{said}");
}

fn log_key(collector: &Collector) -> String {
    let status = run_ok(&["log", "status", "--dir", collector.home(), "--json"]);
    serde_json::from_str::<serde_json::Value>(&status).unwrap()["key"].as_str().unwrap().to_owned()
}

/// What an auditor finds in the files that are served.
fn audit(collector: &Collector, more: &[&str]) -> (Option<i32>, String) {
    let (public, key) = (collector.path("collector/data/log/public"), log_key(collector));
    let arguments = ["log", "audit", "--files", public.to_str().unwrap(), "--log-key", &key];
    let output = run(&[&arguments[..], more].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn an_audit_tells_sessions_and_misses_what_was_left_out() {
    let collector = Collector::start();
    let mut host = Host::new(&collector, 1);
    host.introduce(None);
    host.frame(Some(session_id(1)), opened("alice"));
    host.mark(reason::OPENED, 1);
    host.turn();
    host.frame(Some(session_id(1)), closed());
    host.mark(reason::CLOSED, 1);
    host.turn();
    host.ship(&collector).await;
    eventually(async || (published_size(&collector) == host.said.len() as u64).then_some(())).await;
    let note = collector.path("last.note");
    let note = note.to_str().unwrap();
    let (code, said) = audit(&collector, &["--json", "--save", note]);
    assert_eq!(code, Some(0), "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    let session = &told["hosts"][0]["sessions"][0];
    assert_eq!(session["session"], session_text(1));
    assert!(session["opened"]["leaf"] == 0 && session["closed"]["leaf"] == 2, "{told:#}");

    // The key changes for a session whose mark the log does not have.
    host.turn();
    host.ship(&collector).await;
    eventually(async || (published_size(&collector) == host.said.len() as u64).then_some(())).await;
    let (code, said) = audit(&collector, &["--since", note, "--save", collector.path("none").to_str().unwrap()]);
    assert!(code == Some(3) && said.contains("missing-mark"), "{said}");
    assert!(said.contains(&session_text(1)) && !said.contains("NOT IN THE LOG"), "{said}");
    assert!(!collector.path("none").exists(), "what is not sound is no state to go on from");

    let (code, said) = audit(&collector, &["--witness-key", "w.example/1+1+AAAA"]);
    assert!(code == Some(1) && said.contains("--witness-key"), "{said}");
    let bundle = collector.path("collector/data/log/public/tile/entries/000.p/5");
    let mut leaves = std::fs::read(&bundle).unwrap();
    leaves[100] ^= 1;
    std::fs::write(&bundle, leaves).unwrap();
    let (code, said) = audit(&collector, &[]);
    assert!(code == Some(1) && said.contains("do not give the root"), "{said}");
}
