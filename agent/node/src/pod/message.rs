//! What a container said last, as the kubelet takes it (`getTerminationMessage`): from the file that it has for that, or from the end of
//! its log where it failed without a word and its policy says so.

use std::{
    fs::OpenOptions,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use hearth_pod::{Exit, Found, FoundState, MAX_MESSAGE_BYTES};
use hearth_runtime::{ContainerStatus, TERMINATION_LOG};
use hearth_types::kinds::Pod;
use rustix::fs::OFlags;

use super::convert::exit;
use crate::{
    container::{self, Places},
    logs,
};

/// Bytes and lines of a log's end that make a message, as the kubelet's `MaxContainerTerminationMessageLogLength` and `...LogLines`.
const LOG_BYTES: usize = 2048;
const LOG_LINES: usize = 80;

/// A container that ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) container: String,
    pub(super) attempt: u32,
    pub(super) exit: Exit,
}

/// Where the last messages of a pod's containers are.
pub(super) struct LastWords {
    pub(super) pod: Arc<Pod>,
    pub(super) places: Places,
}

impl LastWords {
    /// How containers ended. Blocks.
    pub(super) fn of_ended(&self, list: Vec<ContainerStatus>) -> Vec<Ended> {
        let ended = |one: ContainerStatus| {
            let exit = self.with_message(&one.name, one.attempt, exit(&one.state));
            Ended { container: one.name, attempt: one.attempt, exit }
        };
        list.into_iter().map(ended).collect()
    }

    /// The same of what ended while no agent looked. Blocks.
    pub(super) fn of_found(&self, found: Found) -> Found {
        let (alive, mut list) = match found {
            Found::Nothing => return Found::Nothing,
            Found::Alive(list) => (true, list),
            Found::Dead(list) => (false, list),
        };
        for one in &mut list {
            if let FoundState::Exited(exit) = &one.state {
                one.state = FoundState::Exited(self.with_message(&one.name, one.attempt, exit.clone()));
            }
        }
        if alive { Found::Alive(list) } else { Found::Dead(list) }
    }

    fn with_message(&self, name: &str, attempt: u32, exit: Exit) -> Exit {
        let policy = container::named(&self.pod, name).and_then(|one| one.termination_message_policy.clone());
        let falls_back = policy.as_deref() == Some("FallbackToLogsOnError") && !exit.is_success();
        let said = match read(&self.places.layer(name, attempt).join(TERMINATION_LOG)) {
            Ok(said) if said.is_empty() && falls_back => self.end_of_log(name, attempt),
            Ok(said) => text(&said),
            Err(error) => format!("Error on reading termination log: {error}"),
        };
        exit.saying(&said)
    }

    fn end_of_log(&self, name: &str, attempt: u32) -> String {
        match logs::tail(&self.places.log(name, attempt), LOG_LINES, LOG_BYTES) {
            Ok(end) => text(&end),
            Err(error) => format!("Error on reading termination message from logs: {error}"),
        }
    }
}

/// The end of the file that a container wrote its message to; nothing where there is none, as with a shim of an older release.
///
/// A container has the file alone, mounted over, and cannot put another in its place; all the same nothing but a plain file is read, and no
/// link followed.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags as i32).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(MAX_MESSAGE_BYTES as u64)))?;
    let mut said = Vec::new();
    file.take(MAX_MESSAGE_BYTES as u64).read_to_end(&mut said)?;
    Ok(said)
}

/// What is no text is shown as such. A NUL has no place in a status that other programs read.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use hearth_types::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::Paths;

    const AT: Timestamp = Timestamp(1000);

    fn words(root: &Path, policy: &str) -> LastWords {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i", "terminationMessagePolicy": policy}]}});
        let pod = Arc::new(serde_json::from_value(pod).expect("a pod"));
        let places = Places { paths: Paths::new(root), namespace: "n".into(), pod: "p".into(), uid: "u".into() };
        fs::create_dir_all(places.layer("c", 0)).expect("made");
        fs::create_dir_all(places.log("c", 0).parent().expect("a directory")).expect("made");
        LastWords { pod, places }
    }

    fn message(words: &LastWords, code: i32) -> String {
        words.with_message("c", 0, Exit::observed(Some(code), None, false, AT, AT)).message
    }

    #[test]
    fn the_message_is_the_file_or_on_an_error_the_end_of_the_log() {
        for (policy, file, code, expected) in [
            ("File", Some("done"), 0, "done"),
            ("File", Some("no disk"), 1, "no disk"),
            ("File", Some(""), 1, ""),
            ("File", None, 1, ""),
            ("FallbackToLogsOnError", Some("own"), 1, "own"),
            ("FallbackToLogsOnError", Some(""), 1, "one\ntwo\n"),
            ("FallbackToLogsOnError", None, 1, "one\ntwo\n"),
            ("FallbackToLogsOnError", Some(""), 0, ""),
        ] {
            let root = tempfile::tempdir().expect("a directory");
            let words = words(root.path(), policy);
            fs::write(
                words.places.log("c", 0),
                "2024-01-01T00:00:01Z stdout F one\n2024-01-01T00:00:02Z stderr F two\n",
            )
            .expect("written");
            if let Some(text) = file {
                fs::write(words.places.layer("c", 0).join(TERMINATION_LOG), text).expect("written");
            }
            assert_eq!(message(&words, code), expected, "{policy} {file:?} {code}");
        }
    }

    #[test]
    fn of_a_long_message_the_end_is_taken_and_what_is_no_text_stays_bounded() {
        let root = tempfile::tempdir().expect("a directory");
        let words = words(root.path(), "File");
        let path = words.places.layer("c", 0).join(TERMINATION_LOG);
        fs::write(&path, format!("{}end", "x".repeat(10_000))).expect("written");
        let said = message(&words, 1);
        assert!(said.len() == MAX_MESSAGE_BYTES && said.ends_with("xend"), "{} bytes", said.len());
        fs::write(&path, [0xff; 9000]).expect("written");
        assert!(message(&words, 1).len() <= MAX_MESSAGE_BYTES);
        fs::write(&path, "a\0b").expect("written");
        assert_eq!(message(&words, 1), "a\u{fffd}b");
        // A hole of a terabyte costs nothing.
        fs::File::options().write(true).open(&path).expect("opened").set_len(1 << 40).expect("grown");
        assert!(message(&words, 1).len() <= MAX_MESSAGE_BYTES);
    }

    #[test]
    fn no_link_is_followed_and_no_pipe_waited_for() {
        let root = tempfile::tempdir().expect("a directory");
        let words = words(root.path(), "File");
        let path = words.places.layer("c", 0).join(TERMINATION_LOG);
        fs::write(root.path().join("secret"), "of the host").expect("written");
        std::os::unix::fs::symlink(root.path().join("secret"), &path).expect("linked");
        let said = message(&words, 1);
        assert!(said.starts_with("Error on reading termination log") && !said.contains("of the host"), "{said}");
        fs::remove_file(&path).expect("removed");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o666.into(), 0).expect("a pipe");
        assert!(message(&words, 1).contains("it is no plain file"));
    }
}
