//! Failures as gRPC statuses with typed details, and back.

use prost::Message;
use tonic::{Code, Status};

use everwhen_engine::error::ErrorKind;
use everwhen_proto::v1;

use crate::failure::Failure;
use crate::wire;

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

/// What a failed call answers.
pub(crate) fn status_of(failure: &Failure) -> Status {
    status_with(code(failure.kind), failure)
}

/// What a failed call answers, with a code of its own.
pub(crate) fn status_with(code: Code, failure: &Failure) -> Status {
    let detail = wire::failure_out(failure);
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
        Some(detail) => wire::failure_in(status.message(), detail),
        None => foreign(status),
    }
}

/// A status without our detail: from the transport, or from a server of another kind or age.
fn foreign(status: &Status) -> Failure {
    let failure = Failure::new(ErrorKind::Failed, format!("the daemon's answer: {}", status.message()));
    match status.code() {
        Code::Unavailable => failure.advise("is the daemon running there? `everwhen run` starts one"),
        Code::Unimplemented => failure.advise("the other side is no Everwhen daemon, or an older one"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_comes_back_from_its_status() {
        let failure = Failure::new(ErrorKind::Damaged, "segment x is altered").advise("verify");
        let status = status_of(&failure);
        assert_eq!(status.code(), Code::DataLoss);
        assert_eq!(failure_of(&status), failure);
    }

    #[test]
    fn any_details_give_some_failure() {
        for details in [&b""[..], b"\xff\xff", b"\x1a\x02\x0a\x00"] {
            let status = Status::with_details(Code::Internal, "odd", details.to_vec().into());
            assert_eq!(failure_of(&status).kind, ErrorKind::Failed);
        }
    }
}
