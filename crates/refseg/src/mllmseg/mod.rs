//! MLLMSeg: the hidden state before `[SEG]` picks its object out of the picture.

mod decoder;
mod dysample;
mod model;

pub use decoder::{ConvNorm, DecodedImage, MaskDecoder, PhraseLogits};
pub use model::Mllmseg;
