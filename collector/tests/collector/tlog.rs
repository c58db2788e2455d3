//! The transparency log and the witness, from the command line.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
