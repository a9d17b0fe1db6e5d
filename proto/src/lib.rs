//! Everwhen's protobuf schemas and the code generated from them.
//!
//! The schemas under `everwhen/` are the manuals; read those. `tests/generated.rs` keeps the code in step.

/// Records in a repository (`everwhen/store/v1`).
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    clippy::redundant_closure_for_method_calls,
    clippy::uninlined_format_args,
    reason = "generated; the schema is the manual"
)]
pub mod store {
    include!("generated/everwhen.store.v1.rs");
}

/// The gRPC API (`everwhen/v1`).
#[cfg(feature = "api")]
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    clippy::redundant_closure_for_method_calls,
    clippy::uninlined_format_args,
    reason = "generated; the schema is the manual"
)]
pub mod v1 {
    include!("generated/everwhen.v1.rs");

    /// The encoded `FileDescriptorSet` of the API, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
}
