//! Turns text into token ids, exactly as the checkpoint's own tokenizer does.
//!
//! [`Tokenizer::encode`] knows ordinary text only: `[SEG]` or `<|im_start|>`
//! inside a phrase are characters like any others. The ids of added tokens
//! come from [`Tokenizer::added_token`] alone, so that nobody can steer a
//! prompt by what they write into a phrase.
//!
//! Specification: the MLLMSeg reference loads the slow tokenizers of
//! `transformers` 4.37. Differs: the reference recognises added tokens
//! anywhere in the text.

mod sentencepiece;
mod tiktoken;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use sentencepiece::SentencePieceError;
use sentencepiece::{ModelFile, SentencePiece};
use tiktoken::TiktokenFile;

/// How Qwen2 cuts text into words before byte-level BPE.
pub const QWEN2_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// A checkpoint's vocabulary. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// The file that the vocabulary came from, for messages.
    source: PathBuf,
    model: Model,
    reserved: Reserved,
    vocabulary_size: usize,
    bos: Option<u32>,
    prefix: Vec<u32>,
}

enum Model {
    BytePairs(Box<tokenizers::Tokenizer>),
    SentencePiece(Box<SentencePiece>),
}

/// Why a tokenizer could not be loaded, or a text not encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The folder has none of the known files.
    #[error(
        "`{folder}`: no tokenizer; expected `tokenizer.json`, `tokenizer.model`, \
         `vocab.json` with `merges.txt`, or `qwen.tiktoken`"
    )]
    NoFiles {
        /// The folder that was searched.
        folder: PathBuf,
    },
    /// A file could not be read.
    #[error("`{path}`: cannot read the file")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not JSON, or not of the expected form.
    #[error("`{path}`: not the JSON that was expected")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A field has a value that is not supported.
    #[error("`{path}`: `{field}` is {found}, expected {expected}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, as written in the file.
        field: &'static str,
        /// Its value.
        found: String,
        /// The values that are supported.
        expected: &'static str,
    },
    /// `tokenizer.model` cannot be used.
    #[error("`{path}`: cannot use the SentencePiece model")]
    SentencePiece {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SentencePieceError,
    },
    /// The vocabulary was read, but the tokenizer rejects it.
    #[error("`{path}`: cannot build the tokenizer")]
    Build {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Two files give the same added token different ids.
    #[error("`{path}`: token `{token}` has id {found}, but id {expected} in another file")]
    Conflict {
        /// The file that was read last.
        path: PathBuf,
        /// The added token.
        token: String,
        /// Its id in `path`.
        found: u32,
        /// Its id in the file that was read before.
        expected: u32,
    },
    /// An added token that the model needs does not exist.
    #[error("`{path}`: no added token `{token}`")]
    MissingToken {
        /// The file with the vocabulary.
        path: PathBuf,
        /// The token.
        token: String,
    },
    /// A text could not be encoded.
    #[error("`{path}`: the tokenizer cannot encode a text of {len} bytes")]
    Encode {
        /// The file with the vocabulary.
        path: PathBuf,
        /// Length of the text in bytes.
        len: usize,
        /// What the tokenizer said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Ids could not be turned into text.
    #[error("`{path}`: the tokenizer cannot decode its own tokens")]
    Decode {
        /// The file with the vocabulary.
        path: PathBuf,
        /// What the tokenizer said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The tokenizer turned ordinary text into an added token.
    #[error("`{path}`: ordinary text became the added token with id {id}")]
    Reserved {
        /// The file with the vocabulary.
        path: PathBuf,
        /// Id of the added token.
        id: u32,
    },
}

impl Tokenizer {
    /// Loads the tokenizer of a checkpoint folder.
    ///
    /// The vocabulary is `tokenizer.json`, else SentencePiece's
    /// `tokenizer.model`, else Qwen2's `vocab.json` with `merges.txt`, else the
    /// first Qwen's `qwen.tiktoken`. InternLM2
    /// is read from `tokenizer.model` even beside a `tokenizer.json`, because
    /// the reference does so. Added tokens are gathered from `tokenizer.json`,
    /// `added_tokens.json` and `tokenizer_config.json`, whichever exist.
    ///
    /// # Errors
    /// When there is no vocabulary, a file is damaged, or the files disagree.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let config_path = folder.join("tokenizer_config.json");
        let config: TokenizerConfig = read_json_if_present(&config_path)?.unwrap_or_default();
        let added_path = folder.join("added_tokens.json");
        let added: BTreeMap<String, u32> = read_json_if_present(&added_path)?.unwrap_or_default();

        let mut reserved = Reserved::default();
        for (token, id) in added {
            reserved.insert(&added_path, token, id)?;
        }
        for (id, token) in &config.added_tokens_decoder {
            reserved.insert(&config_path, token.content.clone(), *id)?;
        }

        let path = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let class = config.tokenizer_class.as_deref();
        let json_path = path("tokenizer.json");
        let pieces_path = path("tokenizer.model")
            .filter(|_| json_path.is_none() || class == Some("InternLM2Tokenizer"));
        if let Some(path) = pieces_path {
            let model = ModelFile::parse(&read(&path)?).map_err(|source| {
                TokenizerError::SentencePiece {
                    path: path.clone(),
                    source,
                }
            })?;
            Self::from_sentencepiece(path, model, reserved, &config)
        } else if let Some(path) = json_path {
            let json = read_json(&path)?;
            Self::from_json(path, json, reserved, &config)
        } else if let (Some(vocab), Some(merges)) = (path("vocab.json"), path("merges.txt")) {
            if let Some(found) = class.filter(|class| !class.starts_with("Qwen2")) {
                // Other tokenizers share the two files, but split text differently.
                return Err(TokenizerError::Field {
                    path: config_path,
                    field: "tokenizer_class",
                    found: format!("`{found}`"),
                    expected: "`Qwen2Tokenizer` beside `vocab.json` and `merges.txt`",
                });
            }
            let json = qwen2_json(read_json(&vocab)?, read_merges(&merges)?);
            Self::from_json(vocab, json, reserved, &config)
        } else if let Some(path) = path("qwen.tiktoken") {
            Self::from_tiktoken(path, reserved, &config)
        } else {
            Err(TokenizerError::NoFiles {
                folder: folder.to_owned(),
            })
        }
    }

    /// Loads the contents of a `tokenizer.json`, for a model that lives inside
    /// the program. There is no beginning-of-sequence token.
    ///
    /// # Errors
    /// When the contents are damaged or of an unsupported kind.
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let path = PathBuf::from("tokenizer.json");
        let json = parse_json(&path, bytes)?;
        let config = TokenizerConfig::default();
        Self::from_json(path, json, Reserved::default(), &config)
    }

    fn from_json(
        path: PathBuf,
        mut json: Value,
        mut reserved: Reserved,
        config: &TokenizerConfig,
    ) -> Result<Self, TokenizerError> {
        let listed: Option<Vec<AddedToken>> = json
            .get_mut("added_tokens")
            .map(|tokens| serde_json::from_value(tokens.take()))
            .transpose()
            .map_err(|source| TokenizerError::Json {
                path: path.clone(),
                source,
            })?;
        for token in listed.unwrap_or_default() {
            reserved.insert(&path, token.content, token.id)?;
        }
        let largest = take_out(&mut json, &reserved).map_err(|(field, found, expected)| {
            TokenizerError::Field {
                path: path.clone(),
                field,
                found,
                expected,
            }
        })?;

        let bos = config.bos(&reserved, false);
        let prefix = match prepended(&json["post_processor"]) {
            None => bos.into_iter().collect(),
            Some(tokens) => {
                let id = |token: &String| {
                    let id = reserved.by_token.get(token).copied();
                    id.ok_or_else(|| TokenizerError::MissingToken {
                        path: path.clone(),
                        token: token.clone(),
                    })
                };
                tokens.iter().map(id).collect::<Result<_, _>>()?
            }
        };

        // Without added tokens there is nothing that text could match, and
        // without these three steps there is nothing but the text's own ids.
        json["added_tokens"] = json!([]);
        for step in ["truncation", "padding", "post_processor"] {
            json[step] = Value::Null;
        }
        if json["decoder"].is_null() {
            json["decoder"] =
                json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true });
        }
        let build = |source| TokenizerError::Build {
            path: path.clone(),
            source,
        };
        let bytes = serde_json::to_vec(&json).map_err(|source| build(source.into()))?;
        let model = tokenizers::Tokenizer::from_bytes(bytes).map_err(build)?;
        Ok(Self::new(
            path,
            Model::BytePairs(Box::new(model)),
            reserved,
            largest,
            bos,
            prefix,
        ))
    }

    fn from_tiktoken(
        path: PathBuf,
        mut reserved: Reserved,
        config: &TokenizerConfig,
    ) -> Result<Self, TokenizerError> {
        let build = |source: Box<dyn Error + Send + Sync>| TokenizerError::Build {
            path: path.clone(),
            source,
        };
        let text = String::from_utf8(read(&path)?).map_err(|error| build(error.into()))?;
        let file = TiktokenFile::parse(&text).map_err(|error| build(error.into()))?;
        for (token, id) in file.special {
            reserved.insert(&path, token, id)?;
        }
        let mut json = qwen2_json(file.vocab, file.merges);
        // tiktoken looks a whole word up before it merges.
        json["model"]["ignore_merges"] = true.into();
        Self::from_json(path, json, reserved, config)
    }

    fn from_sentencepiece(
        path: PathBuf,
        file: ModelFile,
        mut reserved: Reserved,
        config: &TokenizerConfig,
    ) -> Result<Self, TokenizerError> {
        for (piece, id) in file.control_pieces() {
            reserved.insert(&path, piece.to_owned(), id)?;
        }
        let size = file.len();
        match SentencePiece::new(file, &reserved) {
            Ok(model) => {
                let bos = config.bos(&reserved, true);
                Ok(Self::new(
                    path,
                    Model::SentencePiece(Box::new(model)),
                    reserved,
                    size,
                    bos,
                    bos.into_iter().collect(),
                ))
            }
            Err(source) => Err(TokenizerError::SentencePiece { path, source }),
        }
    }

    fn new(
        source: PathBuf,
        model: Model,
        reserved: Reserved,
        base_size: usize,
        bos: Option<u32>,
        prefix: Vec<u32>,
    ) -> Self {
        let added_size = reserved.ids.iter().max().map_or(0, |&id| id as usize + 1);
        Self {
            inner: Arc::new(Inner {
                source,
                model,
                reserved,
                vocabulary_size: base_size.max(added_size),
                bos,
                prefix,
            }),
        }
    }

    /// Encodes ordinary text. Whatever it contains, no id of an added token,
    /// special token or control piece comes out. Nothing is put before or
    /// after the text.
    ///
    /// # Errors
    /// When the tokenizer fails on the text; byte-level ones and those with byte
    /// fallback take any text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let Inner {
            source, reserved, ..
        } = &*self.inner;
        let ids = match &self.inner.model {
            Model::SentencePiece(model) => model.encode(text),
            Model::BytePairs(model) => model
                .encode_fast(text, false)
                .map_err(|error| TokenizerError::Encode {
                    path: source.clone(),
                    len: text.len(),
                    source: error,
                })?
                .get_ids()
                .to_vec(),
        };
        // Loading took every way to these ids out; this guards against a
        // normaliser or pre-tokeniser of a `tokenizer.json` that finds one.
        match ids.iter().find(|id| reserved.ids.contains(id)) {
            None => Ok(ids),
            Some(&id) => Err(TokenizerError::Reserved {
                path: source.clone(),
                id,
            }),
        }
    }

    /// The text that ids spell. Added tokens, special tokens and control pieces
    /// stand in it by their own text, bytes that are no UTF-8 as U+FFFD, and ids
    /// beyond the vocabulary not at all.
    ///
    /// # Errors
    /// When the tokenizer fails on the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let Inner {
            source, reserved, ..
        } = &*self.inner;
        let is_reserved = |id: &u32| reserved.ids.contains(id);
        let mut text = String::new();
        for run in ids.chunk_by(|a, b| is_reserved(a) == is_reserved(b)) {
            match &self.inner.model {
                _ if is_reserved(&run[0]) => {
                    let token = |id: &u32| reserved.by_token.iter().find(|(_, other)| *other == id);
                    run.iter()
                        .filter_map(token)
                        .for_each(|(token, _)| text.push_str(token));
                }
                Model::SentencePiece(model) => text.push_str(&model.decode(run, text.is_empty())),
                Model::BytePairs(model) => {
                    let decoded = model.decode(run, false);
                    text.push_str(&decoded.map_err(|error| TokenizerError::Decode {
                        path: source.clone(),
                        source: error,
                    })?);
                }
            }
        }
        Ok(text)
    }

    /// The id of an added token, special token or control piece.
    pub fn added_token(&self, token: &str) -> Option<u32> {
        self.inner.reserved.by_token.get(token).copied()
    }

    /// Every added token, special token and control piece with its id, in no
    /// particular order.
    pub fn added_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        let by_token = &self.inner.reserved.by_token;
        by_token.iter().map(|(token, &id)| (token.as_str(), id))
    }

    /// The id of an added token that must exist.
    ///
    /// # Errors
    /// [`TokenizerError::MissingToken`] if it does not.
    pub fn require(&self, token: &str) -> Result<u32, TokenizerError> {
        self.added_token(token)
            .ok_or_else(|| TokenizerError::MissingToken {
                path: self.inner.source.clone(),
                token: token.to_owned(),
            })
    }

    /// One more than the largest id, added tokens included.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.vocabulary_size
    }

    /// The token that begins every sequence: `<s>` for InternLM2, none for
    /// Qwen2.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// What the checkpoint's own tokenizer puts before every text: what the
    /// post-processor of `tokenizer.json` says, else [`Tokenizer::bos`].
    /// [`Tokenizer::encode`] does not.
    pub fn prefix(&self) -> &[u32] {
        &self.inner.prefix
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("source", &self.inner.source)
            .field("vocabulary_size", &self.inner.vocabulary_size)
            .finish_non_exhaustive()
    }
}

/// The tokens that an MLLMSeg prompt is built from, found by their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins the sequence; `<s>` for InternLM2, none for Qwen2.
    pub bos: Option<u32>,
    /// `<|im_start|>`; not needed by every template.
    pub im_start: Option<u32>,
    /// `<|im_end|>`; not needed by every template.
    pub im_end: Option<u32>,
    /// `<img>`.
    pub img: u32,
    /// `</img>`.
    pub img_end: u32,
    /// `<IMG_CONTEXT>`, whose embedding an image token replaces.
    pub img_context: u32,
    /// `[SEG]`: the expression has a target.
    pub seg: u32,
    /// `[REJ]`: the expression has no target.
    pub rej: u32,
}

impl SpecialTokens {
    /// Looks the tokens up.
    ///
    /// # Errors
    /// [`TokenizerError::MissingToken`] for the first required one that does
    /// not exist.
    pub fn resolve(tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        Ok(Self {
            bos: tokenizer.bos(),
            im_start: tokenizer.added_token("<|im_start|>"),
            im_end: tokenizer.added_token("<|im_end|>"),
            img: tokenizer.require("<img>")?,
            img_end: tokenizer.require("</img>")?,
            img_context: tokenizer.require("<IMG_CONTEXT>")?,
            seg: tokenizer.require("[SEG]")?,
            rej: tokenizer.require("[REJ]")?,
        })
    }
}

/// Tokens that text must never become.
#[derive(Default)]
struct Reserved {
    by_token: HashMap<String, u32>,
    ids: HashSet<u32>,
}

impl Reserved {
    fn insert(&mut self, path: &Path, token: String, id: u32) -> Result<(), TokenizerError> {
        match self.by_token.get(&token) {
            Some(&expected) if expected != id => Err(TokenizerError::Conflict {
                path: path.to_owned(),
                token,
                found: id,
                expected,
            }),
            _ => {
                self.ids.insert(id);
                self.by_token.insert(token, id);
                Ok(())
            }
        }
    }

    fn holds(&self, token: &str, id: u32) -> bool {
        self.ids.contains(&id) || self.by_token.contains_key(token)
    }
}

/// The fields of `tokenizer_config.json` that matter here.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, TokenText>,
    add_bos_token: Option<bool>,
    bos_token: Option<BosToken>,
    tokenizer_class: Option<String>,
}

impl TokenizerConfig {
    /// The beginning-of-sequence token, if sequences have one. Without a word
    /// in the file, the class decides; without a class, SentencePiece models
    /// have one.
    fn bos(&self, reserved: &Reserved, is_sentencepiece: bool) -> Option<u32> {
        let by_class = match self.tokenizer_class.as_deref() {
            Some(class) => class.starts_with("InternLM2") || class.starts_with("LlamaTokenizer"),
            None => is_sentencepiece,
        };
        if !self.add_bos_token.unwrap_or(by_class) {
            return None;
        }
        let token = match &self.bos_token {
            Some(BosToken::Plain(token)) => token,
            Some(BosToken::Described(token)) => &token.content,
            None => "<s>",
        };
        reserved.by_token.get(token).copied()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BosToken {
    Plain(String),
    Described(TokenText),
}

#[derive(Deserialize)]
struct TokenText {
    content: String,
}

/// An entry of `added_tokens` in `tokenizer.json`.
#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// The tokens that the `post_processor` of a `tokenizer.json` puts before a
/// text; `None` if it has no say in it.
fn prepended(post_processor: &Value) -> Option<Vec<String>> {
    match post_processor["type"].as_str()? {
        "TemplateProcessing" => {
            let pieces = post_processor["single"].as_array()?.iter();
            let tokens = pieces.map_while(|piece| piece["SpecialToken"]["id"].as_str());
            Some(tokens.map(str::to_owned).collect())
        }
        "Sequence" => {
            let steps = post_processor["processors"].as_array()?;
            steps.iter().find_map(prepended)
        }
        _ => None,
    }
}

/// Takes reserved tokens out of the model of a `tokenizer.json`, together
/// with the merges that lead to them or on from them. Returns one more than
/// the largest id there was, or the field at fault, its value and what was
/// expected.
fn take_out(
    json: &mut Value,
    reserved: &Reserved,
) -> Result<usize, (&'static str, String, &'static str)> {
    if json["model"]["type"] != "BPE" {
        let found = json["model"]["type"].to_string();
        return Err(("model.type", found, "\"BPE\""));
    }
    let model = &mut json["model"];
    let Some(vocab) = model["vocab"].as_object_mut() else {
        let found = model["vocab"].to_string().chars().take(40).collect();
        return Err(("model.vocab", found, "an object of ids"));
    };
    let mut size = 0;
    let mut gone = HashSet::new();
    for (token, id) in vocab.iter() {
        let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return Err(("model.vocab", format!("{id} at `{token}`"), "32-bit ids"));
        };
        size = size.max(id as usize + 1);
        if reserved.holds(token, id) {
            gone.insert(token.clone());
        }
    }
    if gone.is_empty() {
        return Ok(size);
    }
    vocab.retain(|token, _| !gone.contains(token));
    if let Some(merges) = model["merges"].as_array_mut() {
        merges.retain(|merge| {
            let pair = match merge {
                Value::String(line) => line.split_once(' '),
                pair => pair[0].as_str().zip(pair[1].as_str()),
            };
            pair.is_none_or(|(left, right)| {
                let merged = format!("{left}{right}");
                ![left, right, &merged]
                    .iter()
                    .any(|&part| gone.contains(part))
            })
        });
    }
    Ok(size)
}

/// The `tokenizer.json` that Qwen2's `vocab.json` and `merges.txt` amount to.
fn qwen2_json(vocab: Value, merges: Vec<Value>) -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": { "Regex": QWEN2_PATTERN },
                    "behavior": "Isolated",
                    "invert": false,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": false,
                    "trim_offsets": true,
                    "use_regex": false,
                },
            ],
        },
        "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    })
}

fn read_merges(path: &Path) -> Result<Vec<Value>, TokenizerError> {
    let text = String::from_utf8(read(path)?).map_err(|source| TokenizerError::Build {
        path: path.to_owned(),
        source: source.into(),
    })?;
    text.lines()
        .enumerate()
        .filter(|(index, line)| {
            !(line.trim().is_empty() || *index == 0 && line.starts_with("#version"))
        })
        .map(|(index, line)| match line.trim().split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok(json!([left, right])),
            _ => Err(TokenizerError::Field {
                path: path.to_owned(),
                field: "merge",
                found: format!("{line:?} in line {}", index + 1),
                expected: "two tokens with a space between them",
            }),
        })
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| TokenizerError::Read {
        path: path.to_owned(),
        source,
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TokenizerError> {
    parse_json(path, &read(path)?)
}

fn read_json_if_present<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TokenizerError> {
    if path.is_file() {
        read_json(path).map(Some)
    } else {
        Ok(None)
    }
}

fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|source| TokenizerError::Json {
        path: path.to_owned(),
        source,
    })
}
