//! What the harness has from the other tests: processes, and the broker behind them. They use more of it.

#![allow(dead_code, reason = "the other tests use the rest")]

#[path = "../it/support/broker.rs"]
pub(crate) mod broker;
#[path = "../it/support/process.rs"]
pub(crate) mod process;
