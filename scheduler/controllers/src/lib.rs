//! One file per kind: what is asked for and what is seen in, actions out. Pure.
