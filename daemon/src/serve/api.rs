//! The gRPC service: each call is a question to [`Answers`], each failure a status with details. Nothing else.
//!
//! Roles and tokens will be checked in [`admit`], the one place that every call passes.

use std::sync::Arc;

use everwhen_engine::restore::Cancel;
use everwhen_proto::v1;
use everwhen_proto::v1::everwhen_server::{Everwhen, EverwhenServer};
use futures::{StreamExt, TryStreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use crate::answers::{Answers, Parts};
use crate::failure::Failure;
use crate::rpc::{status_of, status_with};

/// The service, ready to be served.
pub(crate) type Service =
    InterceptedService<EverwhenServer<Api>, fn(Request<()>) -> Result<Request<()>, Status>>;

/// The service over someone who answers.
pub(crate) fn service(answers: Arc<dyn Answers>) -> Service {
    EverwhenServer::with_interceptor(Api { answers }, admit)
}

/// Decides whether a call may go on. Everyone who reaches the daemon may: doors beyond this machine must be opened by
/// name, and the sockets belong to the daemon's user.
#[expect(clippy::unnecessary_wraps, reason = "tonic's form of an interceptor")]
fn admit(request: Request<()>) -> Result<Request<()>, Status> {
    Ok(request)
}

/// See the module.
pub(crate) struct Api {
    answers: Arc<dyn Answers>,
}

type Reply<T> = Result<Response<T>, Status>;

fn reply<T>(answer: Result<T, Failure>) -> Reply<T> {
    answer.map(Response::new).map_err(|failure| status_of(&failure))
}

/// The first part decides between an error of the call and a stream.
async fn reply_in_parts<T: Send + 'static>(mut parts: Parts<T>) -> Reply<StatusParts<T>> {
    let first = parts.next().await.transpose().map_err(|failure| status_of(&failure))?;
    let rest = parts.map_err(|failure| status_of(&failure));
    Ok(Response::new(futures::stream::iter(first.map(Ok)).chain(rest).boxed()))
}

type StatusParts<T> = futures::stream::BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Everwhen for Api {
    async fn list_databases(&self, _: Request<v1::ListDatabasesRequest>) -> Reply<v1::ListDatabasesResponse> {
        reply(self.answers.databases().await)
    }

    async fn add_database(&self, request: Request<v1::AddDatabaseRequest>) -> Reply<v1::AddDatabaseResponse> {
        let added = self.answers.add_database(request.into_inner()).await;
        reply(added.map(|database| v1::AddDatabaseResponse { database: Some(database) }))
    }

    async fn remove_database(
        &self,
        request: Request<v1::RemoveDatabaseRequest>,
    ) -> Reply<v1::RemoveDatabaseResponse> {
        let removed = self.answers.remove_database(request.into_inner()).await;
        reply(removed.map(|database| v1::RemoveDatabaseResponse { database: Some(database) }))
    }

    async fn set_database(&self, request: Request<v1::SetDatabaseRequest>) -> Reply<v1::SetDatabaseResponse> {
        let set = self.answers.set_database(request.into_inner()).await;
        reply(set.map(|database| v1::SetDatabaseResponse { database: Some(database) }))
    }

    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Reply<v1::GetStatusResponse> {
        reply(self.answers.status(request.into_inner()).await)
    }

    type ListPointsStream = StatusParts<v1::ListPointsResponse>;

    async fn list_points(&self, request: Request<v1::ListPointsRequest>) -> Reply<Self::ListPointsStream> {
        reply_in_parts(self.answers.points(request.into_inner())).await
    }

    async fn get_history(&self, request: Request<v1::GetHistoryRequest>) -> Reply<v1::GetHistoryResponse> {
        reply(self.answers.history(request.into_inner()).await)
    }

    async fn resolve_point(
        &self,
        request: Request<v1::ResolvePointRequest>,
    ) -> Reply<v1::ResolvePointResponse> {
        reply(self.answers.resolve(request.into_inner()).await)
    }

    async fn plan_restore(&self, request: Request<v1::PlanRestoreRequest>) -> Reply<v1::PlanRestoreResponse> {
        let plan = self.answers.plan(request.into_inner()).await;
        reply(plan.map(|plan| v1::PlanRestoreResponse { plan: Some(plan) }))
    }

    type RestoreStream = StatusParts<v1::RestoreResponse>;

    async fn restore(&self, request: Request<v1::RestoreRequest>) -> Reply<Self::RestoreStream> {
        let request = request.into_inner();
        if !request.to.starts_with('/') {
            let failure = Failure::usage(format!("'{}' is not an absolute path", request.to))
                .advise("name the file as the daemon's machine sees it, from /");
            return Err(status_of(&failure));
        }
        reply_in_parts(self.answers.restore(request, Cancel::new())).await
    }

    async fn wait_durable(&self, request: Request<v1::WaitDurableRequest>) -> Reply<v1::WaitDurableResponse> {
        let waited = self.answers.wait_durable(request.into_inner()).await;
        waited.map(Response::new).map_err(|failure| match failure.time_is_up {
            true => status_with(Code::DeadlineExceeded, &failure),
            false => status_of(&failure),
        })
    }
}
