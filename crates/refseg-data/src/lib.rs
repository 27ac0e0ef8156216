//! Data sets of referring segmentation, drawn scenes, and metrics.

pub mod dataset;
pub mod metrics;
pub mod scenes;
