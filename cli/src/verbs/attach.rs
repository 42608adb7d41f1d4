//! `attach`: reads and writes what a container's first process does, from now on.

use std::process::ExitCode;

use anyhow::Result;
use hearth_client::Answers;
use hearth_proto::v1::{ExecOutput, ExecStart};
use hearth_types::ObjectKey;
use serde_json::Value;

use super::{
    pod_of::{container_of, pod_of},
    session,
};
use crate::{
    args::Attach,
    context::{Context, refusal},
    output,
};

/// Runs the verb: until the container ends, or by a signal.
pub(crate) async fn run(context: &Context, args: &Attach) -> Result<ExitCode> {
    let pod = pod_of(context, &args.pod).await?;
    let container = container_of(&pod, args.container.as_deref())?;
    let value = pod.value();
    let lists = ["containers", "initContainers", "ephemeralContainers"].map(|list| &value["spec"][list]);
    let spec = lists.into_iter().filter_map(Value::as_array).flatten().find(|one| one["name"] == container.as_str());
    let has = |field: &str| spec.is_some_and(|spec| spec[field] == true);
    let told = |asked: bool, field: &str, what: &str| {
        let there = asked && has(field);
        if asked && !there {
            output::note(&format!("error: Unable to use {what} - container {container} did not allocate one"));
        }
        there
    };
    let stdin = told(args.stdin, "stdin", "an input");
    let tty = told(args.tty, "tty", "a TTY") && session::has_terminal(true);
    let (ours, outputs) = open(context, pod.key(), container, stdin, tty).await?;
    ours.converse(outputs).await
}

/// Attaches to a container, which has what is asked for.
pub(super) async fn open(
    context: &Context,
    pod: &ObjectKey,
    container: String,
    stdin: bool,
    tty: bool,
) -> Result<(session::Ours, Answers<ExecOutput>)> {
    let start = ExecStart {
        namespace: pod.namespace.to_string(),
        pod: pod.name.to_string(),
        container,
        command: Vec::new(),
        stdin,
        tty,
        size: None,
    };
    let (ours, input) = session::begin(start).await?;
    let outputs = context.client()?.attach(input).await.map_err(|status| refusal(&status))?;
    if stdin && tty {
        output::note("If you don't see a command prompt, try pressing enter.");
    }
    Ok((ours, outputs))
}
