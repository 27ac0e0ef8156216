//! Training: losses, optimiser, schedule, checkpoints, the loop.

pub mod auxiliary;
pub mod batch;
pub mod checkpoint;
pub mod curve;
mod error;
pub mod events;
pub mod losses;
pub mod optimiser;
pub mod parameters;
pub mod run;
pub mod step;
pub mod vocabulary;

pub use error::TrainError;
