//! The questions that commands and API callers ask, whoever answers them.
//!
//! Three answer: a running daemon asked over its API (`client`), a repository read here (`reader`), and the daemon in
//! this process (`serve::daemon`). The commands are written against this trait, and so is the gRPC service.

use everwhen_engine::restore::Cancel;
use everwhen_proto::v1;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::failure::Failure;

/// An answer on its way.
pub(crate) type Answer<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// Answers in many parts. Dropping it cancels the work behind it.
pub(crate) type Parts<T> = BoxStream<'static, Result<T, Failure>>;

/// Someone who can answer. What each question means is said in `everwhen.proto`.
pub(crate) trait Answers: Send + Sync {
    fn databases(&self) -> Answer<'_, v1::ListDatabasesResponse>;
    fn add_database(&self, request: v1::AddDatabaseRequest) -> Answer<'_, v1::Database>;
    fn remove_database(&self, request: v1::RemoveDatabaseRequest) -> Answer<'_, v1::Database>;
    fn set_database(&self, request: v1::SetDatabaseRequest) -> Answer<'_, v1::Database>;
    fn status(&self, request: v1::GetStatusRequest) -> Answer<'_, v1::GetStatusResponse>;
    fn points(&self, request: v1::ListPointsRequest) -> Parts<v1::ListPointsResponse>;
    fn history(&self, request: v1::GetHistoryRequest) -> Answer<'_, v1::GetHistoryResponse>;
    fn resolve(&self, request: v1::ResolvePointRequest) -> Answer<'_, v1::ResolvePointResponse>;
    fn plan(&self, request: v1::PlanRestoreRequest) -> Answer<'_, v1::RestorePlan>;
    /// Stopped by `cancel`, or by being dropped.
    fn restore(&self, request: v1::RestoreRequest, cancel: Cancel) -> Parts<v1::RestoreResponse>;
    fn wait_durable(&self, request: v1::WaitDurableRequest) -> Answer<'_, v1::WaitDurableResponse>;
}
