//! Text from hosts on its way to a terminal. A log line may hold anything; only colours get through.

/// Longest line that is put together before it is printed in pieces.
const MAX_LINE: usize = 64 * 1024;

/// Drops control characters and escape sequences (C0, C1, CSI, OSC, DCS ...), keeping tabs and, when `colours`, SGR.
/// A line that changed colours ends with a reset, so it never paints the next one.
pub(crate) fn clean(line: &str, colours: bool) -> String {
    let mut out = String::with_capacity(line.len());
    let mut painted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\t' => out.push(c),
            '\u{1b}' => match chars.next() {
                Some('[') => painted |= control_sequence(&mut chars, colours, &mut out),
                Some(']' | 'P' | 'X' | '^' | '_') => string_sequence(&mut chars),
                // Two-byte escapes, and those with intermediates such as `ESC ( B`.
                Some(' '..='/') => {
                    while chars.next_if(|c| matches!(c, ' '..='/')).is_some() {}
                    chars.next();
                }
                _ => {}
            },
            '\u{9b}' => painted |= control_sequence(&mut chars, colours, &mut out),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => string_sequence(&mut chars),
            c if c.is_control() => {}
            // Direction overrides can make a line read as another one.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c => out.push(c),
        }
    }
    if painted {
        out.push_str("\u{1b}[0m");
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// After CSI. Writes it out if it is a plain SGR and colours are wanted.
fn control_sequence(chars: &mut Chars<'_>, colours: bool, out: &mut String) -> bool {
    let mut parameters = String::new();
    while let Some(c) = chars.next_if(|c| matches!(c, ' '..='?')) {
        parameters.push(c);
    }
    match chars.next_if(|c| matches!(c, '@'..='~')) {
        Some('m') if colours && parameters.chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':') => {
            out.push_str("\u{1b}[");
            out.push_str(&parameters);
            out.push('m');
            true
        }
        _ => false,
    }
}

/// After OSC, DCS, SOS, PM, APC: up to BEL or ST. Without an end the rest of the line is dropped.
fn string_sequence(chars: &mut Chars<'_>) {
    while let Some(c) = chars.next() {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' if chars.next_if_eq(&'\\').is_some() => return,
            _ => {}
        }
    }
}

/// Puts the chunks of one stream together to lines; a chunk may end in the middle of a character.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    pub(crate) fn push(&mut self, data: &[u8]) -> Vec<String> {
        // What was there before holds no line end; looking again would cost the square of a line that comes in crumbs.
        let mut look = self.rest.len();
        self.rest.extend_from_slice(data);
        let mut out = Vec::new();
        let mut from = 0;
        while let Some(n) = self.rest[look..].iter().position(|b| *b == b'\n') {
            out.push(String::from_utf8_lossy(&self.rest[from..look + n]).into_owned());
            look += n + 1;
            from = look;
        }
        self.rest.drain(..from);
        while self.rest.len() > MAX_LINE {
            let piece: Vec<u8> = self.rest.drain(..MAX_LINE).collect();
            out.push(String::from_utf8_lossy(&piece).into_owned());
        }
        out
    }

    /// The last line, if it had no end.
    pub(crate) fn finish(&mut self) -> Option<String> {
        (!self.rest.is_empty()).then(|| String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colours_get_through() {
        for (given, wanted) in [
            ("plain\ttext\r", "plain\ttext"),
            ("\u{1b}[1;31mred\u{1b}[0m", "\u{1b}[1;31mred\u{1b}[0m\u{1b}[0m"),
            ("a\u{1b}[2Jb\u{1b}[10;10Hc", "abc"),
            ("a\u{1b}]0;title\u{7}b", "ab"),
            ("a\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\b", "alinkb"),
            ("a\u{1b}]0;no end", "a"),
            ("a\u{1b}P1$r0m\u{1b}\\b", "ab"),
            ("a\u{9b}31mb", "a\u{1b}[31mb\u{1b}[0m"),
            ("a\u{9d}0;t\u{9c}b", "ab"),
            ("a\u{1b}(Bb\u{1b}cd", "abd"),
            ("a\u{1b}[?25lb\u{1b}[>4;2mc", "abc"),
            ("a\u{8}\u{0}\u{7f}\u{85}b", "ab"),
            ("a\u{202e}b", "ab"),
            ("end\u{1b}", "end"),
            ("end\u{1b}[", "end"),
        ] {
            assert_eq!(clean(given, true), wanted, "{given:?}");
        }
        assert_eq!(clean("\u{1b}[31mred", false), "red");
    }

    #[test]
    fn lines_survive_any_cut() {
        let text = "één\nzwei\nтри";
        for cut in 0..text.len() {
            let mut l = Lines::default();
            let mut got = l.push(&text.as_bytes()[..cut]);
            got.extend(l.push(&text.as_bytes()[cut..]));
            got.extend(l.finish());
            assert_eq!(got, ["één", "zwei", "три"], "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_line_is_printed_in_pieces() {
        let mut l = Lines::default();
        assert_eq!(l.push(&vec![b'x'; MAX_LINE * 2 + 5]).len(), 2);
        assert_eq!(l.finish().map(|s| s.len()), Some(5));
    }
}
