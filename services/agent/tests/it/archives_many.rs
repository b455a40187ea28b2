//! Hostile archives by the hundred, made here: none of them leaves anything outside its directory, and what must be refused is.
//! The agent takes `.tar.gz` alone, so archives of every other kind are among what is refused.

use crate::archives::{E, archive, attempt, dir, file, hard, header, link};
use flate2::{Compression, write::GzEncoder};
use std::io::Write;
use tar::EntryType;
use windlass_agent::actions::Limits;

const LIMITS: Limits =
    Limits { bytes: 1 << 20, entries: 500, ratio: 100, ratio_floor: 256 << 10, depth: 16, path_bytes: 1024 };

/// What must come of one.
#[derive(Clone, Copy, PartialEq)]
enum Must {
    /// It is refused.
    Fail,
    /// Refused or taken, as long as it stays inside: what a name looks like on another system is only a name here.
    Stay,
}
use Must::{Fail, Stay};

#[derive(Default)]
struct Table {
    refused: usize,
    taken: usize,
    families: Vec<(&'static str, usize)>,
    /// Taken though they must be refused.
    wrong: Vec<String>,
}

impl Table {
    fn family(&mut self, name: &'static str) {
        self.families.push((name, 0));
    }

    fn bytes(&mut self, what: &str, must: Must, bytes: &[u8]) {
        // Looks for escapes itself.
        match attempt(bytes, LIMITS) {
            Err(_) => self.refused += 1,
            Ok(_) => {
                if must == Fail {
                    self.wrong.push(format!("{}: {what}", self.families.last().map_or("", |f| f.0)));
                }
                self.taken += 1;
            }
        }
        self.families.last_mut().expect("a family").1 += 1;
    }

    fn entries(&mut self, what: &str, must: Must, entries: &[E]) {
        self.bytes(what, must, &archive(entries));
    }
}

fn named(name: &[u8], kind: EntryType, to: &str) -> E {
    let data = if kind == EntryType::Regular { b"data".to_vec() } else { vec![] };
    E { name: name.to_vec(), kind, link: to.into(), data }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::best());
    gz.write_all(bytes).expect("into memory");
    gz.finish().expect("into memory")
}

/// One entry as bytes: the header as it is given, the data, padding.
fn raw(h: &tar::Header, data: &[u8]) -> Vec<u8> {
    let mut out = h.as_bytes().to_vec();
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (k, v) in records {
        let tail = format!(" {k}={v}\n");
        let mut n = tail.len();
        while n != tail.len() + n.to_string().len() {
            n = tail.len() + n.to_string().len();
        }
        data.extend(format!("{n}{tail}").bytes());
    }
    let e = E { kind: EntryType::XHeader, data: vec![], ..file("pax") };
    raw(&header(&e, data.len() as u64), &data)
}

fn whole(parts: &[Vec<u8>]) -> Vec<u8> {
    gzip(&[parts.concat(), vec![0; 1024]].concat())
}

fn plain(e: &E) -> Vec<u8> {
    raw(&header(e, e.data.len() as u64), &e.data)
}

fn names(t: &mut Table) {
    t.family("names");
    let all: [(&[u8], Must); 40] = [
        (b"../out", Fail),
        (b"..", Fail),
        (b"./../out", Fail),
        (b"a/../../out", Fail),
        (b"a/..", Fail),
        (b"a/../out", Fail),
        (b"a//..//../out", Fail),
        (b"a/./../../out", Fail),
        (b"a/b/c/../../../../out", Fail),
        (b"../in/x", Fail),
        (b"../../../../../../../../tmp/out", Fail),
        (b"/abs", Fail),
        (b"//abs", Fail),
        (b"///abs", Fail),
        (b"/./abs", Fail),
        (b"/../abs", Fail),
        (b"/proc/self/cwd/out", Fail),
        (b"/dev/shm/out", Fail),
        (b"...", Stay),
        (b"..../out", Stay),
        (b". ./out", Stay),
        (b".. /out", Stay),
        (b" ../out", Stay),
        (b"..\\out", Stay),
        (b"\\abs", Stay),
        (b"C:\\out", Stay),
        (b"C:/out", Stay),
        (b"\\\\host\\share\\out", Stay),
        (b"%2e%2e/out", Stay),
        (b"..%2fout", Stay),
        ("．．/out".as_bytes(), Stay),
        ("․․/out".as_bytes(), Stay),
        ("..\u{2215}out".as_bytes(), Stay),
        (b"~/out", Stay),
        (b"$HOME/out", Stay),
        (b"-rf", Stay),
        (b"a\nb", Stay),
        (b"\x1b]0;t\x07", Stay),
        (b"\xff\xfe/out", Stay),
        (b"..\x7f/out", Stay),
    ];
    for (name, must) in all {
        for (kind, to) in [
            (EntryType::Regular, ""),
            (EntryType::Directory, ""),
            (EntryType::Symlink, "first"),
            (EntryType::Link, "first"),
        ] {
            let what = format!("{:?} {kind:?}", String::from_utf8_lossy(name));
            // A directory that names the top is no harm; one that leads above it is.
            t.entries(&what, must, &[file("first"), named(name, kind, to)]);
        }
    }
}

fn links(t: &mut Table) {
    t.family("links, and writing through them");
    let out = [
        "/",
        "/etc",
        "/etc/passwd",
        "..",
        "../",
        "../..",
        "../canary",
        "./../canary",
        "x/../../canary",
        "d/../../canary",
        "../../../../../../etc",
        "/proc/self/root",
        "//x",
    ];
    for target in out {
        for then in [
            None,
            Some(file("l")),
            Some(file("l/x")),
            Some(dir("l/x")),
            Some(hard("h", "l")),
            Some(hard("h", "l/x")),
            Some(link("l/x", "y")),
        ] {
            let mut all = vec![dir("d"), link("l", target)];
            all.extend(then);
            t.entries(target, Fail, &all);
        }
    }
    // These stay inside, so the link is taken; what goes through it is not.
    for target in ["d", "./d", "d/e", ".", "nothing", "l", "d/../d"] {
        for (then, must) in [
            (file("l/x"), Fail),
            (dir("l/x/y"), Fail),
            (hard("h", "l/x"), Fail),
            (link("l/x", "../canary"), Fail),
            (file("l"), Stay),
            (dir("l"), Stay),
        ] {
            t.entries(target, must, &[dir("d/e"), link("l", target), then]);
        }
    }
    for to in ["/etc/passwd", "../canary", "..", ".", "", "d", "nothing", "l", "l/x", "./../canary", "d/../f", "h"] {
        t.entries(to, if to == "h" { Stay } else { Fail }, &[dir("d"), file("f"), link("l", "f"), hard("h", to)]);
    }
}

fn chains(t: &mut Table) {
    t.family("chains of links");
    for n in 1..=12 {
        let deep: String = (0..n).map(|i| format!("d{i}/")).collect();
        let up = vec![".."; n].join("/");
        // Up to the top by a link that is allowed, then out through it.
        for last in [
            file(&format!("{deep}up/../out")),
            link(&format!("{deep}up/out"), "../canary"),
            link("out", &format!("{deep}up/../canary")),
            hard("out", &format!("{deep}up/../canary")),
        ] {
            t.entries(&deep, Fail, &[dir(&deep), link(&format!("{deep}up"), &up), last]);
        }
        let mut chain: Vec<E> = (0..n).map(|i| link(&format!("l{i}"), &format!("l{}", i + 1))).collect();
        chain.push(link(&format!("l{n}"), "../canary"));
        t.entries("a chain that ends outside", Fail, &chain);
        chain.pop();
        chain.push(link(&format!("l{n}"), "l0"));
        t.entries("a circle", Stay, &chain);
    }
    // The directory is swapped for a link after its files were made, and the other way round.
    t.entries("a link for a directory", Fail, &[dir("a"), file("a/f"), link("a", "b"), file("a/g")]);
    t.entries("a directory for a link", Stay, &[dir("b"), link("a", "b"), dir("a")]);
    t.entries("a file below a file", Fail, &[file("a"), file("a/b")]);
    t.entries("a link below a file", Fail, &[file("a"), link("a/b", "c")]);
}

fn kinds(t: &mut Table) {
    t.family("kinds of entry, all 256");
    for kind in 0..=255 {
        let kind = EntryType::new(kind);
        t.entries(&format!("{kind:?}"), Stay, &[named(b"special", kind, "first")]);
    }
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        for name in ["dev", "d/dev", "dev/null"] {
            t.entries(name, Fail, &[named(name.as_bytes(), kind, "")]);
        }
    }
    t.family("modes");
    for mode in [0o4755, 0o2755, 0o1777, 0o7777, 0, 0o000_777_777, 0o10644, 0o20644] {
        for e in [file("f"), dir("f")] {
            let mut h = header(&e, e.data.len() as u64);
            h.set_mode(mode);
            h.set_cksum();
            t.bytes(&format!("{mode:o}"), Stay, &whole(&[raw(&h, &e.data)]));
        }
    }
}

fn extended(t: &mut Table) {
    t.family("extended headers");
    for (records, must) in [
        (&[("path", "../out")][..], Fail),
        (&[("path", "/abs")], Fail),
        (&[("path", "a/../../out")], Fail),
        (&[("path", "good"), ("path", "../out")], Stay),
        (&[("path", "../out"), ("path", "good")], Fail),
        (&[("path", "x\0y")], Fail),
        (&[("path", "")], Stay),
        (&[("size", "99999999999")], Fail),
        (&[("size", "-1")], Stay),
        (&[("size", "18446744073709551615")], Fail),
        (&[("size", "1")], Stay),
        (
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "../out"),
                ("GNU.sparse.realsize", "99999999"),
            ],
            Stay,
        ),
        (&[("GNU.sparse.map", "0,1,99999999999,1")], Stay),
        (&[("SCHILY.xattr.security.capability", "x")], Stay),
        (&[("mtime", "-99999999999999999999")], Stay),
        (&[("uid", "0"), ("uname", "root")], Stay),
        (&[("comment", "\u{1b}]0;t\u{7}")], Stay),
    ] {
        t.bytes(&format!("{records:?}"), must, &whole(&[pax(records), plain(&file("f"))]));
        let global = E { kind: EntryType::XGlobalHeader, data: vec![], ..file("g") };
        let body = pax(records)[512..].to_vec();
        t.bytes("global", Stay, &whole(&[raw(&header(&global, body.len() as u64), &body), plain(&file("f"))]));
    }
    for target in ["../canary", "/etc/passwd", "x/../../canary"] {
        t.bytes(target, Fail, &whole(&[pax(&[("linkpath", target)]), plain(&link("l", "good"))]));
        t.bytes(target, Fail, &whole(&[plain(&file("f")), pax(&[("linkpath", target)]), plain(&hard("l", "f"))]));
        let long = |kind, text: &str| {
            plain(&E { name: b"././@LongLink".to_vec(), kind, link: vec![], data: [text.as_bytes(), b"\0"].concat() })
        };
        t.bytes(target, Fail, &whole(&[long(EntryType::GNULongLink, target), plain(&link("l", "good"))]));
        t.bytes(target, Fail, &whole(&[long(EntryType::GNULongName, target), plain(&file("good"))]));
    }
    t.bytes(
        "bad records",
        Stay,
        &whole(&[
            raw(&header(&E { kind: EntryType::XHeader, data: vec![], ..file("p") }, 9), b"99 path=x"),
            plain(&file("f")),
        ]),
    );
    for size in [u64::MAX, 1 << 40, 1 << 62] {
        for e in [file("f"), dir("d"), link("l", "f")] {
            t.bytes(
                "a size beyond the end",
                if e.data.is_empty() { Stay } else { Fail },
                &whole(&[raw(&header(&e, size), b"x")]),
            );
        }
    }
    let mut sparse = header(&E { kind: EntryType::GNUSparse, data: vec![], ..file("s") }, 512);
    for (offset, real) in [(0u64, 1u64 << 40), (1 << 39, 1 << 40), (u64::MAX, u64::MAX)] {
        let g = sparse.as_gnu_mut().expect("a GNU header");
        g.set_real_size(real);
        g.sparse[0].set_offset(offset);
        g.sparse[0].set_length(512);
        sparse.set_cksum();
        t.bytes("a sparse file", Fail, &whole(&[raw(&sparse, &[1; 512])]));
    }
    let mut wrong = header(&file("f"), 4);
    wrong.as_old_mut().cksum = *b"0000000\0";
    t.bytes("a wrong checksum", Fail, &whole(&[raw(&wrong, b"data")]));
}

fn bombs(t: &mut Table) {
    t.family("bombs");
    for mib in [2, 8, 64] {
        // Two MiB are within what headers may come to; the file's own bytes are counted more closely.
        let little = if mib == 2 { Stay } else { Fail };
        let e = file("big");
        let big = vec![0; mib << 20];
        t.bytes("zeros", Fail, &whole(&[raw(&header(&e, big.len() as u64), &big)]));
        t.bytes(
            "a name",
            Fail,
            &whole(&[raw(
                &header(&E { kind: EntryType::GNULongName, ..file("n") }, big.len() as u64),
                &vec![b'a'; mib << 20],
            )]),
        );
        t.bytes(
            "an extended header",
            little,
            &whole(&[
                raw(&header(&E { kind: EntryType::XHeader, ..file("n") }, big.len() as u64), &big),
                plain(&file("f")),
            ]),
        );
        t.bytes("after the end", little, &gzip(&[plain(&file("f")), vec![0; 1024], big.clone()].concat()));
        let parts: Vec<u8> = (0..mib * 4).flat_map(|_| gzip(&vec![0; 1 << 18])).collect();
        t.bytes("many members", Fail, &[gzip(&header(&e, big.len() as u64).as_bytes()[..]), parts].concat());
        t.bytes("packed twice", Fail, &gzip(&gzip(&big)));
    }
    let many = |n: usize, f: &dyn Fn(usize) -> E| (0..n).map(f).collect::<Vec<E>>();
    t.entries("files", Fail, &many(501, &|i| file(&format!("f{i}"))));
    t.entries("directories", Fail, &many(501, &|i| dir(&format!("d{i}"))));
    t.entries("links", Fail, &many(501, &|i| link(&format!("l{i}"), "x")));
    t.entries("the same file again and again", Fail, &many(501, &|_| file("f")));
    t.entries("the same link again and again", Fail, &many(501, &|_| link("l", "x")));
    let mut doubles = vec![E { data: vec![b'x'; 4096], ..file("f") }];
    doubles.extend(many(400, &|i| hard(&format!("h{i}"), "f")));
    t.entries("hard links to one file", Stay, &doubles);
    t.entries("deep", Fail, &[file(&format!("{}x", "d/".repeat(17)))]);
    t.entries("deep directories", Fail, &[dir(&"d/".repeat(40))]);
}

fn twins(t: &mut Table) {
    t.family("names that are nearly the same");
    for (a, b) in [
        ("A", "a"),
        ("é", "e\u{301}"),
        ("f", "f."),
        ("f", "f "),
        ("f", "./f"),
        ("f", "f/"),
        ("f", ".//f"),
        ("ß", "SS"),
        ("CON", "con"),
        ("f", "f\u{200d}"),
        ("ﬁ", "fi"),
        ("f", "f:s"),
    ] {
        t.entries(a, Stay, &[file(a), file(b)]);
        t.entries(a, Stay, &[link(a, "../canary2x"), file(b)]);
        t.entries(a, Stay, &[dir(a), link(b, "x")]);
        t.entries(a, Stay, &[link(a, "x"), file(&format!("{b}/y"))]);
    }
    for name in [".windlass-release.json", ".windlass-release.json/x", "./.windlass-release.json"] {
        t.entries(name, Fail, &[file(name)]);
        t.entries(name, Fail, &[link(name, "x")]);
        t.entries(name, Fail, &[file("f"), hard(name, "f")]);
    }
}

fn other_formats(t: &mut Table) {
    t.family("other formats, and halves");
    let zip = |local: &[u8], central: &[u8]| {
        let mut z = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        z.extend([local.len() as u8, 0, 0, 0]);
        z.extend(local);
        let at = z.len() as u32;
        z.extend(b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
        z.extend([central.len() as u8, 0]);
        z.extend([0; 16]);
        z.extend(central);
        z.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
        z.extend((z.len() as u32 - at).to_le_bytes());
        z.extend(at.to_le_bytes());
        z.extend([0, 0]);
        z
    };
    for (local, central) in [(&b"good"[..], &b"../out"[..]), (b"../out", b"good"), (b"/abs", b"/abs"), (b"a", b"a")] {
        t.bytes("a zip", Fail, &zip(local, central));
        t.bytes("a zip in gzip", Fail, &gzip(&zip(local, central)));
    }
    let tar = [plain(&file("f")), plain(&dir("d")), plain(&link("l", "f")), vec![0; 1024]].concat();
    for magic in [
        &b"\x28\xb5\x2f\xfd"[..],
        b"BZh9",
        b"\xfd7zXZ\0",
        b"7z\xbc\xaf\x27\x1c",
        b"Rar!",
        b"\x1f\x9d",
        b"\x1f\x8b",
        b"\x1f\x8b\x08",
        b"\x1f\x8b\x09",
        b"!<arch>\n",
        b"07070100",
        b"",
    ] {
        t.bytes("a magic", Fail, &[magic, &tar].concat());
        t.bytes("a magic alone", Fail, magic);
    }
    let good = gzip(&tar);
    for cut in 1..24 {
        t.bytes("cut", Fail, &good[..good.len() * cut / 24]);
    }
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        t.bytes("a changed byte", Stay, &bad);
    }
    for at in (0..1536).step_by(23) {
        let mut bad = tar.clone();
        bad[at] ^= 0x41;
        t.bytes("a changed byte within", Stay, &gzip(&bad));
    }
}

#[test]
fn hundreds_of_hostile_archives_and_nothing_outside() {
    let mut t = Table::default();
    for family in [names, links, chains, kinds, extended, bombs, twins, other_formats] {
        family(&mut t);
    }
    let all: usize = t.families.iter().map(|(_, n)| n).sum();
    for (name, n) in &t.families {
        eprintln!("archives: {n:4} {name}");
    }
    eprintln!("archives: {all} tried, {} refused, {} taken and inside, 0 escapes", t.refused, t.taken);
    assert!(t.wrong.is_empty(), "taken: {:#?}", t.wrong);
    assert!(all >= 800 && t.refused > 500 && t.refused + t.taken == all);
}
