//! Reading what an ELF executable says about where it runs (System V ABI, "Object Files" and "Program Loading").

/// Program headers looked at: real executables have about a dozen.
const MAX_PROGRAM_HEADERS: u16 = 1024;
/// Bytes of the path of a dynamic loader.
const MAX_INTERPRETER_BYTES: u64 = 4096;

/// Where an executable runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Elf {
    /// `e_machine`.
    pub(super) machine: u16,
    /// Path of the dynamic loader, for a program that needs one.
    pub(super) interpreter: Option<String>,
}

/// The value of `e_machine` for an architecture in OCI's words.
pub(super) fn machine_of(architecture: &str) -> Option<u16> {
    Some(match architecture {
        "386" => 3,
        "mips" | "mipsle" | "mips64" | "mips64le" => 8,
        "ppc64" | "ppc64le" => 21,
        "s390x" => 22,
        "arm" => 40,
        "amd64" => 62,
        "arm64" => 183,
        "riscv64" => 243,
        "loong64" => 258,
        _ => return None,
    })
}

/// The word for a value of `e_machine`.
pub(super) fn name_of(machine: u16) -> String {
    let names = ["386", "mips", "ppc64le", "s390x", "arm", "amd64", "arm64", "riscv64", "loong64"];
    names
        .iter()
        .find(|name| machine_of(name) == Some(machine))
        .map_or_else(|| format!("ELF machine {machine}"), |name| (*name).into())
}

/// Reads the headers of a file through `read_at(offset, length)`, which gives fewer bytes at the file's end. `Ok(None)`: not an ELF file.
pub(super) fn inspect<F>(mut read_at: F) -> Result<Option<Elf>, String>
where
    F: FnMut(u64, u64) -> std::io::Result<Vec<u8>>,
{
    let mut read = |offset, length: u64| -> Result<Vec<u8>, String> {
        let bytes = read_at(offset, length).map_err(|error| error.to_string())?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err("it is cut off".into()) }
    };
    let Ok(ident) = read(0, 64).or_else(|_| read(0, 52)) else { return Ok(None) };
    if !ident.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let wide = match ident[4] {
        1 => false,
        2 => true,
        other => return Err(format!("its ELF class {other} is unknown")),
    };
    let big = match ident[5] {
        1 => false,
        2 => true,
        other => return Err(format!("its byte order {other} is unknown")),
    };
    if wide && ident.len() < 64 {
        return Err("it is cut off".into());
    }
    let fields = Fields { big, wide };
    let machine = fields.u16(&ident, 18);
    let (table, entry_size, entries) = if wide {
        (fields.word(&ident, 32), fields.u16(&ident, 54), fields.u16(&ident, 56))
    } else {
        (fields.word(&ident, 28), fields.u16(&ident, 42), fields.u16(&ident, 44))
    };
    if entries == 0 {
        return Ok(Some(Elf { machine, interpreter: None }));
    }
    if entries > MAX_PROGRAM_HEADERS || u64::from(entry_size) < if wide { 56 } else { 32 } {
        return Err(format!("it has {entries} program headers of {entry_size} bytes"));
    }
    let headers = read(table, u64::from(entries) * u64::from(entry_size))?;
    for header in headers.chunks_exact(entry_size.into()) {
        const PT_INTERP: u32 = 3;
        if fields.u32(header, 0) != PT_INTERP {
            continue;
        }
        let (offset, size) = if wide {
            (fields.word(header, 8), fields.word(header, 32))
        } else {
            (fields.word(header, 4), fields.word(header, 16))
        };
        if size == 0 || size > MAX_INTERPRETER_BYTES {
            return Err(format!("the path of its loader has {size} bytes"));
        }
        let bytes = read(offset, size)?;
        let path = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let path = std::str::from_utf8(path).map_err(|_| "the path of its loader is not UTF-8")?;
        return Ok(Some(Elf { machine, interpreter: Some(path.into()) }));
    }
    Ok(Some(Elf { machine, interpreter: None }))
}

/// Numbers in the file's byte order. Offsets are within what was read: checked by the caller.
struct Fields {
    big: bool,
    wide: bool,
}

impl Fields {
    fn number(&self, bytes: &[u8], at: usize, length: usize) -> u64 {
        let field = bytes.get(at..at + length).unwrap_or_default();
        let push = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
        if self.big { field.iter().fold(0, push) } else { field.iter().rev().fold(0, push) }
    }

    fn u16(&self, bytes: &[u8], at: usize) -> u16 {
        self.number(bytes, at, 2) as u16
    }

    fn u32(&self, bytes: &[u8], at: usize) -> u32 {
        self.number(bytes, at, 4) as u32
    }

    /// An address or offset: as wide as the class.
    fn word(&self, bytes: &[u8], at: usize) -> u64 {
        self.number(bytes, at, if self.wide { 8 } else { 4 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inspect_slice(bytes: &[u8]) -> Result<Option<Elf>, String> {
        inspect(|offset, length| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let end = start.saturating_add(length as usize).min(bytes.len());
            Ok(bytes[start..end].to_vec())
        })
    }

    #[test]
    fn this_test_itself_is_an_executable_for_this_machine() {
        let bytes = std::fs::read("/proc/self/exe").expect("readable");
        let elf = inspect_slice(&bytes).expect("valid").expect("ELF");
        assert_eq!(name_of(elf.machine), crate::Platform::host().architecture);
        assert!(elf.interpreter.expect("tests are linked dynamically").starts_with("/lib"));
    }

    #[test]
    fn what_is_no_elf_file_is_not_taken_for_one() {
        for bytes in [&b""[..], b"\x7fEL", b"#!/bin/sh\n", &[0; 100]] {
            assert_eq!(inspect_slice(bytes), Ok(None));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), class in 0_u8..4, order in 0_u8..4) {
            let magic = [0x7f, b'E', b'L', b'F', class, order];
            let count = magic.len().min(bytes.len());
            bytes[..count].copy_from_slice(&magic[..count]);
            let _ = inspect_slice(&bytes);
        }
    }
}
