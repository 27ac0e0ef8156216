//! What a chat model's files say besides its weights, and the network that they describe.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use burn::tensor::Tensor;
use serde_json::Value;

use super::{
    ChatError,
    template::{ChatTemplate, Layout, PLAIN, Place, SYSTEM_QWEN},
};
use crate::{
    image::Image,
    internvl::{self, ConfigError, Fields},
    language::{LanguageConfig, LanguageModel},
    llava::{self, Llava},
    nn::{TensorSource, Tensors},
    prompt::Template,
    qwen_vl::{self, QwenVl},
    tokenizer::{Tokenizer, TokenizerError},
    weights::WeightsError,
};

/// Everything about a chat model but its weights: sizes, vocabulary, and how it is talked with.
///
/// Training builds networks from it again and again, of parameters that change.
#[derive(Debug, Clone)]
pub struct Backbone {
    name: String,
    sizes: Sizes,
    template: ChatTemplate,
    /// Ids that end an answer.
    stops: Vec<u32>,
}

/// A network: eyes and a language model.
#[derive(Debug)]
pub struct Network {
    pub(super) eyes: Box<dyn Eyes>,
    /// What reads and answers.
    pub language: LanguageModel,
}

/// A conversation as a model reads it behind the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenTalk {
    /// The tokens.
    pub ids: Vec<u32>,
    /// What the model says itself: each answer with the token that ends it.
    pub answers: Vec<Range<usize>>,
}

impl Backbone {
    /// Reads everything but the weights of a model folder.
    ///
    /// # Errors
    /// If there is no such folder, or a file of it is missing, damaged, of an unsupported kind or
    /// does not fit the others.
    pub fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        if !folder.is_dir() {
            return Err(ChatError::NoModel {
                path: folder.to_owned(),
            });
        }
        let config = ConfigFile::read(folder.join("config.json"))?;
        let stops = config.stops(folder)?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        Self::new(folder.display().to_string(), &config, tokenizer, stops)
    }

    /// A model that is part of the program, by what its files hold.
    pub(crate) fn embedded(
        name: &str,
        config: &[u8],
        tokenizer: Tokenizer,
    ) -> Result<Self, ChatError> {
        let path = PathBuf::from(name).join("config.json");
        let config = ConfigFile::parse(path, config.to_vec())?;
        let stops = config.own_stops()?;
        Self::new(name.to_owned(), &config, tokenizer, stops)
    }

    fn new(
        name: String,
        config: &ConfigFile,
        tokenizer: Tokenizer,
        mut stops: Vec<u32>,
    ) -> Result<Self, ChatError> {
        let sizes = config.sizes()?;
        let language = sizes.language();
        if tokenizer.vocabulary_size() > language.vocabulary {
            return Err(ChatError::OtherTokenizer {
                model: name,
                tokens: tokenizer.vocabulary_size(),
                vocabulary: language.vocabulary,
            });
        }
        let layout = sizes.layout(&tokenizer, &config.path)?;
        let template = ChatTemplate::new(tokenizer, layout);
        stops.push(template.end()?);
        Ok(Self {
            name,
            sizes,
            template,
            stops,
        })
    }

    /// What the model is called: its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes of the language model.
    pub fn sizes(&self) -> &LanguageConfig {
        self.sizes.language()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.template.tokenizer
    }

    /// Builds the network.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the configuration implies.
    pub fn network(&self, source: &dyn TensorSource) -> Result<Network, WeightsError> {
        match &self.sizes {
            Sizes::Llava(config) => {
                let Llava { pictures, language } = Llava::load(source, config)?;
                Ok(Network {
                    eyes: Box::new(pictures),
                    language,
                })
            }
            Sizes::QwenVl(config) => {
                let QwenVl { pictures, language } = QwenVl::load(source, config)?;
                Ok(Network {
                    eyes: Box::new(pictures),
                    language,
                })
            }
            Sizes::InternVl(config) => {
                let tensors = Tensors::root(source);
                let vision = tensors.at("vision_model");
                Ok(Network {
                    eyes: Box::new(OneTile {
                        vision: internvl::VisionModel::load(&vision, &config.vision)?,
                        projector: internvl::Projector::load(&tensors, config)?,
                        side: config.image_size,
                    }),
                    language: LanguageModel::load(&tensors.at("language_model"), &config.language)?,
                })
            }
        }
    }

    /// Side of the square of tokens that a picture becomes, row by row, whatever its shape; `None`
    /// for models to which pictures are something else.
    pub fn grid(&self) -> Option<usize> {
        match &self.sizes {
            Sizes::InternVl(config) => Some(config.image_tokens().isqrt()),
            Sizes::Llava(_) | Sizes::QwenVl(_) => None,
        }
    }

    /// The tokens in front of the picture.
    ///
    /// # Errors
    /// If the tokenizer has no token that the layout needs.
    pub fn opening(&self) -> Result<Vec<u32>, TokenizerError> {
        self.template.opening()
    }

    /// Writes questions and answers as they stand behind the picture.
    ///
    /// # Errors
    /// If the tokenizer cannot encode a text.
    pub fn write(&self, turns: &[(&str, &str)]) -> Result<WrittenTalk, TokenizerError> {
        let end = self.template.end()?;
        let (mut ids, mut answers) = (Vec::new(), Vec::new());
        for (i, (question, answer)) in turns.iter().enumerate() {
            let place = if i == 0 { Place::First } else { Place::Later };
            ids.extend(self.template.question(question, place)?);
            let said = self.template.answer(answer)?;
            let length = said.iter().rposition(|&id| id == end);
            let length = length.map_or(said.len(), |last| last + 1);
            answers.push(ids.len()..ids.len() + length);
            ids.extend(said);
        }
        Ok(WrittenTalk { ids, answers })
    }

    pub(super) fn template(&self) -> &ChatTemplate {
        &self.template
    }

    pub(super) fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// Whether no answer needs this tensor of a checkpoint.
    pub fn is_needless(&self, key: &str) -> bool {
        let prefixes = match &self.sizes {
            Sizes::Llava(config) => config.needless_keys(),
            // The mask decoder of a model that was made for masks.
            Sizes::InternVl(_) => vec!["res_decoder.".to_owned()],
            Sizes::QwenVl(_) => Vec::new(),
        };
        prefixes.iter().any(|prefix| key.starts_with(prefix))
    }
}

impl Network {
    /// Pictures as tokens, `(1, M, D)` each.
    pub fn pictures(&self, images: &[&Image]) -> Vec<Tensor<3>> {
        self.eyes.tokens_of(images)
    }
}

/// What makes a picture tokens.
pub(super) trait Eyes: fmt::Debug + Send + Sync {
    /// `(1, M, D)`.
    fn tokens(&self, image: &Image) -> Tensor<3>;

    /// `(1, M, D)` of each picture.
    fn tokens_of(&self, images: &[&Image]) -> Vec<Tensor<3>> {
        images.iter().map(|image| self.tokens(image)).collect()
    }
}

impl Eyes for llava::PictureEncoder {
    fn tokens(&self, image: &Image) -> Tensor<3> {
        self.forward(image)
    }
}

impl Eyes for qwen_vl::PictureEncoder {
    fn tokens(&self, image: &Image) -> Tensor<3> {
        self.forward(image)
    }
}

/// InternVL's, for a single tile.
#[derive(Debug)]
struct OneTile {
    vision: internvl::VisionModel,
    projector: internvl::Projector,
    /// Of the picture, in pixels.
    side: usize,
}

impl Eyes for OneTile {
    fn tokens(&self, image: &Image) -> Tensor<3> {
        self.tokens_of(&[image]).remove(0)
    }

    fn tokens_of(&self, images: &[&Image]) -> Vec<Tensor<3>> {
        let side = self.side as u32;
        let pixels = images
            .iter()
            .map(|image| image.resize(side, side).normalised());
        let pixels = pixels.collect::<Vec<_>>().concat();
        let pixels = self.vision.pixels(pixels, images.len(), self.side);
        self.projector
            .forward(self.vision.forward(pixels))
            .split(1, 0)
    }
}

/// Which networks there are, with their sizes.
#[derive(Debug, Clone)]
enum Sizes {
    Llava(llava::Config),
    InternVl(internvl::Config),
    QwenVl(qwen_vl::Config),
}

impl Sizes {
    fn language(&self) -> &LanguageConfig {
        match self {
            Self::Llava(config) => &config.language,
            Self::InternVl(config) => &config.language,
            Self::QwenVl(config) => &config.language,
        }
    }

    /// How the model is talked with; `path` is that of its `config.json`.
    fn layout(&self, tokenizer: &Tokenizer, path: &Path) -> Result<Layout, ChatError> {
        match self {
            Self::Llava(config) => {
                let is_llama_3 = tokenizer.added_token("<|start_header_id|>").is_some();
                Ok(match (config.is_mistral, is_llama_3) {
                    (true, _) => Layout::Mistral,
                    (false, true) => Layout::Llama3,
                    (false, false) => Layout::Vicuna,
                })
            }
            Self::InternVl(config) if config.template == PLAIN => Ok(Layout::Plain),
            Self::InternVl(config) => {
                let template: Template = config.template.parse()?;
                Layout::of_internvl(template).ok_or_else(|| ChatError::NotAChat {
                    path: path.to_owned(),
                    template: config.template.clone(),
                })
            }
            Self::QwenVl(_) => Ok(Layout::ChatMl {
                system: SYSTEM_QWEN,
                after_turn: "\n",
                before_picture: "Picture 1: ",
            }),
        }
    }
}

/// A `config.json`.
struct ConfigFile {
    path: PathBuf,
    bytes: Vec<u8>,
    root: Value,
}

impl ConfigFile {
    fn read(path: PathBuf) -> Result<Self, ConfigError> {
        match std::fs::read(&path) {
            Ok(bytes) => Self::parse(path, bytes),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    fn parse(path: PathBuf, bytes: Vec<u8>) -> Result<Self, ConfigError> {
        match serde_json::from_slice(&bytes) {
            Ok(root) => Ok(Self { path, bytes, root }),
            Err(source) => Err(ConfigError::Json { path, source }),
        }
    }

    fn sizes(&self) -> Result<Sizes, ConfigError> {
        let root = Fields::root(&self.root, &self.path);
        let names = root.value("architectures").and_then(|names| names.get(0));
        match names.and_then(Value::as_str) {
            Some(name) if name.starts_with("Llava") => {
                llava::Config::from_json(&self.bytes, &self.path).map(Sizes::Llava)
            }
            Some("QWenLMHeadModel") => {
                qwen_vl::Config::from_json(&self.bytes, &self.path).map(Sizes::QwenVl)
            }
            _ if root.value("llm_config").is_some() => {
                internvl::Config::from_json(&self.bytes, &self.path).map(Sizes::InternVl)
            }
            _ => Err(root.wrong(
                "architectures",
                "a model that refseg can talk with: [\"LlavaLlamaForCausalLM\"], \
                 [\"LlavaMistralForCausalLM\"], [\"LlavaNextForConditionalGeneration\"], \
                 [\"QWenLMHeadModel\"] or [\"InternVLChatModel\"]",
            )),
        }
    }

    /// The ids that `generation_config.json`, or else this file, says end an answer.
    fn stops(&self, folder: &Path) -> Result<Vec<u32>, ConfigError> {
        let path = folder.join("generation_config.json");
        if path.is_file() {
            Self::read(path)?.own_stops()
        } else {
            self.own_stops()
        }
    }

    fn own_stops(&self) -> Result<Vec<u32>, ConfigError> {
        let field = "eos_token_id";
        let root = Fields::root(&self.root, &self.path);
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match root.value(field) {
            None => Some(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| root.wrong(field, "a token id, or a list of them"))
    }
}
