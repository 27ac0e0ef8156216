//! What can go wrong in a run.

use std::path::PathBuf;

use refseg::{
    chat::ChatError, image::ImageError, internvl::ConfigError, mask::MaskError,
    predictor::PredictorError, prompt::PromptError, sam::SamError, tokenizer::TokenizerError,
    weights::WeightsError,
};
use refseg_data::{dataset::DataError, evaluate::EvaluateError};

use crate::{recipes::RecipeError, scratch::vocabulary::VocabularyError};

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
    /// A loss is not a number.
    #[error("the loss `{loss}` is not finite")]
    LossNotFinite {
        /// Which.
        loss: &'static str,
    },
    /// A tensor is not a number, in the order in which they are computed.
    #[error(
        "step {step}: {tensor} is the first to hold values that are not finite; the last checkpoint is from before, and a lower learning rate may help"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// The first such tensor.
        tensor: String,
    },
    /// No loss depends on anything that is trained.
    #[error("nothing can be learned from these pictures: no phrase has a target or a token")]
    NothingToLearn,
    /// Helper heads are wanted where they cannot tell what a token shows.
    #[error(
        "`{model}`: `loss.helpers` needs a picture to be one square of tokens, as InternVL's is; set it to 0"
    )]
    NoGrid {
        /// The model.
        model: String,
    },
    /// Another run works in the folder.
    #[error("`{path}`: another run works in this folder")]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The threads that prepare batches are gone.
    #[error("the threads that prepare pictures have stopped")]
    Loaders,
    /// A file cannot be read.
    #[error("`{path}`: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not JSON.
    #[error("`{path}`: not JSON")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The markers' ids do not follow each other.
    #[error("`[SEG]` has id {seg} and `[REJ]` {rej}, expected neighbours")]
    Markers {
        /// Id of `[SEG]`.
        seg: u32,
        /// Id of `[REJ]`.
        rej: u32,
    },
    /// The data is at fault.
    #[error(transparent)]
    Data(Box<DataError>),
    /// The model cannot be judged.
    #[error("the model cannot be judged")]
    Evaluate(#[from] EvaluateError),
    /// The model's parts do not fit each other.
    #[error(transparent)]
    Model(Box<PredictorError>),
    /// A model that is talked with is at fault.
    #[error(transparent)]
    Chat(Box<ChatError>),
    /// A Segment Anything model is at fault.
    #[error(transparent)]
    Sam(Box<SamError>),
    /// `config.json` is at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A recipe is at fault.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
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
    /// A mask cannot be made.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// A picture cannot be made.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl From<ChatError> for TrainError {
    fn from(error: ChatError) -> Self {
        Self::Chat(Box::new(error))
    }
}

impl From<SamError> for TrainError {
    fn from(error: SamError) -> Self {
        Self::Sam(Box::new(error))
    }
}
