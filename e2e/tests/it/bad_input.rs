//! Bad input gets a clear error, and nothing is half done.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hearth_e2e::{command, instance::Instance};

const APP: &str = "
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: web}
spec:
  containers:
  - {name: web, image: busybox, args: [sleep, '1000'], ports: [{name: http, containerPort: 80}]}
  ingress: {port: http}
";

#[test]
fn manifests_are_refused_with_the_place_of_the_mistake() -> Result<()> {
    let instance = Instance::up("none")?;
    let good = "{apiVersion: v1, kind: ConfigMap, metadata: {name: good, namespace: alice}, data: {a: b}}\n---\n";
    for (bad, expected) in [
        (
            "{apiVersion: batch/v1, kind: Job, metadata: {name: x}}",
            &["no matches for kind \"Job\"", "stdin: document 2"][..],
        ),
        ("{apiVersion: v1, kind: Deployment, metadata: {name: x}}", &["did you mean", "apps/v1"]),
        ("{kind: Pod, metadata: {name: x}}", &["apiVersion and kind are required"]),
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {replcas: 2, selector: {}, template: {}}}",
            &["spec.replcas: unknown field", "did you mean \"replicas\"?"],
        ),
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {replicas: two, selector: {}, template: {}}}",
            &["spec.replicas: must be an integer, is a string"],
        ),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: Bad_Name}}", &["name \"Bad_Name\"", "RFC 1123"]),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /x}]}]}}",
            &["spec.containers[0].volumeMounts[0].name", "no volume \"v\""],
        ),
        (
            "{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {name: x, namespace: default}, spec: {app: web}}",
            &["\"default\" is reserved"],
        ),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: good, namespace: alice}}", &["\"good\" is defined twice"]),
        ("a: [1, 2", &["document 2", "cannot be read as YAML"]),
        ("- 1", &["found a list"]),
        ("{apiVersion: v1, kind: Pod, metadata: {name: x}, metadata: {name: y}}", &["duplicate"]),
    ] {
        let error = instance.apply_refused(&format!("{good}{bad}"))?;
        for part in expected {
            ensure!(error.contains(part), "{bad}\nexpected: {part}\nsaid: {error}");
        }
        let error = instance.refused("get cm good -n alice")?;
        ensure!(
            error.contains("NotFound") && error.contains("configmaps \"good\" not found"),
            "nothing half done: {error}"
        );
    }
    Ok(())
}

#[test]
fn an_image_that_cannot_run_is_told_in_the_pod_and_a_later_import_mends_it() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.apply(APP)?;
    instance.apply(
        "{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {name: web, namespace: alice}, spec: {app: web}}",
    )?;
    instance.eventually("the pod says that its image is missing", || {
        let text = instance.run("describe pods -n alice")?;
        ensure!(text.contains("busybox") && text.contains("hearth image import"), "{text}");
        let install = instance.run("get install web -n alice -o wide")?;
        ensure!(install.contains("False"), "{install}");
        Ok(())
    })?;
    instance.import_busybox()?;
    instance.wait_ready("web", "alice")
}

#[test]
fn bad_images_are_refused_and_leave_nothing() -> Result<()> {
    let instance = Instance::empty()?;
    let dir = tempfile::tempdir()?;
    let good = dir.path().join("good.tar");
    let mut build = instance.hearth([
        "image",
        "build",
        "--tag",
        "b:1",
        "--copy",
        "/bin/busybox:/bin/busybox:0755",
        "--entrypoint",
        "/bin/busybox",
        "-o",
    ]);
    command::succeed(build.arg(&good))?;
    let import = |path: &std::path::Path| {
        let mut import = instance.hearth(["image", "import", "--data-dir"]);
        command::fail(import.arg(instance.path()).arg(path))
    };
    // Truncated.
    let bytes = fs::read(&good)?;
    let cut = dir.path().join("cut.tar");
    fs::write(&cut, &bytes[..bytes.len() / 2])?;
    let error = import(&cut)?;
    ensure!(error.contains("error:") && error.contains("cut.tar"), "{error}");
    // A flipped byte in the layer: its digest no longer fits.
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    let bad = dir.path().join("flipped.tar");
    fs::write(&bad, &flipped)?;
    let error = import(&bad)?;
    ensure!(error.contains("sha256"), "{error}");
    // Another architecture.
    let other = dir.path().join("other.tar");
    let mut build = instance.hearth([
        "image",
        "build",
        "--tag",
        "b:1",
        "--arch",
        "s390x",
        "--copy",
        "/etc/hostname:/etc/hostname",
        "--entrypoint",
        "/x",
        "-o",
    ]);
    command::succeed(build.arg(&other)).map(drop).or_else(|error| {
        // Building for another machine may be refused for its program; what matters is the import.
        ensure!(format!("{error:#}").contains("/x"), "{error:#}");
        Ok(())
    })?;
    if other.exists() {
        let error = import(&other)?;
        ensure!(
            error.contains("s390x") && error.contains(std::env::consts::ARCH.replace("x86_64", "amd64").as_str()),
            "{error}"
        );
    }
    let error = import(&dir.path().join("missing.tar"))?;
    ensure!(error.contains("missing.tar"), "{error}");
    let mut list = instance.hearth(["image", "ls", "-o", "json", "--data-dir"]);
    let listed = command::succeed(list.arg(instance.path()))?;
    ensure!(listed.contains("\"items\": []"), "{listed}");
    Ok(())
}

#[test]
fn tokens_are_good_for_one_key_one_region_and_a_time() -> Result<()> {
    let region = Instance::up("none")?;
    let token = region.run("token create --owner bob")?;
    let token = token.trim();
    let device = Instance::empty()?;
    let join = |instance: &Instance, token: &str, name: &str| {
        let mut join = instance.hearth(["join", token, "--name", name, "--data-dir"]);
        join.arg(instance.path());
        join
    };
    command::succeed(&mut join(&device, token, "attic"))?;
    // The same token and key again are harmless.
    command::succeed(&mut join(&device, token, "attic"))?;
    ensure!(region.run("get namespace bob")?.contains("Active"), "joining makes the owner's namespace");
    // Another key is refused.
    let thief = Instance::empty()?;
    let error = command::fail(&mut join(&thief, token, "cellar"))?;
    ensure!(error.contains("used") || error.contains("another"), "{error}");
    // A name that is taken is refused.
    let fresh = region.run("token create --owner bob")?;
    let error = command::fail(&mut join(&thief, fresh.trim(), "attic"))?;
    ensure!(error.contains("attic"), "{error}");
    // Expired: time itself is what is tested.
    let expired = region.run("token create --owner bob --valid 1s")?;
    let made = Instant::now();
    region.eventually("the token's time is over", || {
        ensure!(made.elapsed() > Duration::from_millis(1200));
        Ok(())
    })?;
    let late = Instance::empty()?;
    let error = command::fail(&mut join(&late, expired.trim(), "late"))?;
    ensure!(error.contains("expired"), "{error}");
    // Of another region: its CA does not fit the hash.
    let other = Instance::up("none")?;
    let foreign = other.run("token create --owner bob")?;
    let mut misled = join(&late, foreign.trim(), "misled");
    misled.args(["--server", &region.address("api")?]);
    let error = command::fail(&mut misled)?;
    ensure!(error.contains("CA") || error.contains("another region"), "{error}");
    // Not a token at all.
    let error = command::fail(&mut join(&late, "hello", "x"))?;
    ensure!(error.contains("not a join token"), "{error}");
    Ok(())
}

#[test]
fn a_client_without_a_region_is_told_what_to_do() -> Result<()> {
    let instance = Instance::empty()?;
    let error = instance.refused("get pods")?;
    ensure!(error.contains("client.yaml") && error.contains("hearth up"), "{error}");
    let running = Instance::up("none")?;
    running.down()?;
    let error = running.refused("get pods")?;
    ensure!(error.contains("cannot reach") && error.contains("refused"), "{error}");
    Ok(())
}
