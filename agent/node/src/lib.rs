//! The device agent: composes pods, runtime, images, network and volumes into a device that runs what its region says,
//! keeps running it when the region is silent, and ends its users' TLS.
//!
//! | part | what it does |
//! |---|---|
//! | `desired` | what the region said, on the disk before it is done; refuses another incarnation and older revisions |
//! | `manager` | which pods there are; claims; what an agent before left behind |
//! | `pod` | one worker a pod: drives its machine (`hearth-pod`) and carries out its commands, probes and hooks |
//! | `images` | what images are here, when registries are asked for them, and what goes when the disk fills up |
//! | `pressure` | what the machine runs short of, and who is evicted for it |
//! | `line` | by what the device is reached, told to the region when that changed |
//! | `house` | removes deleted data and unused images, tells what keeps the machine from its work |
//! | `fitness` | what the machine has and lacks, in words for its owner |
//! | `recovery` | what is kept for the day on which the region has lost everything |
//! | `session` | the stream to the region: heartbeats, statuses until acknowledged, dials, certificates |
//! | `usage` | what pods and the machine use, when somebody asks |
//! | `door` | logs, exec, attach, forwarded ports, usage and metrics for the region's servers, over a stream of the tunnel |
//! | `ingress` | keys made here, TLS, HTTP to the pods |
//!
//! # Guarantees
//! - What was accepted from the region is on the disk before anything is done about it; an agent that starts brings its pods
//!   up, or takes them over, without asking anybody.
//! - A pod is stopped only where it is marked for deletion or gone from an accepted word of the region that it joined, where it takes
//!   more than it may, or more than the machine has, or, of another owner than the device's, outside of the hours in which that lends; the
//!   data of a claim is deleted only where the claim is marked and no pod uses it.
//! - The end of the agent, however it comes, does not end its containers.

mod agent;
mod claims;
mod config;
mod container;
mod desired;
mod door;
mod ephemeral;
mod facts;
mod files;
mod fitness;
mod host_paths;
mod house;
mod identity;
mod ids;
mod images;
mod ingress;
mod leases;
mod line;
mod logs;
mod manager;
mod metrics;
mod mounts;
mod oom;
mod paths;
mod pod;
mod pressure;
mod recovery;
mod reporter;
mod selecting;
mod servers;
mod services;
mod session;
mod shared;
mod teardown;
mod usage;

pub use agent::{Agent, AgentError, AgentExit, AgentHandle, Config, zygote_config};
pub use files::FileError;
pub use fitness::{Area, Finding, Verdict, check};
pub use hearth_registry::{Credentials, Transferred};
pub use host_paths::HostPath;
pub use identity::{Identity, IdentityError, JoinOptions, Joined, join};
pub use images::{Images, ImagesError, News, PullPolicy, SourceError, Wanted};
pub use paths::Paths;
pub use teardown::{TeardownError, TeardownReport, teardown};
