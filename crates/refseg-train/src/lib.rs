//! Training: losses, optimiser, schedule, checkpoints, the loop.
//!
//! [`run`] is the loop. It trains a [`run::Task`], of which there are four: [`scratch`], a small
//! model on drawn scenes; [`tuning`], any model on pictures with phrases; and the two halves of
//! SAM4MLLM, [`conversing`], a language model that answers questions about a picture, and
//! [`outlining`], a Segment Anything model that draws what prompts mean.

mod canvas;
pub mod checkpoint;
pub mod conversing;
pub mod curve;
mod draws;
mod error;
pub mod events;
pub mod losses;
pub mod optimiser;
pub mod outlining;
pub mod parameters;
pub mod recipes;
pub mod run;
pub mod scratch;
mod tensors;
pub mod tuning;

pub use error::TrainError;
