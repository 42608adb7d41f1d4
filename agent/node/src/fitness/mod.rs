//! A machine's fitness: what it has and lacks for running apps, in words for whoever owns it, and what to do about it.
//!
//! What is found is judged by pure functions, a file each for what is looked at; looking itself is beside them and changes nothing but for one
//! small file that is written, synced and removed where the data is to be.

mod clock;
mod disk;
mod kernel;
mod network;

use std::{fmt, path::Path};

pub(crate) use self::{
    clock::{SURELY_PAST, has_hardware as has_hardware_clock},
    kernel::lacks as kernel_lacks,
};

/// What part of a machine a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// What the kernel can do.
    Kernel,
    /// Control groups, which limit what apps take.
    Cgroups,
    /// Where the data is, or is to be.
    Disk,
    /// The time.
    Clock,
    /// The way out, and the firewall.
    Network,
}

/// How a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// It works, and less well than it could.
    Poor,
    /// Apps do not run, or not safely.
    Lacks,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Cgroups => "cgroups",
            Self::Disk => "disk",
            Self::Clock => "clock",
            Self::Network => "network",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "fine",
            Self::Poor => "poor",
            Self::Lacks => "lacks",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, in a sentence.
    pub what: String,
    /// What to do about it; empty where nothing needs to be done.
    pub advice: String,
}

impl Finding {
    fn fine(area: Area, what: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Fine, what: what.into(), advice: String::new() }
    }

    fn poor(area: Area, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Poor, what: what.into(), advice: advice.into() }
    }

    fn lacks(area: Area, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Lacks, what: what.into(), advice: advice.into() }
    }
}

/// Looks at this machine, and at the directory where its data is or is to be. Blocks for some tenths of a second, longer on a slow disk.
///
/// # Assumptions
/// Root, as the agent is.
pub fn check(data: &Path) -> Vec<Finding> {
    let features = hearth_runtime::probe_kernel();
    let mut findings = kernel::judge(&features);
    findings.extend(disk::judge(&disk::look(data)));
    findings.extend(clock::judge(&clock::look()));
    findings.extend(network::judge(&network::look()));
    findings
}
