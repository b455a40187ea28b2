//! The same frames over a byte stream: between an executor and `windlass-agent stdio` on a host reached by SSH.
//!
//! The host writes [`MAGIC`] once, so that what a login shell prints before it is told apart. Then, both ways: four bytes of
//! length (big endian, of what follows), one byte of kind, the payload. The first message up is [`Hi`], the first down
//! [`Welcome`]; from then on payloads are the signed frames of [`crate::frames`], unopened by whoever carries them.

use crate::frames::MAX_FRAME;
use serde::{Deserialize, Serialize};
use windlass_domain::ids::AgentId;

/// Comes before the first message of the host.
pub const MAGIC: &[u8; 8] = b"WLSTDIO1";
/// At most this much of other output may come before it: a banner, a message of the day.
const MAX_NOISE: usize = 64 * 1024;
/// The carrier sends a [`Kind::Ping`] this often, in seconds; the host ends after [`SILENCE_S`] without any word, so that a
/// link that died without a sign holds nothing.
pub const PING_S: u64 = 5;
pub const SILENCE_S: u64 = 20;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StreamError {
    #[error("what comes from the host is not the agent's stream: {0:?}")]
    Noise(String),
    #[error("a message of {0} bytes exceeds the limit")]
    TooLarge(usize),
    #[error("a message has no kind, or an unknown one")]
    Kind,
}

/// What a message is: frames up by their subject's last part, frames down, and the carrier's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// JSON of [`Hi`].
    Hi,
    /// JSON of [`Welcome`].
    Welcome,
    /// Up: about tasks.
    Msg,
    /// Up: HELLO and heartbeats.
    Hello,
    /// Up: log.
    Log,
    /// Down: any frame.
    Down,
    /// Down, empty.
    Ping,
}

impl Kind {
    const ALL: [(Kind, u8); 7] = [
        (Kind::Hi, b'H'),
        (Kind::Welcome, b'W'),
        (Kind::Msg, b'm'),
        (Kind::Hello, b'h'),
        (Kind::Log, b'l'),
        (Kind::Down, b'd'),
        (Kind::Ping, b'p'),
    ];
    fn of(byte: u8) -> Option<Kind> {
        Kind::ALL.iter().find(|(_, b)| *b == byte).map(|(k, _)| *k)
    }
    fn byte(self) -> u8 {
        Kind::ALL.iter().find(|(k, _)| *k == self).map_or(0, |(_, b)| *b)
    }
}

/// The host's first word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hi {
    pub version: String,
    /// Public half of the nkey that was made on the host.
    pub public_key: String,
    /// The identity it has from an earlier time.
    #[serde(default)]
    pub agent: Option<AgentId>,
}

/// Who the host is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub agent: AgentId,
    pub host: String,
    /// Public nkey that signs frames to the agent.
    pub executor_key: String,
    /// Public nkey that signs approvals.
    pub approval_key: String,
}

/// One message as bytes.
pub fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + payload.len());
    out.extend_from_slice(&u32::try_from(payload.len() + 1).unwrap_or(u32::MAX).to_be_bytes());
    out.push(kind.byte());
    out.extend_from_slice(payload);
    out
}

/// Takes bytes as they come and gives messages.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// [`MAGIC`] is still to come.
    waiting: bool,
}

impl Decoder {
    /// For the side that reads what the host writes.
    pub fn after_magic() -> Decoder {
        Decoder { buffer: Vec::new(), waiting: true }
    }
    /// For the host's side.
    pub fn plain() -> Decoder {
        Decoder { buffer: Vec::new(), waiting: false }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the first message may be on its way: [`MAGIC`] has come.
    pub fn speaks(&mut self) -> bool {
        if self.waiting
            && let Some(at) = self.buffer.windows(MAGIC.len()).position(|w| w == MAGIC)
        {
            self.buffer.drain(..at + MAGIC.len());
            self.waiting = false;
        }
        !self.waiting
    }

    /// What came before the first message, for texts about failures.
    pub fn noise(&self) -> String {
        let text: String = String::from_utf8_lossy(&self.buffer).chars().take(200).collect();
        if self.waiting { text.trim().to_owned() } else { String::new() }
    }

    /// The next whole message; after an error the stream is of no use.
    pub fn next_message(&mut self) -> Result<Option<(Kind, Vec<u8>)>, StreamError> {
        if !self.speaks() {
            let noise = self.buffer.len() > MAX_NOISE;
            return if noise { Err(StreamError::Noise(self.noise())) } else { Ok(None) };
        }
        let Some(head) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME + 1 {
            return Err(StreamError::TooLarge(length));
        }
        if length == 0 {
            return Err(StreamError::Kind);
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        let kind = Kind::of(self.buffer[4]).ok_or(StreamError::Kind)?;
        let payload = self.buffer[5..4 + length].to_vec();
        self.buffer.drain(..4 + length);
        Ok(Some((kind, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_however_the_bytes_are_cut() {
        let mut stream = b"Welcome to this host!\nWLSTDI\n".to_vec();
        stream.extend_from_slice(MAGIC);
        stream.extend(encode(Kind::Hi, b"{}"));
        stream.extend(encode(Kind::Log, &[7; 40_000]));
        stream.extend(encode(Kind::Ping, b""));
        for cut in [1, 3, 7, 1000, 100_000] {
            let mut d = Decoder::after_magic();
            let mut got = Vec::new();
            for piece in stream.chunks(cut) {
                d.push(piece);
                while let Some(m) = d.next_message().expect("reads") {
                    got.push((m.0, m.1.len()));
                }
            }
            assert_eq!(got, [(Kind::Hi, 2), (Kind::Log, 40_000), (Kind::Ping, 0)], "pieces of {cut}");
        }
    }

    #[test]
    fn what_is_no_stream_is_told() {
        let mut d = Decoder::after_magic();
        d.push(b"bash: windlass-agent: No such file");
        assert_eq!(d.next_message(), Ok(None));
        assert_eq!(d.noise(), "bash: windlass-agent: No such file");
        d.push(&vec![b'x'; MAX_NOISE]);
        assert!(matches!(d.next_message(), Err(StreamError::Noise(_))));
        let mut d = Decoder::plain();
        d.push(&u32::MAX.to_be_bytes());
        assert!(matches!(d.next_message(), Err(StreamError::TooLarge(_))));
        let mut d = Decoder::plain();
        d.push(&[0, 0, 0, 1, b'?']);
        assert_eq!(d.next_message(), Err(StreamError::Kind));
        let mut d = Decoder::plain();
        d.push(&[0, 0, 0, 0]);
        assert_eq!(d.next_message(), Err(StreamError::Kind));
    }
}
