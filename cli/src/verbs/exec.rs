//! `exec`: runs a command in a container, with its input, output, terminal and exit code.

use std::process::ExitCode;

use anyhow::Result;
use hearth_proto::v1::ExecStart;

use super::{
    pod_of::{container_of, pod_of},
    session,
};
use crate::{
    args::Exec,
    context::{Context, refusal},
};

/// Runs the verb; the exit code is the command's.
pub(crate) async fn run(context: &Context, args: &Exec) -> Result<ExitCode> {
    let tty = session::has_terminal(args.tty);
    let pod = pod_of(context, &args.pod).await?;
    let start = ExecStart {
        namespace: pod.namespace().to_owned(),
        pod: pod.name().to_owned(),
        container: container_of(&pod, args.container.as_deref())?,
        command: args.command.clone(),
        stdin: args.stdin,
        tty,
        size: None,
    };
    let (ours, input) = session::begin(start).await?;
    let outputs = context.client()?.exec(input).await.map_err(|status| refusal(&status))?;
    ours.converse(outputs).await
}
