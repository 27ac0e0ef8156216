//! Qwen-VL on a small random model of our own making: what conversations
//! promise, and what does not fit. Nothing here comes from the official code.

use std::{error::Error, fs};

use base64::{Engine, prelude::BASE64_STANDARD};
use refseg::{
    Image, Options,
    chat::{self, Mllm, Question},
    nn::Blueprint,
    qwen_vl::{Config, QwenVl},
    random::SplitMix64,
    tokenizer::Tokenizer,
    weights::{SaveDtype, TensorSpec, WeightsError, save_safetensors},
};
use serde_json::{Value, json};
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn Error>>;

/// Tokens of the vocabulary beyond the bytes.
const WORDS: [&str; 8] = ["He", "ll", "llo", "Hello", " w", " wo", "Yes", "No"];
const VOCABULARY: usize = 256 + WORDS.len() + 217;

fn config() -> Value {
    json!({
        "architectures": ["QWenLMHeadModel"],
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY + 3,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "seq_length": 2048,
        "no_bias": true,
        "tie_word_embeddings": false,
        "visual": {
            "image_size": 56, "patch_size": 14, "width": 24, "layers": 2,
            "heads": 3, "mlp_ratio": 1.5, "output_dim": 128,
        },
    })
}

/// The tokens: every byte, then words.
fn tokens() -> Vec<Vec<u8>> {
    let bytes = (0..=255).map(|byte| vec![byte]);
    let words = WORDS.iter().map(|word| word.as_bytes().to_vec());
    bytes.chain(words).collect()
}

fn tiktoken() -> String {
    let lines = tokens().into_iter().enumerate();
    lines
        .map(|(rank, token)| format!("{} {rank}\n", BASE64_STANDARD.encode(token)))
        .collect()
}

/// A model folder with random weights.
fn model() -> Result<TempDir, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("config.json"), config().to_string())?;
    fs::write(folder.path().join("qwen.tiktoken"), tiktoken())?;
    fs::write(
        folder.path().join("tokenizer_config.json"),
        r#"{"tokenizer_class": "QWenTokenizer", "model_max_length": 8192}"#,
    )?;
    let config = Config::from_folder(folder.path())?;
    let parts = Blueprint::of(|source| QwenVl::load(source, &config))?;
    let specs = parts.iter().map(|part| TensorSpec {
        name: part.key.clone(),
        shape: part.shape.clone(),
    });
    let specs: Vec<TensorSpec> = specs.collect();
    let path = folder.path().join("model.safetensors");
    save_safetensors(&path, &specs, SaveDtype::F32, &Default::default(), |spec| {
        let mut random = SplitMix64::named(&spec.name, 7);
        let count: usize = spec.shape.iter().product();
        let inputs = spec.shape.last().map_or(1, |&n| n) as f64;
        let scale = if spec.shape.len() > 1 {
            2.0 * (3.0 / inputs).sqrt()
        } else {
            0.4
        };
        let offset = if spec.name.contains("ln") && spec.name.ends_with("weight") {
            1.0
        } else {
            0.0
        };
        let value = |_| ((random.uniform() - 0.5) * scale + offset) as f32;
        Ok::<_, WeightsError>((0..count).map(value).collect())
    })?;
    Ok(folder)
}

fn picture() -> Result<Image, Box<dyn Error>> {
    let pixels = (0..90 * 60 * 3).map(|i| (i * 7 % 251) as u8).collect();
    Ok(Image::from_rgb(90, 60, pixels)?)
}

#[test]
fn tensors_have_the_published_names() -> Outcome {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("config.json"), config().to_string())?;
    let config = Config::from_folder(folder.path())?;
    let parts = Blueprint::of(|source| QwenVl::load(source, &config))?;
    let shape = |key: &str| {
        parts
            .iter()
            .find(|part| part.key == key)
            .map(|part| &part.shape[..])
    };
    for (key, expected) in [
        ("transformer.wte.weight", &[VOCABULARY + 3, 128][..]),
        ("transformer.h.1.ln_1.weight", &[128]),
        ("transformer.h.1.attn.c_attn.weight", &[384, 128]),
        ("transformer.h.1.attn.c_attn.bias", &[384]),
        ("transformer.h.1.attn.c_proj.weight", &[128, 128]),
        ("transformer.h.0.mlp.w2.weight", &[48, 128]),
        ("transformer.h.0.mlp.c_proj.weight", &[128, 48]),
        ("transformer.ln_f.weight", &[128]),
        ("lm_head.weight", &[VOCABULARY + 3, 128]),
        ("transformer.visual.conv1.weight", &[24, 3, 14, 14]),
        ("transformer.visual.positional_embedding", &[256, 24]),
        (
            "transformer.visual.transformer.resblocks.1.attn.in_proj.weight",
            &[72, 24],
        ),
        (
            "transformer.visual.transformer.resblocks.1.mlp.c_fc.weight",
            &[36, 24],
        ),
        ("transformer.visual.attn_pool.kv_proj.weight", &[128, 24]),
        ("transformer.visual.attn_pool.attn.in_proj_bias", &[384]),
        ("transformer.visual.attn_pool.query", &[256, 128]),
        ("transformer.visual.ln_post.weight", &[128]),
        ("transformer.visual.proj", &[128, 128]),
    ] {
        assert_eq!(shape(key), Some(expected), "{key}");
    }
    // Two tables, the transformer's norm, convolution and two blocks of 12, the pool, and 2 + 2·8 + 1 of the text.
    assert_eq!(parts.len(), 1 + 1 + 2 + 2 * 12 + 11 + 3 + 2 * 8 + 3);
    Ok(())
}

/// tiktoken as its authors describe it: merge the two neighbours whose join has the lowest rank, the
/// first of equals.
fn encoded_plainly(word: &str) -> Vec<u32> {
    let tokens = tokens();
    let rank = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
    let mut parts: Vec<Vec<u8>> = word.bytes().map(|byte| vec![byte]).collect();
    let best = |parts: &[Vec<u8>]| {
        let joins = parts.windows(2).enumerate();
        joins
            .filter_map(|(i, pair)| Some((rank(&pair.concat())?, i)))
            .min()
    };
    while let Some((_, i)) = best(&parts) {
        let right = parts.remove(i + 1);
        parts[i].extend(right);
    }
    parts
        .iter()
        .filter_map(|part| rank(part))
        .map(|id| id as u32)
        .collect()
}

#[test]
fn the_tokenizer_reads_tiktoken() -> Outcome {
    let folder = model()?;
    let tokenizer = Tokenizer::from_folder(folder.path())?;
    assert_eq!(tokenizer.vocabulary_size(), VOCABULARY);
    let first = 256 + WORDS.len() as u32;
    for (token, id) in [
        ("<|endoftext|>", 0),
        ("<|im_end|>", 2),
        ("<|extra_204|>", 207),
        ("<ref>", 208),
        ("<imgpad>", 216),
    ] {
        assert_eq!(tokenizer.added_token(token), Some(first + id), "{token}");
    }
    for words in [
        &["Hello", " wo", "rld"][..],
        &["Hell"],
        &["llllo"],
        &["YesNoYes"],
        &["1", "2", "3"],
        &["\u{e9}"],
    ] {
        let expected: Vec<u32> = words
            .iter()
            .flat_map(|word| encoded_plainly(word))
            .collect();
        let text = words.concat();
        assert_eq!(tokenizer.encode(&text)?, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected)?, text);
    }
    assert_eq!(tokenizer.encode("Hello")?, [256 + 3]);
    assert_eq!(tokenizer.encode("<img>")?.len(), 5, "text is text");
    Ok(())
}

#[test]
fn a_conversation_goes_on_from_what_was_read() -> Outcome {
    let folder = model()?;
    let model = chat::open(folder.path(), &Options::default())?;
    assert_eq!(model.unused_tensors(), [] as [String; 0]);
    let conversation = model.look(&picture()?)?;
    // Every byte is a token, and so is each of three `<|im_…|>` and `<img>`.
    let opening = "system\nYou are a helpful assistant.\nuser\nPicture 1: ".len() + 4;
    assert_eq!(conversation.length(), opening + 256);
    let [yes, no] = [model.token("Yes")?, model.token("No")?];
    let question = Question {
        max_tokens: 5,
        only: &[yes, no],
        watched: &[no, yes],
        ..Question::new("Is it a dog?")
    };
    let after = conversation.followed_by("Where?", "<ref>it</ref><box>(1,2),(3,4)</box>")?;
    // The markers are one token each, in an answer.
    let words = "</img>\nWhere?".len() - 5 + "\nassistant\nit(1,2),(3,4)\n".len();
    assert_eq!(after.length() - conversation.length(), words + 3 + 4);
    let free = Question {
        max_tokens: 6,
        ..Question::new("And then?")
    };
    let together = after.ask_many(&[question, free])?;
    for (asked, found) in [question, free].iter().zip(&together) {
        let alone = after.ask(asked)?;
        assert_eq!(alone.ids, found.ids);
        for (a, b) in alone.log_probabilities.iter().zip(&found.log_probabilities) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
    assert_eq!(together[0].ids.len(), 5);
    // Another picture is another answer.
    let dark = model
        .look(&Image::from_rgb(4, 4, vec![0; 48])?)?
        .ask(&question)?;
    assert_ne!(dark.watched, conversation.ask(&question)?.watched);
    Ok(())
}

#[test]
fn models_that_do_not_fit_are_refused() -> Outcome {
    let edits: [(&str, Value, &str); 6] = [
        ("no_bias", json!(false), "`no_bias` is false, expected true"),
        (
            "hidden_size",
            json!(256),
            "`visual.output_dim` is 128, expected 256, the `hidden_size`",
        ),
        (
            "num_attention_heads",
            json!(3),
            "`hidden_size` is 128, expected a multiple of 6",
        ),
        ("visual", Value::Null, "`visual.width` is missing"),
        ("vocab_size", json!(5000), "`vocab_size` in config.json"),
        (
            "intermediate_size",
            json!(100),
            "`intermediate_size` in config.json",
        ),
    ];
    for (field, value, expected) in edits {
        let folder = model()?;
        let mut config = config();
        config[field] = value;
        fs::write(folder.path().join("config.json"), config.to_string())?;
        let error = chat::open(folder.path(), &Options::default()).expect_err(field);
        assert!(error.to_string().contains(expected), "{field}: {error}");
    }
    let folder = model()?;
    fs::write(folder.path().join("qwen.tiktoken"), "YQ== 3\n")?;
    let error = Tokenizer::from_folder(folder.path()).expect_err("a wrong rank");
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("line 1 is \"YQ== 3\""), "{cause}");
    Ok(())
}
