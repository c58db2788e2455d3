//! Runs both verifiers on a sample.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use super::samples::Sample;

/// How a check ended, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub state: String,
    pub frame: Option<u64>,
    pub offset: Option<u64>,
}

/// What a verifier says.
#[derive(Debug)]
pub struct Judgement {
    pub verdict: String,
    pub checks: BTreeMap<String, Check>,
    /// Whether it could look inside frames.
    pub looked_inside: bool,
}

pub struct Judge {
    folder: TempDir,
    /// Why the second verifier cannot be asked.
    no_python: Option<String>,
    looked_inside: Cell<bool>,
}

impl Judge {
    pub fn new() -> Self {
        let no_python = match Command::new("python3").arg("--version").output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(format!("python3 --version ended with {}", output.status)),
            Err(error) => Some(format!("python3 cannot be run: {error}")),
        };
        Self { folder: tempfile::tempdir().unwrap(), no_python, looked_inside: Cell::new(false) }
    }

    fn file(&self, sample: &Sample) -> PathBuf {
        let path = self.folder.path().join("evidence.bge");
        fs::write(&path, &sample.bytes).unwrap();
        path
    }

    /// Runs `breakglass verify` on a sample.
    pub fn run(&self, sample: &Sample, arguments: &[&str]) -> Output {
        let path = self.file(sample);
        let mut command = Command::new(env!("CARGO_BIN_EXE_breakglass"));
        command.arg("verify").arg(path).args(arguments).env_remove("BREAKGLASS_CONFIG").env("HOME", self.folder.path());
        command.output().unwrap()
    }

    /// What the reader gives, as both verifiers take it.
    fn trusted(&self, sample: &Sample) -> Vec<String> {
        let asked = &sample.asked;
        let mut arguments = Vec::new();
        let mut give = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        sample.trusted.iter().for_each(|key| give("--host-key", hex::encode(key)));
        asked.log_keys.iter().for_each(|key| give("--log-key", key.clone()));
        asked.witness_keys.iter().for_each(|key| give("--witness-key", key.clone()));
        asked.quorum.iter().for_each(|quorum| give("--quorum", quorum.to_string()));
        let files = [("since", asked.since.clone()), ("reviewers", asked.reviewers.clone().map(String::into_bytes))];
        for (name, content) in files {
            let path = self.folder.path().join(name);
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
                give(&format!("--{name}"), path.display().to_string());
            }
        }
        arguments
    }

    pub fn breakglass(&self, sample: &Sample) -> Judgement {
        let mut arguments = self.trusted(sample);
        arguments.push("--json".into());
        let output = self.run(sample, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        judgement(sample, &output)
    }

    /// What people see, and the exit code.
    pub fn text(&self, sample: &Sample) -> (String, i32) {
        let arguments = self.trusted(sample);
        let output = self.run(sample, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    pub fn python(&self, sample: &Sample) -> Option<Judgement> {
        if self.no_python.is_some() {
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/verify_evidence.py");
        let mut command = Command::new("python3");
        command.arg("-B").arg(script).arg(self.file(sample)).args(self.trusted(sample)).arg("--json");
        let found = judgement(sample, &command.output().unwrap());
        self.looked_inside.set(found.looked_inside);
        Some(found)
    }

    /// Says what was left out.
    pub fn summary(&self, samples: usize) {
        match &self.no_python {
            Some(reason) => eprintln!("skipped: the second verifier on {samples} samples: {reason}"),
            None if self.looked_inside.get() => {}
            None => eprintln!("skipped: the second verifier's look inside frames: python3 has no zstd decompressor"),
        }
    }
}

fn judgement(sample: &Sample, output: &Output) -> Judgement {
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{}: {e}: {text}{}", sample.name, String::from_utf8_lossy(&output.stderr)));
    let check = |check: &serde_json::Value| {
        let name = check["name"].as_str().unwrap().to_owned();
        let state = check["state"].as_str().unwrap().to_owned();
        (name, Check { state, frame: check["frame"].as_u64(), offset: check["offset"].as_u64() })
    };
    let judgement = Judgement {
        verdict: json["verdict"].as_str().unwrap().to_owned(),
        checks: json["checks"].as_array().unwrap().iter().map(check).collect(),
        looked_inside: json["looked_inside"].as_bool().unwrap_or(true),
    };
    let code = match judgement.verdict.as_str() {
        "verified" => 0,
        "broken" => 1,
        _ => 6,
    };
    assert_eq!(output.status.code(), Some(code), "{}", sample.name);
    judgement
}
