//! Segment Anything: points, boxes and masks to masks.
//!
//! ```no_run
//! use refseg::sam::{Prompt, SamPredictor};
//! use refseg::{Image, Options};
//!
//! let predictor = SamPredictor::load("weights/mobile_sam.pt", &Options::default())?;
//! let scene = predictor.encode(&Image::open("kitchen.jpg")?)?; // slow part, once per image
//! let prompt = Prompt {
//!     box_px: Some([12.0, 30.0, 99.0, 140.0]),
//!     ..Prompt::default()
//! };
//! let found = scene.prompt(&prompt, true)?;
//! found.masks[found.best()].save_png("mug.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`SamPredictor`] is the face. The network is an image encoder, of which
//! there are three kinds, a prompt encoder and a mask decoder. Letters in
//! shapes are those of [`nn`](crate::nn), and: `S` side of the encoder's
//! picture, `G` side of the image embedding, `C` width of an encoder, `D` width
//! of the image embedding, `Q` prompts, `M` masks of a prompt.

mod check;
mod config;
mod efficient_vit;
mod frame;
mod image_encoder;
mod mask_decoder;
mod model;
mod predictor;
mod prompt_encoder;
mod recognise;
mod tiny_vit;
mod windows;

use burn::tensor::Tensor;

pub use config::{
    Config, DecoderConfig, EfficientVitConfig, EncoderConfig, NeckConfig, PromptConfig, StageKind,
    TinyVitConfig, VitConfig,
};
pub use efficient_vit::EfficientVitEncoder;
pub use frame::Frame;
pub use image_encoder::VitEncoder;
pub use mask_decoder::{DecodedMasks, MaskDecoder};
pub use model::{ImageEncoder, Sam};
pub use predictor::{
    Label, Point, Prompt, SamError, SamMasks, SamPredictor, SamScene, open_checkpoint,
};
pub use prompt_encoder::{PromptEncoder, Token};
pub use tiny_vit::TinyVitEncoder;

/// Is shown values on their way through a network, by name: for whoever compares them with another implementation.
pub type Watch<'a, const R: usize> = &'a mut dyn FnMut(&str, &Tensor<R>);
