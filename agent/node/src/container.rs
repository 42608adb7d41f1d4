//! From a pod's spec to what the runtime is told. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use hearth_image::Image;
use hearth_network::PodAddresses;
use hearth_pod::Failure;
use hearth_runtime::{ContainerSpec, Limits, LogPolicy, PodLimits};
use hearth_types::{
    kinds::{Container, Pod, Quantity},
    quantity::{self, Beside},
};

use crate::{
    Paths,
    config::{Configs, Environment, wrong},
    ephemeral,
    host_paths::HostPaths,
    mounts, oom,
};

/// Tasks (processes and threads) of a container: enough for what people run at home, and far from the kernel's limit, so
/// that a fork bomb stays in its container.
pub(crate) const CONTAINER_PIDS: u64 = 1024;
/// Tasks of a whole pod.
pub(crate) const POD_PIDS: u64 = 4 * CONTAINER_PIDS;
/// SIGTERM, where an image names no other signal.
const SIGTERM: i32 = 15;

/// Where a container's things are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) paths: Paths,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: String,
}

impl Places {
    /// The logs of the pod.
    pub(crate) fn logs(&self) -> PathBuf {
        self.paths.logs().join(format!("{}_{}_{}", self.namespace, self.pod, self.uid))
    }

    /// The log of an attempt.
    pub(crate) fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs().join(container).join(format!("{attempt}.log"))
    }

    /// The writable layers of the pod.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.paths.scratch().join(&self.uid)
    }

    /// The writable layer of an attempt.
    pub(crate) fn layer(&self, container: &str, attempt: u32) -> PathBuf {
        self.scratch().join(container).join(attempt.to_string())
    }
}

impl Places {
    /// What a container writes by itself: its layers and its logs.
    pub(crate) fn written_by(&self, container: &str) -> [PathBuf; 2] {
        [self.scratch().join(container), self.logs().join(container)]
    }
}

/// Where a container finds the file for its last message.
fn termination_log(container: &Container) -> PathBuf {
    let path = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    path.unwrap_or("/dev/termination-log").into()
}

/// What a container is started from.
pub(crate) struct Ingredients<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) image: &'a Image,
    pub(crate) volumes: &'a HashMap<String, PathBuf>,
    pub(crate) configs: Configs<'a>,
    pub(crate) places: &'a Places,
    pub(crate) host_paths: &'a HostPaths,
}

/// What the runtime is told.
pub(crate) fn spec(from: &Ingredients<'_>) -> Result<ContainerSpec, Failure> {
    let Ingredients { container, image, places, attempt, .. } = *from;
    let own = Environment { list: from.configs.environment(container)? };
    let pod_context = from.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let context = container.security_context.as_ref();
    let id = |value: Option<i64>| value.and_then(|id| u32::try_from(id).ok());
    let run_as_user = id(context.and_then(|c| c.run_as_user).or_else(|| pod_context.and_then(|c| c.run_as_user)));
    let run_as_group = id(context.and_then(|c| c.run_as_group).or_else(|| pod_context.and_then(|c| c.run_as_group)));
    let non_root = context.and_then(|c| c.run_as_non_root).or_else(|| pod_context.and_then(|c| c.run_as_non_root));
    if non_root == Some(true) {
        check_non_root(run_as_user, &image.config.user)?;
    }
    let args = command(container, image, &own);
    if args.is_empty() {
        return Err(wrong(format!("image {} names no program, and the container has no command", image.reference)));
    }
    let mounts = mounts::of(container, from.volumes, from.pod, &own, from.host_paths)?;
    let cwd = container.working_dir.clone().filter(|dir| !dir.is_empty());
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt,
        layers: image.layers.clone(),
        scratch: places.layer(&container.name, attempt),
        args,
        env: merge(terminal_env(container).iter().chain(&image.config.env), own),
        cwd: cwd.unwrap_or_else(|| image.config.working_dir.clone()),
        user: image.config.user.clone(),
        run_as_user,
        run_as_group,
        groups: groups(from.pod),
        mounts,
        limits: limits(container)?,
        oom_score_adj: oom::score(from.pod, container, (from.configs.myself.machine)().memory_bytes),
        capabilities: capabilities(container),
        read_only_root: context.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        log_path: places.log(&container.name, attempt),
        log: LogPolicy::default(),
        termination_log: Some(termination_log(container)),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        terminal: container.tty.unwrap_or(false),
        processes_of: ephemeral::target(from.pod, &container.name).map(str::to_owned),
    })
}

fn check_non_root(run_as_user: Option<u32>, image_user: &str) -> Result<(), Failure> {
    let user = image_user.split(':').next().unwrap_or_default();
    match run_as_user {
        Some(0) => Err(wrong("container's runAsUser breaks non-root policy: runAsNonRoot is set and runAsUser is 0")),
        None if user.is_empty() || user == "root" || user.parse() == Ok(0_u32) => {
            Err(wrong("container has runAsNonRoot and image will run as root: set runAsUser"))
        }
        None if user.parse::<u32>().is_err() => Err(wrong(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root: set \
             runAsUser"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// `command` replaces the entrypoint and with it the image's arguments; `args` replaces the arguments.
fn command(container: &Container, image: &Image, env: &Environment) -> Vec<String> {
    let expand = |list: &Vec<String>| list.iter().map(|one| env.expand(one)).collect::<Vec<_>>();
    let command = container.command.as_ref().filter(|list| !list.is_empty()).map(expand);
    let args = container.args.as_ref().filter(|list| !list.is_empty()).map(expand);
    let (mut program, args) = match (command, args) {
        (Some(command), args) => (command, args.unwrap_or_default()),
        (None, Some(args)) => (image.config.entrypoint.clone(), args),
        (None, None) => (image.config.entrypoint.clone(), image.config.cmd.clone()),
    };
    program.extend(args);
    program
}

/// What a program finds of its terminal, as containerd has it.
fn terminal_env(container: &Container) -> &'static [String] {
    static TERM: std::sync::LazyLock<[String; 1]> = std::sync::LazyLock::new(|| ["TERM=xterm".to_owned()]);
    if container.tty == Some(true) { &*TERM } else { &[] }
}

fn merge<'a>(image: impl Iterator<Item = &'a String>, own: Environment) -> Vec<(String, String)> {
    let mut env = Environment::default();
    for variable in image {
        if let Some((name, value)) = variable.split_once('=') {
            env.set(name, value.to_owned());
        }
    }
    own.list.into_iter().for_each(|(name, value)| env.set(&name, value));
    env.list
}

/// The group of a pod's volumes (`fsGroup`).
pub(crate) fn volume_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// The groups of all programs of a pod, beside those of the image's user.
fn groups(pod: &Pod) -> Vec<u32> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let said = context.and_then(|context| context.supplemental_groups.as_ref()).into_iter().flatten();
    said.filter_map(|group| u32::try_from(*group).ok()).chain(volume_group(pod)).collect()
}

fn limits(container: &Container) -> Result<Limits, Failure> {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|one| one.limits.as_ref());
    let requests = resources.and_then(|one| one.requests.as_ref());
    let read = |map: Option<&BTreeMap<String, Quantity>>, name: &str, reader: fn(&str) -> Result<u64, _>| {
        let Some(text) = map.and_then(|map| map.get(name)) else { return Ok(None) };
        let read = reader(&text.0).map_err(|error| wrong(format!("resources: {name} {:?} {error}", text.0)))?;
        // Nothing is no limit to a container that could not live on it, as in Kubernetes.
        Ok::<_, Failure>(Some(read).filter(|value| *value > 0))
    };
    Ok(Limits {
        memory_bytes: read(limits, "memory", quantity::bytes)?,
        cpu_millis: read(limits, "cpu", quantity::cpu_millis)?,
        cpu_request_millis: read(requests, "cpu", quantity::cpu_millis)?,
        pids: CONTAINER_PIDS,
    })
}

/// The most of something that containers of a pod take which run beside each other, those that initialise it counted until they end (KEP-753).
/// `None` where one takes an amount that nobody knows, or all together more than can be said.
pub(crate) fn most_beside(pod: &Pod, takes: impl Fn(&Container) -> Option<u64>) -> Option<u64> {
    let first = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let first = first.map(|one| (one, one.restart_policy.as_deref() == Some("Always")));
    let main = pod.spec.iter().flat_map(|spec| &spec.containers).map(|one| (one, true));
    let mut together = Beside::default();
    for (one, stays) in first.chain(main) {
        together.add(takes(one)?, stays);
    }
    together.peak()
}

/// The containers that a pod's life depends on, those that initialise it first.
pub(crate) fn lasting(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// All containers of a pod, the ephemeral ones last.
pub(crate) fn all(pod: &Pod) -> impl Iterator<Item = Cow<'_, Container>> {
    lasting(pod).map(Cow::Borrowed).chain(ephemeral::of(pod).map(|one| Cow::Owned(ephemeral::as_container(one))))
}

/// A container by its name.
pub(crate) fn named<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    all(pod).find(|one| one.name == name)
}

/// Limits of the pod as a whole: of what every container has a limit, the most that run beside each other may take (KEP-753), which counts
/// also what they share and what is left of those that ended. A container without one leaves the pod without.
pub(crate) fn pod_limits(pod: &Pod) -> PodLimits {
    let most = |takes: fn(&Limits) -> Option<u64>| {
        most_beside(pod, |one| takes(limits(one).ok().as_ref()?)).filter(|most| *most > 0)
    };
    let asked = |one: &Container| Some(limits(one).ok().and_then(|one| one.cpu_request_millis).unwrap_or(0));
    PodLimits {
        memory_bytes: most(|one| one.memory_bytes),
        cpu_millis: most(|one| one.cpu_millis),
        cpu_request_millis: most_beside(pod, asked).filter(|millis| *millis > 0),
        pids: Some(POD_PIDS),
    }
}

fn capabilities(container: &Container) -> Vec<String> {
    let context = container.security_context.as_ref().and_then(|context| context.capabilities.as_ref());
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let dropped = list(context.and_then(|one| one.drop.as_ref()));
    let full = |name: &String| if name.starts_with("CAP_") { name.clone() } else { format!("CAP_{name}") };
    // `drop: [ALL]` says what holds anyway; what is added then stays, as in Kubernetes.
    let dropped: Vec<String> = dropped.iter().filter(|name| *name != "ALL").map(full).collect();
    let added = list(context.and_then(|one| one.add.as_ref()));
    added.iter().map(full).filter(|name| !dropped.contains(name)).collect()
}

/// The number of the signal that asks a container to stop (`STOPSIGNAL`: `SIGQUIT`, `QUIT` or `3`).
pub(crate) fn stop_signal(image: Option<&Image>) -> i32 {
    const NAMES: [(&str, i32); 16] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
    ];
    let Some(text) = image.and_then(|image| image.config.stop_signal.as_deref()) else { return SIGTERM };
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { SIGTERM };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = name.strip_prefix("RTMIN+").and_then(|plus| plus.parse::<i32>().ok())
        && (0..=30).contains(&number)
    {
        return 34 + number;
    }
    NAMES.iter().find(|(known, _)| *known == name).map_or(SIGTERM, |(_, number)| *number)
}

/// `/etc/resolv.conf` of a pod: as the kubelet writes it for the same `dnsPolicy`, so that short names of Services are found.
pub(crate) fn resolv_conf(addresses: &PodAddresses, namespace: &str, pod: &Pod) -> String {
    let servers: String = addresses
        .dns
        .iter()
        .flat_map(|server| ["nameserver ".to_owned(), server.to_string(), "\n".to_owned()])
        .collect();
    if pod.spec.as_ref().and_then(|spec| spec.dns_policy.as_deref()) == Some("Default") {
        return servers;
    }
    format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local\n{servers}options ndots:5\n")
}

/// `/etc/hosts` of a pod.
pub(crate) fn hosts(hostname: &str, addresses: &PodAddresses) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ip in pod_ips(addresses) {
        text.extend([ip.to_string().as_str(), "\t", hostname, "\n"]);
    }
    text
}

/// A pod's addresses, IPv4 first.
pub(crate) fn pod_ips(addresses: &PodAddresses) -> Vec<IpAddr> {
    let mut ips = vec![IpAddr::V4(addresses.ipv4)];
    ips.extend(addresses.ipv6.map(IpAddr::V6));
    ips
}

#[cfg(test)]
mod tests {
    use hearth_image::ImageConfig;
    use serde_json::{Value, json};

    use std::path::Path;

    use super::*;

    #[test]
    fn short_names_of_services_are_found_unless_the_pod_says_otherwise() {
        let ip = "10.64.0.1".parse().expect("an address");
        let addresses = PodAddresses {
            ipv4: ip,
            ipv6: None,
            gateway4: ip,
            gateway6: None,
            dns: vec![IpAddr::V4(ip)],
            link: String::new(),
        };
        let of = |policy: &str| {
            let pod = json!({"metadata": {}, "spec": {"containers": [], "dnsPolicy": policy}});
            resolv_conf(&addresses, "alice", &serde_json::from_value(pod).expect("a pod"))
        };
        let domains = "alice.svc.cluster.local svc.cluster.local cluster.local";
        assert_eq!(of("ClusterFirst"), format!("search {domains}\nnameserver 10.64.0.1\noptions ndots:5\n"));
        assert_eq!(of("Default"), "nameserver 10.64.0.1\n");
    }
    use crate::{config::Myself, desired::Objects};

    fn image() -> Image {
        Image {
            imported: true,
            reference: "app:1".into(),
            manifest_digest: format!("sha256:{}", "0".repeat(64)).parse().expect("a digest"),
            config: ImageConfig {
                entrypoint: vec!["/app".into()],
                cmd: vec!["--default".into()],
                env: vec!["PATH=/bin".into(), "A=image".into()],
                user: "1000:1000".into(),
                working_dir: "/srv".into(),
                stop_signal: Some("SIGQUIT".into()),
                ..ImageConfig::default()
            },
            layers: vec!["/layers/a".into()],
        }
    }

    #[test]
    fn a_pod_is_limited_where_all_its_containers_are() {
        let of = |limits: Value| -> PodLimits {
            let of = |list: &Value, policy: Option<&str>| -> Vec<Value> {
                let list = list.as_array().into_iter().flatten();
                list.map(|one| json!({"name": "c", "restartPolicy": policy, "resources": {"limits": one}})).collect()
            };
            let (main, init) = if limits.is_array() {
                (&limits, Vec::new())
            } else {
                let mut init = of(&limits["sidecars"], Some("Always"));
                init.extend(of(&limits["init"], None));
                (&limits["main"], init)
            };
            let pod = json!({"spec": {"containers": of(main, None), "initContainers": init}});
            pod_limits(&serde_json::from_value(pod).expect("a pod"))
        };
        for (limits, memory_bytes, cpu_millis) in [
            (json!([{"memory": "64Mi", "cpu": "500m"}]), Some(64 << 20), Some(500)),
            (json!([{"memory": "64Mi", "cpu": "500m"}, {"memory": "32Mi", "cpu": "1"}]), Some(96 << 20), Some(1500)),
            (json!([{"memory": "64Mi"}, {"cpu": "1"}]), None, None),
            (json!([{"memory": "64Mi"}, {"memory": "1Gi", "cpu": "1"}]), Some(1088 << 20), None),
            (json!([{}, {}]), None, None),
            // What initialises the pod has gone by then, but sidecars.
            (json!({"init": [{"memory": "96Mi"}], "main": [{"memory": "64Mi"}]}), Some(96 << 20), None),
            (json!({"init": [{"memory": "32Mi"}], "main": [{"memory": "64Mi"}]}), Some(64 << 20), None),
            (
                json!({"sidecars": [{"memory": "16Mi"}], "init": [{"memory": "96Mi"}], "main": [{"memory": "64Mi"}]}),
                Some(112 << 20),
                None,
            ),
            (json!({"sidecars": [{"memory": "16Mi"}], "main": [{"memory": "64Mi"}]}), Some(80 << 20), None),
            (json!({"init": [{}], "main": [{"memory": "64Mi"}]}), None, None),
        ] {
            let expected = PodLimits { memory_bytes, cpu_millis, cpu_request_millis: None, pids: Some(POD_PIDS) };
            assert_eq!(of(limits.clone()), expected, "{limits}");
        }
        let asks = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let pod = json!({"spec": {"containers": [asks("100m"), {"name": "d"}, asks("50m")], "initContainers": [asks("120m")]}});
        let limits = pod_limits(&serde_json::from_value(pod).expect("a pod"));
        assert_eq!(
            (limits.cpu_millis, limits.cpu_request_millis),
            (None, Some(150)),
            "what is asked for counts where others ask nothing"
        );
    }

    fn build(container: Value, volumes: &Value) -> Result<ContainerSpec, Failure> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [container], "volumes": volumes}}))
        .expect("a pod");
        let containers = &pod.spec.as_ref().expect("a spec").containers;
        let objects = Objects::new();
        let known = HashMap::from([("data".to_owned(), PathBuf::from("/v/data")), ("c".into(), "/v/c".into())]);
        spec(&Ingredients {
            pod: &pod,
            container: &containers[0],
            attempt: 2,
            image: &image(),
            volumes: &known,
            configs: Configs {
                objects: &objects,
                namespace: "n",
                myself: Myself {
                    pod: &pod,
                    addresses: None,
                    machine: &|| crate::facts::Machine { memory_bytes: 1 << 30, ..Default::default() },
                },
            },
            places: &Places {
                paths: Paths::new(Path::new("/d")),
                namespace: "n".into(),
                pod: "p".into(),
                uid: "u".into(),
            },
            host_paths: &HostPaths::open(Vec::new(), Path::new("/d"), PathBuf::new()).expect("none are given"),
        })
    }

    #[test]
    fn the_spec_goes_over_the_image() {
        let spec = build(
            json!({"name": "c", "args": ["$(A)"], "env": [{"name": "A", "value": "own"}],
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
                "securityContext": {"runAsUser": 5, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"},
                    {"name": "c", "mountPath": "/data/conf"}]}),
            &json!([{"name": "data", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c"}}]),
        )
        .expect("a spec");
        assert_eq!(spec.args, ["/app", "own"]);
        assert_eq!(spec.env, [("PATH".into(), "/bin".into()), ("A".into(), "own".into())]);
        assert_eq!((spec.cwd.as_str(), spec.run_as_user, spec.attempt), ("/srv", Some(5), 2));
        let limits =
            Limits { memory_bytes: Some(64 << 20), cpu_millis: Some(500), cpu_request_millis: Some(100), pids: 1024 };
        assert_eq!(spec.limits, limits);
        assert_eq!(spec.oom_score_adj, 938, "it is promised a part of a gibibyte");
        assert_eq!(spec.capabilities, ["CAP_NET_BIND_SERVICE"]);
        let mounts: Vec<_> = spec.mounts.iter().map(|m| (m.target.to_str().expect("text"), m.read_only)).collect();
        assert_eq!(mounts, [("/data", false), ("/data/conf", true)]);
        assert_eq!(spec.log_path, Path::new("/d/agent/logs/n_p_u/c/2.log"));
    }

    #[test]
    fn command_and_args_are_those_of_kubernetes() {
        for (container, args) in [
            (json!({"name": "c"}), vec!["/app", "--default"]),
            (json!({"name": "c", "command": ["/x"]}), vec!["/x"]),
            (json!({"name": "c", "command": ["/x"], "args": ["y"]}), vec!["/x", "y"]),
            (json!({"name": "c", "args": ["y"]}), vec!["/app", "y"]),
        ] {
            assert_eq!(build(container, &json!([])).expect("a spec").args, args);
        }
    }

    #[test]
    fn non_root_is_checked_before_anything_runs() {
        for (user, image_user, good) in [
            (Some(0), "1000", false),
            (Some(5), "root", true),
            (None, "", false),
            (None, "0:0", false),
            (None, "1000:1000", true),
            (None, "nobody", false),
        ] {
            assert_eq!(check_non_root(user, image_user).is_ok(), good, "{user:?} {image_user}");
        }
    }

    #[test]
    fn stop_signals_are_read_as_docker_reads_them() {
        assert_eq!(stop_signal(None), 15);
        for (text, number) in [("SIGQUIT", 3), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("99", 15), ("what", 15)] {
            let mut image = image();
            image.config.stop_signal = Some(text.into());
            assert_eq!(stop_signal(Some(&image)), number, "{text}");
        }
    }
}
