//! `qwen.tiktoken`: the vocabulary of the first Qwen, a line for each token
//! with its bytes in base64 and its rank, which is its id.
//!
//! tiktoken merges any two neighbours that together are a token, the lowest
//! rank first. So the list of merges has every pair that makes a token, in the
//! order of the tokens' ranks.

use std::{collections::HashMap, error::Error};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

/// A vocabulary, as `tokenizer.json` has it.
#[derive(Debug)]
pub(super) struct TiktokenFile {
    /// Tokens, spelled in the characters that stand for bytes, with their ids.
    pub(super) vocab: Value,
    /// Pairs of tokens, first come first merged.
    pub(super) merges: Vec<Value>,
    /// Special tokens, whose ids follow those of the vocabulary.
    pub(super) special: Vec<(String, u32)>,
}

/// The line at fault, and why, if there is a reason beyond its form.
#[derive(Debug, thiserror::Error)]
#[error("line {line} is {found:?}, expected a token in base64, a space and its rank {line_rank}", line_rank = line - 1)]
pub(super) struct TiktokenError {
    /// Counted from 1.
    line: usize,
    found: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Special tokens of Qwen before and behind `<|extra_0|>` to `<|extra_204|>`;
/// those behind came with Qwen-VL.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const EXTRA: usize = 205;
const SPECIAL_VISUAL: [&str; 9] = [
    "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>",
];

impl TiktokenFile {
    pub(super) fn parse(text: &str) -> Result<Self, TiktokenError> {
        let mut ranks = HashMap::new();
        let mut tokens = Vec::new();
        let lines = text.lines().filter(|line| !line.is_empty());
        for (rank, line) in lines.enumerate() {
            let wrong = |source| TiktokenError {
                line: rank + 1,
                found: line.chars().take(60).collect(),
                source,
            };
            let (token, number) = line.split_once(' ').ok_or_else(|| wrong(None))?;
            // Ranks count the lines, so that ids have no gaps.
            if number.parse() != Ok(rank) {
                return Err(wrong(None));
            }
            let token = BASE64_STANDARD.decode(token);
            let token = token.map_err(|error| wrong(Some(error.into())))?;
            if token.is_empty() || ranks.insert(token.clone(), rank).is_some() {
                return Err(wrong(None));
            }
            tokens.push(token);
        }

        let characters: [char; 256] = std::array::from_fn(|byte| char_of(byte as u8));
        let spelled = |token: &[u8]| -> String {
            let bytes = token.iter().map(|&byte| usize::from(byte));
            bytes.map(|byte| characters[byte]).collect()
        };
        let mut merges = Vec::new();
        for token in &tokens {
            let mut pairs: Vec<(usize, usize, usize)> = (1..token.len())
                .filter_map(|at| {
                    let (left, right) = token.split_at(at);
                    Some((*ranks.get(left)?, *ranks.get(right)?, at))
                })
                .collect();
            pairs.sort_unstable();
            merges.extend(pairs.iter().map(|&(.., at)| {
                let (left, right) = token.split_at(at);
                json!([spelled(left), spelled(right)])
            }));
        }
        let vocab: Map<String, Value> = tokens
            .iter()
            .enumerate()
            .map(|(rank, token)| (spelled(token), rank.into()))
            .collect();
        let extra = (0..EXTRA).map(|i| format!("<|extra_{i}|>"));
        let special = SPECIAL.map(str::to_owned).into_iter().chain(extra);
        let special = special.chain(SPECIAL_VISUAL.map(str::to_owned));
        Ok(Self {
            vocab: vocab.into(),
            merges,
            special: special.zip(tokens.len() as u32..).collect(),
        })
    }
}

/// The character that stands for a byte in a byte-level vocabulary: itself if
/// it is printable, else one of those from U+0100 on.
fn char_of(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !is_printable(byte)).count();
    char::from_u32(0x100 + before as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_characters_of_byte_level_vocabularies() {
        let expected = [
            (b'a', 'a'),
            (b' ', 'Ġ'),
            (b'\n', 'Ċ'),
            (0, 'Ā'),
            (0x7F, 'ġ'),
            (0xAD, 'Ń'),
            (0xFF, 'ÿ'),
        ];
        for (byte, character) in expected {
            assert_eq!(char_of(byte), character, "{byte}");
        }
    }

    #[test]
    fn every_pair_that_makes_a_token_can_be_merged() -> Result<(), TiktokenError> {
        // a, b, ab, bb, abb: the last is ab + b or a + bb.
        let file = TiktokenFile::parse("YQ== 0\nYg== 1\nYWI= 2\nYmI= 3\nYWJi 4\n")?;
        let pairs = [["a", "b"], ["b", "b"], ["a", "bb"], ["ab", "b"]];
        assert_eq!(file.merges, pairs.map(|pair| json!(pair)));
        assert_eq!(file.vocab["abb"], 4);
        assert_eq!(file.special.len(), 3 + 205 + 9);
        assert_eq!(file.special[0], ("<|endoftext|>".to_owned(), 5));
        assert_eq!(file.special[208], ("<ref>".to_owned(), 5 + 208));
        Ok(())
    }

    #[test]
    fn damaged_lines_are_named() {
        for (text, found) in [
            (
                "YQ== 0\nYg==\n",
                "line 2 is \"Yg==\", expected a token in base64, a space and its rank 1",
            ),
            ("YQ== 1\n", "line 1 is \"YQ== 1\""),
            ("Y!== 0\n", "line 1 is \"Y!== 0\""),
            ("YQ== 0\nYQ== 1\n", "line 2"),
            (" 0\n", "line 1 is \" 0\""),
        ] {
            let error = TiktokenFile::parse(text).expect_err(text).to_string();
            assert!(error.contains(found), "{error}");
        }
    }
}
