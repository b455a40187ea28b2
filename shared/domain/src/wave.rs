//! Wave expressions: how many hosts go together, wave after wave. `1 10% +5 *2` means one host, then a tenth of all, then
//! five more than before, then twice as many each time until none is left.

use serde::{Deserialize, Serialize};

/// More waves than this are a mistake: nobody watches them.
pub const MAX_WAVES: usize = 500;
const MAX_NUMBER: u32 = 1_000_000;

/// Sizes of waves, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WaveExpression {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// This many hosts.
    Count(u32),
    /// This part of all hosts, rounded up.
    Percent(u32),
    /// This many more than the wave before.
    Plus(u32),
    /// This many times the wave before.
    Times(u32),
}

/// Why a text is no wave expression, or does not fit the number of hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaveError {
    #[error("a wave expression needs at least one part, such as `1 10% *2`")]
    Empty,
    #[error("part {position} {part:?} is not a count `5`, a percentage `10%`, growth `+5` or a factor `*2`")]
    Part { position: usize, part: String },
    #[error("part {position} `{part}` is out of range: {rule}")]
    Range { position: usize, part: String, rule: &'static str },
    #[error("part 1 `{0}` grows from the wave before, but there is none: begin with a count `1` or a percentage `10%`")]
    NoneBefore(String),
    #[error("the expression has {0} parts; at most {MAX_WAVES} are allowed")]
    TooManyParts(usize),
    #[error(
        "`{expression}` splits {hosts} hosts into more than {MAX_WAVES} waves: let the last part be larger or grow, \
         for example `*2`"
    )]
    TooManyWaves { expression: String, hosts: u32 },
}

impl std::str::FromStr for WaveExpression {
    type Err = WaveError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = Vec::new();
        for (i, word) in text.split_ascii_whitespace().enumerate() {
            if i >= MAX_WAVES {
                return Err(WaveError::TooManyParts(text.split_ascii_whitespace().count()));
            }
            let part = Part::parse(word, i + 1)?;
            if i == 0 && matches!(part, Part::Plus(_) | Part::Times(_)) {
                return Err(WaveError::NoneBefore(part.to_string()));
            }
            parts.push(part);
        }
        if parts.is_empty() { Err(WaveError::Empty) } else { Ok(WaveExpression { parts }) }
    }
}

impl Part {
    fn parse(word: &str, position: usize) -> Result<Part, WaveError> {
        let shown = || word.chars().take(20).collect::<String>();
        let (digits, make): (&str, fn(u32) -> Part) = if let Some(d) = word.strip_prefix('+') {
            (d, Part::Plus)
        } else if let Some(d) = word.strip_prefix('*') {
            (d, Part::Times)
        } else if let Some(d) = word.strip_suffix('%') {
            (d, Part::Percent)
        } else {
            (word, Part::Count)
        };
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
            return Err(WaveError::Part { position, part: shown() });
        }
        let range = |rule| WaveError::Range { position, part: shown(), rule };
        let n = digits.parse().ok().filter(|n| *n <= MAX_NUMBER).ok_or_else(|| range("it must be at most 1000000"))?;
        match make(n) {
            Part::Percent(p) if p == 0 || p > 100 => Err(range("a percentage goes from 1 to 100")),
            _ if n == 0 => Err(range("it must be at least 1")),
            part => Ok(part),
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Count(n) => write!(f, "{n}"),
            Part::Percent(n) => write!(f, "{n}%"),
            Part::Plus(n) => write!(f, "+{n}"),
            Part::Times(n) => write!(f, "*{n}"),
        }
    }
}

impl std::fmt::Display for WaveExpression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, p) in self.parts.iter().enumerate() {
            write!(f, "{}{p}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl WaveExpression {
    /// Sizes of the waves over `total` hosts: none is empty, they add up to `total`, there are at most [`MAX_WAVES`].
    pub fn sizes(&self, total: u32) -> Result<Vec<u32>, WaveError> {
        let mut sizes: Vec<u32> = Vec::new();
        let mut left = total;
        let mut before = 0u32;
        while left > 0 {
            if sizes.len() == MAX_WAVES {
                return Err(WaveError::TooManyWaves { expression: self.to_string(), hosts: total });
            }
            let part = self.parts[sizes.len().min(self.parts.len() - 1)];
            before = match part {
                Part::Count(n) => n,
                Part::Percent(p) => (u64::from(total) * u64::from(p)).div_ceil(100) as u32,
                Part::Plus(n) => before.saturating_add(n),
                Part::Times(n) => before.saturating_mul(n),
            };
            let size = before.clamp(1, left);
            sizes.push(size);
            left -= size;
        }
        Ok(sizes)
    }
}

impl TryFrom<String> for WaveExpression {
    type Error = WaveError;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<WaveExpression> for String {
    fn from(w: WaveExpression) -> String {
        w.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes(text: &str, total: u32) -> Vec<u32> {
        text.parse::<WaveExpression>().expect(text).sizes(total).expect(text)
    }

    #[test]
    fn the_parts_mean_what_they_say() {
        assert_eq!(sizes("1 10% +5 *2", 127), [1, 13, 18, 36, 59]);
        assert_eq!(sizes("1 10% *2", 100), [1, 10, 20, 40, 29]);
        assert_eq!(sizes("5", 12), [5, 5, 2]);
        assert_eq!(sizes("100%", 7), [7]);
        assert_eq!(sizes("1%", 3), [1, 1, 1]);
        assert_eq!(sizes("2 +1", 12), [2, 3, 4, 3]);
        assert_eq!(sizes("3", 0), [0u32; 0]);
    }

    #[test]
    fn errors_name_the_part() {
        let error = |t: &str| t.parse::<WaveExpression>().expect_err(t).to_string();
        assert!(error("").contains("at least one part"));
        assert!(error("1 ten").contains(r#"part 2 "ten""#));
        assert!(error("1 -5").contains(r#"part 2 "-5""#));
        assert!(error("1 5%5").contains("part 2"));
        assert!(error("*2").contains("begin with"));
        assert!(error("+2 *2").contains("begin with"));
        assert!(error("1 *0").contains("at least 1"));
        assert!(error("101%").contains("1 to 100"));
        assert!(error("1 99999999999999999999").contains("at most"));
        assert!(error(&"1 ".repeat(501)).contains("501 parts"));
        let many = "1".parse::<WaveExpression>().expect("parses").sizes(501).expect_err("501 waves");
        assert!(many.to_string().contains("`*2`"), "{many}");
        assert_eq!("1".parse::<WaveExpression>().expect("parses").sizes(500).expect("500 waves").len(), 500);
    }

    #[test]
    fn serde_keeps_the_text() {
        let w: WaveExpression = serde_json::from_str(r#"" 1  10% *2 ""#).expect("parses");
        assert_eq!(serde_json::to_string(&w).expect("writes"), r#""1 10% *2""#);
        assert!(serde_json::from_str::<WaveExpression>(r#""*2""#).is_err());
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![
            (1u32..2000).prop_map(Part::Count),
            (1u32..=100).prop_map(Part::Percent),
            (1u32..2000).prop_map(Part::Plus),
            (1u32..50).prop_map(Part::Times),
        ]
    }

    proptest! {
        #[test]
        fn waves_add_up_and_none_is_empty(first in 1u32..2000, rest in proptest::collection::vec(part(), 0..6), total in 0u32..60_000) {
            let mut parts = vec![Part::Count(first)];
            parts.extend(rest);
            let w = WaveExpression { parts };
            prop_assert_eq!(&w.to_string().parse::<WaveExpression>().expect("round trip"), &w);
            if let Ok(s) = w.sizes(total) {
                prop_assert_eq!(s.iter().sum::<u32>(), total);
                prop_assert!(s.iter().all(|n| *n > 0) && s.len() <= MAX_WAVES);
            }
        }

        #[test]
        fn any_text_is_answered(text in "\\PC*") {
            let _ = text.parse::<WaveExpression>();
        }

        #[test]
        fn near_texts_are_answered(text in "[0-9+*% ]{0,40}", total in 0u32..10_000) {
            if let Ok(w) = text.parse::<WaveExpression>() {
                let _ = w.sizes(total);
            }
        }
    }
}
