//! Acting by way of the collector: orders, alarms, who may.

use std::time::{SystemTime, UNIX_EPOCH};

use breakglass_api::v1::agent_message::Body as Up;
use breakglass_api::v1::collector_message::Body as Down;
use breakglass_api::v1::enrol_client::EnrolClient;
use breakglass_api::v1::ingest_client::IngestClient;
use breakglass_api::v1::manage_client::ManageClient;
use breakglass_api::v1::order::What;
use breakglass_api::v1::*;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::*;

async fn manage(collector: &Collector, name: &str, role: &str) -> ManageClient<Channel> {
    collector.person(name, role).await;
    ManageClient::new(collector.channel(&collector.path(&format!("{role}-{name}")), "person").await)
}

/// Connects as an agent that takes orders and keeps talking.
async fn talkative(collector: &Collector, host: &HostIdentity, stream: u8) -> Agent {
    let hello = Hello { takes_orders: true, keeps_talking: true, ..hello(host, [stream; 16], 0) };
    Agent::try_connect(collector, host, hello).await.unwrap().ok().unwrap()
}

/// Answers the next order with `code`; returns it.
async fn obey(agent: &mut Agent, code: &str) -> Order {
    loop {
        match agent.next().await.unwrap() {
            Some(Down::Order(order)) => {
                let done = OrderDone { number: order.number, code: code.into(), message: "so be it".into() };
                agent.up.send(AgentMessage { body: Some(Up::OrderDone(done)) }).await.unwrap();
                return order;
            }
            Some(Down::Ack(_) | Down::Pong(_)) => {}
            other => panic!("expected an order: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_reviewer_ends_a_session_and_that_is_written_down() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut agent = talkative(&collector, &host, 1).await;
    let mut spool = Spool::new(1);
    agent.send(spool.frame(Some(session_id(1)), vec![opened("alice")])).await;
    agent.acked(1).await;

    let mut rita = manage(&collector, "rita", "reviewer").await;
    let terminate = |reason: &str| TerminateRequest { session: session_text(1), reason: reason.into() };
    let (answer, order) = tokio::join!(rita.terminate(terminate("enough")), obey(&mut agent, "done"));
    let answer = answer.unwrap().into_inner();
    assert_eq!((answer.code.as_str(), answer.message.as_str()), ("done", "so be it"));
    assert_eq!((answer.hostname.as_str(), answer.session), ("web1", session_text(1)));
    assert_eq!((order.by.as_str(), order.reason.as_str()), ("reviewer/rita", "enough"));
    assert_eq!(order.what, Some(What::Terminate(TerminateSession { session: session_text(1) })));

    for reason in ["", "  ", "two\nlines", "\u{1b}[2J", &"x".repeat(2000)] {
        assert_code(rita.terminate(terminate(reason)).await, Code::InvalidArgument);
    }
    let unknown = TerminateRequest { session: session_text(9), reason: "x".into() };
    assert_code(rita.terminate(unknown).await, Code::NotFound);

    // A host that is gone: an answer, not an error, and written down like any other.
    drop(agent);
    let gone = eventually(async || {
        let answer = rita.reach(ReachRequest { host: "web1".into() }).await.unwrap().into_inner();
        (answer.code == "not-connected").then_some(answer)
    });
    assert!(gone.await.message.contains("not connected"));

    let mut adam = manage(&collector, "adam", "admin").await;
    let acts = adam.list_acts(ListActsRequest { limit: 1000 }).await.unwrap().into_inner().acts;
    let act = acts.last().unwrap();
    assert_eq!((act.who.as_str(), act.what.as_str(), act.reason.as_str()), ("reviewer/rita", "terminate", "enough"));
    assert_eq!(
        (act.host_id.as_str(), &act.session, act.outcome.as_str()),
        (host.id.as_str(), &session_text(1), "done: so be it")
    );
    assert!(acts.iter().any(|act| act.what == "reach" && act.outcome.starts_with("not-connected")));
}

#[tokio::test]
async fn an_agent_that_takes_no_orders_is_sent_none() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let agent = Agent::connect(&collector, &host, [1; 16], 0).await;
    let mut adam = manage(&collector, "adam", "admin").await;
    let request = RefreshRequest { host: "web1".into(), reason: "new rules".into() };
    assert_eq!(adam.refresh(request).await.unwrap().into_inner().code, "takes-no-orders");
    drop(agent);
}

#[tokio::test]
async fn silence_raises_an_alarm_in_time_and_lasts_until_the_host_is_heard() {
    let mut collector = Collector::start();
    let (web, db) = (collector.enroll_host("web1"), collector.enroll_host("db1"));
    let mut rita = manage(&collector, "rita", "reviewer").await;
    let mut broken = talkative(&collector, &web, 1).await;
    let resting = talkative(&collector, &db, 2).await;
    broken.send(Spool::new(1).frame(Some(session_id(1)), vec![opened("alice")])).await;
    broken.acked(1).await;
    let fell_silent = wall_ns();
    // As the collector stamped it: how soon this test gets to ask says nothing.
    let after = |alarm: &Alarm| (alarm.began_ns - fell_silent) as f64 / 1e9;

    // Both connections stay up: a host that hangs looks like this.
    let first = eventually(async || alarms(&mut rita).await.into_iter().next()).await;
    assert!(after(&first) < 3.0, "{} s", after(&first));
    assert_eq!(
        (first.code.as_str(), first.hostname.as_str(), &first.session),
        ("silent-in-session", "web1", &session_text(1))
    );
    let second = eventually(async || alarms(&mut rita).await.into_iter().find(|alarm| alarm.hostname == "db1")).await;
    assert!((4.0..10.0).contains(&after(&second)), "{} s", after(&second));
    assert_eq!((second.code.as_str(), second.ended_ns), ("silent", 0));
    assert_eq!(alarms(&mut rita).await.len(), 2, "once for each silence");

    // Neither a restart of the collector nor being heard again makes it unseen.
    drop((broken, resting));
    collector.kill();
    collector.serve();
    let mut rita = manage(&collector, "rita", "reviewer").await;
    let _back = talkative(&collector, &web, 1).await;
    let over =
        eventually(async || alarms(&mut rita).await.into_iter().find(|a| a.id == first.id && a.ended_ns > 0)).await;
    assert!(over.reviewed_by.is_empty());
    let review = ReviewAlarmRequest { id: first.id, note: "the switch was rebooted".into() };
    let reviewed = rita.review_alarm(review).await.unwrap().into_inner();
    assert_eq!((reviewed.reviewed_by.as_str(), reviewed.note.as_str()), ("reviewer/rita", "the switch was rebooted"));
    assert!(alarms(&mut rita).await.iter().all(|alarm| alarm.id != first.id));
    assert_code(rita.review_alarm(ReviewAlarmRequest { id: 99, note: "x".into() }).await, Code::NotFound);

    // A retired host may be silent, and is not let in again.
    run_ok(&["enroll", "retire", &db.id, "--dir", collector.home()]);
    eventually(async || alarms(&mut rita).await.iter().any(|a| a.id == second.id && a.ended_ns > 0).then_some(()))
        .await;
    assert_code(Agent::try_connect(&collector, &db, hello(&db, [2; 16], 0)).await.map(drop), Code::PermissionDenied);
}

fn wall_ns() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

async fn alarms(client: &mut ManageClient<Channel>) -> Vec<Alarm> {
    client.list_alarms(ListAlarmsRequest { open_only: true, limit: 0 }).await.unwrap().into_inner().alarms
}

/// Whether a role gets past the door of a call; what happens behind it is for other tests.
fn admitted<T>(answer: Result<T, tonic::Status>) -> bool {
    match answer {
        Ok(_) => true,
        Err(status) => !matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated),
    }
}

/// Every call there is, by who may make it.
#[tokio::test]
async fn every_call_is_for_the_roles_that_the_table_says() {
    const ROLES: [&str; 5] = ["nobody", "host", "operator", "reviewer", "admin"];
    // One letter a role, in that order: may (y) or may not (n).
    const TABLE: &[(&str, &str)] = &[
        ("Ingest.Stream", "nynnn"),
        ("Query.ListHosts", "nnnyy"),
        ("Query.ListSessions", "nnyyy"),
        ("Query.GetSession", "nnyyy"),
        ("Query.ListCommands", "nnyyy"),
        ("Query.Replay", "nnyyy"),
        ("Query.Events", "nnyyy"),
        ("Query.Search", "nnyyy"),
        ("Query.ExportEvidence", "nnnyy"),
        ("Query.SubmitReview", "nnnyy"),
        ("Manage.Terminate", "nnnyy"),
        ("Manage.Refresh", "nnnyy"),
        ("Manage.Reach", "nnnyy"),
        ("Manage.ListAlarms", "nnnyy"),
        ("Manage.ReviewAlarm", "nnnyy"),
        ("Manage.ListActs", "nnnny"),
        ("Enrol.Join", "yyyyy"),
        ("Enrol.Renew", "nynnn"),
        ("Health.Check", "nyyyy"),
    ];
    let services = ["Ingest", "Query", "Manage", "Enrol"].map(|name| format!("breakglass.v1.{name}"));
    let known: Vec<String> = calls(&services).into_iter().map(|call| call.replace("breakglass.v1.", "")).collect();
    let listed: Vec<&str> = TABLE.iter().map(|(call, _)| *call).collect();
    for call in &known {
        assert!(listed.contains(&call.as_str()), "{call} is not in the table");
    }
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    for (at, role) in ROLES.iter().enumerate() {
        let channel = match *role {
            "nobody" => collector.stranger().await,
            "host" => collector.channel(&host.dir, "host").await,
            role => {
                collector.person("pat", role).await;
                collector.channel(&collector.path(&format!("{role}-pat")), "person").await
            }
        };
        for (call, may) in TABLE {
            let expected = may.as_bytes()[at] == b'y';
            assert_eq!(admitted(make(call, channel.clone(), &host).await), expected, "{role} and {call}");
        }
    }
}

fn calls(services: &[String]) -> Vec<String> {
    use prost::Message as _;
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut out = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            assert!(services.contains(&name), "{name} is not in the table");
            out.extend(service.method.iter().map(|method| format!("{name}.{}", method.name())));
        }
    }
    out
}

async fn make(call: &str, channel: Channel, host: &HostIdentity) -> Result<(), tonic::Status> {
    let session = session_text(7);
    let (query, manage, enrol) =
        (query_client(channel.clone()), ManageClient::new(channel.clone()), EnrolClient::new(channel.clone()));
    let (mut query, mut manage, mut enrol) = (query, manage, enrol);
    match call {
        "Ingest.Stream" => {
            let (up, outgoing) = tokio::sync::mpsc::channel(1);
            up.send(AgentMessage { body: Some(Up::Hello(hello(host, [7; 16], 0))) }).await.unwrap();
            let stream = tokio_stream::wrappers::ReceiverStream::new(outgoing);
            IngestClient::new(channel).stream(stream).await.map(drop)
        }
        "Query.ListHosts" => query.list_hosts(ListHostsRequest {}).await.map(drop),
        "Query.ListSessions" => query.list_sessions(ListSessionsRequest::default()).await.map(drop),
        "Query.GetSession" => query.get_session(GetSessionRequest { session }).await.map(drop),
        "Query.ListCommands" => {
            query.list_commands(ListCommandsRequest { session, ..Default::default() }).await.map(drop)
        }
        "Query.Replay" => query.replay(ReplayRequest { session, ..Default::default() }).await.map(drop),
        "Query.Events" => query.events(EventsRequest { session, ..Default::default() }).await.map(drop),
        "Query.Search" => query.search(SearchRequest { text: "abc".into(), ..Default::default() }).await.map(drop),
        "Query.ExportEvidence" => {
            query.export_evidence(ExportEvidenceRequest { session, ..Default::default() }).await.map(drop)
        }
        "Query.SubmitReview" => query.submit_review(SubmitReviewRequest::default()).await.map(drop),
        "Manage.Terminate" => manage.terminate(TerminateRequest { session, reason: "x".into() }).await.map(drop),
        "Manage.Refresh" => manage.refresh(RefreshRequest { host: "none".into(), reason: "x".into() }).await.map(drop),
        "Manage.Reach" => manage.reach(ReachRequest { host: "none".into() }).await.map(drop),
        "Manage.ListAlarms" => manage.list_alarms(ListAlarmsRequest::default()).await.map(drop),
        "Manage.ReviewAlarm" => manage.review_alarm(ReviewAlarmRequest { id: 9, note: "x".into() }).await.map(drop),
        "Manage.ListActs" => manage.list_acts(ListActsRequest::default()).await.map(drop),
        // Refused for what it says, not for who says it.
        "Enrol.Join" => enrol.join(JoinRequest::default()).await.map(drop),
        "Enrol.Renew" => enrol.renew(RenewRequest::default()).await.map(drop),
        "Health.Check" => {
            let request = tonic_health::pb::HealthCheckRequest::default();
            tonic_health::pb::health_client::HealthClient::new(channel).check(request).await.map(drop)
        }
        other => panic!("{other}"),
    }
}
