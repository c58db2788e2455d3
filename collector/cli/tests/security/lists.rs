//! Alerts and acts of a collector that has none.

use breakglass_api::v1::{self, manage_server::Manage};
use tonic::{Request, Response, Status};

use crate::{fake::Fake, run::run, sample};

/// A collector on which nobody did anything.
pub struct Nothing;

fn not_asked<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("nobody asks this here"))
}

#[tonic::async_trait]
impl Manage for Nothing {
    async fn terminate(&self, _: Request<v1::TerminateRequest>) -> Result<Response<v1::OrderAnswer>, Status> {
        not_asked()
    }

    async fn refresh(&self, _: Request<v1::RefreshRequest>) -> Result<Response<v1::OrderAnswer>, Status> {
        not_asked()
    }

    async fn reach(&self, _: Request<v1::ReachRequest>) -> Result<Response<v1::OrderAnswer>, Status> {
        not_asked()
    }

    async fn list_alarms(&self, _: Request<v1::ListAlarmsRequest>) -> Result<Response<v1::ListAlarmsResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn review_alarm(&self, _: Request<v1::ReviewAlarmRequest>) -> Result<Response<v1::Alarm>, Status> {
        not_asked()
    }

    async fn list_acts(&self, _: Request<v1::ListActsRequest>) -> Result<Response<v1::ListActsResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

#[test]
fn an_empty_list_is_no_failure_for_people_and_for_programs() {
    let fake = Fake::start(sample::answers());
    for args in [&["alerts"][..], &["alerts", "--open"], &["acts"], &["alerts", "--json"], &["acts", "--json"]] {
        let output = run(&fake, args);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(0), true), "{args:?}");
        assert_ne!(output.stderr.is_empty(), !args.contains(&"--json"), "{args:?}: people are told");
    }
}
