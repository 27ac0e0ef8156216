//! LLaVA-NeXT (LLaVA-1.6): CLIP's vision transformer on tiles of any
//! resolution, a projector, and a [language model](crate::language).
//!
//! Paper: LLaVA, arXiv 2304.08485, with the any-resolution tiles of LLaVA-NeXT.
//! [`chat`](crate::chat) is the face. Letters in shapes are those of
//! [`nn`](crate::nn), and: `S` side of a tile, `P` patches of a tile, `C` width
//! of the vision tower.

mod config;
mod geometry;
mod model;
mod projector;
mod vision;

pub use config::{Config, Layout, VisionConfig};
pub use geometry::Geometry;
pub use model::{Llava, PictureEncoder};
pub use projector::Projector;
pub use vision::VisionModel;
