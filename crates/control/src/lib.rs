//! Reconcilers: observe, load, plan, commit, act.
