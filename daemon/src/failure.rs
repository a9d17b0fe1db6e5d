//! What a command or a call ends with when it does not succeed: the one shape of errors at the program's border.
//!
//! Every error of the engine becomes a [`Failure`]; a failure becomes an exit code and lines on standard error, a JSON
//! object there, or a gRPC status (`rpc`). Nothing is lost on the way: kind, chain, advice, neighbours.

use std::fmt::Write as _;

use everwhen_engine::error::{ErrorKind, Explain};
use serde::Serialize;

use crate::view::PointView;

/// The restore points around one that does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Nearest {
    /// The last one before it.
    pub(crate) before: Option<PointView>,
    /// The first one after it.
    pub(crate) after: Option<PointView>,
}

/// The documented form on standard error with `--json`.
#[derive(Serialize)]
struct Errors<'f> {
    error: ErrorView<'f>,
}

#[derive(Serialize)]
struct ErrorView<'f> {
    kind: &'static str,
    message: String,
    advice: Option<&'f str>,
    nearest: Nearest,
}

/// An error on its way out of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What it means; decides the exit code.
    pub(crate) kind: ErrorKind,
    /// The error and its causes, the outermost first. At least one.
    pub(crate) chain: Vec<String>,
    /// What to do next.
    pub(crate) advice: Option<String>,
    /// Neighbours, when no such point exists.
    pub(crate) nearest: Option<Box<Nearest>>,
    /// What was waited for has not come yet.
    pub(crate) time_is_up: bool,
    /// The reader of our output went away (`everwhen points | head`): not worth a word, and not an error.
    pub(crate) reader_gone: bool,
}

impl Failure {
    /// A failure that begins here.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let chain = vec![message.into()];
        Self { kind, chain, advice: None, nearest: None, time_is_up: false, reader_gone: false }
    }

    /// The request is not well formed.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// An operation on this machine went wrong.
    pub(crate) fn io(doing: impl Into<String>, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self { reader_gone: true, ..Self::new(ErrorKind::Failed, doing) };
        }
        Self::new(ErrorKind::Failed, doing).caused_by(error)
    }

    /// An engine error with its kind, advice and causes.
    pub(crate) fn of(error: &dyn Explain) -> Self {
        let failure = Self { advice: error.advice(), ..Self::new(error.kind(), error.to_string()) };
        match error.source() {
            Some(source) => failure.caused_by(source),
            None => failure,
        }
    }

    /// Adds a cause and its causes. A cause that its effect has already told is left out.
    pub(crate) fn caused_by(mut self, cause: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(cause);
        while let Some(error) = next {
            let text = error.to_string();
            if !text.is_empty() && !self.chain.iter().any(|told| told.contains(&text)) {
                self.chain.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Says what to do next, unless that is said already.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.get_or_insert_with(|| advice.into());
        self
    }

    /// Puts what was being done in front of the chain.
    pub(crate) fn while_(mut self, doing: impl Into<String>) -> Self {
        self.chain.insert(0, doing.into());
        self
    }

    /// The chain in one line.
    pub(crate) fn message(&self) -> String {
        self.chain.join(": ")
    }

    /// The process exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.reader_gone { 0 } else { self.kind.exit_code() }
    }

    /// What goes to standard error; empty when nothing needs to be said.
    pub(crate) fn render(&self, json: bool) -> String {
        match (self.reader_gone, json) {
            (true, _) => String::new(),
            (false, true) => self.render_json(),
            (false, false) => self.render_text(),
        }
    }

    fn render_json(&self) -> String {
        let error = ErrorView {
            kind: self.kind.name(),
            message: self.message(),
            advice: self.advice.as_deref(),
            nearest: self.nearest.as_deref().cloned().unwrap_or_default(),
        };
        // Texts and options of texts: writing them cannot fail.
        serde_json::to_string(&Errors { error }).unwrap_or_default() + "\n"
    }

    fn render_text(&self) -> String {
        let mut text = String::new();
        for (at, line) in self.chain.iter().enumerate() {
            let label = if at == 0 { "error:" } else { "  because" };
            let _ = writeln!(text, "{label} {line}");
        }
        let nearest = self.nearest.as_deref();
        for (label, point) in [
            ("nearest before:", nearest.and_then(|n| n.before.as_ref())),
            ("nearest after: ", nearest.and_then(|n| n.after.as_ref())),
        ] {
            if let Some(point) = point {
                let _ = writeln!(text, "  {label} {}", point.in_words());
            }
        }
        if let Some(advice) = &self.advice {
            let _ = writeln!(text, "advice: {advice}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read segment 7")]
    struct Outer(#[source] std::io::Error);

    impl Explain for Outer {
        fn kind(&self) -> ErrorKind {
            ErrorKind::StoreUnreachable
        }
        fn advice(&self) -> Option<String> {
            Some("look at the network".into())
        }
    }

    fn failure() -> Failure {
        let mut failure = Failure::of(&Outer(std::io::Error::other("connection reset")));
        failure.nearest = Some(Box::new(Nearest {
            before: Some(PointView {
                position: "1/0000000000000002".into(),
                time: Some("2026-11-21T14:03:00Z".parse().unwrap()),
            }),
            after: None,
        }));
        failure
    }

    #[test]
    fn text_has_the_chain_the_neighbours_and_the_advice() {
        let text = failure().render(false);
        assert!(text.starts_with("error: cannot read segment 7\n  because connection reset\n"), "{text}");
        assert!(text.contains("nearest before: 1/0000000000000002"), "{text}");
        assert!(text.ends_with("advice: look at the network\n"), "{text}");
    }

    #[test]
    fn json_is_the_documented_contract() {
        let json: serde_json::Value = serde_json::from_str(&failure().render(true)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error": {
                "kind": "store_unreachable",
                "message": "cannot read segment 7: connection reset",
                "advice": "look at the network",
                "nearest": {
                    "before": {"position": "1/0000000000000002", "time": "2026-11-21T14:03:00.000000Z"},
                    "after": null,
                },
            }})
        );
        assert_eq!(failure().exit_code(), 6);
    }

    #[test]
    fn a_cause_is_told_once() {
        let told = Failure::new(ErrorKind::Failed, "open x: no such file")
            .caused_by(&std::io::Error::other("no such file"));
        assert_eq!(told.chain.len(), 1);
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let gone = Failure::io("write to standard output", &std::io::ErrorKind::BrokenPipe.into());
        assert_eq!((gone.exit_code(), gone.render(true)), (0, String::new()));
    }
}
