//! Why an operation on the pod network failed.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a network operation failed; one variant a step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The instance is not four characters of `[a-z2-7]`.
    #[error("instance {0:?} is not four characters of a-z and 2-7: derive it from the data directory")]
    BadInstance(String),
    /// The pod's uid cannot be kept in the allocation file.
    #[error(
        "pod uid {0:?} is empty, longer than 128 bytes, or has characters other than letters, digits, '-', '.' and '_'"
    )]
    BadPodUid(String),
    /// The `nft` program could not be started.
    #[error("cannot run `nft` for {doing}: install the package nftables (Debian: apt install nftables)")]
    NftMissing {
        /// What it was needed for.
        doing: &'static str,
        /// Why it could not be started.
        #[source]
        source: io::Error,
    },
    /// `nft` refused what it was given.
    #[error("nft failed at {doing}: {stderr}\n{hint}")]
    NftFailed {
        /// What it was asked to do.
        doing: &'static str,
        /// What it printed, cut to a bounded length.
        stderr: String,
        /// What usually helps.
        hint: &'static str,
    },
    /// The kernel refused a netlink request, or the socket failed.
    #[error("netlink: cannot {doing}{}", .hint.map(|h| format!(" ({h})")).unwrap_or_default())]
    Netlink {
        /// What was asked of the kernel.
        doing: String,
        /// What usually helps, where the error code says.
        hint: Option<&'static str>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot limit what a link sends.
    #[error(
        "the kernel cannot limit bandwidth: it has no token bucket filter (CONFIG_NET_SCH_TBF; try: modprobe sch_tbf); run \
         another kernel, as Debian's, or take the limit away"
    )]
    NoShaping {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot hold pods to what they share.
    #[error(
        "the kernel cannot hold pods to the bandwidth that they share (CONFIG_NFT_LIMIT; try: modprobe nft_limit), so no guest is \
         started: run another kernel, as Debian's, or take `bandwidth` out of the Device"
    )]
    NoSharing,
    /// The kernel or `nft` cannot translate addresses as Services need it.
    #[error(
        "the firewall cannot lead to Services (nftables 1.0.2 and Linux 5.13 or newer can, with CONFIG_NFT_NAT and CONFIG_NFT_NUMGEN; \
         try: modprobe nft_numgen), so no pod reaches one"
    )]
    NoServices,
    /// A kernel parameter could not be read or set.
    #[error("cannot {verb} kernel parameter {path:?}: is /proc/sys mounted read-write and is this process root?")]
    Sysctl {
        /// `read` or `write`.
        verb: &'static str,
        /// The file under /proc/sys.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A network namespace could not be made or entered.
    #[error("network namespace: cannot {step}: this needs root (CAP_SYS_ADMIN) and a kernel with CONFIG_NET_NS")]
    Namespace {
        /// The step that failed.
        step: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A state file or its directory could not be read or written.
    #[error("cannot {verb} network state {path:?}")]
    State {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A state file is not one that this version can read.
    #[error("network state {path:?} cannot be used: {detail}")]
    StateFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        detail: String,
    },
    /// Every private IPv4 range that could serve pods is in use by the host.
    #[error(
        "no free private IPv4 range of /{prefix_len} for pods: the host's routes cover all of 10.0.0.0/8 and 172.16.0.0/12"
    )]
    NoFreePrefix {
        /// The length of the prefix that was looked for.
        prefix_len: u8,
    },
    /// All pod addresses are allocated.
    #[error("no free pod address: {limit} pods have one; remove pods, or call retain")]
    Exhausted {
        /// How many there are.
        limit: usize,
    },
    /// The name relay's socket could not be opened.
    #[error("cannot open the name relay on {address} over {protocol}")]
    Relay {
        /// The address tried.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// Nothing accepts at a port of a pod.
    #[error("failed to connect to localhost:{port} inside the pod: {why}")]
    Inside {
        /// The port.
        port: u16,
        /// What each address answered.
        why: String,
    },
    /// A helper thread could not be started, or died.
    #[error("the network helper thread failed while it was to {doing}")]
    Worker {
        /// What it was doing.
        doing: &'static str,
    },
}

impl NetworkError {
    pub(crate) fn netlink(doing: impl Into<String>, source: io::Error) -> Self {
        let hint = match source.raw_os_error() {
            Some(libc::EPERM) => Some("this needs root or CAP_NET_ADMIN"),
            Some(libc::EOPNOTSUPP) => Some("the kernel may lack CONFIG_VETH: modprobe veth"),
            _ => None,
        };
        Self::Netlink { doing: doing.into(), hint, source }
    }
}
