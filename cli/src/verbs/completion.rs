//! `completion`: what completes this program's command lines in a shell.

use clap::CommandFactory as _;
use clap_complete::{generate, shells};

use crate::{
    args::{Cli, Completion, Shell},
    output,
};

/// Runs the verb.
pub(crate) fn run(args: &Completion) {
    let (mut command, mut out) = (Cli::command(), Vec::new());
    match args.shell {
        Shell::Bash => generate(shells::Bash, &mut command, "hearth", &mut out),
        Shell::Zsh => generate(shells::Zsh, &mut command, "hearth", &mut out),
        Shell::Fish => generate(shells::Fish, &mut command, "hearth", &mut out),
    }
    output::raw(&String::from_utf8_lossy(&out));
}
