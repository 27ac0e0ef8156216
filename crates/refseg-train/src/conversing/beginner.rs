//! A small model to begin with: the built-in one's eyes and language model, with words to converse
//! in.
//!
//! The built-in model finds what phrases mean, but cannot be talked with: it has no words for
//! questions, boxes and points. Here it gains them, each as one token: every number of three
//! digits, and every text that stands between numbers and phrases. So SAM4MLLM's own questions
//! cost a small model no more than ones of its own would. Embeddings of neighbouring numbers begin
//! alike, so that what is learned of one place is soon known of those beside it.

use std::{
    collections::BTreeMap,
    f64::consts::{LN_2, TAU},
    fs,
    path::Path,
};

use refseg::{
    builtin,
    random::SplitMix64,
    sam4mllm::{AnswerCount, Method, NO, NO_OBJECT, Wording, YES, first_question, second_question},
    tokenizer::QWEN2_PATTERN,
    weights::{SaveDtype, TensorSpec, save_safetensors},
};
use serde_json::{Value, json};

use crate::{TrainError, checkpoint, scratch::vocabulary::VocabularyError};

/// What `refseg init` calls it.
pub const NAME: &str = "small-chat";

/// No roles, no system text: `<img>` picture `</img>` question answer.
const TEMPLATE: &str = "refseg-talk";
/// Numbers that are one token.
const NUMBERS: usize = 1000;
/// Embedding and head, whose rows are tokens; the built-in model is of Qwen2's kind.
const TABLES: [&str; 2] = [
    "language_model.model.embed_tokens.weight",
    "language_model.lm_head.weight",
];
/// What belongs to the built-in model's own method.
const DECODER: &str = "res_decoder.";

/// Writes the model into a folder that exists; `seed` decides about the rows of new tokens.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, seed: u64) -> Result<(), TrainError> {
    let mut config = builtin::config()?;
    let old = config.language.vocabulary;
    let (tokenizer, vocabulary) = tokenizer(old)?;
    config.language.vocabulary = vocabulary;
    config.template = TEMPLATE.to_owned();
    let mut config_json = config.to_json();
    config_json["architectures"] = json!(["InternVLChatModel"]);
    let files = [
        ("config.json", checkpoint::json(&config_json)),
        ("tokenizer.json", checkpoint::json(&tokenizer)),
    ];
    for (name, bytes) in files {
        checkpoint::write(&folder.join(name), &bytes)?;
    }

    let alike = alike(&tokenizer);
    let weights = builtin::weights()?;
    let mut specs = Vec::new();
    for key in weights.keys().filter(|key| !key.starts_with(DECODER)) {
        if let Some(info) = weights.info(key) {
            let mut shape = info.shape.clone();
            if TABLES.contains(&key) {
                shape[0] = vocabulary;
            }
            specs.push(TensorSpec {
                name: key.to_owned(),
                shape,
            });
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("model.safetensors");
    save_safetensors(&path, &specs, SaveDtype::F16, &metadata, |spec| {
        let mut shape = spec.shape.clone();
        if !TABLES.contains(&spec.name.as_str()) {
            return weights.read_f32(&spec.name, &shape, "the built-in model");
        }
        let width = shape[1];
        let texts = vocabulary - old - NUMBERS;
        let mut random = SplitMix64::named(&spec.name, seed);
        let mut normal = |rows: usize, deviation: f64| -> Vec<f32> {
            let values = (0..rows * width).map(|_| (deviation * random.normal()) as f32);
            values.collect()
        };
        // What the built-in model says is nothing that is said here, and it is very sure of it.
        if spec.name == TABLES[1] {
            let mut values = normal(old, HEAD);
            values.extend(numbers(&spec.name, width, HEAD, seed));
            values.extend(normal(texts, HEAD));
            return Ok(values);
        }
        shape[0] = old;
        let mut values = weights.read_f32(&spec.name, &shape, "the built-in model")?;
        let deviation = deviation(&values);
        values.extend(numbers(&spec.name, width, deviation, seed));
        values.extend(normal(texts, deviation));
        for (new, known) in &alike {
            values.copy_within(known * width..(known + 1) * width, new * width);
        }
        Ok(values)
    })?;
    Ok(())
}

/// `tokenizer.json` with new tokens from id `first` on, numbers before texts; and how many ids
/// there are then.
fn tokenizer(first: usize) -> Result<(Value, usize), TrainError> {
    let (_, bytes) = builtin::FILES[1];
    let mut json: Value = serde_json::from_slice(bytes).map_err(VocabularyError::Json)?;
    let mut texts = texts();
    // The first that fits is taken, and no text may hide a longer one.
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    let literal: Vec<String> = texts.iter().map(|text| escaped(text)).collect();
    let pattern = format!("{}|\\p{{N}}{{3}}|{QWEN2_PATTERN}", literal.join("|"));
    let split = &mut json["pre_tokenizer"]["pretokenizers"][0]["pattern"];
    *split = json!({ "Regex": pattern });
    // A piece that is a token as it stands is not put together from smaller ones.
    json["model"]["ignore_merges"] = true.into();
    let known = json["model"]["vocab"].as_object_mut();
    let mut next = first;
    if let Some(known) = known {
        let numbers = (0..NUMBERS).map(|number| format!("{number:03}"));
        for text in numbers.chain(texts) {
            let spelled = spelled(&text);
            if !known.contains_key(&spelled) {
                known.insert(spelled, next.into());
                next += 1;
            }
        }
    }
    Ok((json, next))
}

/// Every text that stands between numbers and phrases, as pieces.
fn texts() -> Vec<String> {
    let mut texts = Vec::new();
    for method in [Method::Pqpp, Method::Ppg] {
        for count in [
            AnswerCount::One,
            AnswerCount::OneOrMore,
            AnswerCount::ZeroOrMore,
        ] {
            // Up to the phrase and its quotation mark.
            let question = first_question(method, "", count);
            let before = question.trim_end_matches("\".");
            texts.push(before.to_owned());
        }
    }
    for wording in [Wording::Coordinates, Wording::BoundingBox] {
        let question = second_question(wording, [0; 4], &[]);
        let before = question.split('[').next().unwrap_or_default();
        texts.push(before.to_owned());
    }
    let short = [
        "\".", "[", ",", "]", "] [", " [", "]:\n(", ") (", ")", "](", ",1)(", ",0)(", ",1)", ",0)",
        NO_OBJECT, YES, NO,
    ];
    texts.extend(short.map(str::to_owned));
    texts
}

/// Tokens whose embedding begins as that of one that the built-in model knows: where it would say
/// `[SEG]`, behind a colon, answers now begin and go on; and questions begin where `</img>` stood.
fn alike(tokenizer: &Value) -> Vec<(usize, usize)> {
    let id = |text: &str| tokenizer["model"]["vocab"][spelled(text)].as_u64();
    let added = tokenizer["added_tokens"].as_array();
    let end_of_image = added.into_iter().flatten();
    let mut end_of_image = end_of_image.filter(|token| token["content"] == "</img>");
    let end_of_image = end_of_image.next().and_then(|token| token["id"].as_u64());
    let pairs = texts().into_iter().filter_map(|text| {
        let known = if text.starts_with("Please") {
            end_of_image
        } else {
            id(":")
        };
        Some((id(&text)? as usize, known? as usize))
    });
    pairs.collect()
}

/// A text as a regular expression that fits it alone.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if "\\.+*?()|[]{}^$#&-~".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// A text as byte-level vocabularies spell it: each byte as a character that can be printed.
fn spelled(text: &str) -> String {
    let is_plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let character = |byte: u8| {
        if is_plain(byte) {
            return char::from(byte);
        }
        // The others come behind all bytes, in their order.
        let place = (0..byte).filter(|&before| !is_plain(before)).count() as u32;
        char::from_u32(256 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    text.bytes().map(character).collect()
}

/// Deviation of the head's values: small, so that nothing is said with confidence at first.
const HEAD: f64 = 0.02;
/// Waves that a column of the numbers' rows is made of.
const WAVES: usize = 8;
/// Waves of the longest and the shortest over all numbers.
const PERIODS: [f64; 2] = [0.25, 24.0];

/// Rows of the numbers `000` to `999`, each column a sum of waves over them.
fn numbers(key: &str, width: usize, deviation: f64, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::named(&format!("{key}/numbers"), seed);
    let [longest, shortest] = PERIODS;
    let octaves = (shortest / longest).ln() / LN_2;
    let waves = (0..width * WAVES).map(|_| {
        let frequency = longest * (octaves * random.uniform()).exp2();
        (frequency, random.uniform())
    });
    let waves: Vec<(f64, f64)> = waves.collect();
    let scale = deviation * (2.0 / WAVES as f64).sqrt();
    let mut rows = Vec::with_capacity(NUMBERS * width);
    for number in 0..NUMBERS {
        let at = number as f64 / NUMBERS as f64;
        rows.extend(waves.chunks(WAVES).map(|waves| {
            let sum = waves
                .iter()
                .map(|(frequency, phase)| (TAU * (frequency * at + phase)).cos());
            (scale * sum.sum::<f64>()) as f32
        }));
    }
    rows
}

/// Standard deviation around zero.
fn deviation(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&value| f64::from(value).powi(2));
    (squares.sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// Copies what describes a model: every file of a folder but weights, their index and adapters.
pub(crate) fn copy_description(from: &Path, to: &Path) -> Result<(), TrainError> {
    let read = |source| TrainError::Read {
        path: from.to_owned(),
        source,
    };
    for entry in fs::read_dir(from).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_described = [".json", ".model", ".txt", ".tiktoken", "LICENSE"]
            .iter()
            .any(|end| name.ends_with(end));
        let is_weights = name.ends_with(".index.json") || name.starts_with("adapter_");
        if path.is_file() && is_described && !is_weights {
            let bytes = fs::read(&path).map_err(|source| TrainError::Read {
                path: path.clone(),
                source,
            })?;
            checkpoint::write(&to.join(&*name), &bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use refseg::{chat::Backbone, tokenizer::Tokenizer};

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn what_is_said_beside_phrases_is_few_tokens() -> Outcome {
        let folder = tempfile::tempdir()?;
        write(folder.path(), 0)?;
        let tokenizer = Tokenizer::from_folder(folder.path())?;
        let count = |text: &str| Ok::<_, TrainError>(tokenizer.encode(text)?.len());
        assert_eq!(count("[281,251,863,999]")?, 9);
        assert_eq!(count("[281,251,863,999] [000,001,002,003]")?, 17);
        assert_eq!(count("[281,251,863,999](300,400,1)(010,020,0)")?, 17);
        assert_eq!(count("NoYesYesNo")?, 4);
        assert_eq!(count(NO_OBJECT)?, 1);
        let backbone = Backbone::from_folder(folder.path())?;
        // `</img>`, the question, three words and `".`; then the answer's.
        let first = first_question(Method::Pqpp, "the red ring", AnswerCount::ZeroOrMore);
        let talk = backbone.write(&[(&first, "[281,251,863,999]")])?;
        assert_eq!(talk.answers[0], 6..16);
        // The question; a box of nine, whose end begins the first point; and two points of four.
        let points = [[1, 2], [3, 4]];
        let second = second_question(Wording::Coordinates, [281, 251, 863, 999], &points);
        let talk = backbone.write(&[(&first, "[281,251,863,999]"), (&second, "YesNo")])?;
        let said = &talk.ids[talk.answers[1].clone()];
        assert_eq!(said.len(), 3);
        assert_eq!(talk.answers[1].start, 16 + 1 + 9 + 8);
        // Nothing is lost on the way.
        assert_eq!(tokenizer.decode(&tokenizer.encode(&second)?)?, second);
        Ok(())
    }

    #[test]
    fn neighbouring_numbers_begin_alike() {
        let width = 64;
        let rows = numbers("head", width, 0.1, 0);
        let alike = |a: usize, b: usize| {
            let (a, b) = (&rows[a * width..][..width], &rows[b * width..][..width]);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        assert!(alike(500, 501) > 0.95 && alike(500, 900).abs() < 0.5);
        let spread = deviation(&rows);
        assert!((spread - 0.1).abs() < 0.02, "{spread}");
    }

    #[test]
    fn bytes_are_spelled_as_in_byte_level_vocabularies() {
        assert_eq!(spelled("a b\n"), "aĠbĊ");
        assert_eq!(spelled("é"), "Ã©");
    }
}
