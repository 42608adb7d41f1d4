//! The house rules that a compiler does not know: which crate may depend on which, where the heavy crates
//! live, that pure crates stay pure, that unsafe code has one room, and that files stay readable.

#![cfg(test)]
#![allow(clippy::unwrap_used)] // a test may panic on what it reads

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The arrows that may exist, `crate -> crates`; ARCHITECTURE.md draws them.
const ARROWS: &[(&str, &[&str])] = &[
    ("base2histogram", &[]),
    ("hearth-types", &[]),
    ("hearth-proto", &[]),
    ("hearth-state", &["hearth-types"]),
    ("hearth-placement", &["hearth-types"]),
    ("hearth-controllers", &["hearth-types"]),
    ("hearth-pod", &["hearth-types"]),
    ("hearth-acme", &["hearth-types"]),
    ("hearth-client", &["hearth-proto", "hearth-types"]),
    ("hearth-raft", &["hearth-state", "hearth-proto", "hearth-types"]),
    ("hearth-region", &["hearth-placement", "hearth-controllers", "hearth-proto", "hearth-types"]),
    ("hearth-api", &["hearth-proto", "hearth-types"]),
    ("hearth-dns", &["hearth-proto", "hearth-types"]),
    ("hearth-gateway", &["hearth-proto", "hearth-types"]),
    ("hearth-tunnel", &["hearth-proto", "hearth-types"]),
    ("hearth-relay", &["hearth-types"]),
    ("hearth-runtime", &["hearth-types"]),
    ("hearth-image", &["hearth-types"]),
    ("hearth-registry", &["hearth-image"]),
    ("hearth-network", &["hearth-types"]),
    ("hearth-volume", &["hearth-types"]),
    (
        "hearth-agent",
        &[
            "hearth-pod",
            "hearth-runtime",
            "hearth-image",
            "hearth-registry",
            "hearth-network",
            "hearth-volume",
            "hearth-tunnel",
            "hearth-client",
            "hearth-proto",
            "hearth-types",
        ],
    ),
    ("hearth-sim", &["hearth-raft", "hearth-types"]),
    ("notes", &[]),
    ("hearth-house", &[]),
];

/// May depend on everything but each other; nothing may depend on them.
const ROOFS: &[&str] = &["hearth", "hearth-e2e"];

/// Heavy crates and the one room of each.
const HEAVY: &[(&str, &str)] = &[
    ("openraft", "hearth-raft"),
    ("libcontainer", "hearth-runtime"),
    ("iroh", "hearth-tunnel"),
    ("iroh-relay", "hearth-relay"),
    ("hickory-server", "hearth-dns"),
    ("instant-acme", "hearth-acme"),
];

/// No tokio, no network, no disk, no clock.
const PURE: &[&str] = &["hearth-types", "hearth-state", "hearth-placement", "hearth-controllers", "hearth-pod"];

/// What a pure crate must not depend on.
const IMPURE: &[&str] = &["tokio", "tonic", "hyper", "axum", "rustix", "nix", "libc", "rand", "reqwest", "tempfile"];

/// Lines of a source file at most, with its tests.
const MAX_LINES: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

struct Package {
    folder: PathBuf,
    dependencies: BTreeSet<String>,
    dev_dependencies: BTreeSet<String>,
}

fn packages() -> BTreeMap<String, Package> {
    let read = |path: PathBuf| -> toml::Table { fs::read_to_string(&path).unwrap().parse().unwrap() };
    let workspace = read(root().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let names = |manifest: &toml::Table, section: &str| -> BTreeSet<String> {
        let table = manifest.get(section).and_then(toml::Value::as_table);
        table.into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    members
        .iter()
        .map(|member| {
            let folder = root().join(member.as_str().unwrap());
            let manifest = read(folder.join("Cargo.toml"));
            let mut dependencies = names(&manifest, "dependencies");
            dependencies.extend(names(&manifest, "build-dependencies"));
            assert!(manifest.get("target").is_none(), "{member:?}: target-specific dependencies escape this test");
            let dev_dependencies = names(&manifest, "dev-dependencies");
            let name = manifest["package"]["name"].as_str().unwrap().to_owned();
            (name, Package { folder, dependencies, dev_dependencies })
        })
        .collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().unwrap() != "target" {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn only_the_arrows_of_the_plan_exist() {
    let packages = packages();
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for (name, package) in &packages {
        if ROOFS.contains(&name.as_str()) {
            continue;
        }
        let allowed =
            allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the plan: add it to ARROWS"));
        for dependency in package.dependencies.iter().filter(|one| packages.contains_key(*one)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
        for roof in ROOFS {
            assert!(!package.dev_dependencies.contains(*roof), "{name} must not test with {roof}");
        }
    }
    for (name, _) in ARROWS {
        assert!(packages.contains_key(*name), "{name} is in ARROWS and not in the workspace");
    }
}

#[test]
fn a_heavy_crate_has_one_room() {
    for (name, package) in packages() {
        for (heavy, room) in HEAVY {
            let used = package.dependencies.contains(*heavy) || package.dev_dependencies.contains(*heavy);
            assert_eq!(used, name == *room, "{heavy} belongs to {room} alone; looked at {name}");
        }
    }
}

#[test]
fn pure_crates_are_pure() {
    let packages = packages();
    for name in PURE {
        let package = &packages[*name];
        for impure in IMPURE {
            assert!(!package.dependencies.contains(*impure), "{name} is pure and must not depend on {impure}");
        }
        assert!(package.folder.join("clippy.toml").exists(), "{name} is pure: its clippy.toml bans clocks and disks");
    }
}

#[test]
fn unsafe_code_has_one_room() {
    for (name, package) in packages() {
        for path in sources(&package.folder) {
            let text = fs::read_to_string(&path).unwrap();
            let lifts_the_ban =
                text.contains(concat!("allow(", "unsafe_code")) || text.contains(concat!("expect(", "unsafe_code"));
            assert!(
                !lifts_the_ban || name == "hearth-runtime",
                "{}: unsafe code belongs to agent/runtime",
                path.display()
            );
        }
    }
}

#[test]
fn files_stay_readable() {
    for (_, package) in packages() {
        for path in sources(&package.folder) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= MAX_LINES, "{} has {lines} lines; split it by what changes together", path.display());
        }
    }
}

#[test]
fn every_crate_follows_the_workspace() {
    for (name, package) in packages() {
        let manifest: toml::Table = fs::read_to_string(package.folder.join("Cargo.toml")).unwrap().parse().unwrap();
        let inherits = |section: &str, key: &str| {
            let value = manifest.get(section).and_then(|section| section.get(key));
            value.is_some_and(|value| value.get("workspace").and_then(toml::Value::as_bool) == Some(true))
        };
        for key in ["version", "edition", "rust-version", "license"] {
            // What takes the place of a published crate has its version.
            let excepted = key == "version" && name == "base2histogram";
            assert!(excepted || inherits("package", key), "{name}: package.{key} comes from the workspace");
        }
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(lints, Some(true), "{name}: lints come from the workspace");
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (dependency, value) in manifest.get(section).and_then(toml::Value::as_table).into_iter().flatten() {
                let own = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                assert!(own, "{name}: {section}.{dependency} comes from the workspace");
            }
        }
    }
}
