//! What people ask of this host by way of its collector: end a session, read the rules anew, answer.
//!
//! Each order is on record before it is acted upon, with who asked and why. Whether orders are taken at all is the host's own
//! decision (`collector.orders` in the configuration): whoever holds the collector can otherwise end a session, never open one.

use std::{path::PathBuf, sync::Arc, time::Duration};

use breakglass_api::v1::{CloseCause, CollectorOrder, Order, OrderDone, event::Body, order::What};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    grant::SessionError,
    machine::Machine,
    manager::{Journal, Manager},
};
use crate::{blocking, config::Config, control::verifier::Verifier};

/// Orders waiting to be carried out.
const WAITING_MAX: usize = 8;
/// Longest text taken from an order, bytes.
const TEXT_MAX: usize = 1024;
/// How long ending a session may take before its caller is told that it is under way.
const CLOSE_LIMIT: Duration = Duration::from_secs(8);

/// Where orders come in, each with where its answer goes.
pub type Desk = mpsc::Receiver<(Order, mpsc::Sender<OrderDone>)>;

/// A desk, and the way to it.
pub fn desk() -> (crate::ship::Orders, Desk) {
    mpsc::channel(WAITING_MAX)
}

/// What reads the rules anew.
#[derive(Clone)]
pub struct Rules {
    /// The configuration.
    pub config: PathBuf,
    /// Who holds proofs against them.
    pub verifier: Arc<Verifier>,
}

impl Rules {
    /// Reads the configuration and takes its section on grants over. On an error everything stays as it is.
    fn refresh(&self) -> Result<(), String> {
        let config = Config::load(&self.config).map_err(|error| error.to_string())?;
        self.verifier.refresh(&config.grant);
        Ok(())
    }
}

/// Carries out what comes, one after the other, until nobody can send any more.
pub async fn serve<M: Machine, J: Journal>(mut desk: Desk, manager: Manager<M, J>, rules: Rules) {
    while let Some((order, answer)) = desk.recv().await {
        let number = order.number;
        let (code, message) = carry_out(&manager, &rules, order).await;
        // Nobody listens if the connection broke: whoever asked sees that and asks again.
        let _ = answer.try_send(OrderDone { number, code: code.to_owned(), message });
    }
}

async fn carry_out<M: Machine, J: Journal>(
    manager: &Manager<M, J>,
    rules: &Rules,
    order: Order,
) -> (&'static str, String) {
    let (by, reason) = (cut(order.by), cut(order.reason));
    match order.what {
        Some(What::AreYouThere(_)) => ("done", format!("the host is {}", manager.view().state)),
        Some(What::Terminate(what)) => terminate(manager, &what.session, by, reason).await,
        Some(What::RefreshPolicy(_)) => refresh(manager, rules, by, reason).await,
        None => ("unknown", "this agent does not know that order; update it".to_owned()),
    }
}

async fn terminate<M: Machine, J: Journal>(
    manager: &Manager<M, J>,
    session: &str,
    by: String,
    reason: String,
) -> (&'static str, String) {
    let Ok(session) = Uuid::parse_str(session) else {
        return ("unknown", "the order names no session".to_owned());
    };
    if manager.view().session.is_none_or(|open| open.session != session) {
        return ("not-open", "that session is not open on this host".to_owned());
    }
    tracing::warn!(%session, by, reason, "the collector asks for the end of the session");
    let who = format!("{by} by way of the collector: {reason}");
    // Ending it makes the host safer, so that it goes ahead even where it cannot be recorded.
    note(manager, Some(session), "terminate", by, reason).await;
    let closing = {
        let manager = manager.clone();
        tokio::spawn(async move { manager.close(Some(session), CloseCause::Collector, &who).await })
    };
    match tokio::time::timeout(CLOSE_LIMIT, closing).await {
        Ok(Ok(Ok((_, closed)))) if closed.survivors.is_empty() => {
            ("done", format!("the account is locked and {} processes were killed", closed.killed))
        }
        Ok(Ok(Ok((_, closed)))) => {
            ("failed", format!("the account is locked, but {} processes could not be killed", closed.survivors.len()))
        }
        Ok(Ok(Err(SessionError::NotOpen))) => ("not-open", "that session has ended by itself meanwhile".to_owned()),
        Ok(Ok(Err(error))) => ("failed", error.to_string()),
        Ok(Err(_)) => ("failed", "ending the session failed; the agent's log says why".to_owned()),
        Err(_) => ("failed", "the session is being ended and is not over yet".to_owned()),
    }
}

async fn refresh<M: Machine, J: Journal>(
    manager: &Manager<M, J>,
    rules: &Rules,
    by: String,
    reason: String,
) -> (&'static str, String) {
    note(manager, None, "refresh-policy", by, reason).await;
    let rules = rules.clone();
    // It reads a file.
    match blocking::run(move || rules.refresh()).await {
        Ok(()) => ("done", "the rules about grants were read anew".to_owned()),
        Err(error) => ("failed", format!("the rules stay as they were: {error}")),
    }
}

async fn note<M: Machine, J: Journal>(
    manager: &Manager<M, J>,
    session: Option<Uuid>,
    what: &str,
    by: String,
    reason: String,
) {
    let order = CollectorOrder { what: what.to_owned(), by, reason };
    if let Err(error) = manager.journal().record(session, Body::CollectorOrder(order)).await {
        tracing::error!(%error, "an order of the collector could not be recorded");
    }
}

/// As much of a text as is kept, without cutting a character.
fn cut(mut text: String) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
