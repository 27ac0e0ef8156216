//! Looks a folder of data sets over before hours are spent on them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use refseg::Image;
use refseg::image::DecodeOptions;
use refseg::prompt::normalise_phrase;
use serde::Serialize;

use super::draft::with_causes;
use super::region::{Region, is_whole};
use super::{DataError, Dataset, Options, Picture, Source};

/// How much is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Decodes every picture; otherwise (default) only its header is read, and files that
    /// are cut off or damaged further on pass.
    pub decode_pictures: bool,
}

/// What was found below a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The data sets there are; none if the folder holds none.
    pub sets: Vec<SetReport>,
    /// Pictures that are trained on and evaluated with.
    pub leaks: Vec<Leak>,
}

/// What was found of one data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetReport {
    /// Its name, as [`Source`] writes it.
    pub name: String,
    /// The splits there are.
    pub splits: Vec<SplitReport>,
}

/// What was found of one split. Lists are in the order of the annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SplitReport {
    /// Its name.
    pub split: String,
    /// Why it cannot be read at all; everything below is then empty.
    pub error: Option<String>,
    /// What it holds.
    pub counts: Counts,
    /// What it holds according to the literature.
    pub published: Option<Counts>,
    /// Entries that cannot be used, as error messages.
    pub skipped: Vec<String>,
    /// Pictures without a file.
    pub missing_pictures: Vec<PathBuf>,
    /// Pictures that cannot be decoded.
    pub unreadable_pictures: Vec<Finding>,
    /// Pictures of another size than the annotations state.
    pub wrong_sizes: Vec<Finding>,
    /// Expressions with annotations that mark not one pixel, or no mask can be made of.
    pub empty_masks: Vec<Finding>,
    /// Polygons that are none: of odd length, of fewer than three points, or wholly
    /// outside their picture.
    pub invalid_polygons: Vec<Finding>,
    /// Phrases that mean different things in one picture.
    pub duplicate_phrases: Vec<Duplicate>,
}

/// Sizes of a split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Pictures with at least one expression.
    pub pictures: usize,
    /// References, where the format has them and, of a published split, where known.
    pub references: Option<usize>,
    /// Expressions; of a published split, where known.
    pub expressions: Option<usize>,
}

/// Something wrong with one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The picture, expression or annotation.
    pub entry: String,
    /// What is wrong with it.
    pub problem: String,
}

/// One phrase for different objects of one picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicate {
    /// Identifier of the picture.
    pub picture: String,
    /// The phrase, normalised.
    pub phrase: String,
    /// Identifiers of the expressions that say it.
    pub expressions: Vec<String>,
}

/// Pictures of an evaluation split that a training split shows, too. RefCOCO, RefCOCO+
/// and RefCOCOg divide the same pictures differently, so training on all of them trains
/// on most of what is evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// The training split, as `SET/SPLIT`.
    pub training: String,
    /// The evaluation split, as `SET/SPLIT`.
    pub evaluation: String,
    /// How many pictures both show.
    pub pictures: usize,
    /// Of how many in the evaluation split.
    pub of: usize,
}

impl SplitReport {
    /// How many things keep the split from being used as published: all that is listed
    /// but duplicate phrases, which published data sets have, too.
    pub fn faults(&self) -> usize {
        let differs = |(published, found): (Option<usize>, Option<usize>)| {
            published.is_some() && published != found
        };
        let counts = self.published.map_or(0, |published| {
            let pairs = [
                (Some(published.pictures), Some(self.counts.pictures)),
                (published.references, self.counts.references),
                (published.expressions, self.counts.expressions),
            ];
            pairs.into_iter().filter(|&pair| differs(pair)).count()
        });
        usize::from(self.error.is_some())
            + counts
            + self.skipped.len()
            + self.missing_pictures.len()
            + self.unreadable_pictures.len()
            + self.wrong_sizes.len()
            + self.empty_masks.len()
            + self.invalid_polygons.len()
    }
}

/// Checks every published data set, and every split of it, that lies below `root`.
/// `progress` hears the name of each split, as `SET/SPLIT`, before it is read.
pub fn check(root: &Path, options: &CheckOptions, mut progress: impl FnMut(&str)) -> CheckReport {
    let mut gallery = Gallery {
        decode: options.decode_pictures,
        seen: HashMap::new(),
    };
    let mut sets = Vec::new();
    let mut shown = Vec::new();
    for source in Source::ALL {
        let mut splits = Vec::new();
        for &split in own_splits(source) {
            let name = format!("{source}/{split}");
            progress(&name);
            let keep_going = Options { keep_going: true };
            match Dataset::open_with(&source, split, root, &keep_going) {
                Ok(data) => {
                    splits.push(inspect(&data, source, &mut gallery));
                    let paths = data.pictures.into_iter().map(|picture| picture.path);
                    shown.push((name, split == "train", paths.collect()));
                }
                // Not there, and that is all right.
                Err(DataError::Missing { .. } | DataError::NoExpressions { .. }) => {}
                Err(error) => splits.push(SplitReport {
                    split: split.to_owned(),
                    error: Some(with_causes(&error)),
                    ..SplitReport::default()
                }),
            }
        }
        if !splits.is_empty() {
            sets.push(SetReport {
                name: source.to_string(),
                splits,
            });
        }
    }
    CheckReport {
        sets,
        leaks: leaks(&shown),
    }
}

/// Published sizes: data set, split, pictures, references, expressions.
type Published = (Source, &'static str, usize, Option<usize>, Option<usize>);

#[rustfmt::skip]
const PUBLISHED: [Published; 17] = [
    (Source::RefCoco, "train", 16994, Some(42404), Some(120_624)),
    (Source::RefCoco, "val", 1500, Some(3811), Some(10834)),
    (Source::RefCoco, "testA", 750, Some(1975), Some(5657)),
    (Source::RefCoco, "testB", 750, Some(1810), Some(5095)),
    (Source::RefCocoPlus, "train", 16992, Some(42278), Some(120_191)),
    (Source::RefCocoPlus, "val", 1500, Some(3805), Some(10758)),
    (Source::RefCocoPlus, "testA", 750, Some(1975), Some(5726)),
    (Source::RefCocoPlus, "testB", 750, Some(1798), Some(4889)),
    (Source::RefCocoG, "train", 21899, Some(42226), Some(80512)),
    (Source::RefCocoG, "val", 1300, Some(2573), Some(4896)),
    (Source::RefCocoG, "test", 2600, Some(5023), Some(9602)),
    (Source::GRefCoco, "val", 1500, None, Some(16870)),
    (Source::GRefCoco, "testA", 750, None, Some(18712)),
    (Source::GRefCoco, "testB", 750, None, Some(14933)),
    (Source::ReasonSeg, "train", 239, None, None),
    (Source::ReasonSeg, "val", 200, None, None),
    (Source::ReasonSeg, "test", 779, None, None),
];

/// The splits that share no reference, of data sets with a layout of their own.
fn own_splits(source: Source) -> &'static [&'static str] {
    match source {
        Source::Coco | Source::Folder | Source::Jsonl => &[],
        Source::RefCocoG | Source::ReasonSeg => source.splits(),
        _ => match source.splits() {
            [rest @ .., "test"] => rest,
            all => all,
        },
    }
}

fn published(source: Source, split: &str) -> Option<Counts> {
    let found = PUBLISHED
        .iter()
        .find(|(name, part, ..)| (*name, *part) == (source, split));
    found.map(|&(_, _, pictures, references, expressions)| Counts {
        pictures,
        references,
        expressions,
    })
}

fn inspect(data: &Dataset, source: Source, gallery: &mut Gallery) -> SplitReport {
    let has_references = !matches!(source, Source::ReasonSeg);
    let mut report = SplitReport {
        split: data.split.clone(),
        counts: Counts {
            pictures: data.pictures.len(),
            references: has_references.then(|| data.references()),
            expressions: Some(data.expressions()),
        },
        published: published(source, &data.split),
        skipped: data.skipped().to_vec(),
        ..SplitReport::default()
    };
    let mut measured = HashSet::new();
    for picture in &data.pictures {
        let size = inspect_picture(picture, gallery, &mut report);
        if let Some(size) = size {
            inspect_masks(data, picture, size, &mut measured, &mut report);
        }
        find_duplicates(picture, &mut report);
    }
    report
}

/// Reports on the picture's file, and returns the size that annotations are for.
fn inspect_picture(
    picture: &Picture,
    gallery: &mut Gallery,
    report: &mut SplitReport,
) -> Option<(usize, usize)> {
    let entry = || picture.path.display().to_string();
    match gallery.look(&picture.path) {
        Look::Missing => {
            report.missing_pictures.push(picture.path.clone());
            picture.size
        }
        Look::Unreadable(problem) => {
            report.unreadable_pictures.push(Finding {
                entry: entry(),
                problem: problem.clone(),
            });
            picture.size
        }
        Look::Size(found) => {
            let size = picture.size.unwrap_or(*found);
            if size != *found {
                report.wrong_sizes.push(Finding {
                    entry: entry(),
                    problem: format!(
                        "is {found:?} (height, width); the annotations state {size:?}"
                    ),
                });
            }
            Some(size)
        }
    }
}

/// Reports on polygons and masks; each annotation once in a split.
fn inspect_masks(
    data: &Dataset,
    picture: &Picture,
    size: (usize, usize),
    measured: &mut HashSet<u32>,
    report: &mut SplitReport,
) {
    let mut last: Option<&[u32]> = None;
    for expression in &picture.expressions {
        for &index in &expression.truth {
            let annotation = &data.annotations[index as usize];
            if let Region::Polygons(polygons) = &annotation.region
                && measured.insert(index)
            {
                let wrong = polygons.iter().enumerate().filter_map(|(number, polygon)| {
                    let problem = format!("polygon {number} {}", fault(polygon, size)?);
                    let entry = annotation.entry.clone();
                    Some(Finding { entry, problem })
                });
                report.invalid_polygons.extend(wrong);
            }
        }
        // The sentences of a reference mean the same.
        if expression.truth.is_empty() || last == Some(&expression.truth) {
            continue;
        }
        last = Some(&expression.truth);
        let problem = match data.truth(expression, picture, size) {
            Ok(truth) if truth.mask.area() > 0 => continue,
            Ok(_) => "its annotations mark not one pixel".to_owned(),
            Err(error) => with_causes(&error),
        };
        report.empty_masks.push(Finding {
            entry: expression.id.clone(),
            problem,
        });
    }
}

/// What makes a polygon none.
fn fault(polygon: &[f64], (height, width): (usize, usize)) -> Option<&'static str> {
    if !is_whole(polygon) {
        return Some(match polygon.len().is_multiple_of(2) {
            true => "has fewer than three points",
            false => "has an odd number of coordinates",
        });
    }
    let (points, _) = polygon.as_chunks::<2>();
    let outside = [
        points.iter().all(|[x, _]| *x <= 0.0),
        points.iter().all(|[_, y]| *y <= 0.0),
        points.iter().all(|[x, _]| *x >= width as f64),
        points.iter().all(|[_, y]| *y >= height as f64),
    ];
    outside
        .contains(&true)
        .then_some("lies wholly outside the picture")
}

fn find_duplicates(picture: &Picture, report: &mut SplitReport) {
    let mut by_phrase: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for expression in &picture.expressions {
        let same = by_phrase.entry(normalise_phrase(&expression.phrase));
        same.or_default().push(expression);
    }
    for (phrase, expressions) in by_phrase {
        let meanings: BTreeSet<_> = expressions.iter().map(|said| &said.truth).collect();
        if meanings.len() > 1 {
            report.duplicate_phrases.push(Duplicate {
                picture: picture.id.clone(),
                phrase,
                expressions: expressions.iter().map(|said| said.id.clone()).collect(),
            });
        }
    }
}

/// Compares each training split (the flag) with each other split.
fn leaks(shown: &[(String, bool, HashSet<PathBuf>)]) -> Vec<Leak> {
    let mut leaks = Vec::new();
    for (training, _, trained) in shown.iter().filter(|(_, train, _)| *train) {
        for (evaluation, _, evaluated) in shown.iter().filter(|(_, train, _)| !train) {
            let pictures = trained.intersection(evaluated).count();
            if pictures > 0 {
                leaks.push(Leak {
                    training: training.clone(),
                    evaluation: evaluation.clone(),
                    pictures,
                    of: evaluated.len(),
                });
            }
        }
    }
    leaks
}

/// Picture files, each looked at once: data sets share them.
struct Gallery {
    decode: bool,
    seen: HashMap<PathBuf, Look>,
}

enum Look {
    Missing,
    Unreadable(String),
    /// Height and width.
    Size((usize, usize)),
}

impl Gallery {
    fn look(&mut self, path: &Path) -> &Look {
        let decode = self.decode;
        let entry = self.seen.entry(path.to_owned());
        entry.or_insert_with(|| {
            if !path.exists() {
                return Look::Missing;
            }
            // As evaluation reads pictures.
            let options = DecodeOptions {
                apply_orientation: false,
                ..DecodeOptions::default()
            };
            let size = match decode {
                true => Image::open_with(path, &options)
                    .map(|picture| (picture.height(), picture.width())),
                false => Image::read_size(path, &options),
            };
            match size {
                Ok((height, width)) => Look::Size((height as usize, width as usize)),
                Err(error) => Look::Unreadable(with_causes(&error)),
            }
        })
    }
}
