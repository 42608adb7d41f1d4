//! The logs of processes in the background: bounded, since whoever writes them runs for years.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::data_dir::{DataDir, Role};

/// A log is begun anew at this size in bytes; the one before is kept. At two lines a second, a day and a half of them.
const MAX_LOG_BYTES: u64 = 16 << 20;
/// How often sizes are looked at.
const INTERVAL: Duration = Duration::from_mins(1);

/// The log of a role, to be appended to.
pub(super) fn open(data: &DataDir, role: Role) -> Result<File> {
    let log = data.log(role);
    fs::create_dir_all(log.parent().unwrap_or(data.root())).context("cannot make the directory for logs")?;
    OpenOptions::new().create(true).append(true).open(&log).with_context(|| format!("cannot open {}", log.display()))
}

/// Keeps the logs bounded, for ever.
pub(super) async fn rotate(data: &DataDir) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        for role in [Role::Up, Role::Server, Role::Agent] {
            let log = data.log(role);
            if let Err(error) = rotate_one(&log, MAX_LOG_BYTES) {
                tracing::warn!("cannot begin the log {} anew: {error}", log.display());
            }
        }
    }
}

/// Moves what is in a log to `NAME.old`. The processes that append to it keep their file, so it is emptied, not renamed.
fn rotate_one(log: &Path, max: u64) -> io::Result<()> {
    match fs::metadata(log) {
        Ok(found) if found.len() > max => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::copy(log, log.with_extension("log.old"))?;
    OpenOptions::new().write(true).open(log)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_long_log_is_begun_anew_under_its_writer() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("server.log");
        rotate_one(&log, 10).expect("no log yet");
        let mut writer = OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        writer.write_all(b"the first lines").expect("written");
        rotate_one(&log, 100).expect("short enough");
        assert_eq!(fs::read(&log).expect("read"), b"the first lines");
        rotate_one(&log, 10).expect("rotated");
        writer.write_all(b"more").expect("written");
        assert_eq!(fs::read(&log).expect("read"), b"more");
        assert_eq!(fs::read(dir.path().join("server.log.old")).expect("read"), b"the first lines");
    }
}
