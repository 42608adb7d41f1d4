//! Images as real tools write them: umoci makes one, skopeo copies it into every form.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hearth_image::{ImageRecord, ImageStore, ImportOptions};

use crate::support::{gzip, run};

/// A real image with two layers, the upper one deleting from the lower, as a layout of umoci.
fn make_image(directory: &Path) -> PathBuf {
    let layout = directory.join("layout");
    let name = format!("{}:1.0", layout.display());
    run("umoci", &["init", "--layout", layout.to_str().unwrap()]);
    run("umoci", &["new", "--image", &name]);
    let bundle = directory.join("bundle");
    let bundle = bundle.to_str().unwrap();
    run("umoci", &["unpack", "--image", &name, bundle]);
    let root = PathBuf::from(bundle).join("rootfs");
    for name in ["bin", "etc", "gone", "opaque"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    fs::write(root.join("bin/app"), "#!/bin/sh\n").unwrap();
    fs::write(root.join("etc/conf"), "one").unwrap();
    fs::write(root.join("gone/file"), "x").unwrap();
    fs::write(root.join("opaque/old"), "x").unwrap();
    std::os::unix::fs::symlink("/bin/app", root.join("app")).unwrap();
    fs::hard_link(root.join("etc/conf"), root.join("etc/hard")).unwrap();
    std::os::unix::fs::chown(root.join("etc/conf"), Some(1000), Some(1001)).unwrap();
    rustix::fs::setxattr(root.join("bin/app"), "user.note", b"a\nb", rustix::fs::XattrFlags::empty()).unwrap();
    run("umoci", &["repack", "--image", &name, "--refresh-bundle", bundle]);
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::write(root.join("etc/new"), "two").unwrap();
    run("umoci", &["repack", "--image", &name, bundle]);
    run(
        "umoci",
        &[
            "config",
            "--image",
            &name,
            "--config.entrypoint",
            "/bin/app",
            "--config.env",
            "A=1",
            "--config.user",
            "1000",
            "--config.workingdir",
            "/srv",
            "--architecture",
            "amd64",
            "--os",
            "linux",
        ],
    );
    layout
}

fn import(store: &ImageStore, source: &Path, name: Option<&str>) -> ImageRecord {
    let platform = hearth_image::Platform::linux("amd64");
    let options = ImportOptions { name: name.map(Into::into), platform, ..ImportOptions::default() };
    let mut records = store.import(source, &options).unwrap();
    assert_eq!(records.len(), 1);
    records.remove(0)
}

#[test]
fn layouts_oci_archives_and_docker_archives_of_real_tools_give_the_same_layers() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let layout = make_image(directory.path());
    let from = format!("oci:{}:1.0", layout.display());
    let store = ImageStore::open(&path("images")).unwrap();
    import(&store, &layout, Some("test/layout:1.0"));

    let oci = path("oci.tar");
    run("skopeo", &["copy", "-q", &from, &format!("oci-archive:{}:test/oci:1", oci.display())]);
    assert_eq!(import(&store, &oci, None).reference, "test/oci:1");

    let docker = path("docker.tar");
    run("skopeo", &["copy", "-q", &from, &format!("docker-archive:{}:test/docker:1", docker.display())]);
    assert_eq!(import(&store, &docker, None).reference, "test/docker:1");

    let compressed = path("docker.tar.gz");
    fs::write(&compressed, gzip(&fs::read(&docker).unwrap())).unwrap();
    import(&store, &compressed, Some("test/compressed"));

    let zstd = path("zstd");
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            "--dest-compress-format",
            "zstd",
            "--dest-compress",
            &from,
            &format!("oci:{}:latest", zstd.display()),
        ],
    );
    import(&store, &zstd, Some("test/zstd"));

    let first = store.resolve("test/layout:1.0").unwrap();
    for name in ["test/oci:1", "test/docker:1", "test/compressed", "test/zstd"] {
        let image = store.resolve(name).unwrap();
        assert_eq!(image.layers, first.layers, "{name}: layers are shared, however they came");
        assert_eq!(image.config, first.config, "{name}");
    }
    assert_eq!(first.config.entrypoint, ["/bin/app"]);
    assert_eq!((first.config.user.as_str(), first.config.working_dir.as_str()), ("1000", "/srv"));
    check_layers(&first.layers);
    compare_with_umoci(directory.path(), &layout, &first.layers);
}

fn check_layers(layers: &[PathBuf]) {
    let [lower, upper] = layers else { panic!("two layers: {layers:?}") };
    let conf = fs::metadata(lower.join("etc/conf")).unwrap();
    assert_eq!((conf.uid(), conf.gid(), conf.nlink()), (1000, 1001, 2));
    let mut note = [0; 8];
    let count = rustix::fs::getxattr(lower.join("bin/app"), "user.note", &mut note).unwrap();
    assert_eq!(&note[..count], b"a\nb");
    let gone = fs::symlink_metadata(upper.join("gone")).unwrap();
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0), "a whiteout");
}

/// What an overlay of our layers shows is what umoci unpacks.
fn compare_with_umoci(directory: &Path, layout: &Path, layers: &[PathBuf]) {
    let bundle = directory.join("reference");
    run("umoci", &["unpack", "--image", &format!("{}:1.0", layout.display()), bundle.to_str().unwrap()]);
    let merged = directory.join("merged");
    fs::create_dir(&merged).unwrap();
    let lower: Vec<_> = layers.iter().rev().map(|path| path.display().to_string()).collect();
    let list = "find . -mindepth 1 -printf '%P %y %m %U:%G %T@ %l\\n' | sort";
    let script = format!(
        "mount -t overlay overlay -o lowerdir={} {} && cd {} && {list}",
        lower.join(":"),
        merged.display(),
        merged.display()
    );
    let ours = run("unshare", &["--mount", "--propagation", "private", "sh", "-ec", &script]);
    let theirs = run("sh", &["-ec", &format!("cd {} && {list}", bundle.join("rootfs").display())]);
    assert!(!ours.is_empty());
    assert_eq!(ours, theirs);
}
