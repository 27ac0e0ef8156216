//! Data sets of referring segmentation, drawn scenes, predictions, and metrics.

pub mod conversations;
pub mod dataset;
pub mod evaluate;
pub mod metrics;
pub mod predictions;
pub mod runs;
pub mod scenes;
pub mod score;
pub mod vqa;
