//! Failures as gRPC statuses with typed details, and back.

use prost::Message;
use tonic::{Code, Status};

use everwhen_engine::error::ErrorKind;
use everwhen_proto::v1;

use crate::failure::{Failure, Nearest};
use crate::view::PointView;
use crate::wire::point_out;

/// `google.rpc.Status`, the standard envelope of error details.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

const DETAIL_TYPE: &str = "type.googleapis.com/everwhen.v1.ErrorDetail";

/// The gRPC code of each kind. The documentation of it is at the top of `everwhen.proto`.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Failed => Code::Unknown,
        ErrorKind::Usage => Code::InvalidArgument,
        ErrorKind::Refused | ErrorKind::TargetUnfit => Code::FailedPrecondition,
        ErrorKind::NoSuchPoint => Code::NotFound,
        ErrorKind::Damaged => Code::DataLoss,
        ErrorKind::StoreUnreachable => Code::Unavailable,
    }
}

/// The API's name of a kind.
fn kind_out(kind: ErrorKind) -> v1::ErrorKind {
    match kind {
        ErrorKind::Failed => v1::ErrorKind::Failed,
        ErrorKind::Usage => v1::ErrorKind::Usage,
        ErrorKind::Refused => v1::ErrorKind::Refused,
        ErrorKind::NoSuchPoint => v1::ErrorKind::NoSuchPoint,
        ErrorKind::Damaged => v1::ErrorKind::Damaged,
        ErrorKind::StoreUnreachable => v1::ErrorKind::StoreUnreachable,
        ErrorKind::TargetUnfit => v1::ErrorKind::TargetUnfit,
    }
}

/// The engine's name of a kind; one that this version does not know is a failure.
fn kind_in(kind: v1::ErrorKind) -> ErrorKind {
    match kind {
        v1::ErrorKind::Unspecified | v1::ErrorKind::Failed => ErrorKind::Failed,
        v1::ErrorKind::Usage => ErrorKind::Usage,
        v1::ErrorKind::Refused => ErrorKind::Refused,
        v1::ErrorKind::NoSuchPoint => ErrorKind::NoSuchPoint,
        v1::ErrorKind::Damaged => ErrorKind::Damaged,
        v1::ErrorKind::StoreUnreachable => ErrorKind::StoreUnreachable,
        v1::ErrorKind::TargetUnfit => ErrorKind::TargetUnfit,
    }
}

/// A failure as a detail of a gRPC status.
pub(crate) fn failure_out(failure: &Failure) -> v1::ErrorDetail {
    let nearest = failure.nearest.as_deref().cloned().unwrap_or_default();
    let point = |point: PointView| point_out(point.position, point.time);
    v1::ErrorDetail {
        kind: kind_out(failure.kind).into(),
        advice: failure.advice.clone().unwrap_or_default(),
        nearest_before: nearest.before.map(point),
        nearest_after: nearest.after.map(point),
        chain: failure.chain.clone(),
    }
}

/// The failure that a detail of a gRPC status tells.
pub(crate) fn failure_in(message: &str, detail: v1::ErrorDetail) -> Failure {
    let mut failure = Failure::new(kind_in(detail.kind()), message);
    let nearest = Nearest {
        before: detail.nearest_before.map(PointView::from),
        after: detail.nearest_after.map(PointView::from),
    };
    failure.nearest = (nearest != Nearest::default()).then(|| Box::new(nearest));
    failure.advice = Some(detail.advice).filter(|advice| !advice.is_empty());
    if !detail.chain.is_empty() {
        failure.chain = detail.chain;
    }
    failure
}

/// What a failed call answers.
pub(crate) fn status_of(failure: &Failure) -> Status {
    status_with(code(failure.kind), failure)
}

/// What a failed call answers, with a code of its own.
pub(crate) fn status_with(code: Code, failure: &Failure) -> Status {
    let detail = failure_out(failure);
    let any = prost_types::Any { type_url: DETAIL_TYPE.into(), value: detail.encode_to_vec() };
    let envelope = RpcStatus { code: code.into(), message: failure.message(), details: vec![any] };
    Status::with_details(code, failure.message(), envelope.encode_to_vec().into())
}

/// What a status from a daemon (or from something that is none) means.
pub(crate) fn failure_of(status: &Status) -> Failure {
    let detail = RpcStatus::decode(status.details())
        .ok()
        .and_then(|envelope| envelope.details.into_iter().find(|any| any.type_url == DETAIL_TYPE))
        .and_then(|any| v1::ErrorDetail::decode(any.value.as_slice()).ok());
    match detail {
        Some(detail) => failure_in(status.message(), detail),
        None => foreign(status),
    }
}

/// A status without our detail: from the transport, or from a server of another kind or age.
fn foreign(status: &Status) -> Failure {
    let failure = Failure::new(ErrorKind::Failed, format!("the daemon's answer: {}", status.message()));
    match status.code() {
        Code::Unavailable => failure.advise("is the daemon running there? `everwhen run` starts one"),
        Code::Unimplemented => failure.advise("the other side is no Everwhen daemon, or an older one"),
        // What a connection says that broke.
        Code::Unknown | Code::Internal | Code::Cancelled => failure.advise(
            "the daemon has ended, perhaps: `everwhen status` tells. The same can be asked of the repository itself, with \
             --store instead of --addr",
        ),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use everwhen_engine::time::Timestamp;

    use super::*;

    #[test]
    fn a_failure_comes_back_from_its_status() {
        let failure = Failure::new(ErrorKind::Damaged, "segment x is altered").advise("verify");
        let status = status_of(&failure);
        assert_eq!(status.code(), Code::DataLoss);
        assert_eq!(failure_of(&status), failure);
    }

    #[test]
    fn a_failure_survives_the_wire() {
        let mut failure = Failure::new(ErrorKind::NoSuchPoint, "no point").advise("ask for another");
        failure.chain.push("a gap".into());
        failure.nearest = Some(Box::new(Nearest {
            before: Some(PointView { position: "1/0000000000000001".into(), time: Some(Timestamp::MIN) }),
            after: None,
        }));
        assert_eq!(failure_in("", failure_out(&failure)), failure);
    }

    #[test]
    fn any_details_give_some_failure() {
        for details in [&b""[..], b"\xff\xff", b"\x1a\x02\x0a\x00"] {
            let status = Status::with_details(Code::Internal, "odd", details.to_vec().into());
            assert_eq!(failure_of(&status).kind, ErrorKind::Failed);
        }
    }
}
