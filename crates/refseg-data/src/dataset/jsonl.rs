//! One expression a line, as JSON.
//!
//! ```text
//! {"image": "kitchen.jpg", "phrase": "the left mug", "rle": {"size": [480, 640], "counts": "…"}}
//! {"image": "kitchen.jpg", "phrase": "the cat", "rle": null, "id": "no-cat"}
//! ```
//!
//! Pictures are named relative to the file. `rle` is a run-length code of COCO,
//! compressed or not, and null where the picture shows no such thing. `id` is the number
//! of the line unless it is given.

use std::path::Path;

use serde::Deserialize;

use super::draft::{Annotation, Draft};
use super::error::Problem;
use super::region::{Region, RunLengths};
use super::{DataError, Expression, Picture};

#[derive(Deserialize)]
struct Line {
    id: Option<Id>,
    image: String,
    phrase: String,
    // An explicit null: a line that forgot its mask is not one without a target.
    #[serde(deserialize_with = "Option::deserialize")]
    rle: Option<RunLengths>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`id` is neither a text nor a whole number")]
enum Id {
    Text(String),
    Number(i64),
}

/// Reads the file at `path`.
pub(super) fn read(draft: &mut Draft, path: &Path) -> Result<(), DataError> {
    let bytes = draft.read(path)?;
    let beside = path.parent().unwrap_or(Path::new(""));
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let added = add(draft, path, beside, index + 1, line);
        draft.keep(added)?;
    }
    if draft.pictures.is_empty() && draft.skipped.is_empty() {
        return Err(DataError::NoExpressions {
            path: path.to_owned(),
            split: "all".to_owned(),
            found: "no line".to_owned(),
        });
    }
    Ok(())
}

fn add(
    draft: &mut Draft,
    path: &Path,
    beside: &Path,
    number: usize,
    line: &[u8],
) -> Result<(), DataError> {
    let entry = format!("line {number}");
    let line: Line = serde_json::from_slice(line).map_err(|source| DataError::Json {
        path: path.to_owned(),
        entry: entry.clone(),
        expected: "`image`, `phrase` and `rle`",
        source,
    })?;
    let phrase = line.phrase.trim();
    if phrase.is_empty() {
        return Err(Problem::new("an empty `phrase`", "words").at(path, entry));
    }
    let truth = line.rle.map(|code| {
        draft.annotate(Annotation {
            path: path.to_owned(),
            entry: entry.clone(),
            region: Region::RunLengths(vec![code]),
            bbox: None,
        })
    });
    let picture = || Picture {
        id: line.image.clone(),
        path: beside.join(&line.image),
        size: None,
        expressions: Vec::new(),
    };
    let expression = Expression {
        id: match line.id {
            Some(Id::Text(id)) => id,
            Some(Id::Number(id)) => id.to_string(),
            None => number.to_string(),
        },
        phrase: phrase.to_owned(),
        truth: Vec::from_iter(truth),
    };
    draft
        .express(&line.image, picture, expression)
        .map_err(|problem| problem.at(path, entry))
}
