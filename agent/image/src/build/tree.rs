//! The files of an image as a map from path to node: those of a base's layers, and those that are added.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use super::BuildSpec;
use crate::blob::{StreamEnd, StreamLimits, stream_layer};
use crate::limits::{MAX_ENTRIES, MAX_LAYER_BYTES, MAX_RATIO, RATIO_FREE_BYTES};
use crate::source::BlobSource;
use crate::spec::{Descriptor, clip};
use crate::tarball::TarReader;
use crate::{Digest, ImageError};

/// Symbolic links followed in one path, as in Linux.
const MAX_LINKS: usize = 40;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    /// A file of this machine, with its size.
    Host(PathBuf, u64),
    /// A file of the base.
    Base,
    Symlink(String),
}

/// A path's kind and its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Node {
    fn new(kind: Kind, mode: u32) -> Self {
        Self { kind, mode, uid: 0, gid: 0 }
    }
}

/// Paths without a leading slash, sorted, so that a directory comes before what it holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree(BTreeMap<String, Node>);

impl Tree {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.0.get(path)
    }

    fn remove_below(&mut self, path: &str) {
        let prefix = format!("{path}/");
        self.0.retain(|had, _| !(had.starts_with(&prefix)));
    }
}

/// Two trees, the upper one hiding paths of the lower.
pub(super) struct Overlay<'a> {
    pub(super) upper: &'a Tree,
    pub(super) lower: &'a Tree,
}

impl Overlay<'_> {
    fn node(&self, path: &str) -> Option<&Node> {
        self.upper.get(path).or_else(|| self.lower.get(path))
    }

    /// What an absolute path leads to in the image, with its real path, through symbolic links. The root is no node.
    pub(super) fn lookup(&self, path: &str) -> Option<(String, &Node)> {
        let mut left: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let (mut real, mut links) = (String::new(), 0);
        while let Some(part) = left.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    real.truncate(real.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let here = join(&real, &part);
            match &self.node(&here)?.kind {
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    if target.starts_with('/') {
                        real.clear();
                    }
                    left.extend(target.split('/').rev().map(str::to_owned));
                }
                _ => real = here,
            }
        }
        self.node(&real).map(|node| (real.clone(), node))
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.into() } else { format!("{parent}/{name}") }
}

/// Puts a layer of the base over `tree`, and verifies it on the way.
pub(super) fn apply_layer(
    tree: &mut Tree,
    blobs: &dyn BlobSource,
    layer: &Descriptor,
    diff_id: &Digest,
) -> Result<(), ImageError> {
    let limits = StreamLimits { bytes: MAX_LAYER_BYTES, ratio: MAX_RATIO, ratio_free_bytes: RATIO_FREE_BYTES };
    let (end, result) = stream_layer(blobs, layer, limits, |pieces| {
        let mut reader = TarReader::new(pieces);
        loop {
            match reader.next_entry() {
                Ok(Some(_)) if reader.headers() > MAX_ENTRIES => {
                    return Err(format!("it has more than {MAX_ENTRIES} entries"));
                }
                Ok(Some(entry)) => apply_entry(tree, &entry),
                Ok(None) => break,
                Err(error) => return Err(format!("{error:?}")),
            }
        }
        io::copy(reader.inner_mut(), &mut io::sink()).map_err(|error| error.to_string())
    })?;
    let broken = |reason: String| ImageError::LayerData { layer: layer.digest, reason: clip(&reason) };
    match (end, result) {
        (StreamEnd::TooLarge(reason) | StreamEnd::Broken(reason), _) | (_, Err(reason)) => Err(broken(reason)),
        (StreamEnd::Complete(had), Ok(_)) if had == *diff_id => Ok(()),
        (StreamEnd::Complete(had), Ok(_)) => {
            Err(ImageError::WrongDiffId { layer: layer.digest, wanted: *diff_id, had })
        }
        (StreamEnd::Stopped, Ok(_)) => Err(broken("it was not read to its end".into())),
    }
}

fn apply_entry(tree: &mut Tree, entry: &crate::tarball::TarEntry) {
    let path = String::from_utf8_lossy(&entry.path).into_owned();
    let path = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/");
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
    if name == ".wh..wh..opq" {
        return tree.remove_below(parent);
    }
    if let Some(hidden) = name.strip_prefix(".wh.") {
        let hidden = join(parent, hidden);
        tree.remove_below(&hidden);
        tree.0.remove(&hidden);
        return;
    }
    let kind = match entry.kind {
        b'5' => Kind::Directory,
        b'2' => Kind::Symlink(String::from_utf8_lossy(&entry.link).into_owned()),
        _ => Kind::Base,
    };
    if kind != Kind::Directory {
        tree.remove_below(&path);
    }
    if !path.is_empty() {
        tree.0.insert(path, Node { kind, mode: entry.mode, uid: entry.uid, gid: entry.gid });
    }
}

/// The files that the specification adds, with the directories above them.
pub(super) fn collect(spec: &BuildSpec, base: &Tree) -> Result<Tree, ImageError> {
    let mut tree = Tree::default();
    for file in &spec.files {
        let metadata = std::fs::metadata(&file.host).map_err(|error| ImageError::io("read", &file.host, error))?;
        let path = image_path(spec, &file.in_image)?;
        if metadata.is_dir() {
            add_directory(spec, &mut tree, base, &file.host, &path)?;
        } else {
            let node = host_node(spec, &file.host, &metadata, file.mode)?;
            insert(spec, &mut tree, base, &path, node)?;
        }
    }
    Ok(tree)
}

fn add_directory(spec: &BuildSpec, tree: &mut Tree, base: &Tree, host: &Path, path: &str) -> Result<(), ImageError> {
    let failed = |error| ImageError::io("list", host, error);
    if !path.is_empty() {
        let mode = std::fs::metadata(host).map_err(failed)?.mode() & 0o777;
        insert(spec, tree, base, path, Node::new(Kind::Directory, mode))?;
    }
    for entry in std::fs::read_dir(host).map_err(failed)? {
        let child = entry.map_err(failed)?.path();
        let name = child
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| spec.error(format!("the name of {} is not UTF-8", child.display())))?;
        let below = image_path(spec, Path::new(&format!("/{}", join(path, name))))?;
        let metadata = std::fs::symlink_metadata(&child).map_err(|error| ImageError::io("read", &child, error))?;
        if metadata.is_dir() {
            add_directory(spec, tree, base, &child, &below)?;
        } else {
            let node = host_node(spec, &child, &metadata, None)?;
            insert(spec, tree, base, &below, node)?;
        }
    }
    Ok(())
}

fn host_node(
    spec: &BuildSpec,
    host: &Path,
    metadata: &std::fs::Metadata,
    mode: Option<u32>,
) -> Result<Node, ImageError> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = std::fs::read_link(host).map_err(|error| ImageError::io("read", host, error))?;
        let target =
            target.to_str().ok_or_else(|| spec.error(format!("the target of {} is not UTF-8", host.display())))?;
        return Ok(Node::new(Kind::Symlink(target.into()), 0o777));
    }
    if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
        return Err(spec.error(format!(
            "{} is a pipe, socket or device: only files, directories and symbolic links can be added",
            host.display()
        )));
    }
    let mode = match mode {
        Some(mode) if mode > 0o7777 => {
            return Err(spec.error(format!("mode {mode:o} of {} is not a mode: at most 7777", host.display())));
        }
        Some(mode) => mode,
        None => metadata.mode() & 0o777,
    };
    Ok(Node::new(Kind::Host(host.to_owned(), metadata.len()), mode))
}

/// Adds a node at a path of the image. Directories above it that are links in the base are followed, as they are when the image runs, and
/// those that are there already keep their mode and owner.
fn insert(spec: &BuildSpec, tree: &mut Tree, base: &Tree, path: &str, node: Node) -> Result<(), ImageError> {
    if tree.0.len() as u64 >= MAX_ENTRIES {
        return Err(spec.error(format!("more than {MAX_ENTRIES} files are added")));
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut real = String::new();
    for part in parent.split('/').filter(|part| !part.is_empty()) {
        let here = join(&real, part);
        let overlay = Overlay { upper: tree, lower: base };
        let (found, had) = match overlay.lookup(&here) {
            Some((found, had)) => (found, Some(had.clone())),
            None => (here.clone(), None),
        };
        match had {
            Some(had) if had.kind == Kind::Directory => {
                tree.0.entry(found.clone()).or_insert(had);
            }
            Some(_) => return Err(spec.error(format!("/{path} would be below /{here}, which is not a directory"))),
            None => {
                tree.0.insert(found.clone(), Node::new(Kind::Directory, 0o755));
            }
        }
        real = found;
    }
    let path = join(&real, name);
    if node.kind == Kind::Directory && base.get(&path).is_some_and(|had| matches!(had.kind, Kind::Symlink(_))) {
        let overlay = Overlay { upper: tree, lower: base };
        // A directory of the base's real name: nothing to add.
        return match overlay.lookup(&path) {
            Some((_, had)) if had.kind == Kind::Directory => Ok(()),
            _ => Err(spec.error(format!("/{path} is a symbolic link in the base, and a directory here"))),
        };
    }
    if node.kind != Kind::Directory {
        tree.remove_below(&path);
    }
    tree.0.insert(path, node);
    Ok(())
}

fn image_path(spec: &BuildSpec, path: &Path) -> Result<String, ImageError> {
    let bad = |reason: &str| spec.error(format!("path {} in the image {reason}", path.display()));
    let text = path.to_str().ok_or_else(|| bad("is not UTF-8"))?;
    if !text.starts_with('/') {
        return Err(bad("is not absolute"));
    }
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            Component::ParentDir => return Err(bad("has a .. in it")),
            _ => {}
        }
    }
    if parts.iter().any(|part| part.starts_with(".wh.")) {
        return Err(bad("begins with .wh., which would delete a file"));
    }
    if parts.iter().any(|part| part.len() > crate::limits::MAX_NAME_BYTES) || text.len() > crate::limits::MAX_PATH_BYTES
    {
        return Err(bad("is too long"));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(nodes: &[(&str, Kind)]) -> Tree {
        Tree(nodes.iter().map(|(path, kind)| ((*path).to_owned(), Node::new(kind.clone(), 0o755))).collect())
    }

    #[test]
    fn paths_are_looked_up_through_links_as_in_the_running_image() {
        let link = |target: &str| Kind::Symlink(target.into());
        let lower = tree(&[
            ("lib64", link("usr/lib64")),
            ("usr", Kind::Directory),
            ("usr/lib64", Kind::Directory),
            ("usr/lib64/ld.so", link("../lib/ld-2.so")),
            ("usr/lib", Kind::Directory),
            ("usr/lib/ld-2.so", Kind::Base),
            ("abs", link("/usr/lib")),
            ("loop", link("loop")),
            ("out", link("../../usr")),
        ]);
        let overlay = Overlay { upper: &Tree::default(), lower: &lower };
        let found = |path: &str| overlay.lookup(path).map(|(path, _)| path);
        assert_eq!(found("/lib64/ld.so").as_deref(), Some("usr/lib/ld-2.so"));
        assert_eq!(found("/abs/ld-2.so").as_deref(), Some("usr/lib/ld-2.so"));
        assert_eq!(found("/out/lib").as_deref(), Some("usr/lib"));
        assert_eq!(found("/loop"), None);
        assert_eq!(found("/lib64/none"), None);
    }
}
