//! COCO's `instances.json`: pictures, and the objects marked in them.

use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::DataError;
use super::draft::Annotation;
use super::error::Problem;
use super::region::Region;

/// The file, with annotations of type `A`. Other members are skipped.
#[derive(Deserialize)]
pub(super) struct Instances<A> {
    pub(super) images: Vec<ImageEntry>,
    pub(super) annotations: Vec<A>,
}

/// One picture.
#[derive(Deserialize)]
pub(super) struct ImageEntry {
    pub(super) id: i64,
    pub(super) file_name: String,
    height: Option<usize>,
    width: Option<usize>,
}

/// One marked object. What it marks stays unread until it is asked for: files mark many
/// more objects than the expressions of a split mean.
#[derive(Deserialize)]
pub(super) struct AnnotationEntry<'a> {
    pub(super) id: i64,
    #[serde(borrow)]
    segmentation: Option<&'a RawValue>,
    bbox: Option<[f64; 4]>,
}

impl<'a, A: Deserialize<'a>> Instances<A> {
    /// Parses the bytes of the file at `path`.
    pub(super) fn parse(bytes: &'a [u8], path: &Path) -> Result<Self, DataError> {
        serde_json::from_slice(bytes).map_err(|source| DataError::Json {
            path: path.to_owned(),
            entry: "the file".to_owned(),
            expected: "COCO's `images` and `annotations`",
            source,
        })
    }
}

impl ImageEntry {
    /// Height and width, if both are stated.
    pub(super) fn size(&self) -> Option<(usize, usize)> {
        self.height.zip(self.width)
    }
}

impl AnnotationEntry<'_> {
    /// Reads what the object of `annotations[index]` covers.
    pub(super) fn read(&self, index: usize, path: &Path) -> Result<Annotation, DataError> {
        read_annotation(self.id, self.segmentation, self.bbox, index, path)
    }
}

/// Reads what the object of `annotations[index]` covers.
pub(super) fn read_annotation(
    id: i64,
    segmentation: Option<&RawValue>,
    bbox: Option<[f64; 4]>,
    index: usize,
    path: &Path,
) -> Result<Annotation, DataError> {
    let entry = format!("annotations[{index}] (id {id})");
    let Some(segmentation) = segmentation else {
        let problem = Problem::new("no `segmentation`", "polygons or run lengths");
        return Err(problem.at(path, entry));
    };
    let region = Region::from_json(segmentation).map_err(|source| DataError::Json {
        path: path.to_owned(),
        entry: format!("`segmentation` of {entry}"),
        expected: "polygons or run lengths",
        source,
    })?;
    Ok(Annotation {
        path: path.to_owned(),
        entry,
        region,
        bbox,
    })
}
