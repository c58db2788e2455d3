//! The daemon: everything put together, in an order in which the account is locked before anything else can fail.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use breakglass_api::v1::{AgentStarted, AgentStopping, Alert, CloseCause, event::Body};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{
    account::Account,
    config::{Config, Tier},
    control::{self, verifier},
    enrol,
    evidence::{FileKeys, KeyError, KeyStore as _, Notary},
    identity,
    kernel::{self, Belongings, Health, Kernel, KernelInfo, Reader},
    notice::{Notices, Origin},
    procfs,
    recorder::{self, Recorder, source::EventSource},
    regular,
    session::{
        backstop::Backstop,
        host::Host,
        intent::IntentStore,
        looks::Looks,
        machine::Machine as _,
        manager::Manager,
        orders,
        rotate::Rotation,
        service::{Facts, Service},
        systemd,
        ungranted::Ungranted,
        witness::Witnessing,
    },
    ship::{self, Shipper},
    spool::{Limits, Recovery, Spool, SpoolError, SpoolReader, memory},
    sys,
};

/// Threads of the runtime. The work is waiting; proofs are verified on the blocking pool.
const WORKERS: usize = 2;

/// Blocking threads: two checks of proofs at a time, the spool's reader, and calls on the machine.
const BLOCKING_THREADS: usize = 16;

/// How long a stop waits for the collector to acknowledge what is left. The spool keeps what it does not.
const SHIP_DRAIN: Duration = Duration::from_secs(2);

/// How long a stop waits for the comparison after a session: longer than a look at the host takes at most.
const SETTLE_LIMIT: Duration = Duration::from_secs(25);

/// How long a stop waits for notices to go out.
const NOTICE_LIMIT: Duration = Duration::from_secs(2);
/// How long calls that block may take to end when everything else has.
const RUNTIME_LIMIT: Duration = Duration::from_secs(2);
/// How often the spool is looked at for being full.
const SPOOL_LOOK: Duration = Duration::from_millis(200);

/// How long a disk may take to make something durable before no program of a session starts any more, as with an agent that shows no sign of
/// life.
const DISK_ANSWERS: Duration = Duration::from_secs(5);

/// Folders of systemd's units, and the agent's units.
const UNIT_FOLDERS: [&str; 7] = [
    "/etc/systemd/system",
    "/etc/systemd/system.control",
    "/run/systemd/system",
    "/run/systemd/system.control",
    "/usr/lib/systemd/system",
    "/usr/local/lib/systemd/system",
    "/lib/systemd/system",
];
const UNITS: [&str; 2] = ["breakglass-agent.service", "breakglass-lock.service"];
/// What else the package brings that decides over logins.
const OTHER_FILES: [&str; 2] = ["/etc/ssh/sshd_config.d/00-breakglass.conf", "/usr/share/pam-configs/breakglass"];

/// Lines of the log that wait for a reader.
const LOG_LINES: usize = 1024;

/// Exit code by which the unit knows not to start the agent again; `RestartPreventExitStatus=` there.
const STOPPED: u8 = 100;

/// Name of the lock that keeps a second agent from running over the same folders.
const INSTANCE_LOCK: &str = "agent.lock";

/// Runs until SIGTERM or SIGINT.
pub fn run(path: &Path) -> anyhow::Result<ExitCode> {
    sys::share_heaps();
    let _logging = log_to_stderr();
    let config = Config::load(path)?;
    if !nix::unistd::geteuid().is_root() {
        bail!("the agent must run as root: it changes the shadow file and loads kernel programs");
    }
    procfs::hold().context("procfs cannot be read")?;
    prepare_folders(&config)?;
    let _instance = only_instance(&config.host.runtime)?;
    let account = Account::find(&config.account, &config.host.runtime)?;
    // Before anything that takes time or can fail.
    account.lock().context("the emergency account could not be locked at start")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(serve(path, config, account));
    // A call that waits for a disk that does not answer must not keep the agent from ending.
    runtime.shutdown_timeout(RUNTIME_LIMIT);
    ended
}

/// Everything that runs.
struct Parts {
    manager: Manager<Host, Recorder>,
    recorder: Recorder,
    notary: Option<Notary>,
    shipper: Option<Shipper>,
    notices: Notices,
    shutdown: watch::Sender<bool>,
    control: control::ControlHandle,
    /// Tells of a stop that root asked for, and that is on record.
    stop: mpsc::Receiver<String>,
}

async fn serve(path: &Path, config: Config, account: Account) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut parts = start(path, config, account).await?;
    // Reading the kernel's types takes more memory than anything that follows.
    sys::trim_heap();
    tracing::info!(control = ?parts.control.address(), "ready");
    // Fails where systemd did not start us; nobody waits for it then.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let mut lost = parts.recorder.lost_disk();
    let (reason, code) = loop {
        let reason = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            // With nothing taken down: the next agent takes over what the rings hold, an open session, and a spool in memory.
            Ok(why) = lost.wait_for(Option::is_some), if is_started_again() => {
                bail!("the disk of the spool is lost, the agent starts anew with its record in memory: {}", why.as_deref().unwrap_or_default())
            }
            Some(reason) = parts.stop.recv() => break (reason, asked_code()),
        };
        if may_stop(&parts, reason).await {
            break (reason.to_owned(), ExitCode::SUCCESS);
        }
    };
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    stop(parts, &reason).await?;
    Ok(code)
}

/// How a stop that was asked for ends. The unit starts the agent again whatever happened, but for this code.
fn asked_code() -> ExitCode {
    if is_started_again() { ExitCode::from(STOPPED) } else { ExitCode::SUCCESS }
}

/// Whether somebody starts the agent again when it ends: systemd sets this for everything that it starts.
fn is_started_again() -> bool {
    std::env::var_os("INVOCATION_ID").is_some()
}

async fn start(path: &Path, config: Config, account: Account) -> anyhow::Result<Parts> {
    let boot_id = identity::boot_id().context("cannot read the kernel's boot id")?;
    let host_id = identity::host_id(&config.host.enrolment, &config.host.state).context("this host has no id")?;
    let host_name = if config.host.name.is_empty() { identity::hostname() } else { config.host.name.clone() };
    let uid = account.uid();
    let account_name = account.name().to_owned();

    let (kernel, source) = start_kernel(path, &config, uid);
    let health = kernel.as_ref().ok().map(|kernel| Arc::clone(kernel.health()));
    let info = kernel.as_ref().map(|kernel| kernel.info().clone()).map_err(Clone::clone);
    let intents = IntentStore::new(&config.host.state, &config.host.runtime);
    let names: Vec<_> = intents.read().map(|intent| (intent.slot, intent.session)).into_iter().collect();
    let spool_folder = config.host.state.join("spool");
    let (spool, recovery, volatile) = open_spool(&spool_folder, spool_limits(&config))?;
    let reader = spool.reader();
    let options = recorder::Options { ring_bytes: ring_bytes(&config), ..recorder::Options::default() };
    let recorder = Recorder::start(source, spool, &recovery, &names, options)?;

    let looks = Looks::new(config.host.state.join("looks"), config.kernel.pins.clone(), config.aftermath.walk);
    let backstop = Backstop::new(path);
    let host = Host::new(boot_id, account, kernel, config.kernel.minimum_tier, looks, backstop);
    let host = Arc::new(host.verifying(config.grant.user_verification).rotating(Rotation::new(&config)));
    let manager = Manager::new(host, recorder.clone(), intents);
    let notices = start_notices(&config, &recorder, &host_id, &host_name).await;
    if let Some(health) = health {
        let max_bytes = if volatile.is_some() { memory::LIMITS.max_bytes } else { config.spool.max_bytes };
        tokio::spawn(watch_spool(Arc::clone(&health), recorder.clone(), reader.another(), max_bytes));
        tokio::spawn(attend(health, manager.clone(), recorder.clone()));
    }
    announce(&recorder, &info, &host_name, boot_id).await;
    tell_cuts(&recorder, &recovery).await;
    if let Some(message) = &volatile {
        let alert = Alert { code: "spool-in-memory".into(), message: message.clone(), process: None };
        if let Err(error) = recorder.record(None, Body::Alert(alert)).await {
            tracing::error!(%error, "an alert could not be recorded");
        }
    }
    let notary = start_notary(&config, &recorder, &host_id).await;
    manager.recover().await;
    if manager.view().session.is_none() {
        let manager = manager.clone();
        tokio::spawn(async move { manager.on_machine(Host::look_at_rest).await });
    }

    let identity = verifier::Identity {
        host_id: host_id.clone(),
        host_name: host_name.clone(),
        boot_id,
        account: account_name,
        account_uid: uid,
    };
    let verifier = Arc::new(verifier::Verifier::new(identity, &config.grant, &config.host.state));
    let orders = take_orders(&config, path, &manager, &verifier);
    let shipper = start_shipper(&config, &recorder, reader.another(), &host_id, &host_name, &info, orders)?;
    let facts = Facts {
        host_id,
        host_name,
        tier_reason: tier_reason(&info),
        ssh_port: config.account.ssh_port,
        ssh_host_keys: config.account.ssh_host_keys.clone(),
        spool_in_memory: volatile.unwrap_or_default(),
    };
    let (stop_sender, stop) = mpsc::channel(1);
    let service = Service::new(
        manager.clone(),
        facts,
        reader,
        recorder.clone(),
        shipper.as_ref().map(Shipper::observer),
        stop_sender,
    );
    let (shutdown, stopping) = watch::channel(false);
    keep_certificate(&config, stopping.clone());
    let control = control::serve(control::Options::from(&config), Arc::new(service), verifier, stopping).await?;
    Ok(Parts { manager, recorder, notary, shipper, notices, shutdown, control, stop })
}

/// A stop while a session is open could be the operator's wish, passed on by systemd: the session is closed first, by those who may, and
/// the agent stopped then. Unless the machine goes down. Where nothing keeps them from killing the agent, refusing helps nobody.
async fn may_stop(parts: &Parts, reason: &str) -> bool {
    let Some(open) = parts.manager.view().session else { return true };
    let guarded = parts.manager.on_machine(Host::is_guarded).await;
    if !guarded || tokio::task::spawn_blocking(systemd::is_stopping).await.unwrap_or(true) {
        return true;
    }
    let message = format!("{reason} asked the agent to stop while a session is open; close the session first");
    tracing::error!("{message}");
    let alert = Alert { code: "stop-refused".into(), message, process: None };
    if let Err(error) = parts.recorder.record(Some(open.session), Body::Alert(alert)).await {
        tracing::error!(%error, "an alert could not be recorded");
    }
    false
}

/// Records what the kernel's guardian has to say.
async fn attend(health: Arc<Health>, manager: Manager<Host, Recorder>, recorder: Recorder) {
    loop {
        let notice = health.notice().await;
        let session = manager.view().session.map(|open| open.session);
        let alert = Alert { code: notice.code.into(), message: notice.message, process: None };
        if let Err(error) = recorder.record(session, Body::Alert(alert)).await {
            tracing::error!(%error, "an alert could not be recorded");
        }
    }
}

/// Tells the kernel's guardian whether the spool takes what comes. A task of its own: it must not wait for a disk.
async fn watch_spool(health: Arc<Health>, recorder: Recorder, spool: SpoolReader, max_bytes: u64) {
    let mut look = tokio::time::interval(SPOOL_LOOK);
    let mut silent = false;
    loop {
        look.tick().await;
        let (_, waiting) = spool.backlog();
        let was = std::mem::replace(&mut silent, recorder.unanswered() > DISK_ANSWERS);
        if silent && !was {
            tracing::error!(
                "nothing that is recorded became durable for {DISK_ANSWERS:?}: the disk of the spool does not answer, or something else holds \
                 the recorder up; what is recorded is in memory only"
            );
        }
        health.set_spool_full(silent || recorder.stats().last_error.is_some() || waiting > max_bytes / 16 * 15);
    }
}

/// Ends the session, locks, and leaves nothing in the kernel. What is not acknowledged stays in the spool.
async fn stop(parts: Parts, reason: &str) -> anyhow::Result<()> {
    tracing::info!(reason, "stopping");
    let open = parts.manager.view().session.is_some();
    let down = open && tokio::task::spawn_blocking(systemd::is_stopping).await.unwrap_or(false);
    let (cause, by) = match down {
        true => (CloseCause::Reboot, format!("{reason}, as the machine goes down")),
        false => (CloseCause::AgentStop, reason.to_owned()),
    };
    parts.manager.wind_up(cause, &by).await;
    if tokio::time::timeout(SETTLE_LIMIT, parts.manager.settle()).await.is_err() {
        tracing::warn!("what the last session left behind is not known yet; it will not be in the record");
    }
    let locked = parts.manager.on_machine(|m| m.lock()).await;
    // Nobody listens any more if the doors closed by themselves.
    let _ = parts.shutdown.send(true);
    parts.control.stopped().await;
    if let Err(error) = parts.manager.on_machine(Host::unload).await {
        tracing::error!(%error, "kernel programs were left attached");
    }
    if let Err(error) =
        parts.recorder.record(None, Body::AgentStopping(AgentStopping { reason: reason.to_owned() })).await
    {
        tracing::error!(%error, "the stop could not be recorded");
    }
    if let Some(notary) = parts.notary {
        notary.finish().await;
    }
    parts.recorder.stop().await;
    if let Some(shipper) = parts.shipper {
        let last = parts.recorder.durable().borrow().0;
        if !shipper.wait_acked(last, SHIP_DRAIN).await {
            tracing::warn!("the collector does not have everything yet; the next start sends the rest");
        }
        shipper.stop().await;
    }
    parts.notices.settle(NOTICE_LIMIT).await;
    locked.map(drop).context("the emergency account could not be locked at stop")
}

/// Opens the spool; where its disk cannot be used, one in memory, with the reason. A host that can be recorded only so long as the
/// agent runs is worth more than one that cannot be opened: what is recorded leaves it within milliseconds.
fn open_spool(folder: &Path, limits: Limits) -> anyhow::Result<(Spool, Recovery, Option<String>)> {
    let error = match Spool::open(folder, limits) {
        Ok((spool, recovery)) => return Ok((spool, recovery, None)),
        Err(error @ SpoolError::Io { .. }) => error,
        // Another agent, a later format, damage that no repair mends: a second spool would hide it.
        Err(error) => {
            return Err(error).with_context(|| format!("the spool {} cannot be opened", folder.display()));
        }
    };
    let message = format!(
        "the record is kept in memory, at most {} MiB of it, and what the collector does not have is lost with the agent: {error}",
        memory::LIMITS.max_bytes >> 20
    );
    tracing::error!("{message}");
    let disk = Arc::new(memory::MemoryDisk::default());
    let (spool, recovery) = Spool::open_on(disk, folder, memory::LIMITS).context("no spool in memory either")?;
    Ok((spool, recovery, Some(message)))
}

/// Loads the programs. Failing that, the host goes on locked and refuses to open, so that operators learn why.
fn start_kernel(path: &Path, config: &Config, uid: u32) -> (Result<Kernel, String>, Option<Box<dyn EventSource>>) {
    let options = kernel::Options { belongings: belongings(path, config), ..kernel::Options::new(&config.kernel, uid) };
    match Kernel::start(&options) {
        Ok((kernel, reader)) => {
            let source = watched(&kernel, reader, uid);
            (Ok(kernel), Some(source))
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error, "the kernel programs cannot be loaded; see `breakglass-agent doctor`");
            (Err(error), None)
        }
    }
}

/// What the kernel tells, with the links of programs outside the session and the alerts that it gives reason for.
fn watched(kernel: &Kernel, reader: Reader, uid: u32) -> Box<dyn EventSource> {
    match kernel.tagger() {
        Ok(tagger) => Box::new(Ungranted::new(Witnessing::new(reader, Box::new(tagger)), uid)),
        Err(error) => {
            tracing::error!(%error, "what a session has others start is recorded and not followed");
            Box::new(Ungranted::new(reader, uid))
        }
    }
}

/// Begins to tell of what happens by the system's log and a webhook. A webhook that cannot be used keeps nobody out.
async fn start_notices(config: &Config, recorder: &Recorder, host_id: &str, host_name: &str) -> Notices {
    let origin = Origin { host_id: host_id.to_owned(), host: host_name.to_owned() };
    let (notices, error) = Notices::start(&config.notice, origin);
    recorder.tell(notices.clone());
    if let Some(message) = error {
        tracing::error!("{message}");
        let alert = Alert { code: "no-webhook".into(), message, process: None };
        if let Err(error) = recorder.record(None, Body::Alert(alert)).await {
            tracing::error!(%error, "an alert could not be recorded");
        }
    }
    notices
}

/// What of this host is guarded while a session is open.
fn belongings(path: &Path, config: &Config) -> Belongings {
    let host = &config.host;
    let mut files = vec![path.to_owned(), config.grant.allowed_signers.clone()];
    files.extend(std::env::current_exe());
    files.extend(config.grant.revoked_keys.clone());
    let units = UNIT_FOLDERS.map(PathBuf::from);
    for folder in &units {
        files.extend(UNITS.map(|unit| folder.join(unit)));
    }
    files.extend(OTHER_FILES.map(PathBuf::from));
    Belongings {
        trees: vec![host.state.clone()],
        secrets: vec![identity::keys_folder(&host.state), host.enrolment.clone()],
        shared: vec![host.runtime.clone()],
        files,
        units: units.into(),
    }
}

/// Begins to sign the record. Where that is impossible the record goes on without signatures, and says so.
async fn start_notary(config: &Config, recorder: &Recorder, host_id: &str) -> Option<Notary> {
    match open_keys(config, host_id).await {
        Ok((keys, host_id)) => {
            let host_key = hex::encode(keys.host_key());
            tracing::info!(host_key, epoch = keys.epoch(), "the record is signed");
            Some(Notary::start(Box::new(keys), recorder.clone(), host_id))
        }
        Err(error) => {
            let message = format!("the record of this host is not signed: {error:#}");
            tracing::error!("{message}");
            let alert = Alert { code: "unsigned".into(), message, process: None };
            if let Err(error) = recorder.record(None, Body::Alert(alert)).await {
                tracing::error!(%error, "an alert could not be recorded");
            }
            None
        }
    }
}

async fn open_keys(config: &Config, host_id: &str) -> anyhow::Result<(FileKeys, [u8; 16])> {
    let host_id = uuid::Uuid::parse_str(host_id).context("the host's id is no UUID")?;
    let folder = identity::keys_folder(&config.host.state);
    let keys = tokio::task::spawn_blocking(move || -> Result<FileKeys, KeyError> { FileKeys::open(&folder) });
    Ok((keys.await.context("opening the signing key failed")??, host_id.into_bytes()))
}

/// Begins to keep the host's certificate fresh, where there is somebody to ask.
fn keep_certificate(config: &Config, stopping: watch::Receiver<bool>) {
    let Some(collector) = &config.collector else { return };
    let renewal = enrol::Renewal {
        urls: collector.urls.clone(),
        server_name: collector.server_name.clone(),
        enrolment: config.host.enrolment.clone(),
    };
    tokio::spawn(renewal.run(stopping));
}

/// Begins to carry out what the collector passes on, where the configuration allows that.
fn take_orders(
    config: &Config,
    path: &Path,
    manager: &Manager<Host, Recorder>,
    verifier: &Arc<verifier::Verifier>,
) -> Option<ship::Orders> {
    config.collector.as_ref().filter(|collector| collector.orders)?;
    let (orders, desk) = orders::desk();
    let rules = orders::Rules { config: path.to_owned(), verifier: Arc::clone(verifier) };
    tokio::spawn(orders::serve(desk, manager.clone(), rules));
    Some(orders)
}

fn start_shipper(
    config: &Config,
    recorder: &Recorder,
    reader: SpoolReader,
    host_id: &str,
    host_name: &str,
    info: &Result<KernelInfo, String>,
    orders: Option<ship::Orders>,
) -> anyhow::Result<Option<Shipper>> {
    let Some(collector) = &config.collector else {
        tracing::warn!("no collector is configured: records stay in the spool on this host");
        return Ok(None);
    };
    let options = ship::Options {
        urls: collector.urls.clone(),
        server_name: collector.server_name.clone(),
        enrolment: config.host.enrolment.clone(),
        host_id: host_id.to_owned(),
        hostname: host_name.to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        tier: tier(info).to_string(),
        orders,
        pace: ship::Pace::default(),
    };
    let shipper = Shipper::start(options, recorder.durable(), reader).context("shipping cannot be started")?;
    Ok(Some(shipper))
}

async fn announce(recorder: &Recorder, info: &Result<KernelInfo, String>, host_name: &str, boot_id: [u8; 16]) {
    let loaded = info.as_ref().ok();
    let started = AgentStarted {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tier: tier(info).to_string(),
        tier_reason: tier_reason(info),
        kernel_release: identity::kernel_release(),
        hostname: host_name.to_owned(),
        boot_id: boot_id.to_vec(),
        took_over: loaded.is_some_and(|info| info.took_over),
        object_sha256: loaded.map(|info| info.object_sha256.clone()).unwrap_or_default(),
    };
    if let Err(error) = recorder.record(None, Body::AgentStarted(started)).await {
        tracing::error!(%error, "the start could not be recorded");
    }
}

/// What was cut off the end of the spool, so that it is in the chain itself how far the record of the run before is to be believed.
async fn tell_cuts(recorder: &Recorder, recovery: &Recovery) {
    for cut in &recovery.cut {
        let message = format!(
            "{} bytes at byte {} of {} were no whole group of frames, written when the agent or the host ended without warning; they were never reported durable, and were cut off",
            cut.bytes,
            cut.offset,
            cut.file.display()
        );
        tracing::warn!("{message}");
        let alert = Alert { code: "spool-cut".into(), message, process: None };
        if let Err(error) = recorder.record(None, Body::Alert(alert)).await {
            tracing::error!(%error, "an alert could not be recorded");
        }
    }
}

fn spool_limits(config: &Config) -> Limits {
    Limits { max_bytes: config.spool.max_bytes, segment_bytes: config.spool.segment_bytes }
}

fn ring_bytes(config: &Config) -> u64 {
    config.kernel.audit_ring + config.kernel.witness_ring + config.kernel.bulk_ring
}

fn tier(info: &Result<KernelInfo, String>) -> Tier {
    info.as_ref().map_or(Tier::None, |info| info.tier)
}

fn tier_reason(info: &Result<KernelInfo, String>) -> String {
    match info {
        Ok(info) => info.tier_reason.clone(),
        Err(error) => error.clone(),
    }
}

fn prepare_folders(config: &Config) -> anyhow::Result<()> {
    // State holds the record and keys; runtime holds the socket and the key source, which sshd's helper may read as another user.
    for (folder, mode) in [(&config.host.state, 0o700), (&config.host.runtime, 0o755)] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(folder)
            .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(mode)))
            .or_else(|error| match folder == &config.host.state {
                // A disk that cannot be written keeps nobody out: the spool is in memory then, and each part that misses the folder
                // says so.
                true => {
                    tracing::error!(folder = %folder.display(), %error, "the state folder cannot be prepared");
                    Ok(())
                }
                false => Err(error),
            })
            .with_context(|| format!("cannot prepare the folder {}", folder.display()))?;
    }
    Ok(())
}

fn only_instance(runtime: &Path) -> anyhow::Result<Flock<fs::File>> {
    let path = runtime.join(INSTANCE_LOCK);
    let file = regular::open_lock(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("another agent holds {}; stop it first", path.display()))
}

/// Logs by a thread of its own, until what this gives is dropped. Whoever reads the log may stop reading, by the wish of a session's root at
/// that: then lines are lost, and nothing waits.
fn log_to_stderr() -> tracing_appender::non_blocking::WorkerGuard {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BREAKGLASS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The journal stamps lines itself.
    let (writer, guard) = tracing_appender::non_blocking::NonBlockingBuilder::default()
        .buffered_lines_limit(LOG_LINES)
        .lossy(true)
        .thread_name("log")
        .finish(std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false).init();
    guard
}
