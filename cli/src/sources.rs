//! Manifests from files, directories and standard input.

use std::{
    collections::HashMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use hearth_types::manifest::{self, Document, MAX_MANIFEST_BYTES};
use serde_json::Value;

/// Reads every object that `-f` arguments lead to. Nothing is returned unless everything could be read,
/// and no two objects have the same kind, namespace and name.
pub(crate) fn read(arguments: &[String], recursive: bool, namespace: &str) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for argument in arguments {
        if argument == "-" {
            documents.extend(manifest::parse("stdin", &read_bounded(std::io::stdin(), "stdin")?)?);
            continue;
        }
        let path = Path::new(argument);
        let files = if path.is_dir() { manifests_in(path, recursive)? } else { vec![path.to_owned()] };
        for file in files {
            let name = file.display().to_string();
            let text = read_bounded(fs::File::open(&file).with_context(|| format!("cannot read {name}"))?, &name)?;
            documents.extend(manifest::parse(&name, &text)?);
        }
    }
    if documents.is_empty() {
        bail!("no objects found in {}", arguments.join(", "));
    }
    refuse_twins(&documents, namespace)?;
    Ok(documents)
}

fn read_bounded(reader: impl std::io::Read, name: &str) -> Result<String> {
    let mut text = String::new();
    let limit = MAX_MANIFEST_BYTES as u64 + 1;
    reader.take(limit).read_to_string(&mut text).with_context(|| format!("cannot read {name} as UTF-8 text"))?;
    Ok(text)
}

fn manifests_in(directory: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        if path.is_dir() {
            if recursive {
                found.extend(manifests_in(&path, true)?);
            }
        } else if path.extension().is_some_and(|extension| matches!(extension.to_str(), Some("yaml" | "yml" | "json")))
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn refuse_twins(documents: &[Document], default_namespace: &str) -> Result<()> {
    let mut seen = HashMap::new();
    for document in documents {
        let text = |pointer: &str| document.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = text("/metadata/name");
        if name.is_empty() {
            continue; // the region says what is wrong with it
        }
        let namespace = match text("/metadata/namespace") {
            "" => default_namespace,
            namespace => namespace,
        };
        let group = text("/apiVersion").split_once('/').map_or("", |(group, _)| group);
        let key = (group, text("/kind"), namespace, name);
        if let Some(first) = seen.insert(key, &document.origin) {
            let kind = text("/kind");
            bail!("{}: {kind} {name:?} is defined twice: first in {first}; keep one of them", document.origin);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_in_order_and_twins_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        write("b.yaml", "kind: Pod\napiVersion: v1\nmetadata: {name: b}\n");
        write("a.json", r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#);
        write("note.txt", "not a manifest");
        let arguments = [dir.path().display().to_string()];
        let names: Vec<_> = read(&arguments, false, "default")
            .expect("manifests")
            .iter()
            .map(|document| document.value["metadata"]["name"].clone())
            .collect();
        assert_eq!(names, ["a", "b"]);
        write("c.yaml", "kind: Pod\napiVersion: v1\nmetadata: {name: a, namespace: default}\n");
        let error = read(&arguments, false, "default").expect_err("twins").to_string();
        assert!(
            error.contains("c.yaml") && error.contains("\"a\" is defined twice") && error.contains("a.json"),
            "{error}"
        );
        read(&arguments, false, "alice").expect("another namespace");
        let error = read(&["/nonexistent.yaml".to_owned()], false, "x").expect_err("missing").to_string();
        assert!(error.contains("/nonexistent.yaml"), "{error}");
    }
}
