//! A large image from a registry to files that a container can run from, against skopeo and umoci on the same disk.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::binary};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::report::{Better, Report, median};

#[path = "../../../../agent/registry/tests/it/registry.rs"]
#[allow(clippy::expect_used, clippy::unwrap_used, dead_code)]
mod registry;

use registry::Registry;

const ROUNDS: usize = 5;
/// Layers of the image, and bytes of the files of each.
const LAYERS: usize = 4;
const LAYER_BYTES: usize = 125_000_000;
/// Sizes of files by turns, as programs and their libraries have them.
const FILES: [usize; 6] = [900, 4_000, 30_000, 200_000, 12_000, 1_500_000];
/// How often the memory of the program is looked at: it tells its highest itself.
const LOOK: Duration = Duration::from_millis(5);

/// Files of which about half can be compressed away, as those of programs.
fn fill(directory: &Path, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut left, mut n) = (LAYER_BYTES, 0);
    while left > 0 {
        let size = FILES[n % FILES.len()].min(left);
        let mut bytes = vec![0; size];
        for chunk in bytes.chunks_mut(64) {
            let (noise, pattern) = chunk.split_at_mut(chunk.len() / 2);
            random.fill(noise);
            pattern.fill(random.random());
        }
        let folder = directory.join(format!("{}", n % 97));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(n.to_string()), bytes)?;
        left -= size;
        n += 1;
    }
    Ok(())
}

/// Makes the image and pushes it; returns its name.
fn push(registry: &Registry, place: &Path) -> Result<String> {
    let layout = place.join("made").display().to_string();
    let image = format!("{layout}:1");
    command::run("umoci", ["init", "--layout", &layout])?;
    command::run("umoci", ["new", "--image", &image])?;
    for layer in 0..LAYERS {
        let folder = place.join("files");
        fill(&folder, layer as u64)?;
        let target = format!("/layer-{layer}");
        command::run("umoci", ["insert", "--image", &image, &folder.display().to_string(), &target])?;
        fs::remove_dir_all(&folder)?;
    }
    registry.push(Path::new(&layout), "big:1", &[]);
    fs::remove_dir_all(&layout)?;
    Ok(format!("{}/big:1", registry.host))
}

/// How long `hearth image pull` takes into an empty store, and its highest resident size in MiB.
fn ours(registry: &Registry, name: &str, place: &Path) -> Result<(f64, f64)> {
    let data = place.join("hearth");
    fs::create_dir_all(&data)?;
    let host = &registry.host;
    fs::write(data.join("registries.yaml"), format!("mirrors:\n  \"{host}\":\n    endpoint: [\"http://{host}\"]\n"))?;
    let begin = Instant::now();
    let mut pull = Command::new(binary());
    let mut child = pull.args(["image", "pull", name, "--data-dir"]).arg(&data).stdout(Stdio::null()).spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut highest = 0.0_f64;
    let ended = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        highest = highest.max(kib.unwrap_or_default() / 1024.0);
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        std::thread::sleep(LOOK);
    };
    ensure!(ended.success(), "hearth image pull: {ended}");
    let took = begin.elapsed().as_secs_f64();
    fs::remove_dir_all(&data)?;
    Ok((took, highest))
}

/// How long skopeo and umoci take for the same.
fn theirs(name: &str, place: &Path) -> Result<f64> {
    let (layout, bundle) = (place.join("layout"), place.join("bundle"));
    let begin = Instant::now();
    let to = format!("oci:{}:1", layout.display());
    command::run(
        "skopeo",
        ["copy", "-q", "--insecure-policy", "--src-tls-verify=false", &format!("docker://{name}"), &to],
    )?;
    let image = format!("{}:1", layout.display());
    command::run("umoci", ["unpack", "--image", &image, &bundle.display().to_string()])?;
    let took = begin.elapsed().as_secs_f64();
    fs::remove_dir_all(&layout)?;
    fs::remove_dir_all(&bundle)?;
    Ok(took)
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let place = tempfile::tempdir().context("cannot make a directory")?;
    let registry = Registry::start(place.path(), "");
    let name = push(&registry, place.path())?;
    let (mut our_times, mut their_times, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (took, size) = ours(&registry, &name, place.path())?;
        our_times.push(took);
        sizes.push(size);
        their_times.push(theirs(&name, place.path())?);
    }
    let case = format!("pull/{}MB", LAYERS * LAYER_BYTES / 1_000_000);
    let theirs = median(&mut their_times);
    report.figure(&case, median(&mut our_times), "s", Better::Lower, Some(("skopeo and umoci", theirs)))?;
    report.figure(&format!("{case}/memory"), median(&mut sizes), "MiB RSS at most", Better::Lower, None)
}
