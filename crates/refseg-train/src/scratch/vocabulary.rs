//! Learns a vocabulary from a corpus: a byte-level BPE tokenizer in the layout
//! of Qwen2's, with the added tokens of an MLLMSeg checkpoint behind it.
//!
//! A model trained from scratch on a narrow set of phrases needs few rows in
//! its embedding; a vocabulary made of just those phrases keeps it small.

use refseg::tokenizer::QWEN2_PATTERN;
use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder, TokenizerImpl};

/// The added tokens, in the order of their ids: `<|endoftext|>` takes the
/// first id behind the base vocabulary, `[REJ]` the last one of all.
pub const ADDED_TOKENS: [&str; 14] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "[SEG]",
    "[REJ]",
];

/// The smallest vocabulary there is: every byte, and the added tokens.
pub const MIN_VOCABULARY_SIZE: usize = 256 + ADDED_TOKENS.len();

/// A pair of pieces is merged only if the corpus has it this often: what
/// occurs once cannot be learned and would cost a row of the embedding.
const MIN_FREQUENCY: u64 = 2;

/// The longest prompt, in tokens; as in the published checkpoints.
const MODEL_MAX_LENGTH: u32 = 8192;

/// The files of a trained tokenizer, ready to be written to a model folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedTokenizer {
    /// Contents of `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// Contents of `tokenizer_config.json`.
    pub tokenizer_config_json: Vec<u8>,
    /// Contents of `special_tokens_map.json`.
    pub special_tokens_map_json: Vec<u8>,
    /// Number of ids, added tokens included: the model's `vocab_size`.
    pub vocabulary_size: usize,
}

/// Why no tokenizer could be trained.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// The requested size does not hold the bytes and the added tokens.
    #[error("`vocab_size` is {found}, but bytes and added tokens alone need {MIN_VOCABULARY_SIZE}")]
    TooSmall {
        /// The size that was asked for.
        found: usize,
    },
    /// The BPE trainer failed.
    #[error("cannot train a byte-level BPE vocabulary")]
    Train(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A finished tokenizer could not be written as JSON.
    #[error("cannot write the tokenizer as JSON")]
    Json(#[from] serde_json::Error),
}

/// Trains a tokenizer on `corpus` with at most `vocab_size` ids, the 14
/// [`ADDED_TOKENS`] included; fewer if the corpus has no more to merge.
///
/// Text is NFC-normalised, split by Qwen2's pattern and turned into bytes. All
/// 256 bytes are in the vocabulary, so that any text can be encoded. The same
/// corpus gives the same files, whatever its order.
///
/// # Errors
/// [`VocabularyError::TooSmall`] below [`MIN_VOCABULARY_SIZE`].
pub fn train_tokenizer(
    corpus: impl Iterator<Item = String>,
    vocab_size: usize,
) -> Result<TrainedTokenizer, VocabularyError> {
    let base_size = vocab_size
        .checked_sub(ADDED_TOKENS.len())
        .filter(|&base| base >= 256)
        .ok_or(VocabularyError::TooSmall { found: vocab_size })?;

    let mut tokenizer = untrained().map_err(VocabularyError::Train)?;
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(base_size)
        .min_frequency(MIN_FREQUENCY)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    // The trainer reads from several threads; a collected corpus can be sent.
    let lines: Vec<String> = corpus.collect();
    tokenizer
        .train(&mut trainer, lines.into_iter())
        .map_err(VocabularyError::Train)?;
    tokenizer
        .add_special_tokens(ADDED_TOKENS.map(|token| AddedToken::from(token, true)))
        .map_err(VocabularyError::Train)?;

    let vocabulary_size = tokenizer.get_vocab_size(true);
    Ok(TrainedTokenizer {
        tokenizer_json: tokenizer
            .to_string(true)
            .map_err(VocabularyError::Train)?
            .into_bytes(),
        tokenizer_config_json: serde_json::to_vec_pretty(&tokenizer_config(
            vocabulary_size - ADDED_TOKENS.len(),
        ))?,
        special_tokens_map_json: serde_json::to_vec_pretty(&json!({
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
        }))?,
        vocabulary_size,
    })
}

type BytePairTokenizer = TokenizerImpl<BPE, NFC, Sequence, ByteLevel, ByteLevel>;

/// Qwen2's pipeline around an empty BPE.
fn untrained() -> tokenizers::Result<BytePairTokenizer> {
    let split = Split::new(
        SplitPattern::Regex(QWEN2_PATTERN.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )?;
    TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(split),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
        ])))
        .with_post_processor(Some(ByteLevel::new(true, false, true)))
        .with_decoder(Some(ByteLevel::default()))
        .build()
}

/// `tokenizer_config.json` for added tokens that start at id `first`.
fn tokenizer_config(first: usize) -> serde_json::Value {
    let added: serde_json::Map<String, serde_json::Value> = ADDED_TOKENS
        .iter()
        .zip(first..)
        .map(|(content, id)| {
            let token = json!({
                "content": content,
                "lstrip": false,
                "normalized": false,
                "rstrip": false,
                "single_word": false,
                "special": true,
            });
            (id.to_string(), token)
        })
        .collect();
    json!({
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|im_end|>",
        "model_max_length": MODEL_MAX_LENGTH,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use refseg::tokenizer::Tokenizer;

    const COLOURS: [&str; 4] = ["red", "green", "blue", "yellow"];
    const SHAPES: [&str; 5] = ["circle", "square", "star", "triangle", "ring"];

    /// 200 lines such as `the red circle left of the blue ring`.
    fn corpus() -> impl Iterator<Item = String> {
        (0..200).map(|i| {
            let (a, b) = (COLOURS[i % 4], COLOURS[i / 4 % 4]);
            let (c, d) = (SHAPES[i % 5], SHAPES[i / 5 % 5]);
            format!("the {a} {c} left of the {b} {d}")
        })
    }

    fn load(trained: &TrainedTokenizer) -> Tokenizer {
        Tokenizer::from_json_bytes(&trained.tokenizer_json).expect("the trained file loads")
    }

    #[test]
    fn words_of_the_corpus_become_single_tokens() {
        let trained = train_tokenizer(corpus(), 1000).expect("training");
        let tokenizer = load(&trained);
        assert!(trained.vocabulary_size < 1000);
        assert_eq!(tokenizer.vocabulary_size(), trained.vocabulary_size);
        for word in COLOURS.iter().chain(&SHAPES) {
            let ids = tokenizer.encode(&format!(" {word}")).expect("encode");
            assert_eq!(ids.len(), 1, "{word}: {ids:?}");
        }
        let phrase = "the red circle left of the blue ring";
        assert_eq!(tokenizer.encode(phrase).expect("encode").len(), 8);
    }

    #[test]
    fn added_tokens_follow_the_base_vocabulary_in_order() {
        let lines = || corpus().chain(["[SEG] <img> <|im_end|>".to_owned(); 1]);
        let trained = train_tokenizer(lines(), 400).expect("training");
        let tokenizer = load(&trained);
        let base = trained.vocabulary_size - ADDED_TOKENS.len();
        let config: serde_json::Value =
            serde_json::from_slice(&trained.tokenizer_config_json).expect("JSON");
        for (token, id) in ADDED_TOKENS.iter().zip(base..) {
            assert_eq!(tokenizer.added_token(token), Some(id as u32), "{token}");
            let listed = &config["added_tokens_decoder"][id.to_string()]["content"];
            assert_eq!(listed, token);
        }
    }

    #[test]
    fn any_text_can_be_encoded() {
        let trained = train_tokenizer(std::iter::empty(), MIN_VOCABULARY_SIZE).expect("training");
        let tokenizer = load(&trained);
        let text: String = (0..0x3000).filter_map(char::from_u32).step_by(7).collect();
        assert_eq!(trained.vocabulary_size, MIN_VOCABULARY_SIZE);
        assert!(tokenizer.encode(&text).expect("encode").len() >= text.chars().count());
    }

    #[test]
    fn the_same_corpus_gives_the_same_bytes_in_any_order() {
        let first = train_tokenizer(corpus(), 380).expect("training");
        let mut reversed: Vec<String> = corpus().collect();
        reversed.reverse();
        for _ in 0..5 {
            let again = train_tokenizer(reversed.iter().cloned(), 380).expect("training");
            assert_eq!(first, again);
        }
    }

    #[test]
    fn too_small_a_size_is_refused() {
        let error = train_tokenizer(corpus(), MIN_VOCABULARY_SIZE - 1).expect_err("too small");
        assert!(matches!(error, VocabularyError::TooSmall { found: 269 }));
    }
}
