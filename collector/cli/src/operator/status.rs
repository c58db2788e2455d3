//! How hosts stand.

use std::time::Duration;

use breakglass_api::v1::{Status, StatusRequest, control_request::Body as Request, control_response::Body as Answer};
use serde_json::json;

use super::{
    StatusArgs,
    client::Client,
    each,
    failure::{Failure, plain},
    print_out,
    target::Target,
};
use crate::config::Config;

pub(super) async fn status(args: &StatusArgs, config: &Config) -> Result<u8, Failure> {
    let targets = args.target.resolve_all(config)?;
    let several = targets.len() > 1;
    each(&targets, args.json, async |target| {
        let status = ask(target).await?;
        match args.json {
            true => print_out(&format!("{}\n", status_json(&status))),
            false => print_out(&format!("{}{}", status_text(&status), if several { "\n" } else { "" })),
        }
    })
    .await
}

async fn ask(target: &Target) -> Result<Status, Failure> {
    let mut client = Client::connect(target).await?;
    match client.ask(Request::Status(StatusRequest {})).await? {
        Answer::Status(status) => Ok(status),
        _ => Err(client.unexpected()),
    }
}

fn status_json(status: &Status) -> serde_json::Value {
    json!({
        "host_id": status.host_id,
        "hostname": status.hostname,
        "state": status.state,
        "agent_version": status.agent_version,
        "tier": status.tier,
        "tier_reason": status.tier_reason,
        "account": status.account,
        "session": status.session,
        "operator": status.operator,
        "reason": status.reason,
        "remaining_seconds": status.remaining_seconds,
        "live_processes": status.live_processes,
        "spool_frames": status.spool_frames,
        "spool_bytes": status.spool_bytes,
        "spool_in_memory": status.spool_in_memory,
        "last_seq": status.last_seq,
        "acked_seq": status.acked_seq,
        "collector_connected": status.collector_connected,
        "collector_error": status.collector_error,
        "door_error": status.door_error,
        "records": status.records,
        "missing": status.missing,
    })
}

/// For people. What a host leaves out (to callers from elsewhere it says little) is not shown.
pub(super) fn status_text(status: &Status) -> String {
    let mut lines =
        vec![("host", format!("{} ({})", status.hostname, status.host_id)), ("state", status.state.clone())];
    let mut add = |key, value: String| lines.push((key, value));
    if !status.session.is_empty() {
        add("session", status.session.clone());
        add("operator", status.operator.clone());
        add("reason", status.reason.clone());
        add("remaining", humantime::format_duration(Duration::from_secs(status.remaining_seconds)).to_string());
        add("processes", status.live_processes.to_string());
    }
    let why = if status.tier_reason.is_empty() { String::new() } else { format!(": {}", status.tier_reason) };
    add("recording", format!("{}{why}", status.tier));
    if !status.account.is_empty() {
        add("account", status.account.clone());
    }
    // Told only on the host itself; there is one count for each ring.
    if !status.records.is_empty() {
        add("records", format!("{}, missing {}", sum(&status.records), sum(&status.missing)));
        add("spool", format!("{} frames, {} bytes", status.spool_frames, status.spool_bytes));
        if !status.spool_in_memory.is_empty() {
            add("NOT ON DISK", status.spool_in_memory.clone());
        }
        add("shipped", format!("{} of {}", status.acked_seq, status.last_seq));
        let collector = match (status.collector_connected, status.collector_error.as_str()) {
            (true, "") => "connected".into(),
            (true, error) => format!("connected, but {error}"),
            (false, error) => error.into(),
        };
        add("collector", collector);
    }
    if !status.door_error.is_empty() {
        add("TLS CLOSED", status.door_error.clone());
    }
    add("agent", status.agent_version.clone());
    lines.iter().map(|(key, value)| format!("{key:<10} {}\n", plain(value))).collect()
}

fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}
