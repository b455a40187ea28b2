//! The one error envelope: RFC 9457 problem details, whatever went wrong and wherever.

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use uuid::Uuid;
use windlass_contracts::http::{self as body, Fault};

/// The code of a command that was refused because too many wait.
const QUEUE_FULL: &str = "queue_full";
/// When to come again then: as long as a scheduler takes that has to poll.
const QUEUE_FULL_S: u64 = 5;
/// When to come again where no stream is free.
const STREAMS_FULL_S: u64 = 5;

/// An answer that is not a success. `code` is stable; `detail` says what to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: Box<str>,
    pub(crate) detail: String,
    pub(crate) errors: Vec<Fault>,
    pub(crate) command: Option<Uuid>,
    /// Seconds.
    pub(crate) retry_after: Option<u64>,
    pub(crate) allow: Option<Box<str>>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Problem {
        Problem {
            status,
            code: code.into(),
            detail: detail.into(),
            errors: vec![],
            command: None,
            retry_after: None,
            allow: None,
        }
    }

    /// The same words whether the thing does not exist or may not be seen.
    pub(crate) fn not_found() -> Problem {
        let detail = "there is nothing here, or this token may not see it; check the address and the token's grants";
        Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
    }
    pub(crate) fn invalid(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "invalid", detail)
    }
    pub(crate) fn unprocessable(detail: impl Into<String>, errors: Vec<Fault>) -> Problem {
        Problem { errors, ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail) }
    }
    pub(crate) fn conflict(code: &str, detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::CONFLICT, code, detail)
    }
    pub(crate) fn unauthorized(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }
    pub(crate) fn forbidden(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }
    pub(crate) fn too_large(limit: u64) -> Problem {
        let detail = format!("the body is larger than {limit} bytes; send less, or raise the limit in the settings");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }
    pub(crate) fn too_many(seconds: u64) -> Problem {
        let detail = format!("too many requests; try again in {seconds} s");
        let p = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail);
        Problem { retry_after: Some(seconds), ..p }
    }
    /// `waiting` commands are as many as may wait. Whoever asked has to come again: nothing is kept of what was asked.
    pub(crate) fn queue_full(waiting: u64, most: u64) -> Problem {
        let detail = format!(
            "the queue of commands is full: {waiting} wait for the scheduler and {most} may (`api.max_queued_commands`); \
             nothing was stored. Try again later; if it stays full, look at the scheduler with `windlass doctor`"
        );
        let p = Problem::new(StatusCode::SERVICE_UNAVAILABLE, QUEUE_FULL, detail);
        Problem { retry_after: Some(QUEUE_FULL_S), ..p }
    }
    /// As many live streams as this process may have.
    pub(crate) fn streams_full(most: u32) -> Problem {
        let detail = format!("all {most} live streams of this api are taken (`api.max_streams`); try again later");
        let p = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "streams_full", detail);
        Problem { retry_after: Some(STREAMS_FULL_S), ..p }
    }
    /// As many live streams as one token may have.
    pub(crate) fn streams_of_token(share: u32) -> Problem {
        let detail = format!(
            "this token has {share} live streams, a quarter of those there are (`api.max_streams`); close some, or use another"
        );
        let p = Problem::new(StatusCode::TOO_MANY_REQUESTS, "streams_full", detail);
        Problem { retry_after: Some(STREAMS_FULL_S), ..p }
    }
    pub(crate) fn unavailable() -> Problem {
        let detail = "the database does not take this now and nothing was changed; try again, and look at /readyz";
        let p = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
        Problem { retry_after: Some(2), ..p }
    }

    pub(crate) fn response(&self) -> HttpResponse {
        let mut r = HttpResponse::build(self.status);
        r.insert_header((header::CACHE_CONTROL, "no-store"));
        if let Some(s) = self.retry_after {
            r.insert_header((header::RETRY_AFTER, s.to_string()));
        }
        if let Some(a) = &self.allow {
            r.insert_header((header::ALLOW, &**a));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            r.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"windlass\""));
        }
        let text = serde_json::to_string(&body::Problem {
            kind: format!("{}{}", body::PROBLEM_URN, self.code),
            code: self.code.clone().into(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            errors: self.errors.clone(),
            command: self.command,
        });
        r.content_type(body::PROBLEM_JSON).body(text.unwrap_or_default())
    }
}

/// What a handler fails with.
#[derive(Debug)]
pub(crate) enum Fail {
    Problem(Box<Problem>),
    Store(windlass_store::Error),
    /// A fault of ours; the text goes to the log, not to the client.
    Internal(String),
}

impl Fail {
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Fail::Store(e) if e.is_retryable())
    }

    /// Refused because too many commands wait: the same can be asked again later.
    pub(crate) fn is_queue_full(&self) -> bool {
        matches!(self, Fail::Problem(p) if &*p.code == QUEUE_FULL)
    }

    pub(crate) fn into_problem(self) -> Problem {
        match self {
            Fail::Problem(p) => *p,
            Fail::Store(windlass_store::Error::Conflict) => Problem::conflict(
                "changed_meanwhile",
                "somebody else changed this at the same time; read it again and retry",
            ),
            Fail::Store(e) => {
                let error: &(dyn std::error::Error + 'static) = &e;
                tracing::error!(error, "a request failed on the database");
                Problem::unavailable()
            }
            Fail::Internal(error) => {
                tracing::error!(error, "a request failed");
                let detail = "a fault of the server; its log has the reason under the same trace id";
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
            }
        }
    }
}

impl From<Problem> for Fail {
    fn from(p: Problem) -> Self {
        Fail::Problem(Box::new(p))
    }
}
impl From<windlass_store::Error> for Fail {
    fn from(e: windlass_store::Error) -> Self {
        Fail::Store(e)
    }
}

/// How often a transaction that lost a race is run again.
pub(crate) const RETRIES: u32 = 8;

/// Runs the block in a write transaction and commits; runs all of it again when it lost a race. `?` inside leaves the
/// transaction, which takes everything back.
macro_rules! transact {
    ($store:expr, $tx:ident => $body:block) => {{
        let mut tries = 0u32;
        loop {
            let done: Result<_, $crate::problem::Fail> = async {
                let mut $tx = $store.write().await?;
                let out = $body;
                $tx.commit().await?;
                Ok(out)
            }
            .await;
            match done {
                Err(e) if e.is_retryable() && tries < $crate::problem::RETRIES => {
                    tries += 1;
                    let most = 5u64 << tries.min(6);
                    tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(1..most))).await;
                }
                other => break other,
            }
        }
    }};
}
pub(crate) use transact;
