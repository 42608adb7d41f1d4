//! The power is cut again and again, while images are pulled, pods come and go, and apps write: whatever was acknowledged is there afterwards,
//! and no image runs of which a part is missing.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command,
    disk::{Cut, Disk},
    eventually,
    instance::Instance,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::images::registry::Registry;

/// Cuts of a run, unless `HEARTH_POWER_CUTS` says otherwise.
const CUTS: usize = 6;
/// Acknowledged writes between two cuts, at most: the moment is by chance.
const APART: usize = 12;
/// Images that are pulled one after another, again and again.
const IMAGES: usize = 12;
/// Bytes of each that no other has, so that a pull takes its time.
const FILLER: usize = 3 << 20;
/// The app that keeps what it acknowledged.
const NOTES: &str = "notes.alice.hearth.internal";

/// What was acknowledged so far.
#[derive(Clone, Debug, Default)]
struct Acknowledged {
    notes: BTreeSet<String>,
    objects: BTreeSet<String>,
}

impl Acknowledged {
    fn count(&self) -> usize {
        self.notes.len() + self.objects.len()
    }
}

/// What writers share.
struct Load {
    instance: Instance,
    stop: AtomicBool,
    acknowledged: Mutex<Acknowledged>,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn now(&self) -> Acknowledged {
        self.acknowledged.lock().unwrap().clone()
    }

    /// Notes, each acknowledged by the app.
    fn write_notes(&self) {
        for n in (0..).take_while(|_| self.goes_on()) {
            let text = format!("note-{n}");
            let body = format!(r#"{{"text":"{text}"}}"#);
            let post = ["--fail-with-body", "-X", "POST", "-H", "content-type: application/json", "-d", &body];
            let done = self.instance.curl(NOTES, "/api/notes", &post).and_then(|mut curl| command::succeed(&mut curl));
            if done.is_ok() {
                self.acknowledged.lock().unwrap().notes.insert(text);
            }
        }
    }

    /// Pods of images that are not on the device yet, and objects beside them, each acknowledged by the region.
    fn run_pods(&self, images: &[String]) {
        for n in (0..).take_while(|_| self.goes_on()) {
            let image = &images[n % IMAGES];
            let pod = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{n}, namespace: alice}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
                 containers:\n  - name: app\n    image: \"{image}\"\n    args: [sh, -c, \"sha256sum -c /sums && exec sleep 100000\"]\n"
            );
            let config = format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c-{n}, namespace: alice}}\ndata: {{n: \"{n}\"}}\n"
            );
            if self.instance.apply(&format!("{pod}---\n{config}")).is_ok() {
                self.acknowledged.lock().unwrap().objects.insert(format!("c-{n}"));
            }
            if let Some(old) = n.checked_sub(4) {
                let _ = self.instance.run(&format!("delete pod pod-{old} -n alice"));
                let dir = self.instance.path().display();
                let _ = self.instance.run(&format!("image rm {} --data-dir {dir}", images[old % IMAGES]));
            }
            let waits = || {
                let pod = self.instance.get("pod", &format!("pod-{n}"), "alice")?;
                ensure!(pod["status"]["phase"] == "Running" || !self.goes_on());
                Ok(())
            };
            let _ = eventually("the pod runs", Duration::from_secs(30), waits);
        }
    }
}

fn images(registry: &Registry, dir: &Path, instance: &Instance) -> Result<Vec<String>> {
    let filler = dir.join("filler");
    let mut random = StdRng::seed_from_u64(7);
    (0..IMAGES)
        .map(|n| {
            let mut bytes = vec![0; FILLER];
            random.fill(&mut bytes[..]);
            std::fs::write(&filler, bytes)?;
            let sum = command::run("sha256sum", [filler.display().to_string()])?;
            let sums = dir.join("sums");
            let programs = command::run("sha256sum", ["/bin/busybox"])?;
            let first = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
            std::fs::write(&sums, format!("{}  /filler\n{}  /bin/busybox\n", first(&sum), first(&programs)))?;
            let archive = dir.join("image.tar").display().to_string();
            let mut build = instance.hearth(["image", "build", "--entrypoint", "/bin/busybox", "--env", "PATH=/bin"]);
            build.args(["--tag", "app:1", "--output", &archive, "--copy", "/bin/busybox:/bin/busybox:0755"]);
            build.args(["--copy", "/bin/busybox:/bin/sh:0755"]);
            build.args(["--copy", &format!("{}:/filler", filler.display())]);
            build.args(["--copy", &format!("{}:/sums", sums.display())]);
            command::succeed(&mut build)?;
            let name = format!("app:{n}");
            registry.copy(&format!("oci-archive:{archive}"), &name, &[]);
            Ok(format!("{}/{name}", registry.host))
        })
        .collect()
}

fn unmount(at: &Path) -> Result<()> {
    command::run("umount", [at.display().to_string()]).map(drop)
}

#[test]
fn what_was_acknowledged_is_there_when_the_power_is_back() -> Result<()> {
    let cuts: usize = std::env::var("HEARTH_POWER_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(CUTS);
    let dir = tempfile::tempdir()?;
    let mut disk = Disk::new(1024)?;
    let mut instance = Instance::empty()?;
    instance.live_on(|at| disk.mount(at))?;
    let registry = Registry::start(dir.path(), "");
    let images = images(&registry, dir.path(), &instance)?;
    let host = &registry.host;
    instance.allow_registries(&format!("mirrors:\n  \"{host}\":\n    endpoint: [\"http://{host}\"]\n"))?;
    instance.start("notes")?;
    instance.wait_ready("notes", "alice")?;

    let load = Arc::new(Load { instance, stop: AtomicBool::default(), acknowledged: Mutex::default() });
    let (notes, pods) = (Arc::clone(&load), Arc::clone(&load));
    let writers = [thread::spawn(move || notes.write_notes()), thread::spawn(move || pods.run_pods(&images))];
    let mut random = StdRng::seed_from_u64(11);
    let taken = (0..cuts).map(|_| {
        let wanted = load.now().count() + random.random_range(1..=APART);
        eventually("writes go on", Duration::from_secs(60), || {
            ensure!(load.now().count() >= wanted);
            Ok(())
        })?;
        // What is acknowledged before the cut is what has to be there.
        let acknowledged = load.now();
        Ok((acknowledged, disk.cut()?))
    });
    let taken = taken.collect::<Result<Vec<_>>>();
    load.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().expect("a writer ends");
    }
    let taken = taken?;
    drop(registry);
    let Load { instance, .. } = Arc::into_inner(load).context("the writers have ended")?;
    instance.down()?;
    for (n, (acknowledged, cut)) in taken.iter().enumerate() {
        unmount(instance.path())?;
        after(&instance, cut, acknowledged).with_context(|| format!("cut {n} of {cuts}"))?;
    }
    Ok(())
}

/// The power is back: everything starts, from what the disk has and with no registry in reach.
fn after(instance: &Instance, cut: &Cut, acknowledged: &Acknowledged) -> Result<()> {
    cut.mount(instance.path())?;
    instance.start("notes")?;
    instance.wait_ready("notes", "alice")?;
    let notes = instance.fetch(NOTES, "/api/notes")?;
    let missing: Vec<_> = acknowledged.notes.iter().filter(|note| !notes.contains(&format!("\"{note}\""))).collect();
    ensure!(missing.is_empty(), "acknowledged notes are gone: {missing:?}");
    let names = |kind: &str| -> Result<BTreeSet<String>> {
        let objects = instance.list(kind, "alice")?;
        Ok(objects.iter().filter_map(|one| one["metadata"]["name"].as_str().map(str::to_owned)).collect())
    };
    let objects = names("configmaps")?;
    let missing: Vec<_> = acknowledged.objects.difference(&objects).collect();
    ensure!(missing.is_empty(), "acknowledged objects are gone: {missing:?}");
    instance.eventually("each pod runs from a whole image, or says that it has none", || {
        for pod in instance.list("pods", "alice")? {
            let container = &pod["status"]["containerStatuses"][0];
            let waiting = container["state"]["waiting"]["reason"].as_str().unwrap_or_default();
            ensure!(
                container["ready"] == true
                    || ["ErrImagePull", "ImagePullBackOff"].contains(&waiting)
                    || pod["metadata"].get("deletionTimestamp").is_some_and(|mark| !mark.is_null()),
                "{}",
                pod["status"]
            );
        }
        Ok(())
    })?;
    for pod in instance.list("pods", "alice")? {
        // A container whose power was cut is lost, which is no failure of its own; one that fails its sums is.
        let ended = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
        ensure!(ended["exitCode"] != 1, "{}", pod["status"]);
    }
    instance.down().map(drop)
}
