//! The channel to the far half: starts it, asks, waits for the answer within a deadline.

use super::{
    generate,
    wire::{Ask, Said},
};
use crate::ssh::{Fault, connect::Session, push};
use base64::{Engine, engine::general_purpose::STANDARD};
use russh::{Channel, ChannelMsg, client};
use serde::de::DeserializeOwned;
use std::time::Duration;
use windlass_domain::catalog::Ssh;

/// Every request is answered within this; a start waits 15 s for its runner by itself.
const ANSWER: Duration = Duration::from_secs(40);
/// PowerShell starts slowly, and an earlier session lets go after 20 s.
const READY: Duration = Duration::from_secs(90);
/// A longer line is nothing we asked for.
const MAX_LINE: usize = 8 << 20;
/// What a profile or a banner may say before the bootstrap speaks.
const MAX_NOISE: usize = 64 * 1024;

pub(super) struct Far {
    channel: Channel<client::Msg>,
    buffer: Vec<u8>,
    stderr: Vec<u8>,
}

impl Far {
    /// Starts the bootstrap, puts the host script there when it is not, and waits until it serves.
    pub(super) async fn start(session: &Session, ssh: &Ssh, push_s: Duration) -> Result<Far, Fault> {
        let channel = session.exec(&generate::start_command()?).await?;
        let mut far = Far { channel, buffer: Vec::new(), stderr: Vec::new() };
        let slow = |limit| move |_| Fault::Slow { what: "the PowerShell script on the host".into(), limit };
        far.write(&generate::first_line(ssh), READY).await?;
        let mut word = tokio::time::timeout(READY, far.word()).await.map_err(slow(READY))??;
        if word == "need" {
            far.write(&generate::b64(generate::HOST), push_s).await?;
            word = tokio::time::timeout(push_s, far.word()).await.map_err(slow(push_s))??;
        } else if word == "have" {
            word = tokio::time::timeout(READY, far.word()).await.map_err(slow(READY))??;
        }
        match word.as_str() {
            "ready" => Ok(far),
            "busy" => Err(Fault::Agent { said: "another session serves this host and does not end".into() }),
            "damaged" => Err(Fault::Digest { said: "its SHA-256 differs".into() }),
            other => Err(Fault::Agent { said: crate::agents::cut(other.to_owned(), 100) }),
        }
    }

    /// The next word of the start; other lines are the host's own talk.
    async fn word(&mut self) -> Result<String, Fault> {
        let mut noise = 0;
        loop {
            let line = self.line().await?;
            if let Some(word) = line.trim().strip_prefix("WLPS1 ") {
                return Ok(word.to_owned());
            }
            noise += line.len();
            if noise > MAX_NOISE {
                return Err(Fault::Agent { said: push::text(line.as_bytes()) });
            }
        }
    }

    /// Asks, and reads the answer as `T`.
    pub(super) async fn ask<T: DeserializeOwned>(&mut self, ask: &Ask) -> Result<T, Fault> {
        let text = serde_json::to_string(ask).map_err(Fault::Hi)?;
        self.write(&text, ANSWER).await?;
        let slow = |_| Fault::Slow { what: "an answer of the host".into(), limit: ANSWER };
        let line = tokio::time::timeout(ANSWER, self.line()).await.map_err(slow)??;
        let said: Said = serde_json::from_str(&line).map_err(Fault::Hi)?;
        if !said.ok {
            return Err(Fault::Far { said: crate::agents::cut(text_of(&said.error)?, 500) });
        }
        serde_json::from_str(&line).map_err(Fault::Hi)
    }

    async fn line(&mut self) -> Result<String, Fault> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.buffer.len() > MAX_LINE {
                return Err(Fault::Agent { said: "it sends a line without an end".into() });
            }
            self.more().await?;
        }
    }

    /// Waits for the end of the connection: between questions the far half says nothing.
    pub(super) async fn ended(&mut self) -> Fault {
        loop {
            if let Err(fault) = self.more().await {
                return fault;
            }
            if !self.buffer.is_empty() {
                return Fault::Agent { said: "it speaks without being asked".into() };
            }
        }
    }

    async fn more(&mut self) -> Result<(), Fault> {
        match self.channel.wait().await {
            Some(ChannelMsg::Data { data }) => self.buffer.extend_from_slice(&data),
            Some(ChannelMsg::ExtendedData { data, .. }) => {
                self.stderr.extend_from_slice(&data);
                let extra = self.stderr.len().saturating_sub(4096);
                self.stderr.drain(..extra);
            }
            Some(ChannelMsg::Close | ChannelMsg::Failure) | None => {
                let why = if self.stderr.is_empty() { "it ended".into() } else { push::text(&self.stderr) };
                return Err(Fault::Cut { why });
            }
            Some(_) => {}
        }
        Ok(())
    }

    async fn write(&mut self, line: &str, limit: Duration) -> Result<(), Fault> {
        let write = self.channel.data_bytes(format!("{line}\n").into_bytes());
        match tokio::time::timeout(limit, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(Fault::Cut { why: e.to_string() }),
            Err(_) => Err(Fault::Cut { why: format!("it took nothing for {} s", limit.as_secs()) }),
        }
    }
}

/// Bytes that came as base64.
pub(super) fn bytes_of(base64: &str) -> Result<Vec<u8>, Fault> {
    STANDARD.decode(base64).map_err(|_| Fault::Agent { said: "what should be base64 is not".into() })
}

pub(super) fn text_of(base64: &str) -> Result<String, Fault> {
    Ok(String::from_utf8_lossy(&bytes_of(base64)?).into_owned())
}
