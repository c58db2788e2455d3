//! The commands for operators where whoever read their output is gone, and what they print for programs.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::{Command, Output, Stdio},
};

use breakglass_api::v1::{
    Challenge, ControlRequest, ControlResponse, Opened, control_request::Body as Request,
    control_response::Body as Answer,
};
use prost::Message;

/// A host that opens for everybody, a key, a configuration, and an ssh that takes notes and ends with 9.
fn host(dir: &Path) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(dir.join("key"));
    assert!(keygen.status().unwrap().success());
    fs::write(
        dir.join("config.toml"),
        "[operator]\nidentity = \"key\"\nname = \"alice\"\n[hosts.web1]\nsocket = \"control.sock\"\nid = \"h\"\n",
    )
    .unwrap();
    fs::write(dir.join("ssh"), format!("#!/bin/sh\ntouch {}\nexit 9\n", dir.join("logged-in").display())).unwrap();
    fs::set_permissions(dir.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let listener = UnixListener::bind(dir.join("control.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 4];
            while stream.read_exact(&mut length).is_ok() {
                let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut bytes).unwrap();
                let body = answer(&ControlRequest::decode(bytes.as_slice()).unwrap().body.unwrap());
                let answer = ControlResponse { body: Some(body) }.encode_to_vec();
                stream.write_all(&(answer.len() as u32).to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        }
    });
}

fn answer(request: &Request) -> Answer {
    match request {
        Request::Challenge(_) => Answer::Challenge(Challenge {
            host_id: "h".into(),
            hostname: "web1".into(),
            boot_id: vec![7; 16],
            nonce: vec![1; 56],
            default_ttl_seconds: 600,
            ..Challenge::default()
        }),
        _ => Answer::Opened(Opened {
            session: "s1".into(),
            account: "bg".into(),
            ttl_seconds: 600,
            ssh_host_keys: vec![
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g".into(),
            ],
            ..Opened::default()
        }),
    }
}

fn breakglass(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_breakglass"));
    let path = std::env::var("PATH").unwrap();
    command.arg("--config").arg(dir.join("config.toml")).args(arguments);
    command.env("PATH", format!("{}:{path}", dir.display())).env("XDG_RUNTIME_DIR", dir).stdin(Stdio::null());
    command
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

fn code(command: &mut Command, what: &str) -> Option<i32> {
    command.stdout(closed()).stderr(closed());
    let code = command.status().unwrap().code();
    assert_ne!(code, Some(101), "{what} panics");
    code
}

fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn nobody_reads_and_what_is_to_be_done_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    host(dir);
    let request = dir.join("request").display().to_string();
    let asked = ["prepare", "web1", "--reason", "x", "--signers", "2", "--save-request", &request];
    assert_eq!(breakglass(dir, &asked).output().unwrap().status.code(), Some(2), "co-signatures are missing");
    let request = fs::read_to_string(request).unwrap();
    for (arguments, expected) in [
        (&["status", "--socket", "/nonexistent", "--json"][..], 5),
        (&["prepare", "web1", "--reason", "x"], 0),
        (&["prepare", "web1", "--reason", "x", "--json"], 0),
        (&["cosign", "--operator", "bob", request.trim()], 0),
        (&["cosign", "--operator", "bob", request.trim(), "--json"], 0),
        (&["open", "web1", "--reason", "x", "--no-ssh", "--json"], 0),
        (&["open", "web1", "--reason", "x", "--json"], 9),
    ] {
        assert_eq!(code(&mut breakglass(dir, arguments), arguments[0]), Some(expected), "{arguments:?}");
    }
    assert!(dir.join("logged-in").exists(), "the glass was broken: ssh had to follow");
}

#[test]
fn a_grant_and_a_cosignature_are_objects_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    host(dir);
    let grant = printed(breakglass(dir, &["prepare", "web1", "--reason", "x", "--json"]).output().unwrap());
    assert!(grant.starts_with("{\"type\":\"grant\","), "{grant}");
    let grant: serde_json::Value = serde_json::from_str(&grant).unwrap();
    assert!(grant["grant"].as_str().unwrap().starts_with("breakglass-grant:") && grant["file"].is_null(), "{grant}");
    let file = dir.join("grant").display().to_string();
    let line = ["prepare", "web1", "--reason", "x", "--output", &file, "--json"];
    let told: serde_json::Value = serde_json::from_str(&printed(breakglass(dir, &line).output().unwrap())).unwrap();
    assert!(told["file"] == file.as_str() && told["grant"].is_null() && told["host"] == "web1", "{told}");
    assert!(fs::read_to_string(&file).unwrap().starts_with("breakglass-grant:"));

    let request = dir.join("request").display().to_string();
    let asked = ["prepare", "web1", "--reason", "x", "--signers", "2", "--save-request", &request];
    breakglass(dir, &asked).output().unwrap();
    let request = fs::read_to_string(request).unwrap();
    let line = ["cosign", "--operator", "bob", request.trim(), "--json"];
    let told = printed(breakglass(dir, &line).output().unwrap());
    assert!(told.starts_with("{\"type\":\"cosignature\",\"operator\":\"bob\","), "{told}");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert!(told["cosignature"].as_str().unwrap().starts_with("breakglass-cosignature:"), "{told}");
}
