//! Histories of what clients asked and were told, and whether one copy of the data could have answered so.
//!
//! | module | what it answers |
//! |---|---|
//! | [`recorder`] | who asked what, when, and what came back |
//! | [`linearize`] | whether some order of the operations, within the time that each took, explains every answer (Wing and Gong, with Lowe's memory) |
//! | [`objects`] | what one copy of the store would have answered: create, put, delete, get, list, each with revisions |
//!
//! [`objects::check`] is what most callers want.

pub mod linearize;
pub mod objects;
pub mod recorder;

pub use recorder::{Recorder, Token};

/// What became of an operation, as far as its client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<A> {
    /// It was answered.
    Ok(A),
    /// It surely did not happen and never will.
    Failed,
    /// It may have happened, may happen at any later time, or never.
    Unknown,
}

/// Something that a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<C, A> {
    /// Who asked.
    pub client: u64,
    /// When it was asked, in nanoseconds. No two moments of a history are the same.
    pub invoked: u64,
    /// When its client was told, in nanoseconds; of no meaning where the outcome is unknown.
    pub returned: u64,
    /// What was asked.
    pub call: C,
    /// What came of it.
    pub outcome: Outcome<A>,
}

impl<C, A> Operation<C, A> {
    /// The answer, where there was one.
    pub fn answer(&self) -> Option<&A> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            Outcome::Failed | Outcome::Unknown => None,
        }
    }
}
