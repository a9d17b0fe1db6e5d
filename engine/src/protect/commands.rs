//! What other threads ask of the capture thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::history::Point;

/// One request.
pub(crate) enum Command {
    /// Capture what is committed now and ship it; answers with the last captured point.
    Flush(oneshot::Sender<Option<Point>>),
    /// Make everything safe and end.
    Stop,
}

/// The capture thread's end of the line. Once told to stop, it is told so at every question.
pub(crate) struct Commands {
    line: Receiver<Command>,
    /// Taken off the line by a question about stopping.
    waiting: RefCell<VecDeque<Command>>,
    stopped: Cell<bool>,
}

impl Commands {
    pub(crate) fn new(line: Receiver<Command>) -> Self {
        Self { line, waiting: RefCell::default(), stopped: Cell::new(false) }
    }

    /// The next command, if there is one.
    pub(crate) fn next(&self) -> Option<Command> {
        self.next_within(Duration::ZERO)
    }

    /// The next command, waiting so long for it.
    pub(crate) fn next_within(&self, patience: Duration) -> Option<Command> {
        if self.stopped.get() {
            return Some(Command::Stop);
        }
        if let Some(command) = self.waiting.borrow_mut().pop_front() {
            return Some(command);
        }
        match self.line.recv_timeout(patience) {
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                self.stopped.set(true);
                Some(Command::Stop)
            }
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
        }
    }

    /// Whether a stop is asked for. Other commands stay on the line.
    pub(crate) fn told_to_stop(&self) -> bool {
        while !self.stopped.get() {
            match self.line.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => self.stopped.set(true),
                Ok(command) => self.waiting.borrow_mut().push_back(command),
                Err(TryRecvError::Empty) => break,
            }
        }
        self.stopped.get()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_question_about_stopping_takes_no_other_command_away() {
        let (send, line) = channel();
        let commands = Commands::new(line);
        assert!(!commands.told_to_stop() && commands.next().is_none());
        send.send(Command::Flush(oneshot::channel().0)).unwrap();
        assert!(!commands.told_to_stop());
        assert!(matches!(commands.next(), Some(Command::Flush(_))));
        send.send(Command::Stop).unwrap();
        assert!(commands.told_to_stop());
        assert!(matches!(commands.next(), Some(Command::Stop)) && commands.told_to_stop());
    }
}
