//! Ephemeral containers (KEP-277) as the containers that they are to a device. Pure.

use hearth_types::kinds::{Container, EphemeralContainer, Pod};

/// The ephemeral containers of a pod.
pub(crate) fn of(pod: &Pod) -> impl Iterator<Item = &EphemeralContainer> {
    pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten())
}

/// Whether a container of a pod is one.
pub(crate) fn has(pod: &Pod, name: &str) -> bool {
    of(pod).any(|one| one.name == name)
}

/// The container whose processes one sees (`targetContainerName`).
pub(crate) fn target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let one = of(pod).find(|one| one.name == name)?;
    one.target_container_name.as_deref().filter(|target| !target.is_empty())
}

/// Gives a pod's new version the ephemeral containers that are known already, as they were: none is ever changed or taken away, whatever
/// the region says.
pub(crate) fn keep(known: &Pod, pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    let mut all: Vec<_> = of(known).cloned().collect();
    let new = spec.ephemeral_containers.take().into_iter().flatten();
    all.extend(new.filter(|one| !has(known, &one.name)));
    spec.ephemeral_containers = (!all.is_empty()).then_some(all);
}

/// One as a container. What validation refuses of it is left out, whatever the region checked.
pub(crate) fn as_container(one: &EphemeralContainer) -> Container {
    let mounts = one.volume_mounts.iter().flatten();
    let whole = mounts.filter(|mount| mount.sub_path.is_none() && mount.sub_path_expr.is_none()).cloned();
    Container {
        name: one.name.clone(),
        image: one.image.clone(),
        image_pull_policy: one.image_pull_policy.clone(),
        command: one.command.clone(),
        args: one.args.clone(),
        working_dir: one.working_dir.clone(),
        env: one.env.clone(),
        env_from: one.env_from.clone(),
        volume_mounts: Some(whole.collect()),
        security_context: one.security_context.clone(),
        termination_message_path: one.termination_message_path.clone(),
        termination_message_policy: one.termination_message_policy.clone(),
        stdin: one.stdin,
        stdin_once: one.stdin_once,
        tty: one.tty,
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_is_a_container_without_what_would_make_it_a_part_of_the_app() {
        let said = json!({"name": "debug", "image": "busybox", "imagePullPolicy": "Always", "command": ["sh"], "args": ["-i"],
            "workingDir": "/w", "env": [{"name": "A", "value": "b"}], "envFrom": [{"secretRef": {"name": "s"}}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}], "securityContext": {"runAsUser": 7},
            "terminationMessagePath": "/m", "terminationMessagePolicy": "File", "stdin": true, "stdinOnce": true, "tty": true});
        let mut refused = said.clone();
        refused["ports"] = json!([{"containerPort": 80}]);
        refused["resources"] = json!({"limits": {"memory": "1Gi"}});
        refused["livenessProbe"] = json!({"tcpSocket": {"port": 80}});
        refused["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
        refused["restartPolicy"] = json!("Always");
        refused["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/x", "subPath": "x"}]);
        for one in [said.clone(), refused] {
            let one: EphemeralContainer = serde_json::from_value(one).expect("one");
            assert_eq!(serde_json::to_value(as_container(&one)).expect("a container"), said);
        }
    }

    #[test]
    fn what_is_known_stays() {
        let pod = |list: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [{"name": "app"}], "ephemeralContainers": list}}))
                .expect("a pod")
        };
        let known = pod(json!([{"name": "one", "image": "a"}]));
        for (new, expected) in [
            (
                json!([{"name": "one", "image": "a"}, {"name": "two"}]),
                json!([{"name": "one", "image": "a"}, {"name": "two"}]),
            ),
            (
                json!([{"name": "two"}, {"name": "one", "image": "b"}]),
                json!([{"name": "one", "image": "a"}, {"name": "two"}]),
            ),
            (json!([]), json!([{"name": "one", "image": "a"}])),
        ] {
            let mut new = pod(new);
            keep(&known, &mut new);
            assert_eq!(new, pod(expected));
        }
    }

    #[test]
    fn a_target_is_named_or_not() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "app"}], "ephemeralContainers": [
            {"name": "one", "targetContainerName": "app"}, {"name": "two", "targetContainerName": ""}, {"name": "three"}]}}))
        .expect("a pod");
        assert_eq!(["one", "two", "three", "app"].map(|name| target(&pod, name)), [Some("app"), None, None, None]);
        assert_eq!(["one", "three", "app"].map(|name| has(&pod, name)), [true, true, false]);
    }
}
