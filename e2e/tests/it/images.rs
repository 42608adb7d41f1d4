//! Images that devices pull from a real registry: Debian's docker-registry, with images that skopeo pushed.

use std::process::Command;

use anyhow::{Result, ensure};
use hearth_e2e::{command, instance::Instance};
use serde_json::Value;
use tempfile::TempDir;

#[path = "../../../agent/registry/tests/it/registry.rs"]
#[allow(clippy::expect_used, dead_code)]
pub(crate) mod registry;

use registry::Registry;

/// The user of the registry, and the password.
const LOGIN: &str = "me:s3cret";

/// An instance and a registry, which is named in the instance's `registries.yaml` unless that is said otherwise.
struct Place {
    instance: Instance,
    registry: Registry,
    dir: TempDir,
}

impl Place {
    fn new(instance: Instance, auth: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut section = String::new();
        if auth {
            let passwords = dir.path().join("passwords");
            let (user, password) = LOGIN.split_once(':').unwrap();
            command::succeed(Command::new("htpasswd").arg("-Bbc").arg(&passwords).args([user, password]))?;
            section = format!("auth:\n  htpasswd:\n    realm: here\n    path: {}\n", passwords.display());
        }
        let registry = Registry::start(dir.path(), &section);
        let place = Self { instance, registry, dir };
        place.name_registry("")?;
        Ok(place)
    }

    /// Says that the registry is one of the home's, and speaks plain HTTP.
    fn name_registry(&self, more: &str) -> Result<()> {
        let host = &self.registry.host;
        self.instance.allow_registries(&format!("mirrors:\n  \"{host}\":\n    endpoint: [\"http://{host}\"]\n{more}"))
    }

    /// Builds an image of busybox, upon `base` where there is one, with a file of that many bytes which do not compress.
    fn build(&self, tag: &str, base: Option<&str>, bytes: usize) -> Result<String> {
        let archive = self.dir.path().join(format!("{tag}.tar")).display().to_string();
        let filler = self.dir.path().join("filler");
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64 ^ tag.bytes().map(u64::from).sum::<u64>();
        let random: Vec<u8> = std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise as u8
        })
        .take(bytes)
        .collect();
        std::fs::write(&filler, random)?;
        let mut build = self.instance.hearth(["image", "build", "--entrypoint", "/bin/busybox", "--env", "PATH=/bin"]);
        build.args(["--tag", &format!("app:{tag}"), "--output", &archive]);
        build.args(["--copy", &format!("{}:/filler-{tag}", filler.display())]);
        match base {
            Some(base) => drop(build.args(["--base", base])),
            None => drop(build.args(["--copy", "/bin/busybox:/bin/busybox:0755"])),
        }
        command::succeed(&mut build)?;
        Ok(archive)
    }

    /// Pushes an archive; returns the image's name.
    fn push(&self, archive: &str, name: &str, arguments: &[&str]) -> String {
        self.registry.copy(&format!("oci-archive:{archive}"), name, arguments);
        format!("{}/{name}", self.registry.host)
    }

    fn pod(&self, name: &str, image: &str, more: &str) -> Result<()> {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: alice}}\nspec:\n  terminationGracePeriodSeconds: 0\n{more}  \
             containers:\n  - {{name: app, image: \"{image}\", imagePullPolicy: {policy}, args: [sleep, \"100000\"]}}\n",
            policy = if name.starts_with("always") { "Always" } else { "IfNotPresent" },
        );
        self.instance.apply(&manifest).map(drop)
    }

    fn waiting(&self, pod: &str) -> Result<Value> {
        let pod = self.instance.get("pod", pod, "alice")?;
        Ok(pod["status"]["containerStatuses"][0]["state"]["waiting"].clone())
    }

    fn runs(&self, pod: &str) -> Result<Value> {
        self.instance.eventually(&format!("{pod} runs"), || {
            let pod = self.instance.get("pod", pod, "alice")?;
            ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
            Ok(pod)
        })
    }

    /// The reasons of the events of a pod, and their messages.
    fn events(&self, pod: &str) -> Result<Vec<(String, String)>> {
        let events = self.instance.list("events", "alice")?;
        let of_pod = events.iter().filter(|event| event["involvedObject"]["name"] == pod);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(of_pod.map(|event| (text(&event["reason"]), text(&event["message"]))).collect())
    }

    fn event(&self, pod: &str, reason: &str) -> Result<String> {
        self.instance.eventually(&format!("the event {reason} of {pod}"), || {
            let events = self.events(pod)?;
            let found = events.iter().find(|(had, _)| had == reason);
            found.map(|(_, message)| message.clone()).ok_or_else(|| anyhow::anyhow!("{events:?}"))
        })
    }
}

#[test]
fn a_private_image_runs_once_its_pull_secret_is_there_and_layers_are_fetched_once() -> Result<()> {
    let place = Place::new(Instance::up("none")?, true)?;
    let credentials = format!("--dest-creds={LOGIN}");
    let base = place.build("base", None, 300_000)?;
    let one = place.push(&base, "team/app:1", &[&credentials]);
    let two = place.push(&place.build("two", Some(&base), 1000)?, "team/app:2", &[&credentials]);
    place.pod("one", &one, "  imagePullSecrets: [{name: login}]\n")?;
    place.instance.eventually("the pod says what is lacking", || {
        let waiting = place.waiting("one")?;
        let message = waiting["message"].as_str().unwrap_or_default();
        ensure!(waiting["reason"] == "ImagePullBackOff" && message.contains("refuses access"), "{waiting}");
        Ok(())
    })?;
    ensure!(place.event("one", "Failed")?.contains(&format!("Failed to pull image \"{one}\"")));
    ensure!(place.event("one", "FailedToRetrieveImagePullSecret")?.contains("secret \"login\" not found"));

    let config = serde_json::json!({"auths": {&place.registry.host: {"username": "me", "password": "s3cret"}}});
    let secret = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": "alice"},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config.to_string()}});
    place.instance.apply(&secret.to_string())?;
    // Well before the back-off of ten seconds and its doubles would have it tried again by itself.
    let pod = place.runs("one")?;
    let status = &pod["status"]["containerStatuses"][0];
    ensure!(status["image"] == one.as_str() && status["imageID"].as_str().is_some_and(|id| id.starts_with("sha256:")));
    ensure!(place.event("one", "Pulled")?.contains("in 1 of 1 layers"));

    // Pinned by what the first pod's image is called; its layer is here already.
    let digest = pinned(&place, "team/app:2")?;
    let pin = format!("{}/team/app@{digest}", place.registry.host);
    place.pod("two", &pin, "  imagePullSecrets: [{name: login}]\n")?;
    place.runs("two")?;
    ensure!(place.event("two", "Pulled")?.contains("in 1 of 2 layers"));
    let listed = place.instance.run(&format!("image ls --data-dir {}", place.instance.path().display()))?;
    ensure!(listed.contains(&one) && listed.contains(&pin) && !listed.contains(&two), "{listed}");
    // Nothing of a download is left.
    ensure!(std::fs::read_dir(place.instance.path().join("agent/pulls"))?.count() == 0);
    Ok(())
}

#[test]
fn a_guest_runs_no_private_image_that_is_here_for_others_before_its_registry_gives_it() -> Result<()> {
    let place = Place::new(Instance::up("none")?, true)?;
    let instance = &place.instance;
    let image = place.push(&place.build("base", None, 1000)?, "team/app:1", &[&format!("--dest-creds={LOGIN}")]);
    let config = serde_json::json!({"auths": {&place.registry.host: {"username": "me", "password": "s3cret"}}});
    let login = |namespace: &str| {
        let secret = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": namespace},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config.to_string()}});
        instance.apply(&secret.to_string()).map(drop)
    };
    login("alice")?;
    place.pod("mine", &image, "  imagePullSecrets: [{name: login}]\n")?;
    place.runs("mine")?;
    let mut lend = instance.hearth(["patch", "device", "nas", "-p"]);
    command::succeed(lend.arg(r#"{"spec": {"lend": {"cpu": "500m", "memory": "64Mi", "pods": 5}}}"#))?;
    instance.apply("{apiVersion: v1, kind: Namespace, metadata: {name: bob}}")?;
    let theirs = |name: &str, policy: &str| {
        instance.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: bob}}, spec: {{imagePullSecrets: [{{name: login}}], \
             terminationGracePeriodSeconds: 0, containers: [{{name: app, image: \"{image}\", imagePullPolicy: {policy}, \
             args: [sleep, '100000'], resources: {{limits: {{memory: 16Mi, cpu: 100m}}}}}}]}}}}"
        ))
    };
    let status = |name: &str| Ok::<_, anyhow::Error>(instance.get("pod", name, "bob")?["status"].clone());
    theirs("app", "IfNotPresent")?;
    theirs("never", "Never")?;
    for (pod, reason, why) in
        [("app", "ImagePullBackOff", "refuses access"), ("never", "ErrImageNeverPull", "was pulled for other owners")]
    {
        instance.eventually("the guest is refused", || {
            let waiting = status(pod)?["containerStatuses"][0]["state"]["waiting"].clone();
            ensure!(
                waiting["reason"] == reason && waiting["message"].as_str().unwrap_or_default().contains(why),
                "{waiting}"
            );
            Ok(())
        })?;
    }
    // With a login of their own: nothing is fetched twice, and from then on the registry is not needed.
    login("bob")?;
    for pod in ["app", "never"] {
        instance.eventually("the guest runs", || {
            let status = status(pod)?;
            ensure!(status["phase"] == "Running", "{status}");
            Ok(())
        })?;
    }
    let pulled = instance.list("events", "bob")?;
    let pulled =
        pulled.iter().filter(|event| event["reason"] == "Pulled").filter_map(|event| event["message"].as_str());
    let pulled: Vec<_> = pulled.collect();
    ensure!(pulled.len() == 1 && pulled[0].contains("Downloaded: 0 bytes in 0 of 1 layers"), "{pulled:?}");
    Ok(())
}

/// The digest that the registry has for a name.
fn pinned(place: &Place, name: &str) -> Result<String> {
    let image = format!("docker://{}/{name}", place.registry.host);
    let mut inspect = Command::new("skopeo");
    inspect.args(["inspect", "--tls-verify=false", "--format={{.Digest}}", &format!("--creds={LOGIN}"), &image]);
    Ok(command::succeed(&mut inspect)?.trim().to_owned())
}

#[test]
fn what_was_pulled_runs_without_its_registry_and_a_newer_one_is_fetched_where_it_is_asked_for() -> Result<()> {
    let place = Place::new(Instance::up("none")?, false)?;
    let image = place.push(&place.build("first", None, 1000)?, "app:latest", &[]);
    place.pod("always-1", &image, "")?;
    let first = place.runs("always-1")?["status"]["containerStatuses"][0]["imageID"].clone();
    // The same tag leads elsewhere now.
    place.push(&place.build("second", None, 2000)?, "app:latest", &[]);
    place.pod("present", &image, "")?;
    ensure!(place.runs("present")?["status"]["containerStatuses"][0]["imageID"] == first);
    place.pod("always-2", &image, "")?;
    let second = place.runs("always-2")?["status"]["containerStatuses"][0]["imageID"].clone();
    ensure!(second != first, "{second}");
    // Asked again, it says the same: nothing is fetched.
    place.pod("always-3", &image, "")?;
    place.runs("always-3")?;
    ensure!(place.events("always-3")?.iter().all(|(reason, _)| reason != "Pulling"), "{:?}", place.events("always-3")?);

    let Place { instance, registry, dir } = place;
    let host = registry.host.clone();
    drop(registry);
    // Nobody answers at its port any more.
    let place = Place { instance, registry: Registry::start(dir.path(), ""), dir };
    ensure!(place.registry.host != host, "another port");
    place.pod("always-4", &image, "")?;
    ensure!(place.runs("always-4")?["status"]["containerStatuses"][0]["imageID"] == second);
    ensure!(place.event("always-4", "RegistryUnavailable")?.contains("cannot be reached"));
    Ok(())
}

#[test]
fn no_image_name_leads_into_the_home_unless_its_owner_says_so() -> Result<()> {
    let place = Place::new(Instance::up("none")?, false)?;
    let image = place.push(&place.build("one", None, 1000)?, "app:1", &[]);
    place.instance.allow_registries("")?;
    place.pod("one", &image, "")?;
    place.instance.eventually("it is refused", || {
        let waiting = place.waiting("one")?;
        ensure!(waiting["message"].as_str().is_some_and(|text| text.contains("not on the internet")), "{waiting}");
        Ok(())
    })?;
    // A file that cannot be read is told, with its place, and nothing is pulled meanwhile.
    place.instance.allow_registries("mirrors: [x]")?;
    place.pod("two", &image, "")?;
    place.instance.eventually("the file is named", || {
        let waiting = place.waiting("two")?;
        ensure!(waiting["message"].as_str().is_some_and(|text| text.contains("registries.yaml")), "{waiting}");
        Ok(())
    })?;
    place.name_registry("")?;
    place.runs("one")?;
    place.runs("two").map(drop)
}

#[test]
fn the_command_pulls_beside_the_agent_and_a_pod_that_waits_runs() -> Result<()> {
    let place = Place::new(Instance::up("none")?, true)?;
    let image = place.push(&place.build("one", None, 1000)?, "app:1", &[&format!("--dest-creds={LOGIN}")]);
    place.pod("one", &image, "")?;
    place.instance.eventually("it waits", || {
        let waiting = place.waiting("one")?;
        ensure!(waiting["reason"] == "ImagePullBackOff", "{waiting}");
        Ok(())
    })?;
    let dir = place.instance.path().display().to_string();
    let text = place.instance.refused(&format!("image pull {image} --data-dir {dir}"))?;
    ensure!(text.contains("refuses access") && !text.contains("s3cret"), "{text}");
    let (user, password) = LOGIN.split_once(':').unwrap();
    let host = &place.registry.host;
    place.name_registry(&format!("configs:\n  \"{host}\":\n    auth: {{username: {user}, password: {password}}}\n"))?;
    let text = place.instance.run(&format!("image pull {image} --data-dir {dir}"))?;
    ensure!(text.contains(&format!("{image} is here (sha256:")), "{text}");
    place.runs("one")?;
    let listed = place.instance.run(&format!("image ls -o json --data-dir {dir}"))?;
    ensure!(listed.contains("\"pulled\": true"), "{listed}");
    Ok(())
}

#[test]
fn a_disk_that_fills_up_loses_images_that_can_be_had_again_and_no_others() -> Result<()> {
    let place = Place::new(Instance::on_disk(600)?, false)?;
    place.instance.start("none")?;
    let dir = place.instance.path().display().to_string();
    let mib = 1 << 20;
    let big = place.push(&place.build("big", None, 100 * mib)?, "big:1", &[]);
    place.instance.run(&format!("image pull {big} --data-dir {dir}"))?;
    let used = place.push(&place.build("used", None, mib)?, "used:1", &[]);
    place.pod("used", &used, "")?;
    place.runs("used")?;
    place.instance.import(std::path::Path::new(&place.build("mine", None, mib)?))?;
    let names = || place.instance.run(&format!("image ls --data-dir {dir}"));
    ensure!(names()?.contains(&big));
    // Somebody fills the disk to nine tenths.
    let filler = place.instance.path().join("film");
    let stat = rustix::fs::statvfs(place.instance.path())?;
    let free = stat.f_bavail * stat.f_frsize;
    let wanted = free - (stat.f_blocks * stat.f_frsize) / 10;
    command::succeed(Command::new("fallocate").arg("-l").arg(wanted.to_string()).arg(&filler))?;
    hearth_e2e::eventually("the image goes", std::time::Duration::from_secs(150), || {
        let names = names()?;
        ensure!(!names.contains(&big), "{names}");
        Ok(())
    })?;
    let left = names()?;
    ensure!(left.contains(&used) && left.contains("app:mine"), "{left}");
    place.runs("used").map(drop)
}
