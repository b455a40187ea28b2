//! Selectors: label expressions that pick hosts. Terms are separated by commas and must all hold:
//! `zone=a, rank!=2, role in (web, api), tier notin (test), gpu, !old`.
//! A host without the label fits `!=` and `notin`, as it does not have the value.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MAX_LENGTH: usize = 4096;

/// A checked selector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    Has(String),
    HasNot(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {position}: {message}")]
pub struct SelectorError {
    /// 1-based, in characters.
    pub position: usize,
    pub message: String,
}

impl Selector {
    /// Do these labels fit?
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.terms.iter().all(|t| match t {
            Term::Has(k) => labels.contains_key(k),
            Term::HasNot(k) => !labels.contains_key(k),
            Term::In(k, values) => labels.get(k).is_some_and(|v| values.contains(v)),
            Term::NotIn(k, values) => labels.get(k).is_none_or(|v| !values.contains(v)),
        })
    }
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LENGTH {
            return Err(SelectorError { position: 1, message: format!("a selector has at most {MAX_LENGTH} bytes") });
        }
        let mut p = Parser { text, at: 0 };
        let mut terms = Vec::new();
        loop {
            terms.push(p.term()?);
            if p.next_is(",") {
                continue;
            }
            p.space();
            return if p.rest().is_empty() {
                Ok(Selector { terms })
            } else {
                Err(p.wrong("`,` or the end: separate terms by commas"))
            };
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn next_is(&mut self, sign: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len();
        }
        found
    }

    fn wrong(&self, expected: &str) -> SelectorError {
        let found = match self.rest().chars().next() {
            None => "the end".to_string(),
            Some(c) => format!("{c:?}"),
        };
        SelectorError {
            position: self.text[..self.at].chars().count() + 1,
            message: format!("found {found}, expected {expected}"),
        }
    }

    fn word(&mut self, expected: &str) -> Result<String, SelectorError> {
        self.space();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        let len = self.rest().find(|c| !fits(c)).unwrap_or(self.rest().len());
        if len == 0 {
            return Err(self.wrong(expected));
        }
        let word = &self.rest()[..len];
        self.at += len;
        Ok(word.into())
    }

    fn term(&mut self) -> Result<Term, SelectorError> {
        if self.next_is("!") {
            return Ok(Term::HasNot(self.word("a label name after `!`")?));
        }
        let key = self.word("a label name such as `zone`")?;
        if self.next_is("!=") {
            return Ok(Term::NotIn(key, vec![self.word("a label value after `!=`")?]));
        }
        if self.next_is("==") || self.next_is("=") {
            return Ok(Term::In(key, vec![self.word("a label value after `=`")?]));
        }
        self.space();
        let before = self.at;
        match self.word("").as_deref() {
            Ok("in") => Ok(Term::In(key, self.values()?)),
            Ok("notin") => Ok(Term::NotIn(key, self.values()?)),
            Ok(_) => {
                self.at = before;
                Err(self.wrong("`=`, `!=`, `in (...)`, `notin (...)`, `,` or the end"))
            }
            Err(_) => Ok(Term::Has(key)),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        if !self.next_is("(") {
            return Err(self.wrong("`(` and a list of values, such as `role in (web, api)`"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.word("a label value")?);
            if self.next_is(")") {
                return Ok(values);
            }
            if !self.next_is(",") {
                return Err(self.wrong("`,` or `)`"));
            }
        }
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, t) in self.terms.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "," })?;
            match t {
                Term::Has(k) => write!(f, "{k}"),
                Term::HasNot(k) => write!(f, "!{k}"),
                Term::In(k, v) if v.len() == 1 => write!(f, "{k}={}", v[0]),
                Term::NotIn(k, v) if v.len() == 1 => write!(f, "{k}!={}", v[0]),
                Term::In(k, v) => write!(f, "{k} in ({})", v.join(",")),
                Term::NotIn(k, v) => write!(f, "{k} notin ({})", v.join(",")),
            }?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Selector> for String {
    fn from(s: Selector) -> String {
        s.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        selector.parse::<Selector>().expect(selector).matches(&labels)
    }

    #[test]
    fn all_terms_must_hold() {
        let web = [("zone", "a"), ("rank", "1"), ("role", "web")];
        for yes in
            ["zone=a,rank!=2", "zone==a", "role in (web, api)", "!gpu", "zone", "gpu!=x", "gpu notin (x)", " zone = a "]
        {
            assert!(fits(yes, &web), "{yes}");
        }
        for no in
            ["zone=a,rank=2", "role in (db)", "gpu", "!zone", "zone!=a", "role notin (db,web)", "gpu in (x)", "gpu=x"]
        {
            assert!(!fits(no, &web), "{no}");
        }
        // `in` and `notin` are words only where an operator stands.
        assert!(fits("in=1", &[("in", "1")]));
        assert!(fits("in in (in)", &[("in", "in")]));
    }

    #[test]
    fn errors_name_the_character() {
        for (text, position, word) in [
            ("", 1, "label name"),
            ("zone=", 6, "label value"),
            ("zone=a,", 8, "label name"),
            ("zone=a rank=2", 8, "commas"),
            ("zone a", 6, "`=`"),
            ("role in web", 9, "`(`"),
            ("role in (web", 13, "`)`"),
            ("role in ()", 10, "label value"),
            ("zöne=a", 2, "commas"),
            ("!", 2, "after `!`"),
            ("a=b;c", 4, "commas"),
        ] {
            let e = text.parse::<Selector>().expect_err(text);
            assert_eq!(e.position, position, "{text}: {e}");
            assert!(e.message.contains(word), "{text}: {e}");
        }
        assert!("a,".repeat(3000).parse::<Selector>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC*") {
            let _ = text.parse::<Selector>();
        }

        #[test]
        fn what_parses_prints_and_parses_the_same(text in "[ab]{1,2}(!=|=|==| in \\(| notin \\(|,|!|\\)| ){0,3}[ab,)]{0,4}") {
            if let Ok(s) = text.parse::<Selector>() {
                prop_assert_eq!(s.to_string().parse::<Selector>(), Ok(s));
            }
        }
    }
}
