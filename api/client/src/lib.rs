//! A typed client of a region; list and watch into a cache and a keyed work queue.
