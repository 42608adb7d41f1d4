//! The command line's own words, of the program as it is built.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::process::{Command, Output};

fn hearth(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hearth")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_verb_says_what_it_does() {
    let all = hearth(&["--help"]);
    let all = text(&all.stdout);
    let verbs = all.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<_> = verbs.map(|line| line.trim().split_once(' ').unwrap_or((line, ""))).collect();
    assert!(verbs.len() > 20, "{all}");
    for (verb, what) in verbs.into_iter().filter(|(verb, _)| *verb != "help") {
        assert!(!what.trim().is_empty(), "{verb}");
        let help = hearth(&[verb, "--help"]);
        let (out, err) = (text(&help.stdout), text(&help.stderr));
        assert!(help.status.success() && err.is_empty(), "{verb}: {err}");
        assert!(out.contains(&format!("Usage: hearth {verb}")), "{verb}: {out}");
    }
}

#[test]
fn what_is_not_understood_is_an_error_that_names_it() {
    for (arguments, named) in [
        (&["gett", "pods"][..], "gett"),
        (&["get"], "KIND"),
        (&["up", "--port-range", "9-1"], "9-1"),
        (&["server", "--drain", "1d"], "at most 10m"),
    ] {
        let done = hearth(arguments);
        let err = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(err.contains(named) && done.stdout.is_empty(), "{arguments:?}: {err}");
    }
}

#[test]
fn it_says_which_release_it_is() {
    let done = hearth(&["--version"]);
    assert_eq!(text(&done.stdout).trim(), concat!("hearth ", env!("CARGO_PKG_VERSION")));
}
