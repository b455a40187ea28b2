//! Text of hosts on its way to a terminal: log lines, names, reasons.

// The program has no library; its file is compiled here as it stands.
#[path = "../../../services/windlass/src/client/text.rs"]
mod lines;

use crate::{choice, plant::planted};

/// First byte: whether colours are wanted, and the size of the pieces. The rest is what a host wrote.
///
/// However it is cut, the same lines come. Of each line only text, tabs and (if wanted) colours get through, nothing is
/// added to it, and cleaning twice is cleaning once.
pub(crate) fn terminal(bytes: &[u8]) {
    let (how, stream) = choice(bytes);
    let (colours, size) = (how & 1 == 1, usize::from(how >> 1) + 1);
    let split = |size: usize| {
        let mut l = lines::Lines::default();
        let mut out: Vec<String> = stream.chunks(size).flat_map(|p| l.push(p)).collect();
        out.extend(l.finish());
        out
    };
    let whole = split(stream.len().max(1));
    assert_eq!(whole, split(size), "pieces of {size}");
    for line in whole {
        let mut clean = lines::clean(&line, colours);
        // The plant: a link of OSC 8 is thought harmless.
        if planted() && line.contains("\u{1b}]8;") {
            clean.clone_from(&line);
        }
        let plain = without_colours(&clean, colours);
        assert!(!plain.chars().any(|c| (c.is_control() && c != '\t') || is_bidi(c)), "{line:?} gave {clean:?}");
        assert!(plain.len() <= line.len());
        assert!(plain.is_empty() || colours || lines::clean(&clean, false) == clean);
        assert!(plain == clean || clean.ends_with("\u{1b}[0m"), "a painted line ends with a reset: {clean:?}");
    }
}

fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The line without `ESC [ digits m`, read by rules of this file's own.
fn without_colours(line: &str, colours: bool) -> String {
    if !colours {
        return line.to_owned();
    }
    let mut out = String::new();
    let mut parts = line.split("\u{1b}[");
    out.push_str(parts.next().unwrap_or_default());
    for p in parts {
        let end = p.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'));
        match end {
            Some(at) if p[at..].starts_with('m') => out.push_str(&p[at + 1..]),
            _ => panic!("more than a colour got through: {line:?}"),
        }
    }
    out
}
