//! This program as a process: how it starts itself, and what others see of it.

use std::{ffi::OsString, os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::data_dir::DataDir;

/// The file that this process runs, also where it was replaced or removed since by an update: whoever is started again must
/// fit those that run.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// What the processes of every role are called.
const NAME: &str = "hearth";
/// Options before the verb that take a value as their next word.
const WITH_VALUE: [&str; 4] = ["--config", "-n", "--namespace", "--log-format"];

/// Makes the command line begin `hearth VERB --data-dir DIR`, DIR being absolute: `hearth down`, which may run elsewhere,
/// knows the instance's processes by that. Executes this program anew where it does not, so call it before anything else.
pub(crate) fn name_data_dir(verb: &str, data: &DataDir) -> Result<()> {
    // An executed link would be the name otherwise.
    rustix::thread::set_name(c"hearth").context("cannot name this process")?;
    let words: Vec<OsString> = std::env::args_os().collect();
    let wanted = named(&words, verb, data.root());
    if words == wanted {
        return Ok(());
    }
    let error = program().args(&wanted[1..]).exec();
    Err(error).context("cannot execute this program with its data directory named")
}

/// This program, to be started with other words.
pub(super) fn program() -> Command {
    let mut command = Command::new(OWN_PROGRAM);
    command.arg0(NAME);
    command
}

/// The words with verb and data directory first.
fn named(words: &[OsString], verb: &str, root: &Path) -> Vec<OsString> {
    let mut named: Vec<OsString> = vec![NAME.into(), verb.into(), "--data-dir".into(), root.into()];
    let mut rest = words.iter().skip(1);
    let mut before_verb = true;
    while let Some(word) = rest.next() {
        let text = word.to_str().unwrap_or_default();
        if text == "--data-dir" {
            rest.next();
        } else if text.starts_with("--data-dir=") {
        } else if before_verb && text == verb {
            before_verb = false;
        } else {
            named.push(word.clone());
            if before_verb && WITH_VALUE.contains(&text) {
                named.extend(rest.next().cloned());
            }
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verb_and_directory_come_first_and_nothing_is_lost() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let root = Path::new("/d");
        for (given, wanted) in [
            ("./hearth up", "hearth up --data-dir /d"),
            ("hearth up --data-dir d --zone z", "hearth up --data-dir /d --zone z"),
            ("hearth up --zone z --data-dir=d", "hearth up --data-dir /d --zone z"),
            ("hearth -n up --log-format json up --detach", "hearth up --data-dir /d -n up --log-format json --detach"),
            ("hearth up --owner up", "hearth up --data-dir /d --owner up"),
            ("hearth up --data-dir /d --zone z", "hearth up --data-dir /d --zone z"),
        ] {
            assert_eq!(named(&words(given), "up", root), words(wanted), "{given}");
        }
    }
}
