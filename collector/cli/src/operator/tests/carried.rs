//! Grants that are signed ahead and carried by hand.

use breakglass_api::{PREPARED_NAMESPACE, grant::PreparedText};

use super::*;

#[tokio::test]
async fn what_is_prepared_is_signed_and_carried_as_it_is() {
    let mut host = Host::start(|_| opened()).await;
    let path = |host: &Host, name: &str| host.dir.path().join(name).display().to_string();
    let prepare = format!("prepare far --reason broken --ttl 10m --valid-for 3h --output {}", path(&host, "far.grant"));
    let unknown = host.run(&prepare).await.unwrap_err();
    assert!(unknown.exit_code() == 2 && unknown.to_string().contains("hosts.far.id"), "{unknown}");
    host.config.hosts.insert("far".into(), crate::config::Host { id: Some("host-9".into()), ..Default::default() });
    assert_eq!(host.run(&prepare).await.unwrap(), 0);
    let mode = fs::metadata(host.dir.path().join("far.grant")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // With what a console or a chat puts around it.
    fs::write(host.dir.path().join("chat"), format!("take this:\n  {}\nthanks", host.read("far.grant").trim()))
        .unwrap();
    assert_eq!(host.run(&format!("open local --grant {} --no-ssh", path(&host, "chat"))).await.unwrap(), 0);
    let open = host.opens().pop().unwrap();
    let text = PreparedText::parse(&open.grant_text).unwrap();
    assert_eq!((text.host_id.as_str(), text.host_name.as_str(), text.ttl_seconds), ("host-9", "far", 600));
    assert_ne!(text.number, [0; 16]);
    let time = |text: &str| humantime::parse_rfc3339(text).unwrap();
    let window = time(&text.not_after).duration_since(time(&text.not_before)).unwrap();
    assert_eq!(window.as_secs(), 3 * 3600 + 15 * 60);
    assert!(time(&text.not_before) < SystemTime::now() && time(&text.not_after) > SystemTime::now());

    fs::write(host.dir.path().join("text"), &open.grant_text).unwrap();
    fs::write(host.dir.path().join("sig"), &open.signature).unwrap();
    fs::write(host.dir.path().join("signers"), format!("alice {}", host.read("key.pub"))).unwrap();
    run(Command::new("ssh-keygen")
        .args(["-Y", "verify", "-n", PREPARED_NAMESPACE, "-I", "alice", "-f"])
        .arg(host.dir.path().join("signers"))
        .arg("-s")
        .arg(host.dir.path().join("sig"))
        .stdin(fs::File::open(host.dir.path().join("text")).unwrap()));
}

#[tokio::test]
async fn what_is_no_grant_is_said() {
    let host = Host::start(|_| opened()).await;
    let write = |name: &str, content: &str| {
        fs::write(host.dir.path().join(name), content).unwrap();
        host.dir.path().join(name).display().to_string()
    };
    for (content, expected) in [
        ("nothing", "no grant"),
        ("breakglass-grant:", "no grant"),
        ("breakglass-grant:CgVoZWxsbw", "damaged"),
        ("breakglass-grant:/w", "no grant"),
    ] {
        let file = write("bad", content);
        let failure = host.run(&format!("open local --grant {file} --no-ssh")).await.unwrap_err();
        assert!(failure.exit_code() == 2 && failure.to_string().contains(expected), "{content}: {failure}");
    }
    assert!(host.opens().is_empty());
}

#[tokio::test]
async fn a_quorum_signs_ahead_too() {
    let host = Host::start(|_| opened()).await;
    let path = |name: &str| host.dir.path().join(name).display().to_string();
    let missing = host
        .run(&format!("prepare web1 --host-id h --reason broken --signers 2 --save-request {}", path("request")))
        .await
        .unwrap_err();
    assert!(missing.to_string().contains("co-signatures are missing"), "{missing}");
    assert!(host.run(&format!("cosign --operator bob {}", host.read("request").trim())).await.is_ok());
    let text = cosign::saved_request(path("request").as_ref()).unwrap();
    assert!(PreparedText::parse(text.as_bytes()).is_ok());
}
