//! Whether an image that is being built can run at all: found out here, by the developer, and not on a thousand devices.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use super::BuildSpec;
use super::elf::{self, Elf};
use super::tree::{Kind, Node, Overlay, Tree};
use crate::ImageError;

/// Where a program without a slash is looked for, unless the image's environment says otherwise: what runtimes set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of the first line of a script that Linux reads.
const SCRIPT_LINE_BYTES: u64 = 256;

/// Checks the program that the image starts, and every executable that is added.
pub(super) fn runnable(spec: &BuildSpec, config: &Value, base: &Tree, added: &Tree) -> Result<(), ImageError> {
    let image = Overlay { upper: added, lower: base };
    let machine = elf::machine_of(&spec.platform.architecture).ok_or_else(|| {
        spec.error(format!(
            "architecture {:?} is not known: use amd64, arm64, arm, riscv64 ...",
            spec.platform.architecture
        ))
    })?;
    for (path, node) in added.iter() {
        if let Kind::Host(host, _) = &node.kind
            && node.mode & 0o111 != 0
        {
            executable(spec, &image, machine, path, host)?;
        }
    }
    program(spec, config, &image)
}

fn program(spec: &BuildSpec, config: &Value, image: &Overlay<'_>) -> Result<(), ImageError> {
    let run = &config["config"];
    let first = |key: &str| run[key].as_array().and_then(|list| list.first()).and_then(Value::as_str);
    // An image without a program is one to build upon, or one whose pods say what to run.
    let Some(program) = first("Entrypoint").or_else(|| first("Cmd")) else { return Ok(()) };
    let working_dir = run["WorkingDir"].as_str().unwrap_or("/");
    let Some((path, node)) = find_program(program, working_dir, run, image) else {
        return Err(
            spec.error(format!("its program {program:?} is not in the image: add the file, or correct the entrypoint"))
        );
    };
    if node.kind == Kind::Directory {
        return Err(spec.error(format!("its program {program:?} is a directory")));
    }
    if node.mode & 0o111 == 0 {
        return Err(
            spec.error(format!("its program /{path} is not executable (mode {:o}): add it with mode 755", node.mode))
        );
    }
    Ok(())
}

fn find_program<'a>(
    program: &str,
    working_dir: &str,
    run: &Value,
    image: &'a Overlay<'_>,
) -> Option<(String, &'a Node)> {
    if program.starts_with('/') {
        return image.lookup(program);
    }
    if program.contains('/') {
        return image.lookup(&format!("{working_dir}/{program}"));
    }
    let env = run["Env"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let path = env.filter_map(|entry| entry.strip_prefix("PATH=")).next_back().unwrap_or(DEFAULT_PATH);
    path.split(':').find_map(|directory| image.lookup(&format!("{directory}/{program}")))
}

fn executable(spec: &BuildSpec, image: &Overlay<'_>, machine: u16, path: &str, host: &Path) -> Result<(), ImageError> {
    let file = File::open(host).map_err(|error| ImageError::io("open", host, error))?;
    let elf = elf::inspect(|offset, length| read_at(&file, offset, length))
        .map_err(|reason| spec.error(format!("/{path} is not a valid executable: {reason}")))?;
    match elf {
        Some(Elf { machine: had, .. }) if had != machine => Err(spec.error(format!(
            "/{path} is for {}, and the image is for {}: build the program for {0} or the image for the other platform",
            elf::name_of(had),
            spec.platform,
        ))),
        Some(Elf { interpreter: Some(loader), .. }) if image.lookup(&loader).is_none() => Err(spec.error(format!(
            "/{path} is linked dynamically and its loader {loader} is not in the image: link it statically, or build upon a base that has it"
        ))),
        Some(_) => Ok(()),
        None => script(spec, image, path, &file),
    }
}

fn script(spec: &BuildSpec, image: &Overlay<'_>, path: &str, file: &File) -> Result<(), ImageError> {
    let line = read_at(file, 0, SCRIPT_LINE_BYTES).unwrap_or_default();
    let Some(line) = line.strip_prefix(b"#!") else { return Ok(()) };
    let line = String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next().unwrap_or_default()).into_owned();
    match line.split_whitespace().next() {
        Some(interpreter) if image.lookup(interpreter).is_none() => {
            Err(spec.error(format!("/{path} is a script for {interpreter}, which is not in the image")))
        }
        _ => Ok(()),
    }
}

fn read_at(file: &File, offset: u64, length: u64) -> std::io::Result<Vec<u8>> {
    struct At<'a>(&'a File, u64);
    impl Read for At<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.read_at(buffer, self.1)?;
            self.1 += count as u64;
            Ok(count)
        }
    }
    let mut bytes = Vec::new();
    // An offset that no file has reads as the end of the file.
    if i64::try_from(offset).is_ok() {
        At(file, offset).take(length).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
