//! Where checkpoints go besides the database, so that the database alone cannot rewrite the trail unseen. Now: a file
//! that is only ever appended to. Copy it off the machine and it is a witness.

use crate::Error;
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use windlass_contracts::audit::note::{Checkpoint, last_in};
use windlass_runtime::keys;

/// Far more than one note takes.
const TAIL: u64 = 16 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct FileSink {
    path: PathBuf,
}

impl FileSink {
    pub(crate) fn new(state_dir: &Path) -> FileSink {
        FileSink { path: state_dir.join("audit").join("checkpoints") }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = self.path.clone();
        move |source| Error::Sink { action, path, source }
    }

    fn tail(&self) -> Result<String, Error> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
            Err(e) => return Err(self.error("open")(e)),
        };
        let size = file.seek(SeekFrom::End(0)).map_err(self.error("read"))?;
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL))).map_err(self.error("read"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(self.error("read"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last checkpoint that was pushed whole.
    pub(crate) fn last(&self) -> Result<Option<Checkpoint>, Error> {
        Ok(last_in(&self.tail()?).and_then(|note| Checkpoint::read_unverified(&note).ok()))
    }

    /// Appends a note; on disk when it returns.
    pub(crate) fn push(&self, note: &str) -> Result<(), Error> {
        if let Some(dir) = self.path.parent() {
            keys::make_private_dir(dir)?;
        }
        let tail = self.tail()?;
        // Behind a note that a crash tore, begin afresh.
        let mend = if tail.is_empty() || tail.ends_with("\n\n") { "" } else { "\n\n" };
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).map_err(self.error("open"))?;
        let text = format!("{mend}{note}\n");
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(self.error("write"))
    }
}
