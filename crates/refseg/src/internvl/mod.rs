//! InternVL2 and InternVL2.5: InternViT, a projector, and a language model.

mod config;
mod language;
mod projector;
mod vision;

pub(crate) use config::Fields;
pub use config::{
    Config, ConfigError, Fusion, LanguageConfig, LanguageFamily, UnshuffleVersion, VisionConfig,
};
pub use language::{KeyValues, LanguageLayer, LanguageModel, causal_mask};
pub use projector::Projector;
pub use vision::VisionModel;
