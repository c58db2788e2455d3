//! A thousand wrong proofs a second: what they cost the agent, and what becomes of a right one.
//!
//! The wrong ones are as dear as they can be made: a text that holds in everything, with a signature by a listed key over another text, so
//! that only the arithmetic tells. They come from the same source as the right one, a connection each, over the host's socket and over TLS. Nobody
//! who floods waits for long: a sender gives up, and comes again at its time.

use std::{
    fs,
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use breakglass_tests::{
    control::Control,
    grant::{Proof, prove, request},
    machine, poll,
    stack::{OPERATOR, Options, Stack},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use crate::{
    Effort,
    figure::{Budget, Figure},
};

/// Wrong proofs a second.
const RATE: u64 = 1000;
/// Who sends them: enough that they come at this rate though each waits for its answer as long as this, and no longer.
const SENDERS: u64 = 100;
const PATIENCE: Duration = Duration::from_millis(100);
/// How long one text is sent. A challenge is good for a minute, and a wrong proof does not use it up.
const PROOF_AGE: Duration = Duration::from_secs(20);
/// Right ones measured.
const OPENINGS: u64 = 40;

/// How wrong proofs come.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Socket,
    NewTls,
}

/// How many there were.
#[derive(Default)]
struct Counts {
    /// Sent, or tried to: a connection that is not taken costs the sender as much.
    offered: AtomicU64,
    /// Refused for what they are.
    answered: AtomicU64,
}

/// What the senders have in common.
struct Flood<'a> {
    stack: &'a Stack,
    way: Way,
    tls: Tls,
    signature: Vec<u8>,
    proof: RwLock<Proof>,
    counts: Counts,
    over: AtomicBool,
}

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (way, name) in [(Way::Socket, "over a socket"), (Way::NewTls, "over TLS")] {
        figures.extend(Stack::with(Options::default(), |stack| flood(stack, way, name, effort))?);
    }
    Ok(figures)
}

fn flood(stack: &Stack, way: Way, name: &str, effort: Effort) -> Result<Vec<Figure>> {
    let signature = seen_signature(stack)?;
    let flood = Flood {
        stack,
        way,
        tls: tls(stack)?,
        proof: RwLock::new(wrong_proof(stack, &signature)?),
        signature,
        counts: Counts::default(),
        over: AtomicBool::new(false),
    };
    let measured = thread::scope(|scope| {
        let mut senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                scope.spawn({
                    let flood = &flood;
                    move || send(flood, sender)
                })
            })
            .collect();
        senders.push(scope.spawn(|| renew(&flood)));
        let measured = during(&flood, effort);
        flood.over.store(true, Ordering::SeqCst);
        for sender in senders {
            sender.join().ok().context("a sender died")??;
        }
        measured
    })?;
    Ok(vec![
        Figure::new(
            format!("wrong proofs {name}, a connection each: the agent's cores"),
            "cores",
            measured.cpu,
            Budget::P95AtMost(0.25),
        ),
        Figure::new(format!("wrong proofs {name}: offered"), "1/s", measured.offered, Budget::None),
        Figure::new(format!("wrong proofs {name}: answered in time"), "1/s", measured.answered, Budget::None),
        Figure::new(
            format!("a right one meanwhile ({name}): the agent itself"),
            "ms",
            measured.agent_ms,
            Budget::P95AtMost(30.0),
        ),
        Figure::new(
            format!("a right one meanwhile ({name}): from the first attempt to open"),
            "ms",
            measured.whole_ms,
            Budget::P95AtMost(250.0),
        ),
    ])
}

/// By second, and for each right proof.
#[derive(Default)]
struct Measured {
    cpu: Vec<f64>,
    offered: Vec<f64>,
    answered: Vec<f64>,
    agent_ms: Vec<f64>,
    /// From the first attempt to connect to the answer.
    whole_ms: Vec<f64>,
}

/// What wrong ones cost alone, then right ones among them, one after the other.
fn during(flood: &Flood<'_>, effort: Effort) -> Result<Measured> {
    let Flood { stack, way, counts, .. } = flood;
    poll::until_true("wrong proofs to come", poll::SOON, || Ok(counts.offered.load(Ordering::SeqCst) > RATE))?;
    let counted = || [&counts.offered, &counts.answered].map(|count| count.load(Ordering::SeqCst));
    let mut measured = Measured::default();
    for _ in 0..effort.runs(20).max(4) {
        let (before, [offered, answered], start) =
            (machine::cpu_seconds(stack.agent.pid())?, counted(), Instant::now());
        thread::sleep(Duration::from_secs(1));
        let ([offered_now, answered_now], seconds) = (counted(), start.elapsed().as_secs_f64());
        measured.cpu.push((machine::cpu_seconds(stack.agent.pid())? - before) / seconds);
        measured.offered.push((offered_now - offered) as f64 / seconds);
        measured.answered.push((answered_now - answered) as f64 / seconds);
    }
    for _ in 0..effort.runs(OPENINGS) {
        let start = Instant::now();
        let opened = match way {
            Way::Socket => stack.open_over_socket("in the flood", "10m")?,
            Way::NewTls => stack.open("in the flood", "10m")?,
        };
        measured.whole_ms.push(start.elapsed().as_secs_f64() * 1000.0);
        measured.agent_ms.push(opened.agent_us as f64 / 1000.0);
        poll::until_true("the session to be closed", poll::SOON, || {
            Ok(stack.control().and_then(|mut control| control.close()).is_ok())
        })?;
        poll::until_true("the account to be locked", poll::SOON, || {
            Ok(stack.status().is_ok_and(|status| status.state == "locked"))
        })?;
    }
    Ok(measured)
}

/// A signature that everybody can have who has seen one by somebody who is listed.
fn seen_signature(stack: &Stack) -> Result<Vec<u8>> {
    let mut control = stack.control()?;
    Ok(prove(&request(&control.challenge()?, OPERATOR, "another text", 600)?, &stack.key())?.signature)
}

/// A text that holds in everything, with a signature over another one.
fn wrong_proof(stack: &Stack, signature: &[u8]) -> Result<Proof> {
    let challenge = stack.control()?.challenge()?;
    let text = request(&challenge, OPERATOR, "a wrong one", 600)?.encode()?.into_bytes();
    Ok(Proof { text, signature: signature.to_vec() })
}

/// Keeps the text fresh.
fn renew(flood: &Flood<'_>) -> Result<()> {
    let mut made = Instant::now();
    while !flood.over.load(Ordering::SeqCst) {
        thread::sleep(PATIENCE);
        // Its connection may be one of those that make room; then it is asked for again.
        if made.elapsed() > PROOF_AGE
            && let Ok(proof) = wrong_proof(flood.stack, &flood.signature)
        {
            *flood.proof.write().unwrap_or_else(PoisonError::into_inner) = proof;
            made = Instant::now();
        }
    }
    Ok(())
}

/// Sends wrong proofs, each over a connection of its own, at this sender's share of the rate.
fn send(flood: &Flood<'_>, sender: u64) -> Result<()> {
    let pause = Duration::from_micros(1_000_000 * SENDERS / RATE);
    let mut next = Instant::now() + pause * u32::try_from(sender)? / u32::try_from(SENDERS)?;
    while !flood.over.load(Ordering::SeqCst) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        // Who is late does not make up for it all at once.
        next = (next + pause).max(Instant::now());
        let Proof { text, signature } = flood.proof.read().unwrap_or_else(PoisonError::into_inner).clone();
        flood.counts.offered.fetch_add(1, Ordering::SeqCst);
        let answer = match flood.way {
            Way::Socket => socket(flood.stack).and_then(|mut control| control.open(&text, &signature)),
            Way::NewTls => connect(&flood.tls).and_then(|mut control| control.open(&text, &signature)),
        };
        // No answer in time, or made to leave for others.
        let Ok(answer) = answer else { continue };
        ensure!(answer.is_err_and(|refused| refused.code == "bad-signature"), "a wrong proof is not refused as one");
        flood.counts.answered.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

fn socket(stack: &Stack) -> Result<Control> {
    let stream = UnixStream::connect(stack.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Control::over(stream))
}

/// Where TLS is, and how it is spoken.
struct Tls {
    address: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

fn tls(stack: &Stack) -> Result<Tls> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(stack.path("reviewer/ca.crt")).context("no CA")?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each from the beginning, as from somebody new.
    config.resumption = rustls::client::Resumption::disabled();
    let address = fs::read_to_string(Path::new(&stack.path("run/control.addr")))?.trim().to_owned();
    Ok(Tls { address, name: ServerName::try_from(stack.host().to_owned())?, config: Arc::new(config) })
}

fn connect(tls: &Tls) -> Result<Control<StreamOwned<ClientConnection, TcpStream>>> {
    let stream = TcpStream::connect(&tls.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let session = ClientConnection::new(Arc::clone(&tls.config), tls.name.clone())?;
    Ok(Control::over(StreamOwned::new(session, stream)))
}
