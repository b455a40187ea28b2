//! What a host presents as its key, for a person to compare and pin. Nothing is sent to the host but the key exchange.

use super::connect::{Pinned, all_kinds, config};
use russh::keys::{HashAlg, PublicKey};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::net::TcpStream;

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("{0} does not answer")]
    Dial(String, #[source] std::io::Error),
    #[error("{0} did not present a key within {1} s")]
    Slow(String, u64),
    #[error("{0} presented no key that could be pinned")]
    None(String),
}

/// Each key the host has: the line to pin, and its fingerprint.
pub async fn scan(address: &str, port: u16, limit: Duration) -> Result<Vec<(String, String)>, ScanError> {
    let name = format!("{address}:{port}");
    let mut found: Vec<(String, String)> = Vec::new();
    for kind in all_kinds() {
        let presented: Arc<Mutex<Option<PublicKey>>> = Arc::default();
        let handler = Pinned { keys: vec![], presented: Arc::clone(&presented) };
        let look = async {
            let stream = TcpStream::connect((address, port)).await.map_err(|e| ScanError::Dial(name.clone(), e))?;
            // Refused for certain: nothing is pinned. Only what was presented counts.
            drop(russh::client::connect_stream(config(&[kind]), stream, handler).await);
            Ok(())
        };
        tokio::time::timeout(limit, look).await.map_err(|_| ScanError::Slow(name.clone(), limit.as_secs()))??;
        let key = presented.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(line) = key.as_ref().and_then(|k| k.to_openssh().ok())
            && let Some(key) = key
        {
            found.push((line, key.fingerprint(HashAlg::Sha256).to_string()));
        }
    }
    if found.is_empty() { Err(ScanError::None(name)) } else { Ok(found) }
}
