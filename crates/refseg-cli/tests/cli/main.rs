//! Runs the command as users do: what it prints, what it writes, how it ends.
//!
//! Texts are compared with `tests/snapshots`; after a wanted change, run with
//! `REFSEG_BLESS=1` and look at the difference.

mod desk;

mod ask;
mod evaluation;
mod failures;
mod help;
mod models;
mod pair;
mod sam;
mod segment;
mod training;
