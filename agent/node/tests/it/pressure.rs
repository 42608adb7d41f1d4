//! A device whose disk is small and fills up.

use std::{path::PathBuf, process::Command};

use hearth_image::{
    ImageStore, ImportOptions, Platform,
    build::{BuildFile, BuildSpec, build},
};
use serde_json::{Value, json};

use crate::{
    device::Device,
    region::Region,
    tests::{eventually, exec, pod},
};

const MIB: u64 = 1 << 20;

/// A file system of its own at a directory, as long as this is there.
pub struct Disk(PathBuf);

impl Disk {
    /// ext4 of this size, of which nothing is reserved.
    pub fn at(directory: &std::path::Path, mib: u64) -> Self {
        let file = directory.with_extension("disk");
        std::fs::File::create(&file).unwrap().set_len(mib * MIB).unwrap();
        let script = "PATH=$PATH:/usr/sbin:/sbin; mkfs.ext4 -q -F -m 0 \"$1\" && mount -o loop \"$1\" \"$2\"";
        let done = Command::new("sh").args(["-c", script, "sh"]).arg(&file).arg(directory).status().unwrap();
        // The mount keeps it.
        let _ = std::fs::remove_file(&file);
        assert!(done.success(), "a loop device is mounted; are you root?");
        Self(directory.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// An image of this size that can be pulled again.
fn pulled(device: &Device, name: &str, mib: u64) {
    let big = device.dir.join("big");
    let status = Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", &format!("count={mib}"), &format!("of={}", big.display())])
        .stderr(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let mut spec = BuildSpec::new(name, Platform::host());
    spec.files.push(BuildFile { host: big.clone(), in_image: "/big".into(), mode: None });
    let archive = device.dir.join("big.tar");
    build(&spec, &archive).unwrap();
    let options = ImportOptions { pulled: true, ..ImportOptions::default() };
    ImageStore::open(&device.paths().images()).unwrap().import(&archive, &options).unwrap();
    std::fs::remove_file(&archive).unwrap();
    std::fs::remove_file(&big).unwrap();
}

fn pressure(status: &Value) -> Option<&str> {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.find(|one| one["type"] == "DiskPressure")?["status"].as_str()
}

pub async fn what_no_pod_misses_goes_before_any_pod_does() {
    let region = Region::start().await;
    let mut device = Device::on_disk(&region, 256).await;
    region.enroll(device.join(&region).await.unwrap().key);
    device.import("busybox:1");
    pulled(&device, "film:1", 50);
    let settings = "evictionHard: {nodefs.available: 80Mi}\nevictionPressureTransitionPeriod: 1s\n";
    std::fs::write(device.paths().eviction(), settings).unwrap();
    device.start(&region.address.to_string());
    region.heard("a hello", |heard| (!heard.hellos.is_empty()).then_some(())).await;
    let own = json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device",
        "metadata": {"name": "nas", "uid": "uid-nas"}, "spec": {"owner": "alice", "keys": []}});
    let mut writes = pod("writes", "while :; do /bin/busybox sleep 1; done");
    writes["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "cache", "mountPath": "/cache"}]);
    writes["spec"]["volumes"] = json!([{"name": "cache", "emptyDir": {}}]);
    let mut ended = pod("ended", "echo done");
    ended["spec"]["restartPolicy"] = json!("Never");
    region.desire(vec![own, writes, ended]).await;
    region.running("writes").await;
    region.status("ended", "ended", |status| status["phase"] == "Succeeded").await;
    region.status("nas", "without pressure", |status| pressure(status) == Some("False")).await;

    let fill = async |left: u64, file: &str| {
        let mib = (device.left() / MIB).checked_sub(left).expect("room on the disk");
        let script = format!("dd if=/dev/zero of=/cache/{file} bs=1024k count={mib} 2>/dev/null && sync");
        let (said, code) = exec(&region, "writes", &["/bin/busybox", "sh", "-c", &script], None).await;
        assert_eq!(code, 0, "{said}");
    };
    fill(50, "one").await;
    region.status("nas", "under pressure", |status| pressure(status) == Some("True")).await;
    let images = ImageStore::open(&device.paths().images()).unwrap();
    eventually("the image goes", || images.resolve("film:1").is_err().then_some(())).await;
    region.status("nas", "without pressure again", |status| pressure(status) == Some("False")).await;
    let status = region.running("writes").await;
    assert_eq!(status["phase"], "Running", "{status}");
    assert!(images.resolve("busybox:1").is_ok(), "nobody could bring it back");
    let logs: Vec<_> = std::fs::read_dir(device.paths().logs()).unwrap().flatten().map(|one| one.file_name()).collect();
    assert_eq!(logs, ["alice_writes_uid-writes"], "what ended has no logs any more");

    fill(30, "two").await;
    let status = region.status("writes", "evicted", |status| status["phase"] == "Failed").await;
    assert_eq!(status["reason"], "Evicted", "{status}");
    let message = status["message"].as_str().unwrap();
    let why = "The node was low on resource: ephemeral-storage. Threshold quantity: 80Mi, available: ";
    assert!(message.starts_with(why), "{message}");
    region.status("nas", "with room again", |status| pressure(status) == Some("False")).await;
    assert!(device.left() > 80 * MIB);
    region
        .heard("the event", |heard| {
            heard.events.iter().any(|event| event.reason == "EvictionThresholdMet").then_some(())
        })
        .await;
}
