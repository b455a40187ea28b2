//! Frames between executors and agents. On the wire: `WF1`, a 64-byte Ed25519 signature, then the JSON body; the signature
//! is over the body bytes. The signer's key comes from enrolment, never from the frame.

use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use windlass_domain::{
    Timestamp,
    approval::Approval,
    ids::{AgentId, DeploymentId, TaskId, WorkId},
    plan::SpecProof,
    task::{StepReport, TaskReport, TaskSpec},
};

const MAGIC: &[u8; 3] = b"WF1";
/// Largest frame, below the broker's 1 MiB message limit.
pub const MAX_FRAME: usize = 900 * 1024;
/// Largest piece of log in one frame.
pub const MAX_LOG_DATA: usize = 32 * 1024;
/// Most log frames that go as one, and most bytes of their data, as base64.
pub const MAX_LOGS: usize = 64;
pub const MAX_LOGS_DATA: usize = 256 * 1024;
/// An ACCEPT must be answered by its GRANT within this many seconds, by the agent's monotonic clock.
pub const GRANT_LEASE_S: u32 = 10;
/// Longest challenge that an agent answers.
pub const MAX_CHALLENGE: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("not a frame: too short or wrong magic")]
    Shape,
    #[error("frame of {0} bytes exceeds the limit of {MAX_FRAME}")]
    TooLarge(usize),
    #[error("the frame's signature does not fit the sender's key")]
    Signature,
    #[error("the frame's key is not a valid nkey")]
    Key,
    #[error("the frame's body is not readable")]
    Body(#[source] serde_json::Error),
}

/// Signs and encodes.
pub fn seal<T: Serialize>(frame: &T, key: &KeyPair) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(frame).map_err(FrameError::Body)?;
    let sig = key.sign(&body).map_err(|_| FrameError::Key)?;
    let mut out = Vec::with_capacity(3 + sig.len() + body.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&sig);
    out.extend_from_slice(&body);
    if out.len() > MAX_FRAME { Err(FrameError::TooLarge(out.len())) } else { Ok(out) }
}

/// Checks the signature against the nkey public key `from`, then decodes.
pub fn open<T: for<'de> Deserialize<'de>>(bytes: &[u8], from: &KeyPair) -> Result<T, FrameError> {
    if bytes.len() > MAX_FRAME {
        return Err(FrameError::TooLarge(bytes.len()));
    }
    if bytes.len() < 67 || &bytes[..3] != MAGIC {
        return Err(FrameError::Shape);
    }
    from.verify(&bytes[67..], &bytes[3..67]).map_err(|_| FrameError::Signature)?;
    serde_json::from_slice(&bytes[67..]).map_err(FrameError::Body)
}

/// Why a frame is not taken although it reached us.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the frame names agent {0}, which is another")]
    OtherAgent(AgentId),
    /// `None`: it names no instance and is of a kind that must.
    #[error("the frame is for another journal instance: {0:?}")]
    OtherInstance(Option<String>),
}

/// What an agent takes: signed by the executor's key, addressed to this agent, and meant for its journal. Whoever carries
/// frames can drop them, hold them back and repeat them, and nothing else.
pub fn open_down(bytes: &[u8], executor: &KeyPair, me: AgentId, instance: &str) -> Result<Down, NotTaken> {
    let frame: Down = open(bytes, executor)?;
    if frame.aud != me {
        return Err(NotTaken::OtherAgent(frame.aud));
    }
    let free = matches!(frame.body, DownBody::HelloAck { .. } | DownBody::Fence { .. } | DownBody::WhoAreYou { .. });
    match &frame.instance {
        Some(i) if i != instance => Err(NotTaken::OtherInstance(frame.instance)),
        None if !free => Err(NotTaken::OtherInstance(None)),
        _ => Ok(frame),
    }
}

/// What an executor takes from the subjects of `agent`: signed by that agent's key, and in no other's name.
pub fn open_up(bytes: &[u8], key: &KeyPair, agent: AgentId) -> Result<Up, NotTaken> {
    let frame: Up = open(bytes, key)?;
    if frame.agent == agent { Ok(frame) } else { Err(NotTaken::OtherAgent(frame.agent)) }
}

/// Control to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Down {
    /// Who it is for; an agent drops what names another.
    pub aud: AgentId,
    /// The journal instance the sender believes it speaks to; `None` only in `HELLO_ACK` and `FENCE`.
    pub instance: Option<String>,
    pub body: DownBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum DownBody {
    Offer(Box<Offer>),
    Grant {
        task: TaskId,
        nonce: String,
        epoch: u64,
        lease_s: u32,
        /// Values of the secrets the task's steps refer to, sealed to the `seal_to` of the ACCEPT.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secrets: Option<SealedSecrets>,
    },
    /// Never start this task; stop it if it runs. `epoch` as in OFFER.
    Fence {
        task: TaskId,
        work: WorkId,
        epoch: u64,
    },
    /// The RESULT is committed; the agent may forget all but the id.
    ResultAck {
        task: TaskId,
    },
    /// Everything of the task's log up to and including `seq` is durable; `window` more bytes may be sent.
    LogAck {
        task: TaskId,
        seq: u64,
        window: u64,
    },
    HelloAck {
        instance: String,
    },
    /// Say HELLO again: the executor does not know this instance.
    WhoAreYou {
        /// What the HELLO is to answer, so that it is known to be younger than this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        challenge: Option<String>,
    },
}

/// Secret values on their way to one task of one agent: the JSON of a map from name to value, in a `NaCl` box from the
/// executor's one-time key to the agent's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecrets {
    /// The executor's one-time public key (`X…`).
    pub from: String,
    /// Base64.
    pub data: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub task: TaskId,
    pub work: WorkId,
    pub deployment: DeploymentId,
    pub attempt: u32,
    /// The claim's epoch: only grows per work. An agent refuses one lower than it has seen for the work.
    pub epoch: u64,
    /// The environment lock's fence: only grows per project and environment.
    pub fence: u64,
    /// First step to run.
    pub start_at: u32,
    pub spec: TaskSpec,
    /// That `spec` belongs to the plan.
    pub proof: SpecProof,
    /// The plan's approvals, signed by the api's approval key.
    pub approvals: Vec<Approval>,
    /// Outputs of earlier steps that the steps refer to, by step id. Not part of the proof: they did not exist when the
    /// plan was approved; they are data, and no step takes its program from them.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
    /// The agent refuses the offer after this time.
    pub not_after: Timestamp,
    /// W3C traceparent, so that the process on the host joins the trace.
    pub trace: Option<String>,
}

/// Agent to control.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Up {
    pub agent: AgentId,
    /// The agent's journal instance.
    pub instance: String,
    pub body: UpBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum UpBody {
    Hello(Hello),
    Heartbeat {
        journal_seq: u64,
        running: Vec<TaskId>,
        /// Release directory that is current in the agent's root.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        current: Option<String>,
    },
    Accept {
        task: TaskId,
        nonce: String,
        journal_seq: u64,
        /// One-time public key (`X…`, kept in memory alone) that secrets of this task are sealed to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seal_to: Option<String>,
    },
    /// The offer is not taken. Nothing was started and nothing will be under this offer.
    Refuse {
        task: TaskId,
        code: RefuseCode,
        detail: String,
    },
    Started {
        task: TaskId,
    },
    Step {
        task: TaskId,
        report: StepReport,
    },
    /// Re-sent until `RESULT_ACK`.
    Result {
        task: TaskId,
        report: TaskReport,
    },
    Log(LogFrame),
    /// Frames that are said for the first time, at most [`MAX_LOGS`] with [`MAX_LOGS_DATA`] bytes. What is not acknowledged is said
    /// again one by one, so an executor that does not know this word misses nothing.
    Logs {
        frames: Vec<LogFrame>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefuseCode {
    /// An older attempt runs, or too many tasks do; offer again later.
    Busy,
    /// Older epoch, fence or attempt than already seen.
    Stale,
    /// Bad proof, missing approvals, expired offer.
    Unproven,
    /// The host's local policy forbids it.
    Policy,
    /// The task's steps cannot be understood.
    Invalid,
    /// No room or no journal.
    NoResources,
    /// This attempt of the step, or a later one, was here before under another id: a history the database has lost.
    Known,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub boot_id: String,
    pub journal_seq: u64,
    pub version: String,
    /// Every task the journal holds that has no `RESULT_ACK` yet.
    pub open: Vec<OpenTask>,
    /// os, arch, hostname, cores, `memory_mb`, current release per project root.
    pub facts: serde_json::Value,
    /// The challenge of the last `WHO_ARE_YOU`, empty when there was none. `None`: the agent is older than challenges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenTask {
    pub task: TaskId,
    pub state: OpenState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenState {
    Accepted,
    Running,
    Ended,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogFrame {
    pub task: TaskId,
    /// From 0, without a gap.
    pub seq: u64,
    /// Step index.
    pub step: u32,
    pub stream: Stream,
    pub at: Timestamp,
    /// Base64 of at most [`MAX_LOG_DATA`] bytes.
    pub data: String,
    /// CRC-32C of the decoded bytes.
    pub crc: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Out,
    Err,
    /// Written by the runner itself: step start, end, what was cut.
    Note,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flipped_bit_anywhere_is_refused() {
        let key = KeyPair::new_user();
        let public = KeyPair::from_public_key(&key.public_key()).expect("public key");
        let up = Up {
            agent: uuid::Uuid::nil().into(),
            instance: "i".into(),
            body: UpBody::Heartbeat { journal_seq: 3, running: vec![], current: None },
        };
        let bytes = seal(&up, &key).expect("seals");
        assert_eq!(open::<Up>(&bytes, &public).expect("opens"), up);
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert!(open::<Up>(&bad, &public).is_err(), "byte {i}");
        }
    }
}
