//! A container that shares a volume with one that starts, and puts a link where a mount of that one is about to be made.

use std::{fs, os::unix::fs::symlink};

use hearth_runtime::{ContainerSpec, Mount, MountKind, Protection};

use crate::{
    attempts::Facts,
    containers::{answer_of, specification},
    probes::{self, Guard},
    support::{Ctx, TestPod},
};

/// First argument of this program where it is the one that puts links in the way.
pub const FLIP: &str = "--flip";
/// Starts that are tried until one is led astray, without the last look.
const MOST: usize = 300;
/// Starts under all protections.
const STARTS: usize = 40;

/// Changes a folder for a link to `/proc` and back, for ever.
pub fn flip() -> ! {
    loop {
        // SAFETY: both paths are NUL-terminated constants.
        let changed = unsafe {
            let (a, b) = (c"/volume/turn".as_ptr(), c"/volume/other".as_ptr());
            libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, a, libc::AT_FDCWD, b, libc::RENAME_EXCHANGE)
        };
        assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
    }
}

fn started(pod: &TestPod, facts: &Facts, n: usize, without: &[Guard]) -> ContainerSpec {
    let probe = probes::all().into_iter().find(|p| p.links()).expect("is listed");
    let mut spec = specification(pod, facts, probe, &format!("c{n}"), without);
    spec.mounts.truncate(1);
    let source = spec.mounts[0].source.clone();
    let kind = MountKind::IdmappedBind;
    spec.mounts.push(Mount { source, target: "/volume/turn".into(), read_only: false, kind });
    spec
}

/// How many starts were led astray, went right, and were refused.
async fn race(ctx: &Ctx, facts: &Facts, without: &[Guard], most: usize) -> Result<[usize; 3], String> {
    let pod = ctx.pod().await;
    let mut racer = pod.spec("racer", "");
    racer.args = ["/probe", FLIP].map(String::from).to_vec();
    racer.mounts = started(&pod, facts, 0, without).mounts[..1].to_vec();
    let volume = racer.mounts[0].source.clone();
    fs::create_dir(volume.join("turn")).map_err(|e| e.to_string())?;
    symlink("/proc", volume.join("other")).map_err(|e| e.to_string())?;
    pod.pod.start_container(racer).await.map_err(|e| format!("the racer: {e}"))?;
    let (mut astray, mut right, mut refused) = (0, 0, 0);
    for n in 0..most {
        let spec = started(&pod, facts, n, without);
        let (name, log) = (spec.name.clone(), spec.log_path.clone());
        match pod.pod.start_container(spec).await {
            Err(_) => refused += 1,
            Ok(_) => {
                let answer = answer_of(pod.ended(&name).await.state, &log);
                match answer.as_str() {
                    "succeeds" => astray += 1,
                    "ENOENT" => right += 1,
                    _ => return Err(answer),
                }
                pod.pod.remove_container(&name).await.map_err(|e| e.to_string())?;
            }
        }
        if astray > 0 {
            break;
        }
    }
    pod.destroy().await;
    Ok([astray, right, refused])
}

/// The race can be won without the last look, and not with it.
pub async fn show(ctx: &Ctx, facts: &Facts) -> Result<(), String> {
    let without = [Guard::Of(Protection::VerifiedMounts)];
    let [astray, right, refused] = race(ctx, facts, &without, MOST).await?;
    println!("without the last look: {astray} astray, {right} right, {refused} refused");
    if astray == 0 {
        return Err(format!("none of {MOST} starts was led astray, so that nothing is shown: {right} went right"));
    }
    let [astray, right, refused] = race(ctx, facts, &[], STARTS).await?;
    println!("under all: {astray} astray, {right} right, {refused} refused");
    if astray > 0 || refused == 0 { Err(format!("{astray} were led astray, {refused} refused")) } else { Ok(()) }
}
