//! InternVL2 and InternVL2.5: InternViT and a projector, which make a picture
//! tokens of a [language model](crate::language).

mod config;
mod projector;
mod vision;

pub(crate) use config::Fields;
pub use config::{Config, ConfigError, UnshuffleVersion, VisionConfig};
pub use projector::Projector;
pub use vision::VisionModel;
