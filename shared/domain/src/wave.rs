//! Wave expressions: `1 10% +5 *2`.

use serde::{Deserialize, Serialize};

/// Sizes of waves, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WaveExpression {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Count(u32),
    Percent(u32),
    Plus(u32),
    Times(u32),
}

impl TryFrom<String> for WaveExpression {
    type Error = String;
    fn try_from(_s: String) -> Result<Self, Self::Error> {
        Err("not yet".into())
    }
}
impl From<WaveExpression> for String {
    fn from(w: WaveExpression) -> String {
        format!("{:?}", w.parts)
    }
}
