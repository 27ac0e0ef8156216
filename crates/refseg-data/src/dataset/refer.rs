//! RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO, in their original layout.
//!
//! ```text
//! refer_seg/
//!   refcoco/  refcoco+/  refclef/   refs(unc).p            instances.json
//!   refcocog/                       refs(umd).p            instances.json
//!   grefcoco/                       grefs(unc).json or .p  instances.json
//!   images/mscoco/images/train2014/COCO_train2014_*.jpg
//!   images/saiapr_tc-12/…           refclef alone
//! ```

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use refseg::prompt::normalise_phrase;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::draft::{Draft, inside};
use super::error::Problem;
use super::instances::{AnnotationEntry, ImageEntry, Instances};
use super::pickle::{Id, Pickle, PickleError, Value};
use super::{DataError, Expression, Picture, Source};

/// One entry of `refs(*).p`: an object, or several, and what people call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `ref_id`.
    pub ref_id: i64,
    /// `ann_id`: the objects meant. gRefCOCO writes −1 where there is none.
    pub annotation_ids: Vec<i64>,
    /// `image_id`.
    pub image_id: i64,
    /// `split` as written, for example "train" or "testAB".
    pub split: String,
    /// `sent` of each of its sentences.
    pub sentences: Vec<String>,
}

/// Parses references, pickled (protocol 0 to 5, by Python 2 or 3) or as JSON. `path`
/// stands for the file in errors.
///
/// Nothing of a pickle is executed. Memory stays in proportion to the bytes given.
///
/// # Errors
/// The file as a whole: [`DataError::Pickle`], [`DataError::Json`], [`DataError::Entry`]
/// if it is no list. One entry alone: the same, in its place in the list.
pub fn parse_refs(
    bytes: &[u8],
    path: &Path,
) -> Result<Vec<Result<Reference, DataError>>, DataError> {
    // No pickle begins with a bracket.
    match bytes.trim_ascii_start().first() {
        Some(b'[') => parse_json(bytes, path),
        _ => parse_pickle(bytes, path),
    }
}

/// Reads one split of the data set `source` below `root`.
pub(super) fn read(
    draft: &mut Draft,
    source: Source,
    split: &str,
    root: &Path,
) -> Result<(), DataError> {
    let layout = Layout::find(source, root)?;

    let bytes = draft.read(&layout.refs)?;
    let mut references = Vec::new();
    let mut splits = Vec::new();
    for reference in parse_refs(&bytes, &layout.refs)? {
        let Some(reference) = draft.keep(reference)? else {
            continue;
        };
        if belongs(source, &reference.split, split) {
            references.push(reference);
        } else if !splits.contains(&reference.split) && splits.len() < 8 {
            splits.push(reference.split);
        }
    }
    drop(bytes);
    if references.is_empty() && draft.skipped.is_empty() {
        return Err(DataError::NoExpressions {
            path: layout.refs,
            split: split.to_owned(),
            found: match splits.is_empty() {
                true => "no reference at all".to_owned(),
                false => splits.join(", "),
            },
        });
    }

    let bytes = draft.read(&layout.instances)?;
    let instances = Instances::<AnnotationEntry>::parse(&bytes, &layout.instances)?;
    let wanted: HashSet<i64> = references
        .iter()
        .flat_map(|reference| reference.annotation_ids.iter().copied())
        .collect();
    let mut annotations = HashMap::new();
    for (index, annotation) in instances.annotations.iter().enumerate() {
        if wanted.contains(&annotation.id) {
            let read = annotation.read(index, &layout.instances);
            if let Some(read) = draft.keep(read)? {
                annotations.insert(annotation.id, draft.annotate(read));
            }
        }
    }
    let images = instances.images.iter().map(|image| (image.id, image));
    let context = Context {
        layout: &layout,
        source,
        split,
        images: images.collect(),
        annotations,
    };
    let mut seen = HashSet::new();
    for reference in &references {
        let added = match seen.insert(reference.ref_id) {
            true => context.add(draft, reference),
            false => Err(Problem::new(
                "the second of this number",
                "each `ref_id` once",
            )),
        };
        let entry = || format!("ref_id {}", reference.ref_id);
        draft.keep(added.map_err(|problem| problem.at(&layout.refs, entry())))?;
    }
    Ok(())
}

/// Where the files of a data set lie.
struct Layout {
    refs: PathBuf,
    instances: PathBuf,
    pictures: PathBuf,
}

impl Layout {
    fn find(source: Source, root: &Path) -> Result<Self, DataError> {
        let names = match source {
            Source::GRefCoco => ["grefs(unc).json", "grefs(unc).p"],
            Source::RefCocoG => ["refs(umd).p", "refs(umd).json"],
            _ => ["refs(unc).p", "refs(unc).json"],
        };
        let pictures = match source {
            Source::RefClef => "images/saiapr_tc-12",
            _ => "images/mscoco/images/train2014",
        };
        let bases = [root.join("refer_seg"), root.to_owned()];
        for base in &bases {
            let folder = base.join(source.name());
            let refs = names.map(|name| folder.join(name));
            if let Some(refs) = refs.into_iter().find(|path| path.is_file()) {
                return Ok(Self {
                    refs,
                    instances: folder.join("instances.json"),
                    pictures: base.join(pictures),
                });
            }
        }
        let path = |base: &PathBuf| base.join(source.name()).join(names[0]);
        Err(DataError::Missing {
            root: root.to_owned(),
            expected: bases
                .iter()
                .map(|base| format!("`{}`", path(base).display()))
                .collect(),
        })
    }
}

/// What references are resolved with.
struct Context<'a> {
    layout: &'a Layout,
    source: Source,
    split: &'a str,
    images: HashMap<i64, &'a ImageEntry>,
    annotations: HashMap<i64, u32>,
}

impl Context<'_> {
    fn add(&self, draft: &mut Draft, reference: &Reference) -> Result<(), Problem> {
        let Some(image) = self.images.get(&reference.image_id) else {
            let found = format!("image_id {}", reference.image_id);
            return Err(Problem::new(found, "a picture of instances.json"));
        };
        let path = inside(&self.layout.pictures, &image.file_name)?;
        if reference.sentences.is_empty() {
            return Err(Problem::new("no sentences", "one or more"));
        }
        let truth = self.truth(&reference.annotation_ids)?;
        for (index, sentence) in reference.sentences.iter().enumerate() {
            let picture = || Picture {
                id: image.id.to_string(),
                path: path.clone(),
                size: image.size(),
                expressions: Vec::new(),
            };
            let expression = Expression {
                id: format!("{}:{index}", reference.ref_id),
                phrase: phrase(sentence, self.split),
                truth: truth.clone(),
            };
            draft.express(&image.id.to_string(), picture, expression)?;
        }
        draft.references += 1;
        Ok(())
    }

    fn truth(&self, ids: &[i64]) -> Result<Vec<u32>, Problem> {
        if self.source == Source::GRefCoco && ids == [-1] {
            return Ok(Vec::new());
        }
        if ids.is_empty() {
            return Err(Problem::new("no `ann_id`", "one or more"));
        }
        let find = |id: &i64| {
            let missing = || {
                Problem::new(
                    format!("ann_id {id}"),
                    "a readable annotation of instances.json",
                )
            };
            self.annotations.get(id).copied().ok_or_else(missing)
        };
        ids.iter().map(find).collect()
    }
}

/// Whether a reference whose `split` field is `written` belongs to the split `wanted`.
fn belongs(source: Source, written: &str, wanted: &str) -> bool {
    match wanted {
        _ if source == Source::GRefCoco => written == wanted,
        "testA" => written.contains('A'),
        "testB" => written.contains('B'),
        "testC" => written.contains('C'),
        "test" => written.contains("test"),
        _ => written == wanted,
    }
}

/// The sentence as the reference asks for it: in evaluation without capital letters.
fn phrase(sentence: &str, split: &str) -> String {
    match split {
        "train" => sentence.trim().trim_matches('.').to_owned(),
        _ => normalise_phrase(sentence),
    }
}

#[derive(Deserialize)]
struct JsonReference {
    ref_id: i64,
    ann_id: OneOrMany,
    image_id: i64,
    split: String,
    sentences: Vec<JsonSentence>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`ann_id` is neither a number nor a list of numbers"
)]
enum OneOrMany {
    One(i64),
    Many(Vec<i64>),
}

#[derive(Deserialize)]
struct JsonSentence {
    sent: String,
}

fn parse_json(bytes: &[u8], path: &Path) -> Result<Vec<Result<Reference, DataError>>, DataError> {
    let failed = |entry: String, expected, source| DataError::Json {
        path: path.to_owned(),
        entry,
        expected,
        source,
    };
    let entries: Vec<&RawValue> = serde_json::from_slice(bytes)
        .map_err(|source| failed("the file".to_owned(), "a list of references", source))?;
    let parse = |(index, entry): (usize, &RawValue)| {
        let entry: JsonReference = serde_json::from_str(entry.get())
            .map_err(|source| failed(format!("entry {index}"), "a reference", source))?;
        Ok(Reference {
            ref_id: entry.ref_id,
            annotation_ids: match entry.ann_id {
                OneOrMany::One(id) => vec![id],
                OneOrMany::Many(ids) => ids,
            },
            image_id: entry.image_id,
            split: entry.split,
            sentences: entry.sentences.into_iter().map(|s| s.sent).collect(),
        })
    };
    Ok(entries.into_iter().enumerate().map(parse).collect())
}

fn parse_pickle(bytes: &[u8], path: &Path) -> Result<Vec<Result<Reference, DataError>>, DataError> {
    let failed = |source| DataError::Pickle {
        path: path.to_owned(),
        source,
    };
    let pickle = Pickle::parse(bytes).map_err(failed)?;
    let Value::List(entries) = pickle.root() else {
        let problem = Problem::new(pickle.root().describe(), "a list of references");
        return Err(problem.at(path, "the pickle"));
    };
    let mut reader = PickledReferences {
        pickle: &pickle,
        spent: 0,
        limit: bytes.len().saturating_mul(16),
    };
    let mut references = Vec::with_capacity(entries.len());
    for (index, &entry) in entries.iter().enumerate() {
        let reference = reader.read(pickle.value(entry));
        if reader.spent > reader.limit {
            return Err(failed(PickleError::Expands {
                limit: reader.limit,
            }));
        }
        references.push(reference.map_err(|problem| problem.at(path, format!("entry {index}"))));
    }
    Ok(references)
}

/// Copies references out of a pickle.
struct PickledReferences<'a> {
    pickle: &'a Pickle<'a>,
    /// Bytes that the copies take. Values may be shared, so this can exceed the file.
    spent: usize,
    limit: usize,
}

impl<'a> PickledReferences<'a> {
    fn read(&mut self, value: &'a Value<'a>) -> Result<Reference, Problem> {
        let Value::Dictionary(entry) = value else {
            return Err(Problem::new(value.describe(), "a dictionary"));
        };
        let sentences = match self.field(entry, "sentences")? {
            Value::List(items) => self.sentences(items)?,
            other => return Err(wrong("sentences", other, "a list")),
        };
        let annotation_ids = match self.field(entry, "ann_id")? {
            Value::Integer(id) => vec![*id],
            Value::List(items) => self.numbers(items)?,
            other => return Err(wrong("ann_id", other, "a number or a list of numbers")),
        };
        Ok(Reference {
            ref_id: self.number(entry, "ref_id")?,
            annotation_ids,
            image_id: self.number(entry, "image_id")?,
            split: self.text(entry, "split")?,
            sentences,
        })
    }

    fn sentences(&mut self, items: &'a [Id]) -> Result<Vec<String>, Problem> {
        let mut sentences = Vec::new();
        for &item in items {
            match self.pickle.value(item) {
                Value::Dictionary(sentence) => sentences.push(self.text(sentence, "sent")?),
                other => return Err(wrong("sentences", other, "dictionaries")),
            }
        }
        Ok(sentences)
    }

    fn numbers(&mut self, items: &'a [Id]) -> Result<Vec<i64>, Problem> {
        let mut numbers = Vec::new();
        for &item in items {
            match self.pickle.value(item) {
                Value::Integer(number) => numbers.push(*number),
                other => return Err(wrong("ann_id", other, "numbers")),
            }
            self.spend(size_of::<i64>())?;
        }
        Ok(numbers)
    }

    fn number(&self, entry: &'a [(Id, Id)], key: &'static str) -> Result<i64, Problem> {
        match self.field(entry, key)? {
            Value::Integer(number) => Ok(*number),
            other => Err(wrong(key, other, "a number")),
        }
    }

    fn text(&mut self, entry: &'a [(Id, Id)], key: &'static str) -> Result<String, Problem> {
        match self.field(entry, key)? {
            Value::Text(text) => {
                self.spend(size_of::<String>() + text.len())?;
                Ok(text.clone().into_owned())
            }
            other => Err(wrong(key, other, "a text")),
        }
    }

    fn field(&self, entry: &'a [(Id, Id)], key: &'static str) -> Result<&'a Value<'a>, Problem> {
        let field = self.pickle.field(entry, key);
        field.ok_or_else(|| Problem::new(format!("no `{key}`"), "it in every entry"))
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Problem> {
        self.spent = self.spent.saturating_add(bytes);
        match self.spent > self.limit {
            // The caller stops, and says so in its own words.
            true => Err(Problem::new("too much", "less")),
            false => Ok(()),
        }
    }
}

fn wrong(key: &'static str, value: &Value<'_>, expected: &'static str) -> Problem {
    Problem::new(format!("`{key}` has {}", value.describe()), expected)
}
