//! Any COCO JSON file whose annotations carry phrases.
//!
//! A phrase stands in `caption`, `phrase`, `sentence` or `text` of an annotation, as one
//! text or a list of them. The name of a category is no phrase: it says what an object
//! is, and not which one. Annotations without a phrase are not asked for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::draft::{Draft, inside};
use super::error::Problem;
use super::instances::{Instances, read_annotation};
use super::{DataError, Expression, Picture};

/// Names of the file where the root is a folder, in the order in which they are tried.
const NAMES: [&str; 3] = [
    "annotations.json",
    "instances.json",
    "_annotations.coco.json",
];

#[derive(Deserialize)]
struct Annotation<'a> {
    id: i64,
    image_id: i64,
    #[serde(borrow)]
    segmentation: Option<&'a RawValue>,
    caption: Option<Texts>,
    phrase: Option<Texts>,
    sentence: Option<Texts>,
    text: Option<Texts>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a phrase is neither a text nor a list of texts")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Annotation<'_> {
    fn phrases(&self) -> Vec<&str> {
        [&self.caption, &self.phrase, &self.sentence, &self.text]
            .into_iter()
            .flatten()
            .flat_map(|texts| match texts {
                Texts::One(text) => std::slice::from_ref(text),
                Texts::Many(texts) => texts,
            })
            .map(|text| text.trim())
            .filter(|text| !text.is_empty())
            .collect()
    }
}

/// Reads the file at `root`, or the one in it. Pictures lie beside it, or in `images`.
pub(super) fn read(draft: &mut Draft, root: &Path) -> Result<(), DataError> {
    let path = find(root)?;
    let bytes = draft.read(&path)?;
    let file = Instances::<Annotation>::parse(&bytes, &path)?;
    let beside = path.parent().unwrap_or(Path::new("")).to_owned();
    let images: HashMap<_, _> = file.images.iter().map(|image| (image.id, image)).collect();
    for (index, annotation) in file.annotations.iter().enumerate() {
        let phrases = annotation.phrases();
        if phrases.is_empty() {
            continue;
        }
        let mut add = || {
            let at = |problem: Problem| {
                problem.at(
                    &path,
                    format!("annotations[{index}] (id {})", annotation.id),
                )
            };
            let Some(image) = images.get(&annotation.image_id) else {
                let found = format!("image_id {}", annotation.image_id);
                return Err(at(Problem::new(found, "one of `images`")));
            };
            let mut picture_path = inside(&beside, &image.file_name).map_err(at)?;
            if !picture_path.exists() {
                let within = inside(&beside.join("images"), &image.file_name).map_err(at)?;
                if within.exists() {
                    picture_path = within;
                }
            }
            let region =
                read_annotation(annotation.id, annotation.segmentation, None, index, &path)?;
            let truth = draft.annotate(region);
            for (number, phrase) in phrases.iter().enumerate() {
                let picture = || Picture {
                    id: image.id.to_string(),
                    path: picture_path.clone(),
                    size: image.size(),
                    expressions: Vec::new(),
                };
                let expression = Expression {
                    id: format!("{}:{number}", annotation.id),
                    phrase: (*phrase).to_owned(),
                    truth: vec![truth],
                };
                draft
                    .express(&image.id.to_string(), picture, expression)
                    .map_err(at)?;
            }
            Ok(())
        };
        let added = add();
        draft.keep(added)?;
    }
    if draft.pictures.is_empty() && draft.skipped.is_empty() {
        return Err(DataError::NoExpressions {
            path,
            split: "all".to_owned(),
            found: "no annotation with `caption`, `phrase`, `sentence` or `text`".to_owned(),
        });
    }
    Ok(())
}

fn find(root: &Path) -> Result<PathBuf, DataError> {
    if !root.is_dir() {
        return Ok(root.to_owned());
    }
    let paths = NAMES.map(|name| root.join(name));
    let found = paths.iter().find(|path| path.is_file());
    found.cloned().ok_or_else(|| DataError::Missing {
        root: root.to_owned(),
        expected: paths
            .iter()
            .map(|path| format!("`{}`", path.display()))
            .collect(),
    })
}
