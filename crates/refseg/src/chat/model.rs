//! Models that can be talked with, from their folders.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::Tensor;
use serde_json::Value;

use super::{
    ChatError, Conversation, Mllm,
    speaker::Speaker,
    template::{ChatTemplate, Layout, SYSTEM_QWEN},
};
use crate::{
    image::Image,
    internvl::{self, ConfigError, Fields},
    language::{LanguageConfig, LanguageModel},
    llava::{self, Llava},
    nn::{StoredTensors, TensorSource, Tensors},
    predictor::Options,
    prompt::Template,
    qwen_vl::{self, QwenVl},
    tokenizer::Tokenizer,
    weights::Weights,
};

/// A model that can be talked with: LLaVA-NeXT, Qwen-VL-Chat, or InternVL.
///
/// InternVL sees one tile, the whole picture, as MLLMSeg's reference shows it;
/// its own demonstration would cut a large picture into several.
#[derive(Debug)]
pub struct ChatModel {
    speaker: Arc<Speaker>,
    eyes: Box<dyn Eyes>,
    unused: Vec<String>,
}

/// Opens a model folder: LLaVA-NeXT in the original layout or in that of
/// `transformers`, Qwen-VL-Chat, or InternVL, MLLMSeg's models included.
///
/// # Errors
/// If there is no such folder, or a file of it is missing, damaged, does not
/// fit the others or is of an unsupported kind.
pub fn open(folder: impl AsRef<Path>, options: &Options) -> Result<ChatModel, ChatError> {
    ChatModel::load(folder.as_ref(), None, options)
}

/// As [`open`], with the peft adapter of another folder merged into the weights
/// while they are read.
///
/// # Errors
/// As [`open`]; and if the adapter is missing, damaged, or another model's.
pub fn open_adapted(
    folder: impl AsRef<Path>,
    adapter: impl AsRef<Path>,
    options: &Options,
) -> Result<ChatModel, ChatError> {
    ChatModel::load(folder.as_ref(), Some(adapter.as_ref()), options)
}

impl Mllm for ChatModel {
    fn name(&self) -> &str {
        &self.speaker.name
    }

    fn look(&self, image: &Image) -> Result<Box<dyn Conversation>, ChatError> {
        Ok(Box::new(self.speaker.look(self.eyes.tokens(image))?))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        Ok(self.speaker.template.tokenizer.encode(text)?)
    }

    fn unused_tensors(&self) -> &[String] {
        &self.unused
    }
}

impl ChatModel {
    fn load(folder: &Path, adapter: Option<&Path>, options: &Options) -> Result<Self, ChatError> {
        if !folder.is_dir() {
            return Err(ChatError::NoModel {
                path: folder.to_owned(),
            });
        }
        let config = ConfigFile::read(folder.join("config.json"))?;
        let family = config.family()?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        let mut weights = Weights::open(folder)?;
        if let Some(adapter) = adapter {
            weights = weights.adapted(adapter)?;
        }
        let source = StoredTensors::new(&weights, options.device()).packed(options.precision);
        let Parts {
            eyes,
            language,
            sizes,
            layout,
            needless,
        } = match family {
            Family::Llava => config.llava(&source, &tokenizer)?,
            Family::InternVl => config.internvl(&source)?,
            Family::QwenVl => config.qwen_vl(&source)?,
        };
        let mut unused = source.unused();
        unused.retain(|key| !needless.iter().any(|prefix| key.starts_with(prefix)));
        let name = folder.display().to_string();
        if tokenizer.vocabulary_size() > sizes.vocabulary {
            return Err(ChatError::OtherTokenizer {
                model: name,
                tokens: tokenizer.vocabulary_size(),
                vocabulary: sizes.vocabulary,
            });
        }
        let template = ChatTemplate::new(tokenizer, layout);
        let mut stops = config.stops(folder)?;
        stops.push(template.end()?);
        Ok(Self {
            unused,
            eyes,
            speaker: Arc::new(Speaker {
                name,
                language,
                template,
                stops,
                vocabulary: sizes.vocabulary,
                limit: sizes.max_positions,
            }),
        })
    }
}

/// What makes a picture tokens.
trait Eyes: fmt::Debug + Send + Sync {
    /// `(1, M, D)`.
    fn tokens(&self, image: &Image) -> Tensor<3>;
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
        let side = self.side as u32;
        let pixels = image.resize(side, side).normalised();
        let pixels = self.vision.pixels(pixels, 1, self.side);
        self.projector.forward(self.vision.forward(pixels))
    }
}

/// A network, taken apart.
struct Parts {
    eyes: Box<dyn Eyes>,
    language: LanguageModel,
    sizes: LanguageConfig,
    layout: Layout,
    /// Prefixes of tensors that no answer needs.
    needless: Vec<String>,
}

/// Which networks there are.
#[derive(Debug, Clone, Copy)]
enum Family {
    Llava,
    InternVl,
    QwenVl,
}

/// A `config.json`.
struct ConfigFile {
    path: PathBuf,
    bytes: Vec<u8>,
    root: Value,
}

impl ConfigFile {
    fn read(path: PathBuf) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.clone(),
            source,
        };
        let bytes = std::fs::read(&path).map_err(read)?;
        let root = serde_json::from_slice(&bytes).map_err(|source| ConfigError::Json {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path, bytes, root })
    }

    fn family(&self) -> Result<Family, ConfigError> {
        let root = Fields::root(&self.root, &self.path);
        let names = root.value("architectures").and_then(|names| names.get(0));
        match names.and_then(Value::as_str) {
            Some(name) if name.starts_with("Llava") => Ok(Family::Llava),
            Some("QWenLMHeadModel") => Ok(Family::QwenVl),
            _ if root.value("llm_config").is_some() => Ok(Family::InternVl),
            _ => Err(root.wrong(
                "architectures",
                "a model that refseg can talk with: [\"LlavaLlamaForCausalLM\"], \
                 [\"LlavaMistralForCausalLM\"], [\"LlavaNextForConditionalGeneration\"], \
                 [\"QWenLMHeadModel\"] or [\"InternVLChatModel\"]",
            )),
        }
    }

    fn llava(&self, source: &dyn TensorSource, tokenizer: &Tokenizer) -> Result<Parts, ChatError> {
        let config = llava::Config::from_json(&self.bytes, &self.path)?;
        let Llava { pictures, language } = Llava::load(source, &config)?;
        let is_llama_3 = tokenizer.added_token("<|start_header_id|>").is_some();
        Ok(Parts {
            needless: config.needless_keys(),
            eyes: Box::new(pictures),
            language,
            layout: match (config.is_mistral, is_llama_3) {
                (true, _) => Layout::Mistral,
                (false, true) => Layout::Llama3,
                (false, false) => Layout::Vicuna,
            },
            sizes: config.language,
        })
    }

    fn internvl(&self, source: &dyn TensorSource) -> Result<Parts, ChatError> {
        let config = internvl::Config::from_json(&self.bytes, &self.path)?;
        let template: Template = config.template.parse()?;
        let layout = Layout::of_internvl(template).ok_or_else(|| ChatError::NotAChat {
            path: self.path.clone(),
            template: config.template.clone(),
        })?;
        let tensors = Tensors::root(source);
        let language = tensors.at("language_model");
        Ok(Parts {
            eyes: Box::new(OneTile {
                vision: internvl::VisionModel::load(&tensors.at("vision_model"), &config.vision)?,
                projector: internvl::Projector::load(&tensors, &config)?,
                side: config.image_size,
            }),
            language: LanguageModel::load(&language, &config.language)?,
            layout,
            sizes: config.language,
            // The mask decoder of a model that was made for masks.
            needless: vec!["res_decoder.".to_owned()],
        })
    }

    fn qwen_vl(&self, source: &dyn TensorSource) -> Result<Parts, ChatError> {
        let config = qwen_vl::Config::from_json(&self.bytes, &self.path)?;
        let QwenVl { pictures, language } = QwenVl::load(source, &config)?;
        Ok(Parts {
            eyes: Box::new(pictures),
            language,
            layout: Layout::ChatMl {
                system: SYSTEM_QWEN,
                after_turn: "\n",
                before_picture: "Picture 1: ",
            },
            sizes: config.language,
            needless: Vec::new(),
        })
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
