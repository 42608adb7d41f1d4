//! The leader's loops: caches, controllers, placement, and the table of device sessions.
