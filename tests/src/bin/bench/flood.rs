//! A thousand wrong proofs a second: what they cost the agent, and what becomes of a right one.
//!
//! The wrong ones are as dear as they can be made: a text that holds in everything, with a signature by a listed key over another text, so
//! that only the arithmetic tells. They come from the same source as the right one: over connections that stay, and, over TLS, over a new
//! one each.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
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
/// Connections that send them.
const SENDERS: u64 = 8;
/// Right ones measured.
const OPENINGS: u64 = 40;

/// How wrong proofs come.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Socket,
    NewTls,
}

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (way, name) in [(Way::Socket, "over open connections"), (Way::NewTls, "over TLS, a connection each")] {
        figures.extend(Stack::with(Options::default(), |stack| flood(stack, way, name, effort))?);
    }
    Ok(figures)
}

fn flood(stack: &Stack, way: Way, name: &str, effort: Effort) -> Result<Vec<Figure>> {
    let signature = seen_signature(stack)?;
    let over = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    let (cpu, mut agent, mut rates) = thread::scope(|scope| {
        let senders: Vec<_> =
            (0..SENDERS).map(|_| scope.spawn(|| send(stack, way, &signature, &over, &answered))).collect();
        let measured = during(stack, way, &answered, effort);
        over.store(true, Ordering::SeqCst);
        for sender in senders {
            sender.join().ok().context("a sender died")??;
        }
        measured
    })?;
    agent.retain(|ms| ms.is_finite());
    // The first second is the one before the source is known.
    rates.drain(..rates.len().min(1));
    Ok(vec![
        Figure::new(format!("wrong proofs {name}: the agent's cores"), "cores", cpu, Budget::P95AtMost(0.25)),
        Figure::new(format!("wrong proofs {name}: answered"), "1/s", rates, Budget::None),
        Figure::new(format!("a right one meanwhile ({name}): the agent itself"), "ms", agent, Budget::P95AtMost(30.0)),
    ])
}

/// Right proofs, one after the other, and the agent's processor time for each second.
fn during(stack: &Stack, way: Way, answered: &AtomicU64, effort: Effort) -> Result<(Vec<f64>, Vec<f64>, Vec<f64>)> {
    poll::until_true("wrong proofs to be answered", poll::SOON, || Ok(answered.load(Ordering::SeqCst) > 50))?;
    // First what wrong ones cost alone.
    let (mut cpu, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..effort.runs(20).max(4) {
        let (before, count, start) =
            (machine::cpu_seconds(stack.agent.pid())?, answered.load(Ordering::SeqCst), Instant::now());
        thread::sleep(Duration::from_secs(1));
        let seconds = start.elapsed().as_secs_f64();
        cpu.push((machine::cpu_seconds(stack.agent.pid())? - before) / seconds);
        rates.push((answered.load(Ordering::SeqCst) - count) as f64 / seconds);
    }
    let mut agent = Vec::new();
    for _ in 0..effort.runs(OPENINGS) {
        let opened = match way {
            Way::Socket => {
                let mut control = stack.control()?;
                let proof = prove(&request(&control.challenge()?, OPERATOR, "in the flood", 600)?, &stack.key())?;
                let opened = control.open(&proof.text, &proof.signature)?;
                opened.map_err(|refused| anyhow::anyhow!("{}: {}", refused.code, refused.message))?.agent_us
            }
            Way::NewTls => stack.open("in the flood", "10m")?.agent_us,
        };
        agent.push(opened as f64 / 1000.0);
        stack.control()?.close()?;
        stack.wait_for_state("locked")?;
    }
    Ok((cpu, agent, rates))
}

/// A signature that everybody can have who has seen one by somebody who is listed.
fn seen_signature(stack: &Stack) -> Result<Vec<u8>> {
    let mut control = stack.control()?;
    Ok(prove(&request(&control.challenge()?, OPERATOR, "another text", 600)?, &stack.key())?.signature)
}

fn send(stack: &Stack, way: Way, signature: &[u8], over: &AtomicBool, answered: &AtomicU64) -> Result<()> {
    let pause = Duration::from_micros(1_000_000 * SENDERS / RATE);
    let tls = tls(stack)?;
    let (mut made, mut proof): (Option<Instant>, Option<Proof>) = (None, None);
    let mut socket = stack.control()?;
    let mut next = Instant::now();
    while !over.load(Ordering::SeqCst) {
        // A challenge is good for a minute, and a wrong proof does not use it up.
        if made.is_none_or(|at| at.elapsed() > Duration::from_secs(20)) {
            let challenge = stack.control()?.challenge()?;
            let text = request(&challenge, OPERATOR, "a wrong one", 600)?.encode()?.into_bytes();
            proof = Some(Proof { text, signature: signature.to_vec() });
            made = Some(Instant::now());
        }
        let Some(proof) = &proof else { continue };
        let refused = match way {
            // Room is made at the cost of those that sent wrong proofs: then it is connected anew.
            Way::Socket => match socket.open(&proof.text, &proof.signature) {
                Ok(answer) => Some(answer),
                Err(_) => {
                    socket = stack.control()?;
                    None
                }
            },
            Way::NewTls => connect(&tls).and_then(|mut control| control.open(&proof.text, &proof.signature)).ok(),
        };
        if let Some(answer) = refused {
            ensure!(
                answer.is_err_and(|refused| refused.code == "bad-signature"),
                "a wrong proof is not refused as one"
            );
            answered.fetch_add(1, Ordering::SeqCst);
        }
        next += pause;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
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
    stream.set_read_timeout(Some(poll::SOON))?;
    let session = ClientConnection::new(Arc::clone(&tls.config), tls.name.clone())?;
    Ok(Control::over(StreamOwned::new(session, stream)))
}
