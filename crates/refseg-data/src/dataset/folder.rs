//! Pictures, phrases and masks as files side by side, in a folder or in its sub-folders.
//!
//! ```text
//! kitchen.jpg  kitchen.txt  kitchen.mask.png      any number of these
//! image.jpg    image.txt    mask.png              one of these
//! ```
//!
//! The text file has one phrase a line, and the mask holds for all of them: whatever is
//! not black. A black mask means that the picture shows no such thing.

use std::path::{Path, PathBuf};

use super::draft::{Annotation, Draft};
use super::error::Problem;
use super::region::Region;
use super::{DataError, Expression, Picture};

const PICTURE_EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Reads the folder `root` and the folders in it.
pub(super) fn read(draft: &mut Draft, root: &Path) -> Result<(), DataError> {
    let top = entries(root)?;
    let (folders, mut files): (Vec<_>, Vec<_>) = top.into_iter().partition(|path| path.is_dir());
    for folder in folders {
        files.extend(entries(&folder)?);
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    for text in &files {
        let Some(picture) = picture_beside(text) else {
            // Notes and licences are text files, too.
            continue;
        };
        let added = add(draft, root, text, &picture);
        draft.keep(added)?;
    }
    if draft.pictures.is_empty() && draft.skipped.is_empty() {
        return Err(DataError::NoExpressions {
            path: root.to_owned(),
            split: "all".to_owned(),
            found: "no text file with a picture of the same name".to_owned(),
        });
    }
    Ok(())
}

/// What a folder holds, by name.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in folder.read_dir().map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn add(draft: &mut Draft, root: &Path, text: &Path, picture: &Path) -> Result<(), DataError> {
    let bytes = draft.read(text)?;
    let phrases = match std::str::from_utf8(&bytes) {
        Ok(phrases) => phrases.strip_prefix('\u{feff}').unwrap_or(phrases),
        Err(error) => {
            let found = format!("byte {} is no UTF-8", error.valid_up_to());
            return Err(Problem::new(found, "UTF-8 text").at(text, "the phrases"));
        }
    };
    let mask = mask_beside(text)?;
    // For the digest alone: the mask is decoded when it is asked for.
    draft.read(&mask)?;
    let truth = draft.annotate(Annotation {
        path: mask.clone(),
        entry: "the mask".to_owned(),
        region: Region::MaskFile(mask),
        bbox: None,
    });
    let stem = text.strip_prefix(root).unwrap_or(text).with_extension("");
    // Identifiers are the same on every system.
    let id = stem.to_string_lossy().replace('\\', "/");
    let mut any = false;
    for (index, line) in phrases.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        any = true;
        let new = || Picture {
            id: id.clone(),
            path: picture.to_owned(),
            size: None,
            expressions: Vec::new(),
        };
        let expression = Expression {
            id: format!("{id}:{index}"),
            phrase: line.trim().to_owned(),
            truth: vec![truth],
        };
        draft
            .express(&id, new, expression)
            .map_err(|problem| problem.at(text, format!("line {}", index + 1)))?;
    }
    match any {
        true => Ok(()),
        false => Err(Problem::new("no words", "one phrase a line").at(text, "the phrases")),
    }
}

fn picture_beside(text: &Path) -> Option<PathBuf> {
    let paths = PICTURE_EXTENSIONS.map(|extension| text.with_extension(extension));
    paths.into_iter().find(|path| path.is_file())
}

fn mask_beside(text: &Path) -> Result<PathBuf, DataError> {
    let named = text.with_extension("mask.png");
    let plain = text.with_file_name("mask.png");
    if named.is_file() {
        return Ok(named);
    }
    let is_sample = text.file_stem().is_some_and(|stem| stem == "image");
    if is_sample && plain.is_file() {
        return Ok(plain);
    }
    let problem = Problem::new(
        "no mask beside them",
        "NAME.mask.png, or mask.png for image.txt",
    );
    Err(problem.at(text, "the phrases"))
}
