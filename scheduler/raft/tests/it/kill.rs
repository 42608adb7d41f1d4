//! kill -9 of a real process that writes.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use hearth_types::{
    Revision,
    store::{Consistency, Store as _},
};

use crate::support::{data, open, put, small};

const KILLS: u32 = 25;
const WRITERS: usize = 8;
const DIR_VARIABLE: &str = "HEARTH_TEST_STORE_DIR";

/// What the process that is killed runs; ignored, since it writes until it is killed.
#[test]
#[ignore = "started by the test below"]
fn writer_process() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let store = Arc::new(open(small(Path::new(&dir), 200)).await.expect("opens"));
        say(&format!("open {} {}", store.incarnation(), store.revision()));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = Arc::clone(&store);
            writers.spawn(async move {
                let start = store.revision();
                for number in 0_u64.. {
                    let (name, text) = (format!("w{writer}-{}", number % 7), format!("{start}-{number}"));
                    let revision = put(&store, &name, &text).await.expect("written");
                    say(&format!("ack {name} {text} {revision}"));
                }
            });
        }
        while let Some(done) = writers.join_next().await {
            done.expect("a writer");
        }
    });
}

/// One line, in one write, so that lines of several writers do not mix.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@{line}\n").as_bytes()).and_then(|()| out.flush()).expect("the parent reads");
}

/// Kills the process also where the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(dir: &Path) -> Killed {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "kill::writer_process", "--ignored", "--nocapture"]).env(DIR_VARIABLE, dir);
    Killed(command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("a process"))
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut acknowledged: BTreeMap<String, (String, Revision)> = BTreeMap::new();
    let (mut incarnation, mut highest) = (None, Revision::ZERO);
    for round in 0..KILLS {
        let mut process = spawn(dir.path());
        let lines = BufReader::new(process.0.stdout.take().expect("piped")).lines();
        // From before the first write to some hundreds of them: 0, 1, 3, 7 ... differs every round.
        let mut left = (round * round * 7 + round) % 700;
        let mut opened = false;
        for line in lines {
            let line = line.expect("text");
            let words: Vec<_> = line.strip_prefix('@').unwrap_or_default().split(' ').collect();
            match words[..] {
                ["open", id, revision] => {
                    opened = true;
                    let known = incarnation.get_or_insert_with(|| id.to_owned());
                    assert_eq!(known, id, "round {round}: the identity changed");
                    let revision: Revision = revision.parse().expect("a revision");
                    assert!(revision >= highest, "round {round}: {revision} after {highest}");
                }
                ["ack", name, text, revision] => {
                    let revision = revision.parse().expect("a revision");
                    highest = highest.max(revision);
                    let newest = acknowledged.entry(name.to_owned()).or_insert_with(|| (text.to_owned(), revision));
                    if newest.1 < revision {
                        *newest = (text.to_owned(), revision);
                    }
                    left = left.saturating_sub(1);
                }
                _ => continue,
            }
            if opened && left == 0 {
                // SIGKILL; what is still in the pipe was acknowledged too, and is read on.
                process.0.kill().expect("killed");
                left = u32::MAX;
            }
        }
        assert!(opened, "round {round}: the process did not open the store");
        drop(process);
        let store = open(small(dir.path(), 200)).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(Some(store.incarnation().as_str()), incarnation.as_deref());
        for (name, (text, revision)) in &acknowledged {
            let object = store.get(&crate::support::key(name), Consistency::Linearizable).await.expect("reads");
            let object = object.unwrap_or_else(|| panic!("round {round}: {name} at {revision} is gone"));
            assert!(object.revision() >= *revision, "round {round}: {name} is older than {revision}");
            if object.revision() == *revision {
                assert_eq!(data(&store, name, Consistency::Local).await.as_ref(), Some(text), "round {round}");
            }
        }
        store.shutdown().await.expect("closes");
    }
    assert!(acknowledged.len() > WRITERS, "{acknowledged:?}");
}
