//! `debug`: puts a container beside those of a running pod (KEP-277), as `kubectl debug` does.

use std::process::ExitCode;

use anyhow::{Result, bail};
use futures_util::{StreamExt as _, pin_mut};
use hearth_client::WriteOptions;
use hearth_proto::v1::LogsRequest;
use hearth_types::{Object, ObjectKey, Reason};
use serde_json::{Value, json};

use super::{attach, logs, modify, pod_of::pod_of, session};
use crate::{
    args::Debug,
    context::{Context, Selection, refusal},
    follow::{self, Change},
    output, target,
};

/// How often a container is added anew where others changed the pod in between.
const MAX_ATTEMPTS: usize = 5;

/// Runs the verb: until the container ends, where this attaches to it.
pub(crate) async fn run(context: &Context, args: &Debug) -> Result<ExitCode> {
    if args.tty && !args.stdin {
        bail!("-i/--stdin is required for containers with -t/--tty=true");
    }
    let pod = pod_of(context, &args.pod).await?;
    let name = name(&pod.value(), args);
    if let Some(target) = args.target.as_ref().filter(|_| !args.quiet) {
        output::line(&format!(
            "Targeting container {target:?}. If you don't see processes from this container it may be because the container \
             runtime doesn't support this feature."
        ));
    }
    let container = container(args, &name)?;
    let pod = add(context, pod, &container).await?;
    if !args.attach.unwrap_or(args.stdin) {
        return Ok(ExitCode::SUCCESS);
    }
    let waited = tokio::time::timeout(args.timeout, started(context, &pod, &name, args.quiet)).await;
    let runs = match waited {
        Ok(runs) => runs?,
        Err(_) => bail!(
            "timed out waiting for container {name} of pod {} to run: {}; it stays in the pod and may still come up",
            pod.name,
            why_not(&context.client()?.get(&pod).await.map_err(|status| refusal(&status))?.value(), &name)
        ),
    };
    let log = |follow| LogsRequest {
        namespace: pod.namespace.to_string(),
        pod: pod.name.to_string(),
        container: name.clone(),
        follow,
        ..LogsRequest::default()
    };
    if !runs {
        logs::show(context, log(false)).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let tty = session::has_terminal(args.tty);
    match attach::open(context, &pod, name.clone(), args.stdin, tty).await {
        Ok((ours, outputs)) => ours.converse(outputs).await,
        Err(error) => {
            output::note(&format!(
                "warning: couldn't attach to pod/{}, falling back to streaming logs: {error:#}",
                pod.name
            ));
            logs::show(context, log(true)).await.map(|()| ExitCode::SUCCESS)
        }
    }
}

/// The name that is asked for, else one that no container of the pod has.
fn name(pod: &Value, args: &Debug) -> String {
    if let Some(name) = &args.container {
        return name.clone();
    }
    let taken = |name: &str| {
        let lists = ["containers", "initContainers", "ephemeralContainers"].map(|list| pod["spec"][list].as_array());
        lists.into_iter().flatten().flatten().any(|one| one["name"] == name)
    };
    let name = loop {
        let name = format!("debugger-{}", suffix());
        if !taken(&name) {
            break name;
        }
    };
    if !args.quiet {
        output::line(&format!("Defaulting debug container name to {name}."));
    }
    name
}

/// Five characters of Kubernetes' alphabet for generated names.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes = uuid::Uuid::new_v4().into_bytes();
    bytes[..5].iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

fn container(args: &Debug, name: &str) -> Result<Value> {
    let mut container = json!({"name": name, "image": args.image, "terminationMessagePolicy": "File"});
    let mut set = |field: &str, value: Value| container[field] = value;
    if let Some(policy) = &args.image_pull_policy {
        set("imagePullPolicy", json!(policy));
    }
    if let Some(target) = &args.target {
        set("targetContainerName", json!(target));
    }
    let mut env = Vec::new();
    for variable in &args.env {
        let Some((name, value)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            bail!("invalid env: {variable}: must be NAME=VALUE");
        };
        env.push(json!({"name": name, "value": value}));
    }
    if !env.is_empty() {
        set("env", env.into());
    }
    for (field, asked) in [("stdin", args.stdin), ("tty", args.tty)] {
        if asked {
            set(field, json!(true));
        }
    }
    if !args.command.is_empty() {
        set(if args.arguments_only { "args" } else { "command" }, json!(args.command));
    }
    Ok(container)
}

/// Adds a container to a pod, anew where others changed the pod meanwhile.
async fn add(context: &Context, mut pod: Object, container: &Value) -> Result<ObjectKey> {
    let (key, client) = (pod.key().clone(), context.client()?);
    let mut last = None;
    for _ in 0..MAX_ATTEMPTS {
        let mut value = pod.value();
        let list = &mut value["spec"]["ephemeralContainers"];
        match list.as_array_mut() {
            Some(list) => list.push(container.clone()),
            None => *list = json!([container]),
        }
        match client.update_ephemeral_containers(&value, &WriteOptions::default()).await {
            Ok(written) => {
                modify::changed(&written);
                return Ok(key);
            }
            Err(status) if status.reason == Reason::Conflict => last = Some(status),
            Err(status) => return Err(refusal(&status)),
        }
        pod = client.get(&key).await.map_err(|status| refusal(&status))?;
    }
    Err(last.map_or_else(|| anyhow::anyhow!("no attempt was made"), |status| refusal(&status)))
}

/// Waits until a container runs, or has run: then false. What it waits for is told as it changes.
async fn started(context: &Context, pod: &ObjectKey, name: &str, quiet: bool) -> Result<bool> {
    let fields = format!("metadata.name={}", pod.name);
    let selection = Selection { all_namespaces: false, labels: "", fields: &fields };
    let changes = follow::anew(context.source(target::kind("pods")?, &pod.namespace, &selection)?, true);
    pin_mut!(changes);
    let (mut told, mut there) = (String::new(), false);
    while let Some(change) = changes.next().await {
        let object = match change? {
            Change::Added(object) | Change::Modified(object) => object,
            Change::Listed if there => continue,
            Change::Listed | Change::Deleted(_) => bail!("pod {} was deleted", pod.name),
        };
        there = true;
        let value = object.value();
        let state = state(&value, name);
        if !state["running"].is_null() || !state["terminated"].is_null() {
            return Ok(state["terminated"].is_null());
        }
        if let Some(phase) = value["status"]["phase"].as_str().filter(|phase| matches!(*phase, "Succeeded" | "Failed"))
        {
            bail!("pod {} has ended ({phase}), so that nothing is started in it any more", pod.name);
        }
        let message = state["waiting"]["message"].as_str().unwrap_or_default();
        if !quiet && !message.is_empty() && message != told {
            output::note(&format!("Warning: container {name}: {message}"));
            message.clone_into(&mut told);
        }
    }
    bail!("the region says no more of pod {}", pod.name)
}

/// The state of an ephemeral container, as its device said.
fn state(pod: &Value, name: &str) -> Value {
    let mut statuses = pod["status"]["ephemeralContainerStatuses"].as_array().into_iter().flatten();
    statuses.find(|one| one["name"] == name).map(|one| one["state"].clone()).unwrap_or_default()
}

/// Why an ephemeral container does not run.
fn why_not(pod: &Value, name: &str) -> String {
    let waiting = &state(pod, name)["waiting"];
    let text = |field: &str| waiting[field].as_str().unwrap_or_default();
    let device = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    match (text("reason"), text("message"), device) {
        ("", _, "") => "the pod is on no device yet".into(),
        ("", _, device) => format!("device {device} has said nothing of it: it is away, or of a release without this"),
        (reason, "", _) => reason.to_owned(),
        (reason, message, _) => format!("{reason}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(words: &str) -> Debug {
        let line = format!("hearth debug p --image busybox {words}");
        match Cli::try_parse_from(line.split_whitespace()).expect("a command line").command {
            Command::Debug(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_line_is_a_container_as_kubectl_makes_it() {
        let plain = json!({"name": "d", "image": "busybox", "terminationMessagePolicy": "File"});
        for (words, field, value) in [
            ("", "name", json!("d")),
            ("-- sh -c x", "command", json!(["sh", "-c", "x"])),
            ("--arguments-only -- -c x", "args", json!(["-c", "x"])),
            ("--target app", "targetContainerName", json!("app")),
            ("--env A=b=c --env D=", "env", json!([{"name": "A", "value": "b=c"}, {"name": "D", "value": ""}])),
            ("--image-pull-policy Never", "imagePullPolicy", json!("Never")),
            ("-i", "stdin", json!(true)),
            ("-t", "tty", json!(true)),
        ] {
            let mut expected = plain.clone();
            expected[field] = value;
            assert_eq!(container(&args(words), "d").expect("a container"), expected, "{words}");
        }
        assert!(container(&args("--env A"), "d").expect_err("refused").to_string().contains("must be NAME=VALUE"));
        let (both, detached) = (args("-it"), args("-i --attach=false"));
        assert!(both.stdin && both.tty && both.attach.is_none() && detached.attach == Some(false));
    }

    #[test]
    fn a_name_is_generated_and_no_other_containers() {
        let pod = json!({"spec": {"containers": [{"name": "app"}]}});
        let generated = name(&pod, &args("-q"));
        let rest = generated.strip_prefix("debugger-").expect("the prefix");
        assert!(
            rest.len() == 5 && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "{generated}"
        );
        assert_eq!(name(&pod, &args("-c mine")), "mine");
    }

    #[test]
    fn who_waits_in_vain_is_told_why() {
        let pod = |status: Value, node: &str| json!({"spec": {"nodeName": node}, "status": {"ephemeralContainerStatuses": [status]}});
        let waiting = |state: Value| json!({"name": "d", "state": {"waiting": state}});
        for (pod, expected) in [
            (pod(waiting(json!({"reason": "ErrImagePull", "message": "no"})), "nas"), "ErrImagePull: no"),
            (pod(waiting(json!({"reason": "ContainerCreating"})), "nas"), "ContainerCreating"),
            (pod(json!({"name": "other"}), "nas"), "device nas has said nothing of it"),
            (pod(json!({"name": "other"}), ""), "the pod is on no device yet"),
        ] {
            assert!(why_not(&pod, "d").starts_with(expected), "{expected}: {}", why_not(&pod, "d"));
        }
    }
}
