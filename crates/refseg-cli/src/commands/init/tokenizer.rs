//! A tokenizer for a model with random weights: bytes, the words of prompts and
//! of drawn scenes, and the official special tokens.
//!
//! The published vocabularies are not ours to give away, but a benchmark needs
//! prompts of about the real length. So the words that prompts are made of are
//! one token each here, and so is each Chinese character of the system prompt;
//! anything else is a token a byte. The special tokens have their official ids,
//! at the end of a vocabulary of the official size.

use anyhow::{Context, Result};
use refseg::{
    language::{LanguageConfig, LanguageFamily},
    prompt::{SYSTEM_INTERNLM2_CHAT, SYSTEM_INTERNVL2_5},
};
use refseg_data::scenes;
use refseg_train::vocabulary::{ADDED_TOKENS, train_tokenizer};
use serde_json::{Map, Value, json};

/// The English words of prompts, besides those of phrases.
const PROMPT_WORDS: &str =
    "system user assistant InternVL Sure What are in this image Please output segmentation masks";
/// More than enough for the words above; training ends when they are whole.
const VOCABULARY: usize = 4096;
/// What InternVL and MLLMSeg add to a language model's vocabulary, in the order of their ids.
/// The first three of the list are Qwen2's own.
const ADDED: &[&str] = ADDED_TOKENS.split_at(3).1;

/// The tokenizer's files: names and contents.
pub(super) fn files(language: &LanguageConfig) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let special = special_tokens(language);
    let is_internlm2 = language.family == LanguageFamily::InternLm2;
    // `<unk>`, `<s>` and `</s>` come first.
    let first = if is_internlm2 { 3 } else { 0 };
    let trained = train_tokenizer(corpus(), VOCABULARY)?;
    let mut tokenizer: Value = serde_json::from_slice(&trained.tokenizer_json)
        .context("cannot read the tokenizer just made")?;
    if let Some(vocabulary) = tokenizer["model"]["vocab"].as_object_mut() {
        for id in vocabulary.values_mut() {
            *id = (id.as_u64().unwrap_or(0) + first).into();
        }
    }
    let added: Vec<Value> = special
        .iter()
        .map(|(token, id)| described(token, Some(*id)))
        .collect();
    let decoder: Map<String, Value> = special
        .iter()
        .map(|(token, id)| (id.to_string(), described(token, None)))
        .collect();
    tokenizer["added_tokens"] = added.into();
    let config = json!({
        "added_tokens_decoder": decoder,
        "add_bos_token": is_internlm2,
        "bos_token": is_internlm2.then_some("<s>"),
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": if is_internlm2 { "</s>" } else { "<|endoftext|>" },
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    let file = |name: &'static str, value: Value| -> Result<(&'static str, Vec<u8>)> {
        let bytes =
            serde_json::to_vec_pretty(&value).with_context(|| format!("cannot write {name}"))?;
        Ok((name, bytes))
    };
    Ok(vec![
        file("tokenizer.json", tokenizer)?,
        file("tokenizer_config.json", config)?,
    ])
}

/// The special tokens and their official ids, ascending.
fn special_tokens(language: &LanguageConfig) -> Vec<(&'static str, u32)> {
    let end = language.vocabulary as u32;
    let before: Vec<(&str, u32)> = if language.family == LanguageFamily::InternLm2 {
        let first = end - ADDED.len() as u32 - 2;
        vec![
            ("<unk>", 0),
            ("<s>", 1),
            ("</s>", 2),
            ("<|im_end|>", first),
            ("<|im_start|>", first + 1),
        ]
    } else {
        // Behind the 151,643 merges and bytes of Qwen2; Qwen2.5 has 19 more before InternVL's.
        let first = end - ADDED.len() as u32 - 22;
        vec![
            ("<|endoftext|>", first),
            ("<|im_start|>", first + 1),
            ("<|im_end|>", first + 2),
        ]
    };
    let added = ADDED.iter().copied().zip(end - ADDED.len() as u32..);
    before.into_iter().chain(added).collect()
}

fn described(token: &str, id: Option<u32>) -> Value {
    let mut value = json!({
        "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
    });
    if let Some(id) = id {
        value["id"] = id.into();
    }
    value
}

/// The words to know, each as often as training asks for.
fn corpus() -> impl Iterator<Item = String> {
    let words = PROMPT_WORDS.split(' ').chain(scenes::vocabulary());
    let words = words.flat_map(|word| [word.to_owned(), format!(" {word}")]);
    let system = SYSTEM_INTERNVL2_5
        .chars()
        .chain(SYSTEM_INTERNLM2_CHAT.chars());
    let letters = system.filter(|letter| !letter.is_ascii()).map(String::from);
    words
        .chain(letters)
        .flat_map(|piece| [piece.clone(), piece])
}

#[cfg(test)]
mod tests {
    use refseg::{
        internvl::Config,
        prompt::{PromptBuilder, Template},
        tokenizer::Tokenizer,
    };

    use super::*;

    #[test]
    fn special_tokens_have_their_official_ids() -> Result<()> {
        for (preset, expected) in [
            (
                "internvl2_5-1b",
                [
                    ("<|endoftext|>", 151_643),
                    ("<|im_end|>", 151_645),
                    ("<img>", 151_665),
                ],
            ),
            (
                "internvl2_5-2b",
                [("<s>", 1), ("<|im_start|>", 92_543), ("<img>", 92_544)],
            ),
        ] {
            let config = Config::preset(preset).context("a preset")?;
            let folder = tempfile::tempdir()?;
            for (name, bytes) in files(&config.language)? {
                std::fs::write(folder.path().join(name), bytes)?;
            }
            let tokenizer = Tokenizer::from_folder(folder.path())?;
            for (token, id) in expected {
                assert_eq!(tokenizer.added_token(token), Some(id), "{preset} {token}");
            }
            assert_eq!(tokenizer.vocabulary_size(), config.language.vocabulary);
            assert_eq!(
                tokenizer.encode("é [SEG]")?.len(),
                8,
                "every byte is a token"
            );
            let prompts = PromptBuilder::new(tokenizer, Template::InternVl2_5, 256)?;
            let bos = usize::from(preset == "internvl2_5-2b");
            assert_eq!(prompts.prefix()?.image_start, 9 + 51 + bos, "{preset}");
            let suffix = prompts.single("the red ring")?;
            assert_eq!(suffix.before_last_marker().len(), 26, "{preset}");
        }
        Ok(())
    }
}
