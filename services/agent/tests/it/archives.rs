//! Hostile archives: each is refused, and nothing appears outside its directory.

use cap_std::{ambient_authority, fs::Dir};
use flate2::{Compression, write::GzEncoder};
use std::{path::Path, sync::atomic::AtomicBool};
use tar::EntryType;
use windlass_agent::actions::{ArchiveError, Limits, unpack};
use windlass_testkit::temp_dir;

/// One raw entry: the tar crate's own checks of names are passed by.
pub(crate) struct E {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) link: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn file(name: &str) -> E {
    E { name: name.into(), kind: EntryType::Regular, link: vec![], data: b"data".to_vec() }
}
pub(crate) fn dir(name: &str) -> E {
    E { kind: EntryType::Directory, data: vec![], ..file(name) }
}
pub(crate) fn link(name: &str, to: &str) -> E {
    E { kind: EntryType::Symlink, link: to.into(), data: vec![], ..file(name) }
}
pub(crate) fn hard(name: &str, to: &str) -> E {
    E { kind: EntryType::Link, link: to.into(), data: vec![], ..file(name) }
}
fn of(kind: EntryType) -> E {
    E { kind, data: vec![], ..file("special") }
}

pub(crate) fn header(e: &E, size: u64) -> tar::Header {
    let mut h = tar::Header::new_gnu();
    let old = h.as_old_mut();
    old.name[..e.name.len()].copy_from_slice(&e.name);
    old.linkname[..e.link.len()].copy_from_slice(&e.link);
    h.set_entry_type(e.kind);
    h.set_mode(0o6777);
    h.set_size(size);
    h.set_cksum();
    h
}

pub(crate) fn archive(entries: &[E]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for e in entries {
        tar.append(&header(e, e.data.len() as u64), &e.data[..]).expect("appends");
    }
    tar.into_inner().expect("tar").finish().expect("gzip")
}

/// Unpacks into `<tmp>/in`; afterwards `<tmp>` holds nothing else and its canary is whole.
pub(crate) fn attempt(bytes: &[u8], limits: Limits) -> Result<Kept, ArchiveError> {
    let tmp = temp_dir();
    std::fs::write(tmp.path().join("canary"), "whole").expect("writes");
    let to = tmp.path().join("in");
    std::fs::create_dir(&to).expect("dir");
    let cap = Dir::open_ambient_dir(&to, ambient_authority()).expect("opens");
    let done = unpack(bytes, bytes.len() as u64, &cap, limits, &AtomicBool::new(false));
    let mut around: Vec<_> =
        std::fs::read_dir(tmp.path()).expect("dir").map(|e| e.expect("entry").file_name()).collect();
    around.sort();
    assert_eq!(around, ["canary", "in"]);
    assert_eq!(std::fs::read_to_string(tmp.path().join("canary")).expect("reads"), "whole");
    let links = std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(tmp.path().join("canary")).expect("canary"));
    assert_eq!(links, 1, "a hard link leads out");
    inside_only(&to, &to.canonicalize().expect("path"));
    done.map(|_| Kept(tmp))
}

/// The directory, until somebody has looked into it.
pub(crate) struct Kept(tempfile::TempDir);

/// Every link that was made resolves inside, or to nothing; nothing is set-uid.
fn inside_only(dir: &Path, top: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for e in std::fs::read_dir(dir).expect("dir").map(|e| e.expect("entry")) {
        let meta = std::fs::symlink_metadata(e.path()).expect("entry");
        if meta.is_symlink() {
            if let Ok(real) = e.path().canonicalize() {
                assert!(real.starts_with(top), "{} leads to {}", e.path().display(), real.display());
            }
            continue;
        }
        assert!(meta.is_dir() || meta.is_file(), "{}", e.path().display());
        assert_eq!(meta.permissions().mode() & 0o7000, 0, "{}", e.path().display());
        if meta.is_dir() {
            inside_only(&e.path(), top);
        }
    }
}

fn refused(entries: &[E]) -> &'static str {
    match attempt(&archive(entries), Limits::default()) {
        Err(ArchiveError::Refused { why, .. }) => why,
        Err(e) => panic!("refused for another reason: {e:?}"),
        Ok(_) => panic!("taken"),
    }
}

#[test]
fn paths_and_links_that_lead_out_are_refused() {
    for name in ["../out", "a/../../out", "..", "/abs", "a/b/../../../out", "./../out"] {
        let why = refused(&[file(name)]);
        assert!(why.contains("upwards") || why.contains("absolute"), "{name}: {why}");
    }
    for (at, to) in
        [("l", "/etc/passwd"), ("l", ".."), ("l", "../canary"), ("a/l", "../../canary"), ("l", "x/../../canary")]
    {
        assert!(refused(&[dir("a"), link(at, to)]).contains("link"), "{at} -> {to}");
    }
    for to in ["/etc/passwd", "../canary", "nothing", "a", "l"] {
        refused(&[dir("a"), link("l", "a"), hard("h", to)]);
    }
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::new(b'V')] {
        refused(&[of(kind)]);
    }
    assert!(attempt(&archive(&[of(EntryType::GNUSparse)]), Limits::default()).is_err());
    assert!(refused(&[file(".windlass-release.json")]).contains("marker"));
    assert!(refused(&[file(".windlass-release.json/x")]).contains("marker"));
}

#[test]
fn nothing_is_written_through_a_link_of_the_archive() {
    assert!(refused(&[dir("a"), link("l", "a"), file("l/x")]).contains("through a link"));
    assert!(refused(&[dir("a"), link("l", "a"), dir("l/x/y")]).contains("through a link"));
    assert!(refused(&[dir("a"), file("a/f"), link("l", "a"), hard("h", "l/f")]).contains("through a link"));
    // Two links that are harmless alone and lead out together.
    assert!(
        refused(&[dir("d/e/f"), link("d/e/f/up", "../../.."), link("d/e/f/up/out", "../canary")]).contains("through")
    );
    assert!(
        refused(&[dir("d/e/f"), link("d/e/f/up", "../../.."), link("out", "d/e/f/up/../canary")])
            .contains("down and up")
    );
}

#[test]
fn a_later_entry_replaces_and_never_follows() {
    let kept = attempt(
        &archive(&[file("real"), link("l", "real"), E { data: b"new".to_vec(), ..file("l") }]),
        Limits::default(),
    );
    let top = kept.expect("taken").0;
    assert_eq!(std::fs::read_to_string(top.path().join("in/real")).expect("reads"), "data");
    assert_eq!(std::fs::read_to_string(top.path().join("in/l")).expect("reads"), "new");
}

#[test]
fn honest_archives_are_taken_with_their_links() {
    let all =
        [dir("./"), file("./bin/run"), link("bin/r", "run"), link("a/b/up", "../../bin"), hard("copy", "bin/run")];
    let top = attempt(&archive(&all), Limits::default()).unwrap_or_else(|e| panic!("{e:?}")).0;
    let at = |p: &str| std::fs::read_to_string(top.path().join("in").join(p)).expect("reads");
    assert_eq!((at("bin/r"), at("a/b/up/run"), at("copy")), ("data".into(), "data".into(), "data".into()));
}

#[test]
fn bombs_end_early() {
    let limits = Limits { bytes: 1 << 30, entries: 1000, ratio: 100, ratio_floor: 1 << 20, ..Limits::default() };
    // A gigabyte of zeros in a megabyte.
    let mut gz = GzEncoder::new(Vec::new(), Compression::best());
    let big = 200u64 << 20;
    std::io::Write::write_all(&mut gz, header(&E { data: vec![], ..file("big") }, big).as_bytes()).expect("writes");
    for _ in 0..big >> 20 {
        std::io::Write::write_all(&mut gz, &vec![0; 1 << 20]).expect("writes");
    }
    let bomb = gz.finish().expect("gzip");
    assert!(matches!(attempt(&bomb, limits), Err(ArchiveError::Limit { .. })));
    let few = Limits { bytes: 3, ..limits };
    assert!(matches!(attempt(&archive(&[file("a")]), few), Err(ArchiveError::Limit { limit: 3, .. })));
    let many: Vec<E> = (0..1001).map(|i| E { data: vec![], ..file(&format!("f{i}")) }).collect();
    assert!(matches!(attempt(&archive(&many), limits), Err(ArchiveError::Limit { limit: 1000, .. })));
    // A name of 200 MB, which a reader would collect in memory.
    let mut gz = GzEncoder::new(Vec::new(), Compression::best());
    let long = E { kind: EntryType::GNULongName, data: vec![], ..file("././@LongLink") };
    std::io::Write::write_all(&mut gz, header(&long, big).as_bytes()).expect("writes");
    for _ in 0..big >> 20 {
        std::io::Write::write_all(&mut gz, &vec![b'a'; 1 << 20]).expect("writes");
    }
    let bomb = gz.finish().expect("gzip");
    assert!(attempt(&bomb, limits).is_err());
}

#[test]
fn depth_length_and_nonsense_are_refused() {
    let deep = format!("{}x", "d/".repeat(40));
    let limits = Limits { depth: 20, ..Limits::default() };
    assert!(matches!(attempt(&archive(&[file(&deep)]), limits), Err(ArchiveError::Refused { .. })));
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut h = tar::Header::new_gnu();
    h.set_size(0);
    h.set_mode(0o644);
    tar.append_data(&mut h, "n/".repeat(3000) + "x", &[][..]).expect("appends");
    let long = tar.into_inner().expect("tar").finish().expect("gzip");
    assert!(matches!(attempt(&long, Limits::default()), Err(ArchiveError::Refused { .. })));
    let good = archive(&[file("a"), file("b")]);
    for cut in [0, 1, 10, good.len() / 2, good.len() - 9] {
        assert!(attempt(&good[..cut], Limits::default()).is_err(), "cut at {cut}");
    }
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad[i] ^= 0x55;
        // Whatever it says: no panic, nothing outside.
        let _ = attempt(&bad, Limits::default());
    }
}
