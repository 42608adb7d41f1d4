//! Which device nodes a container may open: those of the standard `/dev`, none else.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

/// Character devices by major and minor; no minor is all of them: null, zero, full, random, urandom, tty, ptmx, pts.
const ALLOWED: [(u32, Option<u32>); 8] =
    [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// The devices controller of version 1.
pub(super) fn deny_v1(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("devices.deny"), "a")?;
    for (major, minor) in ALLOWED {
        let minor = minor.map_or_else(|| "*".to_owned(), |m| m.to_string());
        fs::write(dir.join("devices.allow"), format!("c {major}:{minor} rw"))?;
    }
    Ok(())
}

/// One instruction of eBPF, `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Insn {
    code: u8,
    /// Destination register in the low half, source in the high one.
    regs: u8,
    off: i16,
    imm: i32,
}

const LDX_W: u8 = 0x61;
const AND_K: u8 = 0x57;
const MOV_X: u8 = 0xbf;
const MOV_K: u8 = 0xb7;
const JNE_K: u8 = 0x55;
const EXIT: u8 = 0x95;
const BPF_DEVCG_DEV_CHAR: i32 = 2;
const BPF_DEVCG_ACC_MKNOD: i32 = 1;

/// The filter as a program over `struct bpf_cgroup_dev_ctx {access_type, major, minor}`: 1 allows, 0 denies.
fn program() -> Vec<Insn> {
    let insn = |code, dst: u8, src: u8, off, imm| Insn { code, regs: dst | src << 4, off, imm };
    // r2 = type, r3 = access, r4 = major, r5 = minor
    let mut out = vec![
        insn(LDX_W, 2, 1, 0, 0),
        insn(MOV_X, 3, 2, 0, 0),
        insn(AND_K, 2, 0, 0, 0xffff),
        insn(0x77, 3, 0, 0, 16), // r3 >>= 16
        insn(LDX_W, 4, 1, 4, 0),
        insn(LDX_W, 5, 1, 8, 0),
        insn(AND_K, 3, 0, 0, BPF_DEVCG_ACC_MKNOD),
    ];
    let deny = [insn(MOV_K, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)];
    out.push(insn(0x15, 3, 0, 2, 0)); // no mknod: go on
    out.extend(deny);
    out.push(insn(0x15, 2, 0, 2, BPF_DEVCG_DEV_CHAR)); // a character device: go on
    out.extend(deny);
    for (major, minor) in ALLOWED {
        let checks = i16::from(minor.is_some());
        out.push(insn(JNE_K, 4, 0, 2 + checks, major as i32));
        if let Some(minor) = minor {
            out.push(insn(JNE_K, 5, 0, 2, minor as i32));
        }
        out.extend([insn(MOV_K, 0, 0, 0, 1), insn(EXIT, 0, 0, 0, 0)]);
    }
    out.extend(deny);
    out
}

/// First part of `union bpf_attr` for BPF_PROG_LOAD, as far as it is used here.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct ProgAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// A BPF_CGROUP_DEVICE program, which is what version 2 has for the devices controller.
pub(super) fn deny_v2(dir: &Path) -> io::Result<()> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_ATTACH: i32 = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    /// Programs of parents run too.
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let explain = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));

    let insns = program();
    let mut name = [0; 16];
    name[..10].copy_from_slice(b"hearth_dev");
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: insns.len() as u32,
        insns: insns.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: name,
        prog_ifindex: 0,
        expected_attach_type: BPF_CGROUP_DEVICE,
    };
    // SAFETY: the attribute and what it points to outlive the call; its size is passed.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<ProgLoad>()) };
    if fd < 0 {
        return Err(explain("load the device filter", io::Error::last_os_error()));
    }
    // SAFETY: the kernel just returned this descriptor to us.
    let prog = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let cgroup = File::open(dir)?;
    let attach = ProgAttach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: prog.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: as above.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<ProgAttach>()) };
    if ret < 0 {
        return Err(explain("attach the device filter", io::Error::last_os_error()));
    }
    Ok(())
}
