//! Data sets of referring segmentation: the published ones in their original layout,
//! and three simple formats for one's own.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use refseg_data::dataset::{Dataset, Source};
//!
//! let data = Dataset::open(&Source::RefCoco, "val", Path::new("data"))?;
//! for picture in &data.pictures {
//!     let image = refseg::Image::open(&picture.path)?;
//!     let size = (image.height() as usize, image.width() as usize);
//!     for expression in &picture.expressions {
//!         let truth = data.truth(expression, picture, size)?;
//!         println!("{}: {} pixels", expression.phrase, truth.mask.area());
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | name | files | splits |
//! |---|---|---|
//! | `refcoco`, `refcoco+` | `ROOT/[refer_seg/]refcoco/{refs(unc).p, instances.json}` | train, val, testA, testB, test |
//! | `refcocog` | `ROOT/[refer_seg/]refcocog/{refs(umd).p, instances.json}` | train, val, test |
//! | `refclef` | `ROOT/[refer_seg/]refclef/{refs(unc).p, instances.json}` | train, val, testA, testB, testC, test |
//! | `grefcoco` | `ROOT/[refer_seg/]grefcoco/{grefs(unc).json or .p, instances.json}` | train, val, testA, testB |
//! | `reasonseg` | `ROOT/[[reason_seg/]ReasonSeg/]SPLIT/*.{jpg,json}` | train, val, test |
//! | `coco` | `ROOT`, or `ROOT/annotations.json` | all |
//! | `folder` | `ROOT/[*/]*.{jpg,txt,mask.png}` | all |
//! | `jsonl` | `ROOT` | all |
//!
//! Phrases of the first five are normalised as the reference normalises them; those of
//! the others lose the white space around them. Pictures are not opened.

mod check;
mod coco;
mod draft;
mod error;
mod examples;
mod folder;
mod instances;
mod jsonl;
mod objects;
mod pickle;
mod reason;
mod refer;
mod region;
mod source;

use std::path::{Path, PathBuf};

use half::f16;
use refseg::mask::Mask;

use crate::metrics::Family;
use draft::{Annotation, Draft};
use region::RegionError;

pub use check::{
    CheckOptions, CheckReport, Counts, Duplicate, Finding, Leak, SetReport, SplitReport, check,
};
pub use error::DataError;
pub use pickle::PickleError;
pub use refer::{Reference, parse_refs};
pub use source::Source;

/// One split of a data set: pictures, and what is said about them.
#[derive(Debug)]
pub struct Dataset {
    /// Name of the data set: "refcoco", or that of its file or folder.
    pub name: String,
    /// Name of the split.
    pub split: String,
    /// Whose metrics hold for it.
    pub family: Family,
    /// Pictures with at least one expression, in the order of the annotations.
    pub pictures: Vec<Picture>,
    /// What expressions mean, by index.
    annotations: Vec<Annotation>,
    /// Whether polygons of odd length or fewer than three points mark nothing.
    whole_polygons_only: bool,
    references: usize,
    skipped: Vec<String>,
    digest: String,
}

/// A picture, and the expressions that ask about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Identifier: the picture's number in the annotations, or its name.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// Height and width as the annotations state them, if they do.
    pub size: Option<(usize, usize)>,
    /// In the order of the annotations.
    pub expressions: Vec<Expression>,
}

/// A phrase that asks for something in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// Unique in the split, and the same for the same files: `REF_ID:INDEX` with the
    /// index of the sentence within its reference, from 0; `ANNOTATION_ID:INDEX` for
    /// `coco`; `NAME:INDEX` for `reasonseg` and `folder`, with the index of the text or
    /// line; `id` or the number of the line, from 1, for `jsonl`.
    pub id: String,
    /// The phrase, normalised where the reference does so.
    pub phrase: String,
    /// Indices of the annotations it means; none where it has no target.
    truth: Vec<u32>,
}

/// What an expression means.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    /// The target's pixels; none where there is no target.
    pub mask: Mask,
    /// Pixels that do not count, where the data set marks some.
    pub ignore: Option<Mask>,
    /// The box of the reference's REC metric: XYXY in pixels, from a stated left, top,
    /// width and height that are each rounded to f16 first. `None` unless the expression
    /// means one annotation, and that states a box.
    pub official_box: Option<[f32; 4]>,
}

/// How a data set is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Skips entries that are wrong and lists them in [`Dataset::skipped`]; otherwise
    /// (default) the first is an error. Files that are wrong as a whole are errors in any
    /// case.
    pub keep_going: bool,
}

impl Dataset {
    /// Opens one split of the data set below `root` (see the table above).
    ///
    /// # Errors
    /// A split that the data set does not have; files that are missing, malformed or
    /// contradict each other; a split without expressions.
    pub fn open(source: &Source, split: &str, root: &Path) -> Result<Self, DataError> {
        Self::open_with(source, split, root, &Options::default())
    }

    /// [`Dataset::open`] with options.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_with(
        source: &Source,
        split: &str,
        root: &Path,
        options: &Options,
    ) -> Result<Self, DataError> {
        let source = *source;
        source.check_split(split)?;
        let mut draft = Draft::new(options);
        match source {
            Source::RefCoco
            | Source::RefCocoPlus
            | Source::RefCocoG
            | Source::RefClef
            | Source::GRefCoco => refer::read(&mut draft, source, split, root)?,
            Source::ReasonSeg => reason::read(&mut draft, split, root)?,
            Source::Coco => coco::read(&mut draft, root)?,
            Source::Folder => folder::read(&mut draft, root)?,
            Source::Jsonl => jsonl::read(&mut draft, root)?,
        }
        let own_name = || Some(root.file_stem()?.to_string_lossy().into_owned());
        Ok(Self {
            name: match source {
                Source::Coco | Source::Folder | Source::Jsonl => own_name(),
                _ => None,
            }
            .unwrap_or_else(|| source.to_string()),
            split: split.to_owned(),
            family: source.family(),
            digest: draft.digest(),
            pictures: draft.pictures,
            annotations: draft.annotations,
            // The reference filters in evaluation alone, and for gRefCOCO alone.
            whole_polygons_only: source == Source::GRefCoco && split != "train",
            references: draft.references,
            skipped: draft.skipped,
        })
    }

    /// Rasterises what an expression of `picture` means. `size` (height, width) is that of
    /// the decoded picture, without any turning by its EXIF orientation.
    ///
    /// # Errors
    /// [`DataError::Size`] if the annotations state another size; [`DataError::Mask`] and
    /// [`DataError::Entry`] if an annotation is malformed; a mask file that cannot be
    /// read; [`DataError::Foreign`] for an expression of a data set with more annotations.
    pub fn truth(
        &self,
        expression: &Expression,
        picture: &Picture,
        size: (usize, usize),
    ) -> Result<Truth, DataError> {
        picture.check_size(size)?;
        let mut mask = Mask::empty(size.0, size.1).map_err(|source| DataError::Mask {
            path: picture.path.clone(),
            entry: "the picture".to_owned(),
            source,
        })?;
        let mut ignore = None;
        let annotations = self.annotations(expression)?;
        for annotation in &annotations {
            let region = annotation.region.rasterise(size, self.whole_polygons_only);
            let united = region.and_then(|region| {
                ignore = region.ignore;
                Ok(mask.union(&region.mask)?)
            });
            mask = united.map_err(|error| annotation.error(error, size))?;
        }
        Ok(Truth {
            mask,
            ignore,
            official_box: match annotations[..] {
                [annotation] => annotation.bbox.map(official_box),
                _ => None,
            },
        })
    }

    /// SHA-256, in hexadecimal digits, over the annotation files one after the other in
    /// the order in which they were read: the references and then the instances; or all
    /// files in the order of their names.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Number of expressions.
    pub fn expressions(&self) -> usize {
        let expressions = |picture: &Picture| picture.expressions.len();
        self.pictures.iter().map(expressions).sum()
    }

    /// Number of references, each with one or more expressions; 0 where the format has
    /// no references.
    pub fn references(&self) -> usize {
        self.references
    }

    /// The entries left out because of [`Options::keep_going`], as error messages.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    fn annotations(&self, expression: &Expression) -> Result<Vec<&Annotation>, DataError> {
        let find = |&index: &u32| self.annotations.get(index as usize);
        let found: Option<Vec<_>> = expression.truth.iter().map(find).collect();
        found.ok_or_else(|| DataError::Foreign {
            id: expression.id.clone(),
            name: self.name.clone(),
        })
    }
}

impl Picture {
    /// Refuses another size (height, width) than the annotations state.
    fn check_size(&self, size: (usize, usize)) -> Result<(), DataError> {
        match self.size {
            Some(expected) if expected != size => Err(DataError::Size {
                path: self.path.clone(),
                found: size,
                expected,
            }),
            _ => Ok(()),
        }
    }
}

impl Annotation {
    fn error(&self, error: RegionError, size: (usize, usize)) -> DataError {
        let path = self.path.clone();
        match error {
            RegionError::Mask(source) => DataError::Mask {
                path,
                entry: self.entry.clone(),
                source,
            },
            RegionError::Size(found) => DataError::Entry {
                path,
                entry: self.entry.clone(),
                found: format!("run lengths of a mask of {found:?} in a picture of {size:?}"),
                expected: "one size (height, width)",
            },
            RegionError::Outline => DataError::Entry {
                path,
                entry: self.entry.clone(),
                found: format!("an outline far too long for a picture of {size:?}"),
                expected: "polygons around an object",
            },
            RegionError::File(error) => error,
        }
    }
}

/// Corners of a box that is stated as left, top, width and height.
fn official_box(stated: [f64; 4]) -> [f32; 4] {
    let [x, y, width, height] = stated.map(|value| f16::from_f64(value).to_f32());
    [x, y, x + width, y + height]
}
