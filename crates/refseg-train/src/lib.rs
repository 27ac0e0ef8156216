//! Training: losses, optimiser, schedule, checkpoints, the loop.
//!
//! [`run`] is the loop. It trains a [`run::Task`], of which there are three: [`scratch`], a small
//! model on drawn scenes; [`tuning`], any model on pictures with phrases; and [`conversing`], a
//! language model that answers questions about a picture.

pub mod checkpoint;
pub mod conversing;
pub mod curve;
mod error;
pub mod events;
pub mod losses;
pub mod optimiser;
pub mod parameters;
pub mod recipes;
pub mod run;
pub mod scratch;
mod tensors;
pub mod tuning;

pub use error::TrainError;
