//! The scheduler: carries every deployment from request to end.
//!
//! It is a reconciler. A message only says *which* deployment to look at; [`reconcile`](reconcile::Scheduler::reconcile) reads
//! what the database holds for it (undecided commands, results not yet applied, time that has passed, a free lock) and
//! moves it through `domain::deployment`, one transaction a move. It is right when called twice, late, or by two processes.

mod amend;
mod bundles;
mod change;
mod decide;
mod gate;
mod gauges;
mod overriding;
mod planner;
mod promotion;
mod reconcile;
mod request;
mod rights;
mod rollback;

pub use reconcile::run;

/// Why a person's or a program's wish is not carried out: its stable code and the text.
type Refused = (&'static str, String);

/// What can go wrong while reconciling. All of it is retried: nothing here loses a command or a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store failed")]
    Store(#[from] windlass_store::Error),
    #[error("a stored {0} is missing though a row refers to it")]
    Missing(&'static str),
}

impl Error {
    /// Another process was quicker, or the database asks to try again.
    fn is_retryable(&self) -> bool {
        match self {
            Error::Store(e) => e.is_retryable() || e.is_unique_violation(),
            Error::Missing(_) => false,
        }
    }
}
