//! How far a pull has come, for events and the command line.

use tokio::sync::watch;

/// What a pull has done and has to do. Grows until done equals total; bytes go back where a download has to begin anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Layers that are on the device or in the layout.
    pub layers_done: usize,
    /// Layers of the image; 0 until its manifest was read.
    pub layers_total: usize,
    /// Bytes of `bytes_total` that are in the layout.
    pub bytes_done: u64,
    /// Bytes of the layers that the device does not have.
    pub bytes_total: u64,
}

/// The progress of one pull. Cheap to watch: watchers see the newest state and miss what they were too slow for.
#[derive(Debug, Default)]
pub struct Progress {
    now: watch::Sender<Transferred>,
}

impl Progress {
    /// A watcher. It ends when the progress is dropped.
    pub fn watch(&self) -> watch::Receiver<Transferred> {
        self.now.subscribe()
    }

    /// The state now.
    pub fn now(&self) -> Transferred {
        *self.now.borrow()
    }

    pub(crate) fn begin(&self, layers_total: usize, layers_done: usize, bytes_total: u64) {
        self.now.send_replace(Transferred { layers_done, layers_total, bytes_done: 0, bytes_total });
    }

    pub(crate) fn layers_are_done(&self, layers: usize) {
        self.now.send_modify(|now| now.layers_done += layers);
    }

    /// Bytes of one download were `before` and are `after`.
    pub(crate) fn bytes(&self, before: u64, after: u64) {
        self.now.send_modify(|now| now.bytes_done = (now.bytes_done + after).saturating_sub(before));
    }
}
