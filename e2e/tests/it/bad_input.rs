//! Bad input gets a clear error, and nothing is half done.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};
use serde_json::json;

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
    instance.wait_ready("web", "alice")?;
    // One that lands where no device looks is told of, and one that does not is not.
    let elsewhere = tempfile::tempdir()?;
    for (data_dir, is_told) in [(elsewhere.path(), true), (instance.path(), false)] {
        let mut import = instance.hearth(["image", "import"]);
        import.env("HEARTH_DATA_DIR", data_dir).arg(instance.path().join("busybox.tar"));
        let done = command::output(&mut import, b"", command::LIMIT)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success() && said.contains("no agent runs from") == is_told, "{data_dir:?}: {said}");
    }
    Ok(())
}

/// Packs files of a folder with GNU tar, whose options can make nearly any archive.
fn tar(folder: &Path, archive: &Path, arguments: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--absolute-names", "--format=gnu", "--file"]).arg(archive).arg("-C").arg(folder);
    command::succeed(tar.args(arguments)).map(drop)
}

/// A docker archive of one layer, with every digest right.
fn docker_archive(folder: &Path, layer: &Path, architecture: &str) -> Result<PathBuf> {
    let work = tempfile::tempdir_in(folder)?;
    let sum = command::run("sha256sum", [layer])?;
    let diff_id = format!("sha256:{}", sum.split(' ').next().context("a digest")?);
    let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/x"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    fs::write(work.path().join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": ["evil:1"], "Layers": ["layer.tar"]}]);
    fs::write(work.path().join("manifest.json"), manifest.to_string())?;
    fs::copy(layer, work.path().join("layer.tar"))?;
    let archive = folder.join(format!("{architecture}.image.tar"));
    tar(work.path(), &archive, &["manifest.json", "config.json", "layer.tar"])?;
    Ok(archive)
}

/// This machine's architecture as images have it.
fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

/// Files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let found =
        command::run("find", [folder.as_os_str(), "-type".as_ref(), "f".as_ref(), "-size".as_ref(), "+0".as_ref()])?;
    Ok(found.lines().map(PathBuf::from).collect())
}

#[test]
fn layers_that_climb_out_or_have_devices_are_refused_and_leave_nothing() -> Result<()> {
    let instance = Instance::empty()?;
    let dir = tempfile::tempdir()?;
    let import = |archive: &Path| {
        let mut import = instance.hearth(["image", "import", "--data-dir"]);
        import.arg(instance.path()).arg(archive);
        import
    };
    // What is on disk once a good image was taken and nothing else.
    let source = dir.path().join("source");
    fs::create_dir_all(&source)?;
    fs::write(source.join("file"), "evil")?;
    fs::hard_link(source.join("file"), source.join("same"))?;
    std::os::unix::fs::symlink("/etc", source.join("out"))?;
    let layer = dir.path().join("layer.tar");
    tar(&source, &layer, &["file"])?;
    command::succeed(&mut import(&docker_archive(dir.path(), &layer, architecture())?))?;
    let before = files(instance.path())?;
    ensure!(!before.is_empty());
    let canary = instance.path().parent().context("a folder")?.join(format!("canary-{}", std::process::id()));
    let climbing = format!("../../../../../../../../..{}", canary.display());
    let to = |pattern: &str, flags: &str| format!("--transform=s,{pattern},{flags}");
    let device = source.join("sda");
    command::run("mknod", [device.as_os_str(), "b".as_ref(), "8".as_ref(), "0".as_ref()])?;
    command::run("mknod", [source.join("mem").as_os_str(), "c".as_ref(), "1".as_ref(), "1".as_ref()])?;
    for (what, arguments, entry, problem) in [
        (
            "..",
            vec![to("^file$", &format!("{climbing},")), "file".into()],
            climbing.as_str(),
            "its path has a \"..\" component",
        ),
        (
            "a symlink to write through",
            vec![to("^file$", "out/evil,"), "out".into(), "file".into()],
            "out/evil",
            "its path leads through a symbolic link of the same layer",
        ),
        (
            "a hard link to the host",
            vec![to("^file$", &format!("{climbing},RS")), "file".into(), "same".into()],
            "same",
            "which leads out of the layer",
        ),
        (
            "a hard link to an absolute path",
            vec![to("^file$", "/etc/shadow,RS"), "file".into(), "same".into()],
            "same",
            "it is a hard link to \"/etc/shadow\", which is not in the layer",
        ),
        ("a disk", vec!["sda".into()], "sda", "it is a block device: device nodes are not allowed in images"),
        ("memory", vec!["mem".into()], "mem", "it is a character device: device nodes are not allowed in images"),
    ] {
        tar(&source, &layer, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        let error = command::fail(&mut import(&docker_archive(dir.path(), &layer, architecture())?))?;
        ensure!(
            error.contains(&format!("is refused at entry {entry:?}: ")) && error.contains(problem),
            "{what}: {error}"
        );
        assert_eq!(files(instance.path())?, before, "{what}");
        ensure!(!canary.exists(), "{what}");
    }
    Ok(())
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
    let import = |path: &Path| {
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
    let layer = dir.path().join("layer.tar");
    tar(dir.path(), &layer, &["good.tar"])?;
    let error = import(&docker_archive(dir.path(), &layer, "s390x")?)?;
    ensure!(error.contains("is for linux/s390x, and this device needs linux/"), "{error}");
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

#[test]
fn a_full_disk_is_told_and_more_room_mends_it() -> Result<()> {
    let instance = Instance::on_disk(256)?;
    instance.start("notes")?;
    let host = "notes.alice.hearth.internal";
    let shims = instance.pids("hearth shim");
    let config = |name: &str, size: usize| {
        format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, namespace: alice}}, data: {{a: {}}}}}\n---\n",
            "x".repeat(size)
        )
    };
    instance.apply(&config("before", 10))?;
    // Everything but a few KiB is taken by somebody else, and then these too.
    let filler = instance.path().join("filler");
    for block in ["1M", "4k", "1"] {
        let fill = format!("dd if=/dev/zero of={} bs={block} oflag=append conv=notrunc", filler.display());
        let text = command::fail(Command::new("sh").args(["-c", &fill]))?;
        ensure!(text.contains("No space left"), "{text}");
    }
    // The log may have room that it set aside.
    let mut told = None;
    for n in 0..64 {
        let done = command::output(
            &mut instance.hearth(["apply", "-f", "-"]),
            (config(&format!("a-{n}"), 200_000) + &config(&format!("b-{n}"), 200_000)).as_bytes(),
            command::LIMIT,
        )?;
        if !done.status.success() {
            told = Some((n, String::from_utf8_lossy(&done.stderr).into_owned()));
            break;
        }
    }
    let (n, error) = told.context("25 MB were written to a full disk")?;
    let lower = error.to_lowercase();
    ensure!(lower.contains("no space left") && lower.contains("make room"), "{error}{}", instance.logs());
    // What ran goes on, what was stored is read; of the refused there is nothing.
    assert_eq!(instance.pids("hearth shim"), shims);
    instance.eventually("the region answers", || {
        let names: Vec<_> =
            instance.list("configmaps", "alice")?.iter().map(|one| one["metadata"]["name"].clone()).collect();
        ensure!(names.iter().any(|name| name == "before"), "{names:?}");
        let (a, b) = (json!(format!("a-{n}")), json!(format!("b-{n}")));
        ensure!(!names.contains(&b), "the second is there");
        ensure!(!names.contains(&a), "half of it is done: {names:?}");
        Ok(())
    })?;
    fs::remove_file(&filler)?;
    instance.eventually("it works again by itself", || instance.apply(&config("after", 200_000)))?;
    ensure!(instance.list("configmaps", "alice")?.iter().any(|one| one["metadata"]["name"] == "before"));
    instance.eventually("the app answers", || instance.fetch(host, "/healthz"))?;
    assert_eq!(instance.pids("hearth shim"), shims, "no container was restarted");
    Ok(())
}
