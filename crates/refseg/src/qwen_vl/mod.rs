//! Qwen-VL-Chat: a vision transformer, a resampler that asks it 256 questions,
//! and a [language model](crate::language).
//!
//! Paper: Qwen-VL, arXiv 2308.12966. [`chat`](crate::chat) is the face. Letters
//! in shapes are those of [`nn`](crate::nn), and: `S` side of the picture, `P`
//! its patches, `C` width of the vision transformer.
//!
//! Written from the published description; no model of the official code has
//! been compared with it yet.

mod bicubic;
mod config;
mod model;
mod resampler;
mod vision;

pub use config::{Config, VisualConfig};
pub use model::{PictureEncoder, QwenVl};
pub use resampler::Resampler;
pub use vision::VisionModel;
