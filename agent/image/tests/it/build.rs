//! Building images, and importing what was built.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hearth_image::build::{BuildFile, BuildSpec, Compression, build};
use hearth_image::{ImageStore, ImportOptions, Platform};

use crate::support::{chain, run};

/// An ELF executable with nothing in it but its headers.
fn elf(machine: u16, interpreter: Option<&str>) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0]);
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(64_u64.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend([0; 4]);
    for field in [64_u16, 56, u16::from(interpreter.is_some()), 64, 0, 0] {
        bytes.extend(field.to_le_bytes());
    }
    if let Some(path) = interpreter {
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(4_u32.to_le_bytes());
        for field in [120, 0, 0, path.len() as u64 + 1, path.len() as u64 + 1, 1_u64] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(path.as_bytes());
        bytes.push(0);
    }
    bytes
}

struct Workshop {
    directory: tempfile::TempDir,
}

impl Workshop {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn spec(&self, program: &[u8]) -> BuildSpec {
        let host = self.write("program", program, 0o755);
        BuildSpec {
            files: vec![BuildFile { host, in_image: "/app".into(), mode: None }],
            entrypoint: vec!["/app".into()],
            ..BuildSpec::new("hearth.dev/app:1", Platform::linux("amd64"))
        }
    }
}

fn amd64() -> ImportOptions {
    ImportOptions { platform: Platform::linux("amd64"), ..ImportOptions::default() }
}

#[test]
fn what_is_built_is_imported_with_all_that_it_was_given() {
    let shop = Workshop::new();
    let tree = shop.path("tree");
    shop.write("tree/etc/app.conf", b"conf", 0o640);
    shop.write("tree/empty/x", b"", 0o600);
    std::os::unix::fs::symlink("../etc/app.conf", tree.join("empty/link")).unwrap();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut spec = shop.spec(&elf(62, None));
        spec.files.push(BuildFile { host: tree.clone(), in_image: "/".into(), mode: None });
        spec.files.push(BuildFile {
            host: tree.join("etc/app.conf"),
            in_image: "/srv/secret".into(),
            mode: Some(0o400),
        });
        spec.cmd = vec!["serve".into()];
        spec.env = vec!["A=1".into(), "B=2".into(), "A=3".into()];
        spec.user = "1000:1000".into();
        spec.working_dir = "/srv".into();
        spec.exposed_ports = vec!["8080".into(), "53/udp".into()];
        spec.labels = BTreeMap::from([("org.opencontainers.image.title".into(), "App".into())]);
        spec.compression = compression;
        let out = shop.path("app.tar");
        let digest = build(&spec, &out).unwrap();
        let store = ImageStore::open(&shop.path("images")).unwrap();
        let record = store.import(&out, &amd64()).unwrap().remove(0);
        assert_eq!((record.reference.as_str(), record.digest), ("hearth.dev/app:1", digest));
        let image = store.resolve("hearth.dev/app:1").unwrap();
        assert_eq!((image.config.entrypoint, image.config.cmd), (vec!["/app".to_owned()], vec!["serve".to_owned()]));
        assert_eq!(image.config.env, ["A=3", "B=2"]);
        assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("1000:1000", "/srv"));
        assert_eq!(image.config.exposed_ports, ["53/udp", "8080/tcp"]);
        let root = &image.layers[0];
        let mode = |name: &str| fs::symlink_metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("app"), mode("etc/app.conf"), mode("srv/secret"), mode("srv")), (0o755, 0o640, 0o400, 0o755));
        assert_eq!(fs::read_link(root.join("empty/link")).unwrap(), Path::new("../etc/app.conf"));
        // Other tools read it as well.
        let seen = run("skopeo", &["inspect", &format!("oci-archive:{}", out.display())]);
        assert!(
            seen.contains(&digest.to_string()) && seen.contains("\"org.opencontainers.image.title\": \"App\""),
            "{seen}"
        );
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let shop = Workshop::new();
    let spec = shop.spec(&elf(62, None));
    let (first, second) = (shop.path("1.tar"), shop.path("2.tar"));
    let digest = build(&spec, &first).unwrap();
    // Other times and another order in the directory.
    let file = fs::File::options().append(true).open(&spec.files[0].host).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(build(&spec, &second).unwrap(), digest);
    assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
    assert_eq!(fs::read_dir(shop.directory.path()).unwrap().count(), 3, "no temporary files are left");
}

#[test]
fn a_base_is_built_upon_and_its_settings_are_kept() {
    let shop = Workshop::new();
    let mut base = shop.spec(&elf(62, None));
    base.files[0].in_image = "/usr/bin/base".into();
    base.entrypoint = vec!["/usr/bin/base".into()];
    base.cmd = vec!["base-arg".into()];
    base.env = vec!["PATH=/usr/bin".into(), "KEEP=1".into()];
    base.user = "7".into();
    let tree = shop.path("root");
    fs::create_dir_all(tree.join("usr/lib64")).unwrap();
    shop.write("root/usr/lib64/ld-linux-x86-64.so.2", &elf(62, None), 0o755);
    std::os::unix::fs::symlink("usr/lib64", tree.join("lib64")).unwrap();
    base.files.push(BuildFile { host: tree, in_image: "/".into(), mode: None });
    let below = shop.path("base.tar");
    build(&base, &below).unwrap();

    // Linked dynamically: its loader is in the base, behind a link.
    let mut spec = shop.spec(&elf(62, Some("/lib64/ld-linux-x86-64.so.2")));
    spec.files[0].in_image = "/lib64/app".into();
    spec.entrypoint = vec!["/lib64/app".into()];
    spec.base = Some(below.clone());
    let out = shop.path("app.tar");
    build(&spec, &out).unwrap();
    let store = ImageStore::open(&shop.path("images")).unwrap();
    store.import(&below, &ImportOptions { name: Some("base:1".into()), ..amd64() }).unwrap();
    store.import(&out, &amd64()).unwrap();
    let image = store.resolve("hearth.dev/app:1").unwrap();
    assert_eq!(image.layers[0], store.resolve("base:1").unwrap().layers[0], "the base's layer is shared");
    assert_eq!((image.config.entrypoint, image.config.cmd), (vec!["/lib64/app".to_owned()], vec![]));
    assert_eq!(
        (image.config.env, image.config.user.as_str()),
        (vec!["PATH=/usr/bin".to_owned(), "KEEP=1".to_owned()], "7")
    );
    assert!(
        image.layers[1].join("usr/lib64/app").exists() && !image.layers[1].join("lib64").exists(),
        "the base's link stays a link"
    );

    spec.entrypoint = vec!["base".into()];
    build(&spec, &out).unwrap();
    spec.platform = Platform::linux("arm64");
    assert!(chain(&build(&spec, &out).unwrap_err()).contains("is for linux/amd64, and this device needs linux/arm64"));
}

#[test]
fn images_that_could_not_run_are_not_built() {
    type Change = fn(&mut BuildSpec, &Workshop);
    let shop = Workshop::new();
    let cases: [(&str, Vec<u8>, Change, &str); 15] = [
        ("another architecture", elf(183, None), |_, _| {}, "is for arm64, and the image is for linux/amd64"),
        (
            "no loader",
            elf(62, Some("/lib64/ld-linux-x86-64.so.2")),
            |_, _| {},
            "loader /lib64/ld-linux-x86-64.so.2 is not in the image",
        ),
        ("a broken executable", elf(62, Some("/x"))[..100].to_vec(), |_, _| {}, "not a valid executable"),
        ("a script without its interpreter", b"#!/bin/sh -e\n".to_vec(), |_, _| {}, "a script for /bin/sh"),
        (
            "a program that is not there",
            elf(62, None),
            |s, _| s.entrypoint = vec!["/other".into()],
            "\"/other\" is not in the image",
        ),
        (
            "a program that is not in the PATH",
            elf(62, None),
            |s, _| s.entrypoint = vec!["app".into()],
            "\"app\" is not in the image",
        ),
        (
            "a program that is not executable",
            elf(62, None),
            |s, _| s.files[0].mode = Some(0o644),
            "not executable (mode 644)",
        ),
        ("an unknown architecture", elf(62, None), |s, _| s.platform = Platform::linux("z80"), "\"z80\" is not known"),
        ("a path that climbs", elf(62, None), |s, _| s.files[0].in_image = "/a/../../b".into(), "has a .."),
        ("a relative path", elf(62, None), |s, _| s.files[0].in_image = "app".into(), "is not absolute"),
        ("a whiteout", elf(62, None), |s, _| s.files[0].in_image = "/.wh.x".into(), "begins with .wh."),
        ("a bad port", elf(62, None), |s, _| s.exposed_ports = vec!["0".into()], "exposed port \"0\""),
        ("a bad environment", elf(62, None), |s, _| s.env = vec!["novalue".into()], "not of the form NAME=value"),
        ("a bad name", elf(62, None), |s, _| s.reference = "App:1".into(), "not valid"),
        ("a file that is missing", elf(62, None), |s, shop| s.files[0].host = shop.path("none"), "cannot read"),
    ];
    for (what, program, change, message) in cases {
        let mut spec = shop.spec(&program);
        change(&mut spec, &shop);
        let out = shop.path("out.tar");
        let text = chain(&build(&spec, &out).expect_err(what));
        assert!(text.contains(message), "{what}: {text} should say {message}");
        assert!(!out.exists(), "{what}");
    }
    assert_eq!(fs::read_dir(shop.directory.path()).unwrap().count(), 1, "only the program is left");
}
