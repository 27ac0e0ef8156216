//! Training: losses, optimiser, schedule, checkpoints, the loop.
//!
//! [`run`] is the loop. It trains a [`run::Task`], of which there are two: [`scratch`], a small
//! model on drawn scenes, and [`tuning`], any model on pictures with phrases.

pub mod checkpoint;
pub mod curve;
mod error;
pub mod events;
pub mod losses;
pub mod optimiser;
pub mod parameters;
pub mod run;
pub mod scratch;
mod tensors;
pub mod tuning;

pub use error::TrainError;
