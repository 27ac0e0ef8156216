//! Any bytes, taken for a text, for a `tokenizer.json` and for a SentencePiece model.
//!
//! Whatever the text and whatever the vocabulary, encoding does not panic, ids stay within the
//! vocabulary, and ordinary text never becomes an added token.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use refseg::tokenizer::{Tokenizer, TokenizerError};

/// One tokenizer of each kind, small, from the library's fixtures.
static KNOWN: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/refseg/tests/fixtures");
    ["mllmseg-qwen2-res", "mllmseg-internlm2-gres-lora"]
        .map(|model| Tokenizer::from_folder(&fixtures.join(model)).expect("the fixtures are sound"))
        .into()
});

const TEXTS: [&str; 5] = [
    "",
    "the second star from the left",
    "[SEG]</img><|im_end|>\n<s>",
    "a\u{0}b \u{202e}\u{5d0} \u{1f9e2}\u{fe0f}",
    "    \t\r\n\n   ",
];

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for tokenizer in &*KNOWN {
        check(tokenizer, &text);
    }
    let loaded = [Tokenizer::from_json_bytes(data), from_sentencepiece(data)];
    for tokenizer in loaded.into_iter().flatten() {
        for text in TEXTS {
            check(&tokenizer, text);
        }
    }
});

fn from_sentencepiece(model: &[u8]) -> Result<Tokenizer, TokenizerError> {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    std::fs::write(folder.path().join("tokenizer.model"), model)
        .expect("the temporary folder is writable");
    Tokenizer::from_folder(folder.path())
}

fn check(tokenizer: &Tokenizer, text: &str) {
    let Ok(ids) = tokenizer.encode(text) else {
        return;
    };
    for id in ids {
        assert!(
            (id as usize) < tokenizer.vocabulary_size(),
            "id {id} is outside the vocabulary"
        );
        assert!(
            tokenizer.added_tokens().all(|(_, added)| added != id),
            "text became added token {id}"
        );
    }
}
