//! The audit trail as it leaves the installation, and its verification, which needs the export and the public key and
//! nothing else: no database, no network, no word of the installation that made it.
//!
//! One event is one leaf of an RFC 6962 tree; [`note`] signs the tree's size and root; [`export`] writes both as NDJSON;
//! [`verify`] finds what was changed, removed, added, moved or signed by somebody else; [`story`] answers who asked,
//! approved and overrode.

pub mod export;
pub mod note;
pub mod story;
pub mod verify;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use windlass_domain::event::Event;

/// Version of the leaf's bytes. A new one is added beside the old, never in its place: old leaves keep their bytes.
pub const LEAF_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leaf {
    v: u32,
    event: Event,
}

/// The exact bytes that are hashed for an event: JSON without spaces, keys sorted.
pub fn leaf_bytes(event: &Event) -> Result<Vec<u8>, serde_json::Error> {
    let value = serde_json::to_value(Leaf { v: LEAF_VERSION, event: event.clone() })?;
    let mut out = Vec::new();
    write_sorted(&value, &mut out)?;
    Ok(out)
}

/// The event of a leaf; `None` if the bytes are not a leaf of a known version.
pub fn read_leaf(bytes: &[u8]) -> Option<Event> {
    serde_json::from_slice::<Leaf>(bytes).ok().filter(|l| l.v == LEAF_VERSION).map(|l| l.event)
}

/// Does not lean on the map type's own order, which a feature of `serde_json` anywhere in the build can change.
fn write_sorted(v: &serde_json::Value, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    match v {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(k, _)| *k);
            out.push(b'{');
            for (i, (k, v)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut *out, k)?;
                out.push(b':');
                write_sorted(v, out)?;
            }
            out.push(b'}');
        }
        serde_json::Value::Array(items) => {
            out.push(b'[');
            for (i, v) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_sorted(v, out)?;
            }
            out.push(b']');
        }
        scalar => serde_json::to_writer(out, scalar)?,
    }
    Ok(())
}
