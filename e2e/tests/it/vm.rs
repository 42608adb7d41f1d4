//! Debian's own kernel (6.1 on Debian 12) with cgroups of version 2 only, as home devices have it: booted in an
//! emulator, since neither can be had on the machine that runs the tests.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, run, succeed},
    instance::binary,
};

/// From power on to power off. Two minutes on an idle machine of two cores; everything takes ten times as long as on real
/// hardware, and longer where others work on the machine too.
const LIMIT: Duration = Duration::from_secs(600);
/// Room for the programs, an image and the data.
const DISK_BYTES: u64 = 2 << 30;
/// What the guest checks, in this order; `e2e/vm/check` says how.
const CHECKS: [&str; 17] = [
    "pure-v2",
    "up",
    "answers",
    "image",
    "apply",
    "ready",
    "limits",
    "exec",
    "volumes",
    "devices",
    "oom",
    "throttled",
    "pids",
    "adopted",
    "used",
    "shared",
    "down",
];
/// Least number of probes of hostile containers.
const HOSTILE: u32 = 60;
/// Modules that find the disk.
const DISK_MODULES: [&str; 2] = ["drivers/virtio", "drivers/block/virtio_blk.ko"];
/// Modules that Hearth has the kernel load, and what these need.
const MODULES: [&str; 5] = ["fs/overlayfs", "drivers/net/veth.ko", "net", "lib", "crypto"];

/// Debian's kernel as `scripts/deps.sh test` unpacks it: not installed, so that the machine boots what it booted.
struct Kernel {
    image: PathBuf,
    /// `lib/modules/RELEASE`.
    modules: PathBuf,
}

impl Kernel {
    fn find() -> Result<Self> {
        let target = binary().parent().and_then(Path::parent).context("the build directory")?.to_owned();
        let root = target.join("debian/linux-image");
        let first = |folder: &str, prefix: &str| -> Result<PathBuf> {
            let folder = root.join(folder);
            let entries = fs::read_dir(&folder).with_context(|| {
                format!("no kernel in {}: `scripts/deps.sh test` fetches and unpacks one", folder.display())
            })?;
            let mut found = entries.flatten().map(|entry| entry.path());
            found
                .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
                .with_context(|| format!("no {prefix}* in {}", folder.display()))
        };
        Ok(Self { image: first("boot", "vmlinuz-")?, modules: first("lib/modules", "")? })
    }

    /// Copies modules into a guest's root, with the index that modprobe reads.
    fn copy_modules(&self, root: &Path, names: &[&str]) -> Result<()> {
        let release = self.modules.file_name().context("a release")?.to_string_lossy().into_owned();
        let target = root.join("lib/modules").join(&release);
        for name in names {
            let to = target.join("kernel").join(name);
            let parent = to.parent().context("a folder")?;
            fs::create_dir_all(parent)?;
            succeed(Command::new("cp").arg("-a").arg(self.modules.join("kernel").join(name)).arg(parent))?;
        }
        for index in ["modules.builtin", "modules.order"] {
            fs::copy(self.modules.join(index), target.join(index))?;
        }
        succeed(Command::new("busybox").args(["depmod", "-b"]).arg(root).arg(&release)).map(drop)
    }
}

fn install(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a folder")?)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}

/// A file of this crate's `vm` folder.
fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vm").join(name)
}

/// The small root that the kernel gets from the boot loader.
fn initramfs(kernel: &Kernel, work: &Path) -> Result<PathBuf> {
    let root = work.join("initramfs");
    install(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    install(&own("initramfs-init"), &root.join("init"))?;
    for folder in ["dev", "proc", "root"] {
        fs::create_dir_all(root.join(folder))?;
    }
    kernel.copy_modules(&root, &DISK_MODULES)?;
    // The kernel calls it for the modules that others need.
    fs::create_dir_all(root.join("sbin"))?;
    std::os::unix::fs::symlink("/bin/busybox", root.join("sbin/modprobe"))?;
    let archive = work.join("initramfs.cpio");
    run(
        "sh",
        [
            "-ec",
            "cd \"$1\"; find . | busybox cpio -o -H newc > \"$2\" 2>/dev/null",
            "sh",
            &root.display().to_string(),
            &archive.display().to_string(),
        ],
    )?;
    Ok(archive)
}

/// A program of this machine with the shared libraries it wants, at the same places.
fn install_program(program: &Path, to: &Path, root: &Path) -> Result<()> {
    install(program, &root.join(to))?;
    let libraries = run("ldd", [program])?;
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let target = root.join(path.trim_start_matches('/'));
        if !target.exists() {
            install(Path::new(path), &target)?;
        }
    }
    Ok(())
}

/// The root of a guest: busybox for a system, and the script that it runs when it is up.
fn system(kernel: &Kernel, work: &Path, check: &str) -> Result<PathBuf> {
    let root = work.join("root");
    for folder in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "data", "etc", "vm"] {
        fs::create_dir_all(root.join(folder))?;
    }
    install(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    for applet in run("busybox", ["--list"])?.split_whitespace().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("/bin/busybox", root.join("bin").join(applet))?;
    }
    std::os::unix::fs::symlink("/bin/busybox", root.join("sbin/modprobe"))?;
    install(&own("setup"), &root.join("vm/setup"))?;
    install(&own(check), &root.join("vm/check"))?;
    fs::copy(own("inittab"), root.join("etc/inittab"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("etc/resolv.conf"), "nameserver 192.0.2.53\n")?;
    kernel.copy_modules(&root, &MODULES)?;
    Ok(root)
}

/// A disk with what Hearth runs with, and the checks.
fn disk(kernel: &Kernel, work: &Path) -> Result<PathBuf> {
    let root = system(kernel, work, "check")?;
    let which = |name: &str| -> Result<PathBuf> {
        let found = run("sh", ["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {name}")])?;
        Ok(PathBuf::from(found.trim()))
    };
    install_program(&which("nft")?, Path::new("sbin/nft"), &root)?;
    fs::remove_file(root.join("bin/ip"))?;
    install_program(&which("ip")?, Path::new("bin/ip"), &root)?;
    install_program(&which("curl")?, Path::new("bin/curl"), &root)?;
    let hearth = binary();
    install_program(&hearth, Path::new("opt/hearth/hearth"), &root)?;
    // Most of it is for debuggers, and an emulated disk is slow.
    succeed(Command::new("strip").arg(root.join("opt/hearth/hearth")))?;
    let examples = hearth.parent().context("a folder")?.join("hearth-examples");
    succeed(Command::new("cp").arg("-a").arg(&examples).arg(root.join("opt/hearth")))?;
    install(&own("pods.yaml"), &root.join("vm/pods.yaml"))?;
    ext4(&root, work)
}

fn ext4(root: &Path, work: &Path) -> Result<PathBuf> {
    let image = work.join("disk.ext4");
    fs::File::create(&image)?.set_len(DISK_BYTES)?;
    succeed(
        Command::new("sh")
            .args(["-c", "PATH=$PATH:/usr/sbin:/sbin exec mkfs.ext4 -q -F -d \"$1\" \"$2\"", "sh"])
            .arg(root)
            .arg(&image),
    )?;
    Ok(image)
}

/// Boots from a disk until the guest switches itself off; what its console said.
fn boot(kernel: &Kernel, work: &Path, disk: &Path) -> Result<String> {
    let initramfs = initramfs(kernel, work)?;
    let console = work.join("console");
    // Emulated: hardware help may be absent, or be there and hang. Shallow page tables and no mitigations spare it work.
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "2048", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-nic", "none", "-serial"])
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off audit=0"])
        .args(["-drive", &format!("file={},format=raw,if=virtio,cache=unsafe", disk.display())]);
    let done = command::output(&mut qemu, b"", LIMIT);
    let console = String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).replace('\r', "");
    let done = done.with_context(|| format!("the guest's console:\n{console}"))?;
    ensure!(done.status.success(), "qemu: {}\n{console}", String::from_utf8_lossy(&done.stderr));
    let release = kernel.modules.file_name().context("a release")?.to_string_lossy();
    ensure!(console.contains(&format!("kernel {release}")), "{console}");
    Ok(console)
}

#[test]
fn everything_works_on_debians_kernel_with_cgroups_of_version_2_only() -> Result<()> {
    let kernel = Kernel::find()?;
    let work = tempfile::tempdir()?;
    let console = boot(&kernel, work.path(), &disk(&kernel, work.path())?)?;
    let passed: Vec<_> = console.lines().filter_map(|line| line.strip_prefix("ok ")).collect();
    ensure!(passed == CHECKS && console.contains("end of checks"), "the guest's console:\n{console}");
    Ok(())
}

/// The test `hostile` of the runtime, in the guest: no protection is shown by one version of cgroups or one kernel only.
#[test]
fn hostile_containers_are_refused_there_too() -> Result<()> {
    let kernel = Kernel::find()?;
    let work = tempfile::tempdir()?;
    let root = system(&kernel, work.path(), "hostile")?;
    let hostile = binary().parent().context("a folder")?.join("hearth-hostile");
    ensure!(hostile.exists(), "no {}: `scripts/hostile.sh` makes it", hostile.display());
    install_program(&hostile, Path::new("vm/hostile"), &root)?;
    // A program that is no part of busybox, which gives a user's rights back that it was not meant to have.
    fs::remove_file(root.join("bin/cat"))?;
    install_program(Path::new("/bin/cat"), Path::new("bin/cat"), &root)?;
    let console = boot(&kernel, work.path(), &ext4(&root, work.path())?)?;
    let result = console.lines().find(|line| line.contains("test result:"));
    let result = result.with_context(|| format!("the guest's console:\n{console}"))?;
    let passed = result.split_whitespace().skip_while(|word| !word.ends_with("ok.")).nth(1);
    let passed = passed.and_then(|n| n.parse::<u32>().ok()).unwrap_or_default();
    ensure!(passed >= HOSTILE && result.contains(" 0 failed;"), "the guest's console:\n{console}");
    Ok(())
}
