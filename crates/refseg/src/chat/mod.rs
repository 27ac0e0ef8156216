//! Conversations about a picture: a question in words, an answer in words.
//!
//! ```no_run
//! use refseg::{Image, Options, chat::{self, Mllm, Question}};
//!
//! let model = chat::open("weights/llama3-llava-next-8b", &Options::default())?;
//! let picture = model.look(&Image::open("kitchen.jpg")?)?; // slow part, once per image
//! let answer = picture.ask(&Question::new("What stands behind the kettle?"))?;
//! println!("{}", answer.text);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A [`Conversation`] is a value that nothing changes. Whoever wants to go on
//! from an answer asks for the conversation that follows it
//! ([`Conversation::followed_by`]); from each one can go on as often, and with
//! as many questions at once, as one likes: what was said before is kept as
//! keys and values, and read once.

mod backbone;
#[cfg(test)]
mod cases;
mod error;
mod model;
mod speaker;
mod template;

use std::fmt;

pub use backbone::{Backbone, Network, WrittenTalk};
pub use error::ChatError;
pub use model::{ChatModel, open, open_adapted};
pub use template::{SYSTEM_LLAMA_3, SYSTEM_QWEN, SYSTEM_VICUNA};

use crate::image::Image;

/// A multimodal language model: it looks at a picture and can then be asked.
pub trait Mllm: fmt::Debug + Send + Sync {
    /// What the model is called: its folder.
    fn name(&self) -> &str;

    /// Looks at a picture, and reads the beginning of a conversation about it
    /// up to the first question: the slow part, once per picture.
    ///
    /// # Errors
    /// If the network computes values that are not numbers.
    fn look(&self, image: &Image) -> Result<Box<dyn Conversation>, ChatError>;

    /// The ids of ordinary text, as they stand in an answer; nothing is put
    /// before or after it.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    fn encode(&self, text: &str) -> Result<Vec<u32>, ChatError>;

    /// The id of a text that is one token, such as `Yes`.
    ///
    /// # Errors
    /// If it is none, or several.
    fn token(&self, text: &str) -> Result<u32, ChatError> {
        match self.encode(text)?[..] {
            [id] => Ok(id),
            ref ids => Err(ChatError::NotOneToken {
                model: self.name().to_owned(),
                text: text.to_owned(),
                found: ids.len(),
            }),
        }
    }

    /// Tensors of the checkpoint that no part of the network uses: worth a warning.
    fn unused_tensors(&self) -> &[String];
}

/// What has been said about a picture so far: a value to keep, share between
/// threads, and go on from.
pub trait Conversation: fmt::Debug + Send + Sync {
    /// Asks several questions, each as if it were the only one that follows,
    /// all in the same passes through the network.
    ///
    /// Answers come in the order of the questions. This conversation stays as it is.
    ///
    /// # Errors
    /// If a question is empty, has a NUL or is too long, or names an id that
    /// the model does not have; or if the network computes values that are not numbers.
    fn ask_many(&self, questions: &[Question<'_>]) -> Result<Vec<Answer>, ChatError>;

    /// Asks one question. This conversation stays as it is.
    ///
    /// # Errors
    /// As [`Conversation::ask_many`].
    fn ask(&self, question: &Question<'_>) -> Result<Answer, ChatError> {
        let mut answers = self.ask_many(&[*question])?;
        answers.pop().ok_or(ChatError::NoAnswer)
    }

    /// The conversation after a question was answered like this, by the model
    /// or by somebody else: both are text, encoded anew, and the white space
    /// around the answer is left out, as chat templates do.
    ///
    /// # Errors
    /// As [`Conversation::ask_many`].
    fn followed_by(&self, question: &str, answer: &str)
    -> Result<Box<dyn Conversation>, ChatError>;

    /// How many tokens were read so far, those of the picture included.
    fn length(&self) -> usize;

    /// Memory that this value holds, in bytes, the shared model aside.
    fn bytes(&self) -> usize;
}

/// A question, and how to answer it: always with the likeliest token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question<'a> {
    /// The text, used as it is written. Special tokens in it are ordinary characters.
    pub text: &'a str,
    /// The answer ends after this many tokens, if the model does not end it before.
    pub max_tokens: usize,
    /// The only tokens to choose from; all of them if empty. An answer that
    /// cannot choose the model's end has exactly `max_tokens` tokens.
    pub only: &'a [u32],
    /// Tokens whose probability to report at each position.
    pub watched: &'a [u32],
}

/// Tokens of an answer unless a question says otherwise.
pub const DEFAULT_MAX_TOKENS: usize = 256;

/// Longest question, in UTF-8 bytes: several times what fits a conversation.
pub const MAX_QUESTION_BYTES: usize = 1 << 16;

impl<'a> Question<'a> {
    /// A question that is answered freely, in at most [`DEFAULT_MAX_TOKENS`].
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            max_tokens: DEFAULT_MAX_TOKENS,
            only: &[],
            watched: &[],
        }
    }
}

/// What a model answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The answer in words, without what ends it, exactly as the tokens spell it.
    pub text: String,
    /// Its tokens, without the one that ends it.
    pub ids: Vec<u32>,
    /// Natural logarithm of the probability of each of `ids`: the softmax of
    /// the raw logits over the whole vocabulary, also where [`Question::only`] narrowed the choice.
    pub log_probabilities: Vec<f32>,
    /// For each of `ids`, the probability at its position of each of
    /// [`Question::watched`], from the same softmax.
    pub watched: Vec<Vec<f32>>,
    /// Whether the model ended the answer; otherwise it was cut off.
    pub ended: bool,
}
