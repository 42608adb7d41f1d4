//! What a probe does inside its container. Each tells whether it had its effect.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, chroot},
            net::{SocketAddr, UnixStream},
        },
    },
    process::Command,
};

use serde::{Deserialize, Serialize};

/// Things of the host that were made for the test, as a probe may know them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Pid on the host of a process of another container of the pod.
    pub victim: i32,
    /// Key of a segment of shared memory.
    pub key: i32,
    /// The host's name.
    pub host: String,
    /// Name of an abstract socket.
    pub socket: String,
}

/// An attempt that had no effect: the kernel's error, or in a word.
#[derive(Debug)]
pub struct Refusal(pub String);

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self(format!("{:?}", nix::errno::Errno::from_raw(errno))),
            None => Self(error.to_string()),
        }
    }
}

impl From<nix::errno::Errno> for Refusal {
    fn from(errno: nix::errno::Errno) -> Self {
        Self(format!("{errno:?}"))
    }
}

pub type Outcome = Result<(), Refusal>;

/// What a call answered.
pub fn answered(answer: libc::c_long) -> Outcome {
    if answer < 0 { Err(io::Error::last_os_error().into()) } else { Ok(()) }
}

fn seen(word: &str, is: bool) -> Outcome {
    if is { Ok(()) } else { Err(Refusal(word.to_owned())) }
}

/// Writes to a file what it says already: shows that it can be changed, and changes nothing.
fn rewrite(path: &str) -> Outcome {
    let value = fs::read_to_string(path)?;
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())?;
    Ok(())
}

pub fn chown_own_file(_: &Facts) -> Outcome {
    fs::write("/tmp/own", "")?;
    chown("/tmp/own", Some(1), Some(1))?;
    seen("unchanged", fs::metadata("/tmp/own")?.uid() == 1)
}

pub fn become_another(_: &Facts) -> Outcome {
    nix::unistd::setuid(nix::unistd::Uid::from_raw(1000))?;
    Ok(())
}

pub fn join_a_group(_: &Facts) -> Outcome {
    nix::unistd::setgroups(&[nix::unistd::Gid::from_raw(44)])?;
    Ok(())
}

pub fn change_root(_: &Facts) -> Outcome {
    chroot("/tmp")?;
    seen("unchanged", !fs::exists("/bin")?)
}

pub fn read_anothers_file(_: &Facts) -> Outcome {
    let text = fs::read_to_string("/anothers")?;
    seen("empty", text == "another's\n")
}

pub fn open_anothers_file(_: &Facts) -> Outcome {
    fs::set_permissions("/anothers", fs::Permissions::from_mode(0o666))?;
    Ok(())
}

pub fn go_before_others(_: &Facts) -> Outcome {
    // SAFETY: plain integers: this process, which ends soon.
    answered(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -5) }.into())
}

fn socket(family: i32, kind: i32, protocol: i32) -> Outcome {
    // SAFETY: plain integers.
    answered(unsafe { libc::socket(family, kind, protocol) }.into())
}

pub fn raw_socket(_: &Facts) -> Outcome {
    socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)
}

pub fn packet_socket(_: &Facts) -> Outcome {
    socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
}

pub fn change_a_link(_: &Facts) -> Outcome {
    // SAFETY: plain integers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    answered(socket.into())?;
    // SAFETY: a zeroed request is valid; its name ends with a NUL.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&b"lo".map(|b| b as libc::c_char));
    request.ifr_ifru.ifru_mtu = 1400;
    // SAFETY: the request is what this ioctl takes.
    answered(unsafe { libc::ioctl(socket, libc::SIOCSIFMTU, &raw const request) }.into())
}

/// The kernel's log: one that the standard `/dev` does not have.
pub const DEVICE: (u64, u64) = (1, 11);

pub fn make_a_device(_: &Facts) -> Outcome {
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let device = nix::sys::stat::makedev(DEVICE.0, DEVICE.1);
    nix::sys::stat::mknod("/tmp/node", nix::sys::stat::SFlag::S_IFCHR, mode, device)?;
    Ok(())
}

fn open_to_write(path: &str) -> Outcome {
    OpenOptions::new().write(true).open(path)?;
    Ok(())
}

pub fn open_the_images_device(_: &Facts) -> Outcome {
    open_to_write("/node")
}

pub fn open_the_volumes_device(_: &Facts) -> Outcome {
    open_to_write("/volume/node")
}

/// Whom a program of user 1000 with the set-user-ID bit runs as.
fn set_user_id(program: &str) -> Outcome {
    let out = Command::new(program).arg("/proc/self/status").output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let ids = text.lines().find_map(|l| l.strip_prefix("Uid:")).ok_or_else(|| Refusal(format!("{out:?}")))?;
    seen("ignored", ids.split_whitespace().nth(1) == Some("1000"))
}

pub fn images_set_user_id(_: &Facts) -> Outcome {
    set_user_id("/suid")
}

pub fn volumes_set_user_id(_: &Facts) -> Outcome {
    set_user_id("/volume/suid")
}

pub fn kill_another(facts: &Facts) -> Outcome {
    // SAFETY: plain integers.
    answered(unsafe { libc::kill(facts.victim, libc::SIGKILL) }.into())
}

pub fn mount_something(_: &Facts) -> Outcome {
    nix::mount::mount(Some("/volume"), "/mnt", None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)?;
    seen("nothing", fs::exists("/mnt/planted")?)
}

pub fn trace_another(facts: &Facts) -> Outcome {
    // SAFETY: plain integers; the process is let go of when this one ends.
    answered(unsafe { libc::ptrace(libc::PTRACE_SEIZE, facts.victim, 0, 0) })
}

pub fn read_anothers_memory(facts: &Facts) -> Outcome {
    let mut first = [0; 1];
    File::open(format!("/proc/{}/environ", facts.victim))?.read_exact(&mut first)?;
    Ok(())
}

pub fn shared_memory(facts: &Facts) -> Outcome {
    // SAFETY: plain integers.
    let id = unsafe { libc::shmget(facts.key, 0, 0) };
    answered(id.into())?;
    // SAFETY: attaches the segment wherever there is room, to be read.
    let at = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
    if at as isize == -1 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the segment is at least a page.
    seen("other", unsafe { *at.cast::<u8>() } == 42)
}

pub fn hosts_name(facts: &Facts) -> Outcome {
    seen("hidden", nix::unistd::gethostname()?.to_string_lossy() == facts.host)
}

pub fn rename_the_host(_: &Facts) -> Outcome {
    Ok(nix::unistd::sethostname("renamed")?)
}

pub fn cgroups_path(_: &Facts) -> Outcome {
    seen("hidden", fs::read_to_string("/proc/self/cgroup")?.contains("/hearth-"))
}

fn read_first(path: &str) -> Outcome {
    seen("empty", File::open(path)?.read(&mut [0; 64])? > 0)
}

pub fn interrupts(_: &Facts) -> Outcome {
    read_first("/proc/interrupts")
}

pub fn keys(_: &Facts) -> Outcome {
    read_first("/proc/keys")
}

pub fn timers(_: &Facts) -> Outcome {
    read_first("/proc/timer_list")
}

pub fn firmware(_: &Facts) -> Outcome {
    seen("empty", fs::read_dir("/sys/firmware")?.next().is_some())
}

pub fn forwarding(_: &Facts) -> Outcome {
    rewrite("/proc/sys/net/ipv4/ip_forward")
}

pub fn core_pattern(_: &Facts) -> Outcome {
    rewrite("/proc/sys/kernel/core_pattern")
}

pub fn interrupts_cpus(_: &Facts) -> Outcome {
    rewrite("/proc/irq/default_smp_affinity")
}

pub fn links_queue(_: &Facts) -> Outcome {
    rewrite("/sys/class/net/lo/tx_queue_len")
}

pub fn lift_own_limit(_: &Facts) -> Outcome {
    OpenOptions::new().write(true).open("/sys/fs/cgroup/pids.max")?.write_all(b"max")?;
    seen("unchanged", fs::read_to_string("/sys/fs/cgroup/pids.max")? == "max\n")
}

pub fn hosts_file(_: &Facts) -> Outcome {
    OpenOptions::new().append(true).open("/etc/hosts")?.write_all(b"192.0.2.1 planted\n")?;
    seen("unchanged", fs::read_to_string("/etc/hosts")?.contains("planted"))
}

pub fn write_the_volume(_: &Facts) -> Outcome {
    Ok(fs::write("/volume/written", "")?)
}

pub fn many_tasks(_: &Facts) -> Outcome {
    let mut children = Vec::new();
    let mut outcome = Ok(());
    for _ in 0..super::probes::TASKS {
        // SAFETY: one thread; the child only waits to be killed.
        match unsafe { libc::fork() } {
            -1 => {
                outcome = Err(io::Error::last_os_error().into());
                break;
            }
            0 => loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            },
            child => children.push(child),
        }
    }
    for child in children {
        // SAFETY: our own children.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    }
    outcome
}

pub fn much_memory(_: &Facts) -> Outcome {
    let much = vec![1_u8; super::probes::MUCH];
    seen("less", std::hint::black_box(&much).iter().rev().take(1).all(|b| *b == 1))
}

pub fn fill_memory_by_files(_: &Facts) -> Outcome {
    Ok(fs::write("/files/much", vec![1_u8; super::probes::MUCH])?)
}

pub fn descriptors(_: &Facts) -> Outcome {
    let open = |fd: &i32| {
        // SAFETY: a query of a flag.
        unsafe { libc::fcntl(*fd, libc::F_GETFD) >= 0 }
    };
    if (3..1024).any(|fd| open(&fd)) { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

pub fn hosts_ids(_: &Facts) -> Outcome {
    let text = fs::read_to_string("/volume/of-the-host")?;
    seen("empty", text == "the host's\n")
}

pub fn abstract_socket(facts: &Facts) -> Outcome {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(&facts.socket)?)?;
    Ok(())
}

pub fn list_of_sockets(facts: &Facts) -> Outcome {
    seen("hidden", fs::read_to_string("/proc/net/unix")?.contains(&facts.socket))
}

pub fn planted_proc(_: &Facts) -> Outcome {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open("/proc/planted")?;
    Ok(())
}
