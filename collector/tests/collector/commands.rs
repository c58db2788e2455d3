//! The command line, and what it says when something is wrong.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use breakglass_api::v1::{ListCommandsRequest, ListHostsRequest};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::*;

/// Runs a command that must fail; returns what it said.
#[track_caller]
fn fails(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn init_explains_and_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("c");
    let home = home.to_str().unwrap();
    let said = run_ok(&["init", "--dir", home, "--san", "c.example.org", "--san", "10.0.0.1"]);
    assert!(said.contains("enroll token") && said.contains("enroll person"), "{said}");
    let key = |name: &str| std::fs::metadata(dir.path().join("c").join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((key("ca.key"), key("collector.key")), (0o600, 0o600));
    let before = std::fs::read(dir.path().join("c/ca.key")).unwrap();
    assert!(fails(&["init", "--dir", home]).contains("nothing was changed"));
    assert_eq!(std::fs::read(dir.path().join("c/ca.key")).unwrap(), before);
    assert!(fails(&["init", "--dir", "/proc/nowhere"]).contains("/proc/nowhere"));
}

#[test]
fn what_root_makes_in_the_folder_is_its_owners() {
    use std::os::unix::fs::{MetadataExt, chown};

    let collector = Collector::init();
    let home = std::path::Path::new(collector.home());
    if home.metadata().unwrap().uid() != 0 {
        return;
    }
    let service = 4711;
    let old = collector.path("collector/retired");
    std::fs::create_dir(&old).unwrap();
    run_ok(&["reindex", "--dir", collector.home()]);
    let give = |path: &std::path::Path| chown(path, Some(service), Some(service)).unwrap();
    give(home);
    give(&home.join("data"));
    run_ok(&["enroll", "token", "web1", "--dir", collector.home()]);
    run_ok(&["enroll", "retire", "0b5e9a52-0000-4000-8000-000000000000", "--dir", collector.home()]);
    run_ok(&["reindex", "--dir", collector.home()]);
    let again = collector.path("again");
    std::fs::create_dir(&again).unwrap();
    give(&again);
    run_ok(&["init", "--dir", again.to_str().unwrap()]);
    let mut folders = vec![old, home.join("tokens"), home.join("data"), again];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(folder.metadata().unwrap().uid(), service, "{}", folder.display());
        for entry in std::fs::read_dir(folder).unwrap() {
            let (path, metadata) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
            assert_eq!(metadata.uid(), service, "{}", path.display());
            seen += 1;
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    assert!(seen >= 10, "{seen} files");
    // Said twice it is as it was.
    run_ok(&["enroll", "retire", "0b5e9a52-0000-4000-8000-000000000000", "--dir", collector.home()]);
}

#[tokio::test]
async fn the_collectors_own_certificate_is_made_anew_for_the_same_names() {
    let mut collector = Collector::init();
    let file = |name: &str| collector.path("collector").join(name);
    let read = |name: &str| std::fs::read(file(name)).unwrap();
    let (cert, key) = (read("collector.crt"), read("collector.key"));
    let line = ["enroll", "collector", "--dir", collector.home()];
    let said = run_ok(&[line.as_slice(), &["--san", "c.example.org"]].concat());
    assert!(said.contains("c.example.org") && said.contains("127.0.0.1") && said.contains("restart"), "{said}");
    assert_ne!(read("collector.crt"), cert);
    assert_eq!(read("collector.key"), key);
    let renewed = read("collector.crt");

    std::fs::rename(file("ca.key"), collector.path("away")).unwrap();
    let refused = fails(&line);
    assert!(refused.contains("ca.key") && refused.contains("put it back"), "{refused}");
    assert_eq!(read("collector.crt"), renewed);
    std::fs::rename(collector.path("away"), file("ca.key")).unwrap();

    // Lost altogether, they are made anew as well.
    std::fs::remove_file(file("collector.crt")).unwrap();
    std::fs::remove_file(file("collector.key")).unwrap();
    run_ok(&line);
    assert_eq!(file("collector.key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    collector.serve();
    collector.reviewer().await.list_hosts(ListHostsRequest {}).await.unwrap();
}

#[test]
fn enrolment_makes_the_folders_of_the_contract() {
    let collector = Collector::init();
    let host = collector.enroll_host("web1");
    let mut names: Vec<_> = std::fs::read_dir(&host.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ca.crt", "host-id", "host.crt", "host.key"]);
    assert_eq!(uuid::Uuid::parse_str(&host.id).unwrap().get_version_num(), 4);
    let out = host.dir.to_str().unwrap();
    assert!(fails(&["enroll", "host", "web1", "--dir", collector.home(), "--out", out]).contains("host.key"));

    let out = collector.path("alice");
    let out = out.to_str().unwrap();
    let base = ["enroll", "person", "alice", "--dir", collector.home(), "--out", out];
    let url = ["--role", "reviewer", "--url", "https://c.example.org:7444"];
    run_ok(&[base.as_slice(), url.as_slice()].concat());
    let config = std::fs::read_to_string(collector.path("alice/config.toml")).unwrap();
    for line in
        ["[collector]", "url = \"https://c.example.org:7444\"", "server_name = \"collector\"", "key = \"person.key\""]
    {
        assert!(config.contains(line), "{config}");
    }
    assert_eq!(run(&[base.as_slice(), &["--role", "root"]].concat()).status.code(), Some(2));
    assert!(
        fails(&["enroll", "host", "no good", "--dir", collector.home(), "--out", "/nowhere"]).contains("host name")
    );
}

#[tokio::test]
async fn serve_says_what_is_wrong() {
    let mut collector = Collector::init();
    let home = collector.home().to_owned();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = fails(&["serve", "--dir", &home, "--listen", &address]);
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
    assert!(fails(&["serve", "--dir", "/nonexistent"]).contains("init --dir /nonexistent"));

    let key = collector.path("collector/collector.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(fails(&["serve", "--dir", &home]).contains("chmod 600"));
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();

    collector.serve();
    assert!(fails(&["serve", "--dir", &home]).contains("another breakglass-collector"));
    assert!(fails(&["reindex", "--dir", &home]).contains("another breakglass-collector"));
    collector.reviewer().await.list_hosts(ListHostsRequest {}).await.unwrap();
    assert_eq!(collector.stop().await, Some(0));
}

#[tokio::test]
async fn health_is_told_and_a_signal_ends_open_streams() {
    let mut collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    agent.send(spool.frame(Some(session_id(1)), vec![opened("alice")])).await;
    agent.acked(1).await;
    let mut health = HealthClient::new(collector.channel(&host.dir, "host").await);
    let request = HealthCheckRequest { service: "breakglass.v1.Ingest".into() };
    assert_eq!(health.check(request).await.unwrap().into_inner().status, 1);
    let request = ListCommandsRequest { session: session_text(1), after: 0, follow: true };
    let mut reviewer = collector.reviewer().await;
    let mut following = reviewer.list_commands(request).await.unwrap().into_inner();
    assert_eq!(collector.stop().await, Some(0));
    assert!(following.message().await.is_err());
    assert!(agent.next().await.is_err());
}
