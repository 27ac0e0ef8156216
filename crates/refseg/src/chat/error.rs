//! What can go wrong between a question and its answer.

use std::path::PathBuf;

use super::MAX_QUESTION_BYTES;
use crate::{
    internvl::ConfigError, prompt::PromptError, tokenizer::TokenizerError, weights::WeightsError,
};

/// Why a model cannot be loaded or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// There is no such folder.
    #[error("`{path}` is not a model: there is no such folder")]
    NoModel {
        /// What was asked for.
        path: PathBuf,
    },
    /// `config.json` is at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights are at fault.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer is at fault.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The prompt's layout is at fault.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The model was trained on something else than conversations.
    #[error("`{path}`: `template` is `{template}`, which has no questions and answers")]
    NotAChat {
        /// The model's `config.json`.
        path: PathBuf,
        /// Its template.
        template: String,
    },
    /// The tokenizer has ids that the model has no embedding for.
    #[error(
        "`{model}`: the tokenizer has {tokens} tokens, but `vocab_size` is {vocabulary}; is it another model's tokenizer?"
    )]
    OtherTokenizer {
        /// The model.
        model: String,
        /// Largest id plus one.
        tokens: usize,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// A question without words.
    #[error("a question is empty")]
    EmptyQuestion,
    /// A text with a character that no text has.
    #[error("a question or answer has a NUL character at byte {at}")]
    Nul {
        /// Where it stands.
        at: usize,
    },
    /// A text far longer than any conversation.
    #[error(
        "a question or answer is {bytes} bytes long, and at most {MAX_QUESTION_BYTES} are read"
    )]
    LongQuestion {
        /// Its length.
        bytes: usize,
    },
    /// The conversation outgrows what the model was made for.
    #[error(
        "the conversation has {found} tokens, those of the picture included, and `{model}` reads at most {limit}"
    )]
    TooLong {
        /// The model.
        model: String,
        /// Tokens of the conversation so far, the question included.
        found: usize,
        /// Tokens that the model reads.
        limit: usize,
    },
    /// A question asks for a token that does not exist.
    #[error("`{model}` has {vocabulary} tokens, so there is no id {id}")]
    NoSuchToken {
        /// The model.
        model: String,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// A text that should be one token is not.
    #[error("`{model}`: {text:?} is {found} tokens, expected one")]
    NotOneToken {
        /// The model.
        model: String,
        /// The text.
        text: String,
        /// How many tokens it is.
        found: usize,
    },
    /// A model that gives no answer to a question breaks its contract.
    #[error("the model gave no answer at all")]
    NoAnswer,
    /// The network gave numbers that are none.
    #[error("`{model}` computed values that are not numbers: its weights do not belong together")]
    NotANumber {
        /// The model.
        model: String,
    },
}
