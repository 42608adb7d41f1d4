//! Backup and restore of a region, through the binary.

use std::{
    ffi::OsString,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Stdio},
};

use anyhow::{Result, ensure};
use hearth_e2e::{
    command,
    instance::{Instance, binary},
};
use serde_json::Value;

/// Runs `hearth region` with words and paths, without a client config.
fn region(words: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(binary());
    command.arg("region").args(words).env("HEARTH_CONFIG", "/nonexistent/client.yaml");
    command
}

fn succeed(words: &[&str]) -> Result<String> {
    command::succeed(&mut region(words))
}

fn refused(words: &[&str]) -> Result<String> {
    command::fail(&mut region(words))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn inspect(file: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&succeed(&["inspect", text(file), "-o", "json"])?)?)
}

/// A server by itself, ended with the test.
struct Server(Child);

impl Server {
    fn start(instance: &Instance) -> Result<Self> {
        let mut server = instance.hearth(["server", "--data-dir"]);
        server.arg(instance.path());
        for flag in ["--listen-api", "--listen-gateway", "--listen-dns", "--listen-metrics"] {
            server.args([flag, "127.0.0.1:0"]);
        }
        let child = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Self(child);
        instance.eventually("the server answers", || instance.run("get ns"))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a folder holds, by name, with the bytes.
fn content(folder: &Path) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        found.push((entry.file_name(), std::fs::read(entry.path())?));
    }
    found.sort();
    Ok(found)
}

#[test]
fn a_region_is_restored_from_a_backup_while_its_apps_run_on_and_what_came_later_is_kept() -> Result<()> {
    let instance = Instance::up("notes")?;
    instance.import_busybox()?;
    let host = "notes.alice.hearth.internal";
    let post =
        ["--fail-with-body", "-X", "POST", "-H", "content-type: application/json", "-d", r#"{"text":"at home"}"#];
    command::succeed(&mut instance.curl(host, "/api/notes", &post)?)?;

    // Of the running region.
    let live = instance.path().join("live.backup");
    let said = instance.run(&format!("region backup {}", live.display()))?;
    ensure!(said.contains("region home (zone hearth.internal)"), "{said}");
    ensure!(std::fs::metadata(&live)?.permissions().mode() & 0o777 == 0o600);
    ensure!(instance.refused(&format!("region backup {}", live.display()))?.contains("--force"));
    let running = refused(&["backup", "/tmp/never", "--data-dir", text(instance.path())])?;
    ensure!(running.contains("hearth up is running"), "{running}");
    let running = refused(&["restore", text(&live), "--data-dir", text(instance.path()), "--force"])?;
    ensure!(running.contains("hearth up is running"), "{running}");
    let head = inspect(&live)?;
    ensure!(head["region"] == "home" && head["kinds"]["Device.hearth.dev"] == 1, "{head}");
    ensure!(!head.to_string().contains("PRIVATE KEY"));

    // Something that the backup does not have.
    instance.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: alice}, spec: {containers: [{name: a, image: busybox, args: [sleep, '100000']}]}}",
    )?;
    instance.run("wait pod/late -n alice --for condition=Ready --timeout 60s")?;
    let before = instance.pids("hearth shim");
    ensure!(before.len() == 2, "{before:?}");
    instance.kill9_all()?;

    // Of the dead one: nothing of it is changed.
    let (dead, raft) = (instance.path().join("dead.backup"), instance.path().join("server/raft"));
    let files = content(&raft)?;
    succeed(&["backup", text(&dead), "--data-dir", text(instance.path())])?;
    ensure!(content(&raft)? == files, "a backup changes nothing");
    let later = inspect(&dead)?;
    ensure!(later["kinds"]["Pod"].as_u64() > head["kinds"]["Pod"].as_u64(), "{later} after {head}");
    ensure!(later["revision"].as_u64() > head["revision"].as_u64());

    // What does not fit is refused, and changes nothing.
    let words = |more: &[&'static str]| {
        let mut words = vec!["restore", text(&live), "--data-dir", text(instance.path())];
        words.extend(more);
        refused(&words)
    };
    ensure!(words(&[])?.contains("--force"));
    ensure!(words(&["--force", "--zone", "other.internal"])?.contains("not of"));
    ensure!(words(&["--force", "--region", "office"])?.contains("not of"));
    let (damaged, mut bytes) = (instance.path().join("damaged.backup"), std::fs::read(&live)?);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes)?;
    for verb in [
        vec!["restore", text(&damaged), "--force", "--data-dir", text(instance.path())],
        vec!["inspect", text(&damaged)],
    ] {
        ensure!(refused(&verb)?.contains("checksum"));
    }
    ensure!(content(&raft)? == files, "nothing that was refused changed anything");

    succeed(&["restore", text(&live), "--data-dir", text(instance.path()), "--force"])?;
    let aside = std::fs::read_dir(instance.path())?.filter_map(Result::ok).map(|entry| entry.path());
    let aside = aside.filter(|path| text(path).contains("server.replaced-")).collect::<Vec<_>>();
    ensure!(aside.len() == 1 && content(&aside[0].join("raft"))? == files, "what was there is kept");
    instance.start("none")?;
    ensure!(instance.refused("get pod late -n alice")?.contains("not found"), "it was made after the backup");
    instance.eventually("the Device says so", || {
        let restored = instance.condition("device", "nas", "default", "RegionRestored")?;
        ensure!(restored["status"] == "True", "{restored}");
        Ok(())
    })?;
    instance.eventually("the app answers with its data", || {
        ensure!(instance.fetch(host, "/api/notes")?.contains("at home"));
        Ok(())
    })?;
    assert_eq!(instance.pids("hearth shim"), before, "the app runs on, and so does what the region forgot");
    // The region is followed.
    instance.run("delete install notes -n alice")?;
    instance.eventually("the app is stopped", || {
        ensure!(instance.pids("hearth shim").len() == 1);
        Ok(())
    })
}

#[test]
fn a_backup_makes_the_same_region_on_another_machine() -> Result<()> {
    let first = Instance::up("none")?;
    first.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: alice}, data: {n: '1'}}")?;
    let file = first.path().join("region.backup");
    let stored = first.get("configmap", "c", "alice")?;
    first.run(&format!("region backup {}", file.display()))?;
    let ca = std::fs::read(first.path().join("ca.pem"))?;
    first.down()?;
    let second = Instance::empty()?;
    succeed(&["restore", text(&file), "--data-dir", text(second.path())])?;
    let server = Server::start(&second)?;
    let restored = second.get("configmap", "c", "alice")?;
    ensure!(restored == stored, "{restored} is not {stored}");
    ensure!(std::fs::read(second.path().join("ca.pem"))? == ca, "the same CA");
    // Another zone than that of the region that is there.
    drop(server);
    let zone = second.path().join("server/zone");
    std::fs::write(&zone, "other.internal")?;
    let other = refused(&["restore", text(&file), "--data-dir", text(second.path()), "--force"])?;
    ensure!(other.contains("it is another region"), "{other}");
    Ok(())
}
