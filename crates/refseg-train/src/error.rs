//! What can go wrong in a run.

use std::path::PathBuf;

use refseg::{
    image::ImageError, prompt::PromptError, tokenizer::TokenizerError, weights::WeightsError,
};

use crate::vocabulary::VocabularyError;

/// Why a run stopped or could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The run's folder or a file in it cannot be used.
    #[error("`{path}`: the run's folder cannot be written")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The folder holds a run that was begun with other settings.
    #[error(
        "`{path}` holds a run with other settings: {found}; this one has {expected}. Choose another --out, or the same settings"
    )]
    OtherRecipe {
        /// The checkpoint.
        path: PathBuf,
        /// The settings it was made with.
        found: String,
        /// The settings asked for.
        expected: String,
    },
    /// A gradient is not a number.
    #[error("step {step}: the gradient of `{key}` is not finite; a lower learning rate may help")]
    NotFinite {
        /// The step.
        step: u64,
        /// The first such tensor.
        key: String,
    },
    /// Threads cannot be started.
    #[error("the workers' threads cannot be started")]
    Threads(#[source] rayon::ThreadPoolBuildError),
    /// A tensor or checkpoint is at fault.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A prompt cannot be written.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The tokenizer is at fault.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The vocabulary cannot be made.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A picture cannot be made.
    #[error(transparent)]
    Image(#[from] ImageError),
}
