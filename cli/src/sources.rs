//! Manifests from files, directories and standard input.

use std::{
    collections::HashMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use hearth_types::{
    admission,
    manifest::{self, Document, MAX_MANIFEST_BYTES},
    object::{MAX_OBJECT_BYTES, canonical},
    registry::KindInfo,
};
use serde_json::Value;

use crate::context::Context;

/// Reads the manifests of a command line; every object is in the namespace that is meant. An object that names
/// another than `--namespace` is a mistake, and one that is too large is named before anything is sent.
pub(crate) fn read_for(context: &Context, arguments: &[String], recursive: bool) -> Result<Vec<Document>> {
    let documents = read(arguments, recursive, context.namespace())?;
    for Document { origin, value } in &documents {
        refuse_large(origin, value)?;
        let namespaced = admission::kind_of(value).is_ok_and(KindInfo::is_namespaced);
        let own = value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
        if let Some(asked) = context.asked_namespace().filter(|asked| namespaced && *asked != own) {
            bail!(
                "{origin}: the namespace from the provided object {own:?} does not match the namespace {asked:?}. \
                 You must pass '--namespace={own}' to perform this operation."
            );
        }
    }
    Ok(documents)
}

/// Refuses an object that the region would refuse for its size.
pub(crate) fn refuse_large(origin: &str, value: &Value) -> Result<()> {
    let size = canonical(value).len();
    if size > MAX_OBJECT_BYTES {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        bail!(
            "{origin}: {} {:?} has {size} bytes as JSON, and an object may have at most {MAX_OBJECT_BYTES}; split it",
            text("/kind"),
            text("/metadata/name")
        );
    }
    Ok(())
}

/// Reads every object that `-f` arguments lead to. Nothing is returned unless everything could be read,
/// and no two objects have the same kind, namespace and name. Objects without a namespace get the one given.
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
    for document in &mut documents {
        fill_namespace(&mut document.value, namespace);
    }
    refuse_twins(&documents)?;
    Ok(documents)
}

/// Puts objects that name no namespace into that of the command line; those of cluster-scoped kinds have none.
fn fill_namespace(object: &mut Value, namespace: &str) {
    let Ok(info) = admission::kind_of(object) else { return }; // the region says what is wrong with it
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if !info.is_namespaced() {
        meta.remove("namespace");
    } else if meta.get("namespace").and_then(Value::as_str).unwrap_or_default().is_empty() {
        meta.insert("namespace".into(), Value::String(namespace.to_owned()));
    }
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

fn refuse_twins(documents: &[Document]) -> Result<()> {
    let mut seen = HashMap::new();
    for document in documents {
        let text = |pointer: &str| document.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let name = text("/metadata/name");
        if name.is_empty() {
            continue; // the region says what is wrong with it
        }
        let namespace = text("/metadata/namespace");
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
        write(
            "c.yaml",
            "kind: Namespace\napiVersion: v1\nmetadata: {name: x, namespace: one}\n---\nkind: Namespace\napiVersion: v1\nmetadata: {name: x, namespace: two}\n",
        );
        let error = read(&arguments, false, "default").expect_err("a Namespace is in no namespace").to_string();
        assert!(error.contains("\"x\" is defined twice"), "{error}");
        write("c.yaml", "kind: Namespace\napiVersion: v1\nmetadata: {name: x, namespace: one}\n");
        let documents = read(&arguments, false, "default").expect("manifests");
        assert_eq!(documents[2].value["metadata"], serde_json::json!({"name": "x"}));
        assert_eq!(documents[0].value["metadata"]["namespace"], "default");
        let error = refuse_large("f.yaml", &serde_json::json!({"kind": "ConfigMap", "metadata": {"name": "big"}, "data": {"x": "y".repeat(MAX_OBJECT_BYTES)}}))
            .expect_err("too large")
            .to_string();
        assert!(error.contains("f.yaml: ConfigMap \"big\" has 15729") && error.contains("at most 1572864"), "{error}");
        let error = read(&["/nonexistent.yaml".to_owned()], false, "x").expect_err("missing").to_string();
        assert!(error.contains("/nonexistent.yaml"), "{error}");
    }
}
