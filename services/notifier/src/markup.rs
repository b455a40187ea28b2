//! The markups of the providers: how a value is kept from being read as markup, and how long a text may be. Pure.

use windlass_domain::catalog::Provider;

/// How a provider reads text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Markup {
    Slack,
    Feishu,
    Dingtalk,
    Wecom,
    Teams,
    /// Mail and signed webhooks: shown as it is.
    Plain,
}

impl Markup {
    pub(crate) fn of(provider: &Provider) -> Markup {
        match provider {
            Provider::Slack { .. } => Markup::Slack,
            Provider::Feishu { .. } => Markup::Feishu,
            Provider::Dingtalk { .. } => Markup::Dingtalk,
            Provider::Wecom { .. } => Markup::Wecom,
            Provider::Teams { .. } => Markup::Teams,
            Provider::Webhook { .. } | Provider::Email { .. } => Markup::Plain,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Markup::Slack => "slack",
            Markup::Feishu => "feishu",
            Markup::Dingtalk => "dingtalk",
            Markup::Wecom => "wecom",
            Markup::Teams => "teams",
            Markup::Plain => "plain",
        }
    }

    /// Bytes of text that surely fit once wrapped in JSON, with the footer: Slack 3,000 characters a section, Feishu and
    /// DingTalk 20 KB a body (quoting may double the text), WeCom 4,096 bytes of Markdown, Teams 28 KB a card.
    pub(crate) fn limit(self) -> usize {
        match self {
            Markup::Slack => 2_900,
            Markup::Feishu | Markup::Dingtalk => 9_000,
            Markup::Wecom => 3_800,
            Markup::Teams => 12_000,
            Markup::Plain => 64_000,
        }
    }

    /// A value so written that the provider shows it and does not obey it: no link, no mention, no formatting.
    pub(crate) fn escape(self, value: &str) -> String {
        let mut out = String::with_capacity(value.len() + 8);
        for c in value.chars().filter(|c| !is_hidden(*c)) {
            match self {
                Markup::Plain => out.push(c),
                // Slack decodes exactly these three; with `<` gone there is no mention and no link.
                Markup::Slack => match c {
                    '&' => out.push_str("&amp;"),
                    '<' => out.push_str("&lt;"),
                    '>' => out.push_str("&gt;"),
                    // `*` and `_` have no escape; at worst a word is bold, and it can still be copied.
                    _ => out.push(c),
                },
                Markup::Feishu => match c {
                    '&' | '<' | '>' | '*' | '_' | '~' | '`' | '[' | ']' | '(' | ')' | '!' | '#' | '\\' | '$' => {
                        out.push_str(&format!("&#{};", u32::from(c)));
                    }
                    _ => out.push(c),
                },
                Markup::Teams => match c {
                    '\\' | '*' | '_' | '`' | '[' | ']' | '(' | ')' | '<' | '>' | '#' | '!' | '~' => {
                        out.extend(['\\', c])
                    }
                    '&' => out.push_str("&amp;"),
                    _ => out.push(c),
                },
                // These two document no escape, so what would start a link, a mention or a tag becomes its look-alike.
                Markup::Dingtalk | Markup::Wecom => match c {
                    '<' => out.push('＜'),
                    '>' => out.push('＞'),
                    '[' => out.push('［'),
                    ']' => out.push('］'),
                    '`' => out.push('ˋ'),
                    '*' => out.push('＊'),
                    '#' => out.push('＃'),
                    '&' => out.push('＆'),
                    '@' => out.push('＠'),
                    _ => out.push(c),
                },
            }
        }
        out
    }

    /// Cuts a text to the limit, at a place where no entity, link or character is left half, and says so with a link.
    pub(crate) fn fit(self, text: &str, link: &str) -> String {
        if text.len() <= self.limit() {
            return text.to_owned();
        }
        let notice = match self {
            Markup::Slack => format!("\n… (shortened; <{link}|all of it>)"),
            Markup::Plain => format!("\n… (shortened; all of it: {link})"),
            _ => format!("\n\n… (shortened; [all of it]({link}))"),
        };
        let mut end = self.limit().saturating_sub(notice.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let kept = &text[..end];
        // An entity is at most 8 bytes, a tag or link target rarely more than 300.
        let open = |start: char, close: char, reach: usize| {
            kept.rfind(start).filter(|i| kept.len() - i <= reach && !kept[*i..].contains(close))
        };
        let cut =
            [open('&', ';', 8), open('<', '>', 300), open('[', ')', 300), kept.ends_with('\\').then(|| kept.len() - 1)];
        let end = cut.into_iter().flatten().min().filter(|_| self != Markup::Plain).unwrap_or(kept.len());
        format!("{}{notice}", &kept[..end])
    }
}

/// Characters that are not seen but change what is: controls, and those that turn the direction of writing.
fn is_hidden(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// One line, at most `max` characters: for titles, subjects and facts.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    shorten(&flat.chars().filter(|c| !is_hidden(*c)).collect::<String>(), max)
}

/// At most `max` characters.
pub(crate) fn shorten(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Markup; 6] =
        [Markup::Slack, Markup::Feishu, Markup::Dingtalk, Markup::Wecom, Markup::Teams, Markup::Plain];

    #[test]
    fn a_value_cannot_mention_link_or_format() {
        let evil = "<!channel> <@U1> <at id=all></at> [x](http://evil) *b* @all `c`";
        assert_eq!(
            Markup::Slack.escape("<!channel> & <http://e|x> a_b"),
            "&lt;!channel&gt; &amp; &lt;http://e|x&gt; a_b"
        );
        assert_eq!(Markup::Feishu.escape("<at id=all></at>*"), "&#60;at id=all&#62;&#60;/at&#62;&#42;");
        assert_eq!(Markup::Teams.escape("<at>x</at> [a](b)"), r"\<at\>x\</at\> \[a\]\(b\)");
        for m in [Markup::Dingtalk, Markup::Wecom] {
            let e = m.escape(evil);
            assert!(!e.contains(['<', '>', '[', ']', '`', '*', '@']), "{e}");
        }
        assert_eq!(Markup::Plain.escape(evil), evil);
    }

    #[test]
    fn hidden_characters_are_dropped() {
        for m in ALL {
            assert_eq!(m.escape("a\u{202e}b\u{0}c\u{200b}d\r"), "abcd", "{m:?}");
        }
        assert_eq!(one_line("a\r\nBcc: x\u{202e}\t y", 100), "a Bcc: x y");
        assert_eq!(one_line("äöü", 2), "ä…");
    }

    #[test]
    fn a_long_text_is_cut_whole_and_says_where_the_rest_is() {
        for m in ALL {
            for pad in 0..12 {
                let text = format!("{}{}", "x".repeat(pad), m.escape(&"你<&*[".repeat(20_000)));
                let cut = m.fit(&text, "http://w/d/1");
                assert!(cut.len() <= m.limit(), "{m:?}: {}", cut.len());
                assert!(cut.contains("http://w/d/1"), "{m:?}");
                let body = cut.split("\n… ").next().expect("body").split("\n\n… ").next().expect("body");
                match m {
                    Markup::Slack | Markup::Feishu => {
                        assert_eq!(body.matches('&').count(), body.matches(';').count(), "{m:?}: no half entity");
                    }
                    Markup::Teams => assert!(!body.trim_end_matches("\\\\").ends_with('\\'), "no dangling escape"),
                    _ => {}
                }
            }
            assert_eq!(m.fit("short", "l"), "short");
        }
        let linked = format!("{}<http://w/{}|name>", "x".repeat(2_840), "y".repeat(200));
        assert!(!Markup::Slack.fit(&linked, "l").contains("<http://w/y"));
    }
}
