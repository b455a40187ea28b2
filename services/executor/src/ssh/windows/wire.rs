//! The lines between the two halves of a Windows host: one JSON object each way, strictly in turn.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use windlass_contracts::frames::Stream;
use windlass_domain::{
    Timestamp,
    ids::{AgentId, TaskId},
    task::{ReportedOutcome, StepOutcome},
};

/// What the near half asks. All `data` and `spec` are base64.
#[derive(Debug, Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub(super) enum Ask {
    Hello,
    /// A part of the journal from this byte.
    Journal {
        from: u64,
    },
    /// Makes these task directories (ids with blanks between), then cuts the journal at `at` and appends, on disk.
    Append {
        at: u64,
        data: String,
        prepare: String,
    },
    Identity {
        data: String,
    },
    Start {
        task: TaskId,
        spec: String,
    },
    /// What became of a task, and its records and log from these bytes. Whoever finds no runner and no begin is told so only
    /// after none can begin any more.
    Look {
        task: TaskId,
        steps: u64,
        log: u64,
    },
    Stop {
        task: TaskId,
    },
    Forget {
        task: TaskId,
    },
    Ping,
}

/// The frame of every answer.
#[derive(Debug, Deserialize)]
pub(super) struct Said {
    pub(super) ok: bool,
    /// Base64, when not `ok`.
    #[serde(default)]
    pub(super) error: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct HelloSaid {
    /// Base64 of [`Identity`], or empty.
    pub(super) identity: String,
    /// Ids with blanks between.
    pub(super) tasks: String,
    pub(super) facts: Facts,
    /// The release directory that `current` leads to, or empty.
    pub(super) current: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Facts {
    pub(super) boot: String,
    pub(super) os: String,
    pub(super) arch: String,
    pub(super) hostname: String,
    pub(super) cores: u64,
    /// In MiB.
    pub(super) memory: u64,
    pub(super) shell: String,
}

/// The host's name for the control plane. It lies on the host, so that whichever executor carries the host is the same agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) seed: String,
    pub(super) agent: Option<AgentId>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Data {
    pub(super) data: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Current {
    pub(super) current: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct LookSaid {
    /// The task has a directory.
    pub(super) there: bool,
    pub(super) alive: bool,
    pub(super) begun: bool,
    /// Base64 of [`Exit`], or empty; as are the others.
    pub(super) exit: String,
    pub(super) steps: String,
    pub(super) log: String,
    /// Why a runner gave up.
    #[serde(default)]
    pub(super) error: String,
}

/// `exit.json`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Exit {
    pub(super) outcome: ReportedOutcome,
    pub(super) log_bytes: u64,
    pub(super) log_dropped: u64,
}

/// A line of `steps`.
#[derive(Debug, Deserialize)]
pub(super) struct StepLine {
    pub(super) index: u32,
    pub(super) outcome: StepOutcome,
    pub(super) code: Option<i32>,
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    /// Base64.
    pub(super) message: String,
}

/// A line of `log`.
#[derive(Debug, Deserialize)]
pub(super) struct LogLine {
    pub(super) step: u32,
    pub(super) stream: Stream,
    pub(super) at: Timestamp,
    pub(super) data: String,
}

/// The whole lines at the beginning of `bytes`, each read as JSON (`None` where one does not read), and their length.
pub(super) fn lines<T: DeserializeOwned>(bytes: &[u8]) -> (Vec<Option<T>>, usize) {
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let read = |l: &[u8]| serde_json::from_slice(l).ok();
    (bytes[..whole].split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(read).collect(), whole)
}
