//! Unpacking a `.tar.gz` that is not trusted: bounded in every way, and nothing of it lands outside its directory.
//!
//! All writes go through a `cap_std` directory, which follows no link out of it. Beyond that an entry may not be reached
//! through a link of the archive at all, and a link's target may have `..` only at its begin: so every link that is
//! accepted stays inside when it is followed later, by whoever.

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, PermissionsExt};
use std::{
    collections::HashSet,
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};
use tar::EntryType;

/// Name of the file that says a release directory is complete. An archive may not bring its own.
pub(super) const MARKER: &str = ".windlass-release.json";

/// Caps on what an archive may become.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes: u64,
    pub entries: u64,
    /// Unpacked to packed size, above `ratio_floor` bytes.
    pub ratio: u64,
    pub ratio_floor: u64,
    pub depth: usize,
    pub path_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: 2 << 30, entries: 200_000, ratio: 200, ratio_floor: 64 << 20, depth: 64, path_bytes: 4096 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    #[error("cannot write {path} of the archive")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the archive's entry {path:?} is refused: {why}")]
    Refused { path: String, why: &'static str },
    #[error("the archive is refused: {what} exceeds the limit of {limit}")]
    Limit { what: &'static str, limit: u64 },
    #[error("unpacking was stopped")]
    Stopped,
}

/// What was unpacked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    pub bytes: u64,
    /// Every file was made durable by itself; else the caller syncs the file system, which is cheaper for many files.
    pub synced: bool,
}

/// Files of an archive that are synced one by one.
const SYNC_SINGLY: u64 = 32;

/// Unpacks the gzipped tar `archive` of `packed` bytes into `to`, which should be empty.
pub fn unpack(
    archive: impl Read,
    packed: u64,
    to: &Dir,
    limits: Limits,
    stop: &AtomicBool,
) -> Result<Unpacked, ArchiveError> {
    let budget = limits.bytes.min((packed.saturating_mul(limits.ratio)).max(limits.ratio_floor));
    let unzipped = Capped {
        inner: flate2::read::MultiGzDecoder::new(archive),
        // Headers and padding count too: an archive of nothing but headers must end as well.
        left: budget.saturating_add(limits.entries.saturating_mul(4096)),
    };
    let mut tar = tar::Archive::new(unzipped);
    let mut state = State { to, limits, links: HashSet::new(), done: Unpacked::default(), buf: vec![0; 64 * 1024] };
    let entries = tar.entries().map_err(ArchiveError::Read)?;
    for e in entries {
        if stop.load(Ordering::Relaxed) {
            return Err(ArchiveError::Stopped);
        }
        let e = e.map_err(ArchiveError::Read)?;
        state.done.entries += 1;
        if state.done.entries > limits.entries {
            return Err(ArchiveError::Limit { what: "the number of entries", limit: limits.entries });
        }
        state.entry(e, budget, stop)?;
    }
    let mut done = state.done;
    done.synced = done.entries <= SYNC_SINGLY;
    // The end of the compressed stream holds its checksum; the tar reader stops before it.
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(ArchiveError::Read)?;
    Ok(done)
}

/// Stops reading at its limit with an error, so that a bomb in the headers (long names, sparse maps) ends too.
struct Capped<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("the archive unpacks to more than its limit"));
        }
        let max = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.inner.read(&mut buf[..max])?;
        self.left -= n as u64;
        Ok(n)
    }
}

struct State<'a> {
    to: &'a Dir,
    limits: Limits,
    links: HashSet<PathBuf>,
    done: Unpacked,
    buf: Vec<u8>,
}

impl State<'_> {
    fn entry<R: Read>(&mut self, mut e: tar::Entry<'_, R>, budget: u64, stop: &AtomicBool) -> Result<(), ArchiveError> {
        let kind = e.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&e.path_bytes()).into_owned();
        let refused = |why| ArchiveError::Refused { path: shown(&name), why };
        let raw = e.path().map_err(|_| refused("its path is not readable"))?.into_owned();
        let path = self.inside(&raw).map_err(refused)?;
        if path.as_os_str().is_empty() {
            return if kind.is_dir() { Ok(()) } else { Err(refused("it has no name")) };
        }
        if path.starts_with(MARKER) {
            return Err(refused("the name is kept for the agent's own marker"));
        }
        let write = |source| ArchiveError::Write { path: shown(&name), source };
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            self.to.create_dir_all(parent).map_err(write)?;
        }
        let mode = e.header().mode().unwrap_or(0o644) & 0o777;
        match kind {
            EntryType::Directory => {
                self.to.create_dir_all(&path).map_err(write)?;
                // The owner must be able to go on writing below it and to delete it one day.
                let perm = cap_std::fs::Permissions::from_mode(mode | 0o700);
                self.to.set_permissions(&path, perm).map_err(write)
            }
            EntryType::Regular | EntryType::Continuous => {
                self.clear(&path).map_err(write)?;
                let mut opts = OpenOptions::new();
                opts.write(true).create_new(true).mode(0o600);
                let mut f = self.to.open_with(&path, &opts).map_err(write)?;
                loop {
                    if stop.load(Ordering::Relaxed) {
                        return Err(ArchiveError::Stopped);
                    }
                    let n = e.read(&mut self.buf).map_err(ArchiveError::Read)?;
                    if n == 0 {
                        break;
                    }
                    self.done.bytes += n as u64;
                    if self.done.bytes > budget {
                        let (what, limit) = if budget < self.limits.bytes {
                            ("what it unpacks to, for its packed size,", budget)
                        } else {
                            ("what it unpacks to", self.limits.bytes)
                        };
                        return Err(ArchiveError::Limit { what, limit });
                    }
                    f.write_all(&self.buf[..n]).map_err(write)?;
                }
                // Set-uid, set-gid and sticky bits are masked off above.
                f.set_permissions(cap_std::fs::Permissions::from_mode(mode)).map_err(write)?;
                if self.done.entries <= SYNC_SINGLY { f.sync_data().map_err(write) } else { Ok(()) }
            }
            EntryType::Symlink => {
                let target = link_name(&e).ok_or_else(|| refused("it is a link to nothing"))?;
                link_stays_inside(&path, &target).map_err(refused)?;
                self.clear(&path).map_err(write)?;
                self.to.symlink(&target, &path).map_err(write)?;
                self.links.insert(path);
                Ok(())
            }
            EntryType::Link => {
                let target = link_name(&e).ok_or_else(|| refused("it is a link to nothing"))?;
                let target = self.inside(&target).map_err(refused)?;
                let is_file = self.to.symlink_metadata(&target).is_ok_and(|m| m.is_file());
                if !is_file {
                    return Err(refused("its hard link does not name an earlier file of the archive"));
                }
                if target == path {
                    return Ok(());
                }
                self.clear(&path).map_err(write)?;
                self.to.hard_link(&target, self.to, &path).map_err(write)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => Err(refused("it is a device or a pipe")),
            _ => Err(refused("it is of a kind that a release may not hold")),
        }
    }

    /// The path below the target directory, if it stays there by its text and passes no link of the archive.
    fn inside(&self, raw: &Path) -> Result<PathBuf, &'static str> {
        if raw.as_os_str().len() > self.limits.path_bytes {
            return Err("its path is too long");
        }
        if raw.as_os_str().as_encoded_bytes().contains(&0) {
            return Err("its path holds a zero byte");
        }
        let mut path = PathBuf::new();
        for c in raw.components() {
            match c {
                Component::Normal(n) => {
                    if self.links.contains(&path) {
                        return Err("its path leads through a link of the archive");
                    }
                    path.push(n);
                }
                Component::CurDir => {}
                Component::ParentDir => return Err("its path leads upwards"),
                Component::RootDir | Component::Prefix(_) => return Err("its path is absolute"),
            }
        }
        if path.components().count() > self.limits.depth {
            return Err("its path is too deep");
        }
        Ok(path)
    }

    /// A later entry of the same name replaces an earlier one; it never writes through it.
    fn clear(&mut self, path: &Path) -> io::Result<()> {
        match self.to.symlink_metadata(path) {
            Ok(m) if m.is_dir() => Err(io::Error::new(io::ErrorKind::AlreadyExists, "a directory is there already")),
            Ok(_) => {
                self.links.remove(path);
                self.to.remove_file(path)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn link_name<R: Read>(e: &tar::Entry<'_, R>) -> Option<PathBuf> {
    e.link_name().ok().flatten().map(|c| c.into_owned()).filter(|p| !p.as_os_str().is_empty())
}

fn link_stays_inside(link: &Path, target: &Path) -> Result<(), &'static str> {
    let mut up = 0;
    let mut down = false;
    for c in target.components() {
        match c {
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            Component::ParentDir if down => return Err("its link goes down and up again"),
            Component::ParentDir => up += 1,
            Component::RootDir | Component::Prefix(_) => return Err("its link is absolute"),
        }
    }
    let depth = link.components().count() - 1;
    if up > depth { Err("its link leads out of the archive") } else { Ok(()) }
}

/// For messages: bounded, without control characters.
fn shown(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).take(120).collect()
}
