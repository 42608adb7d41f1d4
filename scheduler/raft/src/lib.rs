//! The durable store of a region: openraft with an own log and snapshots.
