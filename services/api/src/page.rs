//! Keyset paging: opaque cursors and bounded limits.

use crate::problem::Problem;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

const DEFAULT: u32 = 50;
const MOST: u32 = 500;

pub(crate) fn encode<T: Serialize>(place: &T) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(place).unwrap_or_default())
}

pub(crate) fn decode<T: DeserializeOwned>(cursor: &str) -> Result<T, Problem> {
    let bytes = (cursor.len() <= 1024).then(|| URL_SAFE_NO_PAD.decode(cursor).ok()).flatten();
    bytes.and_then(|b| serde_json::from_slice(&b).ok()).ok_or_else(|| {
        Problem::invalid("`cursor` is not one this list gave; pass `next` of the page before, unchanged")
    })
}

/// The `limit` parameter: 1 to 500, 50 when absent.
pub(crate) fn limit(given: Option<&str>) -> Result<u32, Problem> {
    match given {
        None => Ok(DEFAULT),
        Some(text) => match text.parse::<u32>() {
            Ok(n) if (1..=MOST).contains(&n) => Ok(n),
            _ => Err(Problem::invalid(format!("`limit` must be a number from 1 to {MOST}"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_the_round_trip_and_nothing_else_passes() {
        let c = encode(&(7u32, "x"));
        assert_eq!(decode::<(u32, String)>(&c), Ok((7, "x".into())));
        assert!(decode::<(u32, String)>("???").is_err());
        assert!(decode::<(u32, String)>(&encode(&"x")).is_err());
        assert!(limit(Some("501")).is_err());
        assert_eq!(limit(None), Ok(50));
    }
}
