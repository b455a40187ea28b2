//! `up --detach`: the same program in the background, watched until it is ready.

use super::{error::Error, record::Record};
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Seek, SeekFrom},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Longest wait for readiness; databases of some size need their migrations.
const READY: Duration = Duration::from_secs(180);

pub(crate) fn log_file(state: &Path) -> PathBuf {
    state.join("log").join("up.log")
}

/// Starts `up` again without `--detach`, its output in the log file, and returns its record when it is ready.
pub(crate) fn run(state: &Path) -> Result<Record, Error> {
    let path = log_file(state);
    let io = |action| {
        let path = path.clone();
        move |source| Error::File { action, path, source }
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(io("make the directory of"))?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(io("open"))?;
    let mut reader = BufReader::new(File::open(&path).map_err(io("open"))?);
    reader.seek(SeekFrom::End(0)).map_err(io("read"))?;

    let program = std::env::current_exe().map_err(|source| Error::Spawn { program: "windlass".into(), source })?;
    let arguments = std::env::args_os().skip(1).filter(|a| a != "--detach" && a != "-d");
    let copy = log.try_clone().map_err(io("open"))?;
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(copy)
        .stderr(log)
        // A group of its own: Ctrl-C in the terminal that started it is not meant for it.
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Spawn { program: program.display().to_string(), source })?;

    let started = Instant::now();
    let mut last = String::new();
    loop {
        let mut line = String::new();
        while reader.read_line(&mut line).map_err(io("read"))? > 0 {
            if let Some(text) = line.strip_prefix(super::PROGRESS) {
                super::progress(text.trim_end());
            } else if line.trim_start().starts_with("error:") || line.starts_with("  because:") {
                last.push_str(&line);
            }
            line.clear();
        }
        if let Some(status) = child.try_wait().map_err(io("watch"))? {
            if !last.is_empty() {
                eprint!("{last}");
            }
            return Err(Error::Ended { what: "windlass up".into(), detail: format!(" ({status})"), log: path });
        }
        if let Some(record) = Record::read(state).filter(|r| r.ready && r.process.pid == child.id()) {
            return Ok(record);
        }
        if started.elapsed() > READY {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::NotReady { what: "windlass up".into(), seconds: READY.as_secs(), log: path });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
