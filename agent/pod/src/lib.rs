//! The life of a pod on its device as a state machine. Pure.
