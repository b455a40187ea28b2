//! The export: one JSON object a line. A header; then the leaves in order, each checkpoint after the last leaf it covers.
//! It ends with a checkpoint, so nothing in it is unsigned.

use serde::{Deserialize, Serialize};
use windlass_domain::merkle::{Frontier, Hash};

/// Name and version of the format.
pub const FORMAT: &str = "windlass-audit-v1";

/// A line of the export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    Header {
        format: String,
        /// The public key as the exporting installation states it: to find the key by, not to trust.
        key: String,
        /// The tree before the first exported leaf: empty, or what an earlier export ended with.
        from: Frontier,
        /// Size of the tree at the export's end, so that an interrupted download does not pass for a whole one.
        to: u64,
    },
    Leaf {
        idx: u64,
        /// The exact bytes that were hashed, which are JSON text.
        leaf: String,
        hash: Hash,
    },
    Checkpoint {
        size: u64,
        note: String,
    },
}

impl Line {
    /// The first line of an export.
    pub fn header(key: &str, from: Frontier, to: u64) -> Line {
        Line::Header { format: FORMAT.into(), key: key.into(), from, to }
    }

    /// Appends the line and its end to `out`.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        serde_json::to_writer(&mut *out, self)?;
        out.push(b'\n');
        Ok(())
    }
}
