//! Models that can be talked with, from their folders.

use std::{path::Path, sync::Arc};

use super::{
    Backbone, ChatError, Conversation, Mllm,
    backbone::{Eyes, Network},
    speaker::Speaker,
};
use crate::{
    builtin,
    image::Image,
    nn::{StoredTensors, TensorSource},
    predictor::Options,
    weights::{Weights, WeightsError},
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
/// `transformers`, Qwen-VL-Chat, or InternVL, MLLMSeg's models included; or the
/// language model of the pair called `builtin-sam4mllm`.
///
/// # Errors
/// If there is no such folder, or a file of it is missing, damaged, does not
/// fit the others or is of an unsupported kind.
pub fn open(folder: impl AsRef<Path>, options: &Options) -> Result<ChatModel, ChatError> {
    if builtin::is(builtin::PAIR_NAME, folder.as_ref()) {
        return builtin::mllm(options);
    }
    ChatModel::load(folder.as_ref(), None, options)
}

/// As [`open`], with the peft adapter of another folder merged into the weights
/// while they are read. The built-in pair's takes none.
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
    /// The model of a backbone and its tensors: a checkpoint's, or those of a training run.
    ///
    /// # Errors
    /// If a tensor is missing or its shape is not what the configuration implies.
    pub fn new(backbone: &Backbone, source: &dyn TensorSource) -> Result<Self, WeightsError> {
        let Network { eyes, language } = backbone.network(source)?;
        Ok(Self {
            eyes,
            unused: Vec::new(),
            speaker: Arc::new(Speaker {
                name: backbone.name().to_owned(),
                language,
                template: backbone.template().clone(),
                stops: backbone.stops().to_vec(),
                vocabulary: backbone.sizes().vocabulary,
                limit: backbone.sizes().max_positions,
            }),
        })
    }

    fn load(folder: &Path, adapter: Option<&Path>, options: &Options) -> Result<Self, ChatError> {
        let backbone = Backbone::from_folder(folder)?;
        let mut weights = Weights::open(folder)?;
        if let Some(adapter) = adapter {
            weights = weights.adapted(adapter)?;
        }
        Self::of_weights(&backbone, &weights, options)
    }

    /// The model of a backbone and a checkpoint, which may have more than the network needs.
    pub(crate) fn of_weights(
        backbone: &Backbone,
        weights: &Weights,
        options: &Options,
    ) -> Result<Self, ChatError> {
        let source = StoredTensors::new(weights, options.device()).packed(options.precision);
        let model = Self::new(backbone, &source)?;
        let mut unused = source.unused();
        unused.retain(|key| !backbone.is_needless(key));
        Ok(Self { unused, ..model })
    }
}
