//! refseg: an image and a phrase in, a mask out.
//!
//! ```no_run
//! use refseg::{Image, Options, Predictor};
//!
//! let predictor = Predictor::load("builtin", &Options::default())?;
//! let image = Image::open("kitchen.jpg")?;
//! let scene = predictor.encode(&image)?; // slow part, once per image
//! let found = scene.segment("the mug behind the kettle")?;
//! found.mask.save_png("mug.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Modules, in the order in which a stranger should read them: [`predictor`]
//! is the face, [`segmenter`] what all methods have in common;
//! [`image`](mod@image), [`prompt`] and [`mask`] are what goes in and comes
//! out; [`mllmseg`], [`internvl`], [`language`] and [`nn`] are the network, from
//! the whole to its layers; [`sam`] is another one, which points and boxes
//! prompt; [`chat`] is the face of those that answer in words, [`llava`] and
//! [`qwen_vl`] among them, and [`sam4mllm`] joins the two;
//! [`weights`] and [`tokenizer`] read checkpoints.

pub mod predictor;
pub mod segmenter;

pub mod image;
pub mod mask;
pub mod prompt;

pub mod chat;
pub mod internvl;
pub mod language;
pub mod llava;
pub mod mllmseg;
pub mod nn;
pub mod qwen_vl;
pub mod sam;
pub mod sam4mllm;

pub mod builtin;
pub mod random;
pub mod tokenizer;
pub mod weights;

pub use image::Image;
pub use mask::Mask;
pub use predictor::{Options, Predictor, Scene, Segmentation};
pub use segmenter::{Segmentable, Segmenter, open};
