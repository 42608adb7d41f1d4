//! Where pods go: snapshot and pending pods in, plan and explanations out. Pure.
