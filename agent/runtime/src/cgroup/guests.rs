//! The limit over all pods of other owners: what a device lends, however many pods share it and whatever each may take by itself.

use std::{io, path::Path};

use super::{Cgroups, set_cpu, set_share, write};
use crate::model::GuestLimits;

impl Cgroups {
    /// Limits the pods in `rel` together, in the place of earlier limits. What is not limited is so by the instance's ceiling alone.
    ///
    /// # Errors
    /// `EBUSY` on version 1 where more memory is in use than can be taken back: the limit that is there stays. On version 2 the kernel kills
    /// a process instead.
    pub(crate) fn limit_guests(&self, rel: &Path, limits: &GuestLimits) -> io::Result<()> {
        self.create(rel)?;
        if let Some(h) = self.with("cpu") {
            set_cpu(h, rel, limits.cpu_millis)?;
            // All of them together are as one pod of the owner's that asks for nothing.
            set_share(h, rel, None)?;
        }
        if let Some(h) = self.with("memory") {
            let (file, none) = if h.v2 { ("memory.max", "max") } else { ("memory.limit_in_bytes", "-1") };
            let bytes = limits.memory_bytes.map_or_else(|| none.to_owned(), |bytes| bytes.to_string());
            write(&h.mount.join(rel).join(file), &bytes)?;
        }
        Ok(())
    }
}
