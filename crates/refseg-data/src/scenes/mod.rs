//! Drawn scenes: pictures of coloured shapes with phrases about them, made on
//! the fly for training the built-in model and written to disk in RefCOCO's
//! layout.
//!
//! A scene is a function of its [`Split`] and index alone: the same on every
//! machine, and never the same in two splits.
//!
//! - `draw` places the objects and paints the pixels,
//! - `phrases` says true, unambiguous things about them,
//! - `examples` hands them to an evaluation,
//! - `dataset` writes many scenes as a RefCOCO and gRefCOCO data set.

mod dataset;
mod draw;
mod examples;
mod phrases;

pub use dataset::{DatasetError, DatasetOptions, DatasetSummary, Part, write_dataset};
pub use draw::{
    CellLabel, Colour, HELD_BACK, Object, Scale, Scene, SceneOptions, SceneOptionsError, Shape,
    Split, Texture, is_held_back,
};
pub use examples::DrawnScenes;
pub use phrases::{
    Description, PhraseKind, Query, ScenePhrase, Side, Superlative, could_match, matches,
    vocabulary,
};
