//! A server that nobody here wrote: Radicale from Debian, packed into an OCI image by Debian's own tools, used by a
//! real client through DNS and gateway, killed, restarted without its region, its data read back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};

/// Debian packages are fetched and unpacked: minutes on a slow line.
const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// The image, built once a machine by debootstrap and umoci, and kept in the build directory.
fn radicale() -> Result<PathBuf> {
    let folder = hearth_e2e::instance::binary().parent().context("a folder")?.join("hearth-test-images");
    let archive = folder.join("radicale.oci.tar");
    if archive.exists() {
        return Ok(archive);
    }
    fs::create_dir_all(&folder)?;
    let work = tempfile::tempdir_in(&folder)?;
    let (root, layout) = (work.path().join("root"), work.path().join("layout"));
    let bounded = |command: &mut Command| -> Result<()> {
        let done = command::output(command, b"", BUILD_LIMIT)?;
        ensure!(
            done.status.success(),
            "{command:?}\n{}\n{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(())
    };
    let codename = command::run("sh", ["-c", ". /etc/os-release; echo $VERSION_CODENAME"])?;
    bounded(
        Command::new("debootstrap")
            .args(["--variant=minbase", "--include=radicale", codename.trim()])
            .arg(&root)
            .args(mirror()),
    )?;
    // An image has no device nodes and needs no package archives.
    bounded(Command::new("sh").args(["-ec", "rm -rf dev/* var/cache/apt/* var/lib/apt/lists/*"]).current_dir(&root))?;
    let umoci = |arguments: &[&str]| bounded(Command::new("umoci").args(arguments));
    let layout_text = layout.display().to_string();
    let image = format!("{layout_text}:3");
    umoci(&["init", "--layout", &layout_text])?;
    umoci(&["new", "--image", &image])?;
    umoci(&["insert", "--image", &image, &root.display().to_string(), "/"])?;
    umoci(&[
        "config",
        "--image",
        &image,
        "--config.entrypoint",
        "/usr/bin/radicale",
        "--config.cmd",
        "--hosts=0.0.0.0:5232,[::]:5232",
        "--config.cmd",
        "--storage-filesystem-folder=/data",
        "--config.cmd",
        "--auth-type=none",
        "--config.env",
        "PATH=/usr/bin:/bin",
    ])?;
    let temporary = work.path().join("image.tar");
    bounded(Command::new("tar").arg("-cf").arg(&temporary).arg("-C").arg(&layout).arg("."))?;
    fs::rename(&temporary, &archive)?;
    Ok(archive)
}

/// The mirror that this machine itself uses, where it says one.
fn mirror() -> Option<String> {
    let texts = ["/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources"]
        .map(|path| fs::read_to_string(Path::new(path)).unwrap_or_default());
    let lines =
        texts.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let mut words = lines.flat_map(str::split_whitespace);
    words.find(|word| word.starts_with("http") && !word.contains("security")).map(str::to_owned)
}

const MANIFEST: &str = "
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: radicale}
spec:
  displayName: Calendars and contacts
  containers:
  - name: radicale
    image: radicale:3
    ports: [{name: http, containerPort: 5232}]
    volumeMounts: [{name: data, mountPath: /data}]
    resources: {limits: {memory: 256Mi}}
  volumes: [{name: data, size: 1Gi}]
  ingress: {port: http}
---
apiVersion: hearth.dev/v1alpha1
kind: Install
metadata: {name: calendar, namespace: alice}
spec: {app: radicale}
";

const EVENT: &str = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//test//EN\r\nBEGIN:VEVENT\r\nUID:dinner\r\nDTSTAMP:20260101T000000Z\r\n\
                     DTSTART:20260102T190000Z\r\nSUMMARY:Dinner at home\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n";

#[test]
fn radicale_from_debian_keeps_a_calendar_through_kill_and_an_offline_restart() -> Result<()> {
    let archive = radicale()?;
    let instance = Instance::up("none")?;
    let mut import = instance.hearth(["image", "import", "--tag", "radicale:3", "--data-dir"]);
    command::succeed(import.arg(instance.path()).arg(&archive))?;
    instance.apply(MANIFEST)?;
    instance.wait_ready("calendar", "alice")?;
    let host = "calendar.alice.hearth.internal";
    // The name leads to the gateway.
    let dns = instance.address("dns")?;
    let (ip, port) = dns.rsplit_once(':').context("an address")?;
    assert_eq!(command::run("kdig", [&format!("@{ip}"), "-p", port, "+short", host, "A"])?.trim(), "127.0.0.1");
    // A CalDAV client's own verbs (RFC 4791).
    let dav = |arguments: &[&str], path: &str| {
        command::succeed(&mut instance.curl(
            host,
            path,
            &[&["--fail-with-body", "-u", "alice:x"], arguments].concat(),
        )?)
    };
    instance.eventually("radicale answers", || dav(&[], "/.web/"))?;
    dav(&["-X", "MKCALENDAR"], "/alice/home/")?;
    dav(
        &["-X", "PUT", "-H", "Content-Type: text/calendar; charset=utf-8", "--data-binary", EVENT],
        "/alice/home/dinner.ics",
    )?;
    let kept = |text: &str| text.contains("SUMMARY:Dinner at home");
    ensure!(kept(&dav(&[], "/alice/home/dinner.ics")?));
    // Killed: it is started again, with its data.
    let id = instance.id()?;
    let inside = || {
        let pids = instance.container_pids(&id, "storage-filesystem-folder=/data");
        ensure!(!pids.is_empty(), "radicale does not run");
        Ok(pids)
    };
    for pid in inside()? {
        instance.kill9(pid)?;
    }
    instance.eventually("it answers again", || {
        ensure!(kept(&dav(&[], "/alice/home/dinner.ics")?));
        let pod = &instance.list("pods", "alice")?[0];
        ensure!(pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0) >= 1, "{}", pod["status"]);
        Ok(())
    })?;
    // Stopped altogether, then started with no region in reach: it runs from the device's disk.
    instance.down()?;
    let log = fs::File::create(instance.path().join("logs/agent.log"))?;
    let mut agent = Command::new(hearth_e2e::instance::binary());
    let mut agent = agent
        .args(["agent", "--server", "127.0.0.1:1", "--data-dir"])
        .arg(instance.path())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    // In the home, by the pod's own address: there is no gateway and no name now.
    let read = instance.eventually("the calendar is read offline", || {
        let pid = inside()?[0].to_string();
        let text = command::run("nsenter", ["-t", &pid, "-n", "ip", "-4", "-o", "address", "show", "scope", "global"])?;
        let address = text.split_whitespace().find_map(|word| word.split_once('/')).context(text.clone())?.0.to_owned();
        let url = format!("http://{address}:5232/alice/home/dinner.ics");
        command::run("curl", ["-sS", "--fail-with-body", "--max-time", "10", "-u", "alice:x", &url])
    });
    agent.kill()?;
    agent.wait()?;
    ensure!(kept(&read?));
    instance.start("none")?;
    instance.eventually("the calendar is read back", || {
        ensure!(kept(&dav(&[], "/alice/home/dinner.ics")?));
        Ok(())
    })
}
