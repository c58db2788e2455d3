//! Doors that cannot be opened: which of them matters, and to whom it is told.

use super::*;

/// A host whose TLS door may be closed.
struct Host {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    handle: ControlHandle,
    stop: watch::Sender<bool>,
}

impl Host {
    async fn start(dir: tempfile::TempDir, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = options(dir.path());
        change(&mut options);
        let (stop, stopped) = watch::channel(false);
        let fake = Arc::new(Fake::default());
        let handle = serve(options, Arc::clone(&fake), Arc::new(verifier(dir.path())), stopped).await.unwrap();
        Self { dir, fake, handle, stop }
    }

    fn address_file(&self) -> Option<String> {
        fs::read_to_string(self.dir.path().join("run/control.addr")).ok()
    }

    async fn door_error(&self) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("run/control.sock")).await.unwrap();
        match ask(&mut stream, Request::Status(StatusRequest {})).await {
            Answer::Status(status) => status.door_error,
            other => panic!("{other:?}"),
        }
    }

    fn alerts(&self) -> Vec<(String, String)> {
        self.fake.alerts.lock().unwrap().iter().map(|alert| (alert.code.clone(), alert.message.clone())).collect()
    }

    async fn opened(&self) -> std::net::SocketAddr {
        let until = Instant::now() + PATIENCE;
        loop {
            let told = self.alerts().last().is_some_and(|(code, _)| code == "door-open");
            if let (Some(address), true) = (self.handle.address(), told) {
                return address;
            }
            assert!(Instant::now() < until, "closed still: {}", self.door_error().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_busy_port_closes_one_door_until_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    enrol(dir.path());
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    fs::create_dir(dir.path().join("run")).unwrap();
    fs::write(dir.path().join("run/control.addr"), "127.0.0.1:1\n").unwrap();
    let host = Host::start(dir, |options| options.listen = Some(address)).await;

    let error = host.door_error().await;
    assert!(error.contains(&address.to_string()) && error.contains("control.listen"), "{error}");
    assert!(error.contains("end the program"), "{error}");
    assert_eq!((host.handle.address(), host.address_file()), (None, None), "an address of an earlier agent is told");
    let [(code, message)] = host.alerts().try_into().unwrap();
    assert!(code == "door-closed" && message.contains(&error) && message.contains("Unix socket"), "{code}: {message}");

    drop(taken);
    assert_eq!(host.opened().await, address);
    assert_eq!(host.address_file(), Some(format!("{address}\n")));
    assert_eq!(host.door_error().await, "");
    let [_, (code, message)] = host.alerts().try_into().unwrap();
    assert!(code == "door-open" && message.contains(&address.to_string()), "{code}: {message}");
}

#[tokio::test]
async fn a_host_without_a_certificate_is_served_by_the_socket_until_it_has_one() {
    let host = Host::start(tempfile::tempdir().unwrap(), |_| {}).await;
    let error = host.door_error().await;
    assert!(error.contains("host.crt") && error.contains("enrol"), "{error}");
    assert_eq!(host.handle.address(), None);

    // The certificate alone is the next reason, and told as one.
    enrol(host.dir.path());
    fs::rename(host.dir.path().join("host.key"), host.dir.path().join("key-to-come")).unwrap();
    let until = Instant::now() + PATIENCE;
    while !host.door_error().await.contains("host.key") {
        assert!(Instant::now() < until, "{}", host.door_error().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fs::rename(host.dir.path().join("key-to-come"), host.dir.path().join("host.key")).unwrap();
    let address = host.opened().await;
    assert_eq!(host.address_file(), Some(format!("{address}\n")));
    TcpStream::connect(address).await.unwrap();
    let codes: Vec<_> = host.alerts().into_iter().map(|(code, _)| code).collect();
    assert_eq!(codes, ["door-closed", "door-closed", "door-open"]);
}

#[tokio::test]
async fn a_malformed_certificate_is_named_and_one_that_is_a_trap_waits_for_nobody() {
    for damage in ["", "nonsense", "!!!!"] {
        let dir = tempfile::tempdir().unwrap();
        enrol(dir.path());
        let text = format!("-----BEGIN CERTIFICATE-----\n{damage}\n-----END CERTIFICATE-----\n");
        fs::write(dir.path().join("host.crt"), text).unwrap();
        let host = Host::start(dir, |_| {}).await;
        let error = host.door_error().await;
        assert!(error.contains("host.crt") && error.contains("enrol"), "{damage:?}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    enrol(dir.path());
    fs::remove_file(dir.path().join("host.key")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("host.key"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let host = Host::start(dir, |_| {}).await;
    assert!(host.door_error().await.contains("host.key"), "{}", host.door_error().await);
}

#[tokio::test]
async fn a_key_that_is_anothers_is_named_and_told_once() {
    let dir = tempfile::tempdir().unwrap();
    enrol(dir.path());
    fs::write(dir.path().join("host.key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let host = Host::start(dir, |_| {}).await;
    assert!(host.door_error().await.contains("host.crt"), "{}", host.door_error().await);
    // Longer than the pause between two attempts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(host.alerts().len(), 1, "{:?}", host.alerts());
}

#[tokio::test]
async fn an_address_that_is_not_there_yet_is_waited_for_and_a_stop_is_not_held_up() {
    let dir = tempfile::tempdir().unwrap();
    enrol(dir.path());
    // For documentation, RFC 5737: no host has it.
    let host = Host::start(dir, |options| options.listen = Some("192.0.2.1:7443".parse().unwrap())).await;
    let error = host.door_error().await;
    assert!(error.contains("192.0.2.1:7443") && error.contains("network interface"), "{error}");
    host.stop.send(true).unwrap();
    tokio::time::timeout(PATIENCE, host.handle.stopped()).await.unwrap();
    assert!(!host.dir.path().join("run/control.sock").exists());
}

#[tokio::test]
async fn a_host_that_serves_no_tls_has_no_door_to_complain_of() {
    let host = Host::start(tempfile::tempdir().unwrap(), |options| options.listen = None).await;
    assert_eq!((host.door_error().await.as_str(), host.handle.address()), ("", None));
    assert!(host.alerts().is_empty());
}

#[tokio::test]
async fn a_served_socket_is_named_and_left_alone() {
    let bench = Bench::start().await;
    let start = |options| {
        let verifier = Arc::new(verifier(bench.dir.path()));
        let (_, stopped) = watch::channel(false);
        serve(options, Arc::new(Fake::default()), verifier, stopped)
    };
    let options = options(bench.dir.path());
    let error = start(options.clone()).await.unwrap_err();
    assert!(matches!(error, ControlError::Served(_)), "{error}");
    let file = bench.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = start(Options { socket: file, ..options }).await.unwrap_err();
    assert!(matches!(error, ControlError::NotASocket(_)), "{error}");
    let told = fs::read_to_string(bench.dir.path().join("run/control.addr")).unwrap();
    assert_eq!(told, format!("{}\n", bench.handle.address().unwrap()));
}

#[tokio::test]
async fn a_socket_that_nobody_serves_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("run/control.sock")).unwrap());
    let host = Host::start(dir, |options| options.listen = None).await;
    let socket = host.dir.path().join("run/control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
    challenge(&mut UnixStream::connect(socket).await.unwrap()).await;
}

#[tokio::test]
async fn who_has_the_agent_stopped_is_known_and_alive() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root may ask for a stop");
        return;
    }
    let bench = Bench::start().await;
    let request = v1::StopRequest { reason: "a test".into(), force: false };
    let answer = ask(&mut bench.unix().await, Request::Stop(request)).await;
    assert!(matches!(answer, Answer::Stopping(_)), "{answer:?}");
    assert!(bench.fake.stopped.lock().unwrap()[0].1.is_alive());
}
