//! What client commands print: JSON as the server said it, or tables for people.

use super::{error::Error, text::clean};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;
use std::io::{IsTerminal, Write};

/// Where and how to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    pub(crate) json: bool,
    /// Standard output is a terminal that shows colours.
    pub(crate) colours: bool,
    terminal: bool,
}

impl Out {
    pub(crate) fn new(json: bool) -> Out {
        let terminal = std::io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Out { json, colours: terminal && wanted, terminal }
    }

    /// One line. A closed pipe ends the command quietly, as `head` expects.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_ref().as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush())
            .map_err(Error::Output)
    }

    pub(crate) fn json(self, value: &Value) -> Result<(), Error> {
        self.line(serde_json::to_string_pretty(value).unwrap_or_default())
    }

    /// One JSON text a line, for streams.
    pub(crate) fn json_line(self, value: &Value) -> Result<(), Error> {
        self.line(value.to_string())
    }

    pub(crate) fn table(self, header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> Result<(), Error> {
        if rows.is_empty() {
            return self.line(empty);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header);
        for row in rows {
            table.add_row(row.into_iter().map(|c| clean(&c, false)));
        }
        let text = table.to_string();
        let lines = text.lines().map(str::trim_end).map(|l| l.strip_prefix(' ').unwrap_or(l));
        for (n, line) in lines.enumerate() {
            // Colours are put on after the layout, which would count their bytes as width.
            if n == 0 && self.colours { self.line(format!("\u{1b}[1m{line}\u{1b}[0m"))? } else { self.line(line)? }
        }
        Ok(())
    }

    /// Asks on the terminal; `None` when there is nobody to ask.
    pub(crate) fn ask(self, question: &str) -> Option<bool> {
        if !std::io::stdin().is_terminal() || !self.terminal {
            return None;
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).ok()?;
        Some(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }
}

/// `2026-11-21 05:10:59`, as in every table; UTC.
pub(crate) fn time(t: chrono::DateTime<chrono::Utc>) -> String {
    t.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// How long ago, for people: `4 s`, `3 min`, `2 h`, `5 d`.
pub(crate) fn ago(t: chrono::DateTime<chrono::Utc>, now: chrono::DateTime<chrono::Utc>) -> String {
    let s = (now - t).num_seconds().max(0);
    match s {
        0..=119 => format!("{s} s ago"),
        120..=7199 => format!("{} min ago", s / 60),
        7200..=172_799 => format!("{} h ago", s / 3600),
        _ => format!("{} d ago", s / 86400),
    }
}

/// First characters of a digest, enough for people to compare.
pub(crate) fn short_digest(d: &str) -> &str {
    d.get(..19).unwrap_or(d)
}
