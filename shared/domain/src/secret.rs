//! A secret's value in memory: it cannot be printed or serialised by accident, and is overwritten when it is dropped.

use crate::mask::Masker;
use std::{collections::BTreeMap, fmt, hint::black_box};

/// One value.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Values by the name that references use.
pub type Secrets = BTreeMap<String, Secret>;

impl Secret {
    pub fn new(value: String) -> Secret {
        Secret(value.into_bytes())
    }

    /// The value, for where it is used and nowhere else.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Without a reader the compiler may leave the writes out.
        black_box(&self.0);
    }
}

/// What masks all of these.
pub fn masker(secrets: &Secrets) -> Masker {
    Masker::new(secrets.values().map(Secret::expose))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_itself() {
        let s: Secrets = [("a".to_owned(), Secret::new("hunter22".into()))].into();
        assert_eq!(format!("{s:?}"), r#"{"a": Secret(..)}"#);
        assert_eq!(masker(&s).text("is hunter22"), "is ***");
    }
}
