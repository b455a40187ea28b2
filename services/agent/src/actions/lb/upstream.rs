//! The file of an nginx upstream: lines `server <member> ...;`, of which the word `down` comes and goes. All else in it,
//! spacing and comments too, stays as it was written.

use std::collections::BTreeMap;

/// A `server` line.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    address: &'a str,
    down: bool,
    backup: bool,
    /// Where the directive's `;` stands in the line.
    end: usize,
}

/// Reads one line; `None` when it is no `server` line. `Err`: it is one that this cannot change.
fn read(line: &str) -> Result<Option<Line<'_>>, ()> {
    let code = line.split('#').next().unwrap_or_default();
    let mut words = code.split(|c: char| c.is_whitespace() || c == ';').filter(|w| !w.is_empty());
    if words.next() != Some("server") {
        return Ok(None);
    }
    // One directive a line: what is before the `;` is all of it.
    let end = code.find(';').ok_or(())?;
    if !code[end + 1..].trim().is_empty() {
        return Err(());
    }
    let mut words = code[..end].split_whitespace().skip(1);
    let address = words.next().ok_or(())?;
    let (mut down, mut backup) = (false, false);
    for w in words {
        down |= w == "down";
        backup |= w == "backup";
    }
    Ok(Some(Line { address, down, backup, end }))
}

/// The line with or without `down`.
fn turned(line: &str, l: &Line<'_>, down: bool) -> String {
    let (head, tail) = line.split_at(l.end);
    if down {
        return format!("{} down{tail}", head.trim_end());
    }
    let mut out = String::with_capacity(line.len());
    let mut rest = head;
    while let Some(at) = rest.find(|c: char| !c.is_whitespace()) {
        let (space, from) = rest.split_at(at);
        let word = &from[..from.find(char::is_whitespace).unwrap_or(from.len())];
        if word != "down" {
            out.push_str(space);
            out.push_str(word);
        }
        rest = &from[word.len()..];
    }
    out + tail
}

/// What the file says about one member.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Upstream<'a> {
    text: &'a str,
    /// As the file writes it.
    pub(super) address: String,
    /// The ways the file may write it: nginx takes `a` and `a:80` for the same server.
    names: Vec<String>,
    /// All of the member's lines say so.
    pub(super) down: bool,
    /// Members that are not down, without this one; a backup is no member to count on.
    pub(super) others_up: u32,
    /// All members, backups left out.
    pub(super) members: u32,
}

impl<'a> Upstream<'a> {
    /// `port` is that of the members where `member` has none.
    pub(super) fn parse(text: &'a str, member: &str, port: Option<u16>) -> Result<Upstream<'a>, String> {
        let with_port = port.map(|p| format!("{member}:{p}"));
        let is_it = |a: &str| a == member || with_port.as_deref() == Some(a);
        let mut address = None;
        let mut down = true;
        // By address, because one file may hold several upstreams of the same servers.
        let mut up: BTreeMap<&str, bool> = BTreeMap::new();
        for (n, line) in (1..).zip(text.lines()) {
            let read = read(line).map_err(|()| {
                format!("line {n} is not of the form `server <address> ...;` alone on its line: {:?}", line.trim())
            })?;
            let Some(l) = read else { continue };
            if is_it(l.address) {
                address = Some(l.address);
                down &= l.down;
            }
            if !l.backup {
                *up.entry(l.address).or_default() |= !l.down;
            }
        }
        let Some(address) = address else {
            let known: Vec<&str> = up.keys().copied().take(20).collect();
            return Err(format!(
                "it has no line `server {};`, only {}",
                with_port.as_deref().unwrap_or(member),
                if known.is_empty() { "none at all".into() } else { known.join(", ") }
            ));
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Upstream {
            text,
            address: address.to_owned(),
            down,
            others_up: count(up.iter().filter(|(a, up)| **up && !is_it(a)).count()),
            // The member's own lines are one member, unless all of them are backups.
            members: count(up.keys().filter(|a| !is_it(a)).count() + usize::from(up.keys().any(|a| is_it(a)))),
            names: [Some(member.to_owned()), with_port.clone()].into_iter().flatten().collect(),
        })
    }

    /// The file with the member down, or not.
    pub(super) fn with(&self, down: bool) -> String {
        let mut out = String::with_capacity(self.text.len() + 8);
        for line in self.text.split_inclusive('\n') {
            match read(line.trim_end_matches(['\n', '\r'])) {
                Ok(Some(l)) if self.names.iter().any(|n| n == l.address) && l.down != down => {
                    out += &turned(line, &l, down)
                }
                _ => out += line,
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# the shop\nupstream shop {\n\tserver 10.0.0.1:80;\n  server   10.0.0.2:80\tweight=3 down max_fails=0 ; # ill\n  # server 10.0.0.9:80;\n    server 10.0.0.3:80;#last\n server 10.0.0.4:80 backup;\n\n    keepalive 4;\n}\n";

    #[test]
    fn one_word_comes_and_goes_and_nothing_else_moves() {
        let u = Upstream::parse(FILE, "10.0.0.1:80", None).expect("there");
        assert_eq!((u.down, u.others_up, u.members), (false, 1, 3));
        assert_eq!(u.with(false), FILE, "it is not down: nothing to change");
        let off = u.with(true);
        assert_eq!(off, FILE.replace("10.0.0.1:80;", "10.0.0.1:80 down;"));
        let back = Upstream::parse(&off, "10.0.0.1:80", None).expect("there");
        assert_eq!((back.down, back.others_up), (true, 1), "the member itself does not count");
        assert_eq!(back.with(false), FILE);

        let ill = Upstream::parse(FILE, "10.0.0.2", Some(80)).expect("there, by its port");
        assert_eq!((ill.down, ill.others_up), (true, 2));
        assert_eq!(ill.with(false), FILE.replace("\tweight=3 down max_fails=0 ;", "\tweight=3 max_fails=0;"));
        let last = Upstream::parse(FILE, "10.0.0.3:80", None).expect("there").with(true);
        assert_eq!(last, FILE.replace("10.0.0.3:80;#last", "10.0.0.3:80 down;#last"));
    }

    #[test]
    fn a_member_written_with_and_without_its_port_is_one() {
        let file = "upstream x {\n server a:80;\n server b;\n}\nupstream y {\n server a;\n}\n";
        let u = Upstream::parse(file, "a", Some(80)).expect("there");
        assert_eq!((u.down, u.others_up, u.members), (false, 1, 2));
        let off = u.with(true);
        assert_eq!(off, file.replace("a:80;", "a:80 down;").replace(" a;", " a down;"));
        assert!(Upstream::parse(&off, "a", Some(80)).expect("there").down);
    }

    #[test]
    fn a_member_in_two_upstreams_is_turned_in_both() {
        let text = "server a:1;\nserver b:1;\r\nserver a:1 down;\n";
        let u = Upstream::parse(text, "a:1", None).expect("there");
        assert!(!u.down, "one of them takes traffic");
        assert_eq!(u.with(true), "server a:1 down;\nserver b:1;\r\nserver a:1 down;\n");
        assert_eq!(u.with(false), "server a:1;\nserver b:1;\r\nserver a:1;\n");
    }

    #[test]
    fn what_is_missing_or_not_understood_is_said() {
        let e = Upstream::parse(FILE, "10.0.0.9:80", None).expect_err("a comment is no line");
        assert!(e.contains("server 10.0.0.9:80;") && e.contains("10.0.0.1:80"), "{e}");
        let e = Upstream::parse("server a:1", "a:1", None).expect_err("no end");
        assert!(e.contains("line 1"), "{e}");
        let e = Upstream::parse("\nserver a:1; server b:1;", "a:1", None).expect_err("two on a line");
        assert!(e.contains("line 2"), "{e}");
        let e = Upstream::parse("", "a", Some(8080)).expect_err("empty");
        assert!(e.contains("server a:8080;") && e.contains("none at all"), "{e}");
        assert_eq!(read("  server_name x;"), Ok(None));
    }
}
