//! A device that goes silent: its app is moved where its owner said so, and one of both stays when it is back.

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{device::Device, instance::Instance};
use serde_json::Value;

const HOST: &str = "web.alice.hearth.internal";

/// The devices with a pod of the app that shall run.
fn devices(region: &Instance) -> Result<Vec<String>> {
    let pods = region.list("pod", "alice")?;
    let active = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let mut names: Vec<String> =
        active.map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or("nowhere").to_owned()).collect();
    names.sort();
    Ok(names)
}

fn pod_on(region: &Instance, device: &str) -> Result<Value> {
    let pods = region.list("pod", "alice")?;
    pods.into_iter().find(|pod| pod["spec"]["nodeName"] == device).context("no pod there")
}

#[test]
fn an_app_of_a_silent_device_is_served_by_another_and_comes_home_with_it() -> Result<()> {
    let region = Instance::up("none")?;
    let mut attic = Device::join(&region, "attic", "alice")?;
    attic.instance.import_busybox()?;
    region.eventually("the device is ready", || {
        ensure!(region.condition("node", "attic", "default", "Ready")?["status"] == "True", "{}", attic.said());
        Ok(())
    })?;
    region.run("cordon nas")?;
    region.apply(
        r"
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: web}
spec:
  containers:
  - name: web
    image: busybox
    args: [sh, -c, 'trap exit TERM; mkdir /tmp/www; cd /tmp/www; busybox hostname > index.html; busybox httpd -f -p 8080 & wait']
    ports: [{name: http, containerPort: 8080}]
  ingress: {port: http}
---
apiVersion: hearth.dev/v1alpha1
kind: Install
metadata: {name: web, namespace: alice}
spec: {app: web, placement: {disconnect: {moveAfterSeconds: 5}}}
",
    )?;
    region.wait_ready("web", "alice")?;
    ensure!(devices(&region)? == ["attic"]);
    let original = pod_on(&region, "attic")?;
    let shims = attic.instance.pids("hearth shim");
    ensure!(shims.len() == 1, "{shims:?}");
    region.run("uncordon nas")?;
    region.import_busybox()?;

    attic.stop();
    region.eventually("another device runs it too", || {
        ensure!(devices(&region)? == ["attic", "nas"], "{:?}", region.run("get pods -n alice -o wide"));
        Ok(())
    })?;
    region.wait_ready("web", "alice")?;
    let replacement = pod_on(&region, "nas")?;
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    region.eventually("the other one answers", || {
        ensure!(region.fetch(HOST, "/")?.trim() == name(&replacement));
        Ok(())
    })?;
    ensure!(attic.instance.pids("hearth shim") == shims, "it runs on where nobody sees it");
    let events = region.run("events -n alice")?;
    ensure!(events.contains("another pod stands for"), "{events}");

    attic.start()?;
    region.eventually("the first one stays, as nothing else was said", || {
        ensure!(devices(&region)? == ["attic"], "{:?}", region.run("get pods -n alice -o wide"));
        Ok(())
    })?;
    ensure!(attic.instance.pids("hearth shim") == shims, "the same processes");
    ensure!(pod_on(&region, "attic")?["metadata"]["uid"] == original["metadata"]["uid"]);
    region.eventually("and answers", || {
        ensure!(region.fetch(HOST, "/")?.trim() == name(&original));
        Ok(())
    })?;
    region.eventually("the other one is stopped", || {
        ensure!(region.pids("hearth shim").is_empty());
        Ok(())
    })
}
