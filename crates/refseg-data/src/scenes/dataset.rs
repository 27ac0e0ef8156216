//! Writes drawn scenes to disk in the layout of RefCOCO and gRefCOCO, so that
//! any reader of those data sets reads them.
//!
//! ```text
//! refer_seg/
//!   refcoco/   refs(unc).p       instances.json   phrases with one target
//!   grefcoco/  grefs(unc).json   instances.json   all phrases
//!   images/mscoco/images/train2014/COCO_train2014_000000000001.png
//! ```
//!
//! Masks are polygons along pixel edges. COCO's rasteriser gives the drawn mask
//! back from them bit by bit, holes included: all outlines of an object are
//! joined into one polygon by bridges of no width, which its parity rule
//! cancels.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, ImageError};
use serde::Serialize;

use super::draw::{Object, Scene, SceneOptions, SceneOptionsError, Shape, Split};
use super::phrases::PhraseKind;

/// Draws every part and writes the data set below `root`.
///
/// Pictures are drawn, packed and written by `options.threads` threads; the
/// files do not depend on their number. Each file is written beside its place
/// and then renamed, the annotations last, so a data set that has its
/// reference files is complete. `progress` hears after each scene how many are
/// done.
///
/// # Errors
/// Options outside their limits; a data set already at `root`, unless
/// `options.overwrite`; whatever the file system refuses.
pub fn write_dataset(
    root: &Path,
    options: &DatasetOptions,
    mut progress: impl FnMut(usize),
) -> Result<DatasetSummary, DatasetError> {
    options.validate()?;
    let layout = Layout::new(root);
    if !options.overwrite {
        for path in layout.annotation_files() {
            if path.exists() {
                return Err(DatasetError::Exists {
                    path: path.to_owned(),
                });
            }
        }
    }
    for folder in [&layout.refcoco, &layout.grefcoco, &layout.images] {
        fs::create_dir_all(folder).map_err(DatasetError::writing(folder))?;
    }

    let total = options.parts.iter().map(|part| part.count).sum();
    let mut annotations = Annotations::create(&layout)?;
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        // Bounded, so that drawing never runs far ahead of the disk.
        let (sender, receiver) = mpsc::sync_channel(64);
        for _ in 0..options.thread_count() {
            let (sender, next, layout) = (sender.clone(), &next, &layout);
            scope.spawn(move || {
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    if position >= total {
                        break;
                    }
                    let record = write_scene(layout, options, position);
                    let failed = record.is_err();
                    // A closed channel means that the collector gave up.
                    if sender.send((position, record)).is_err() || failed {
                        break;
                    }
                }
            });
        }
        drop(sender);
        // Scenes arrive in any order and are written down in their own.
        let mut waiting = BTreeMap::new();
        let mut done = 0;
        for (position, record) in receiver {
            waiting.insert(position, record?);
            while let Some(record) = waiting.remove(&done) {
                annotations.add(&record)?;
                done += 1;
                progress(done);
            }
        }
        Ok::<(), DatasetError>(())
    })?;
    annotations.finish(&layout)
}

/// What to write.
#[derive(Clone, Debug)]
pub struct DatasetOptions {
    /// How scenes are drawn; each part replaces the split.
    pub scenes: SceneOptions,
    /// The data set's splits, in file order.
    pub parts: Vec<Part>,
    /// Replace the annotations of a data set that is already there. Pictures
    /// of it that are not drawn again stay.
    pub overwrite: bool,
    /// Threads; `None` for one on every core.
    pub threads: Option<NonZeroUsize>,
}

impl DatasetOptions {
    fn validate(&self) -> Result<(), DatasetError> {
        self.scenes.validate()?;
        if self.parts.iter().all(|part| part.count == 0) {
            return Err(DatasetError::NoScenes);
        }
        for (number, part) in self.parts.iter().enumerate() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if part.name.is_empty() || !part.name.chars().all(is_word) {
                return Err(DatasetError::PartName {
                    found: part.name.clone(),
                });
            }
            if self.parts[..number]
                .iter()
                .any(|other| other.overlaps(part))
            {
                return Err(DatasetError::PartsOverlap {
                    name: part.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn thread_count(&self) -> usize {
        let available = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or_else(available, NonZeroUsize::get)
    }

    /// The part and the scene index behind a position in file order.
    fn locate(&self, mut position: usize) -> Option<(&Part, u64)> {
        for part in &self.parts {
            if position < part.count {
                return Some((part, part.first_index.wrapping_add(position as u64)));
            }
            position -= part.count;
        }
        None
    }
}

/// One split of a data set on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The `split` field of its references: "train", "val", "testA", "testB".
    pub name: String,
    /// Which scenes it shows.
    pub split: Split,
    /// Index of its first scene.
    pub first_index: u64,
    /// Number of scenes.
    pub count: usize,
}

impl Part {
    /// RefCOCO's four splits: `train` scenes; `val` and `testA` from seeds
    /// never trained on; `testB` with combinations never trained on.
    /// `first_index` is where `train`, `val` and `testB` begin.
    pub fn refcoco(first_index: u64, train: usize, val: usize, test: usize) -> Vec<Self> {
        let part = |name: &str, split, first_index, count| Self {
            name: name.to_owned(),
            split,
            first_index,
            count,
        };
        let after_val = first_index.wrapping_add(val as u64);
        vec![
            part("train", Split::Train, first_index, train),
            part("val", Split::HeldOut, first_index, val),
            part("testA", Split::HeldOut, after_val, test),
            part("testB", Split::Unseen, first_index, test),
        ]
    }

    fn overlaps(&self, other: &Self) -> bool {
        let starts_within = |a: &Self, b: &Self| {
            a.count > 0 && b.first_index.wrapping_sub(a.first_index) < a.count as u64
        };
        self.split == other.split
            && (starts_within(self, other) && other.count > 0
                || starts_within(other, self) && self.count > 0)
    }
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatasetSummary {
    /// Pictures.
    pub images: usize,
    /// Objects.
    pub annotations: usize,
    /// Phrases with exactly one target, in `refcoco`.
    pub single_target_phrases: usize,
    /// All phrases, in `grefcoco`.
    pub phrases: usize,
}

/// Why a data set was not written.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A scene option is outside its limits.
    #[error(transparent)]
    Options(#[from] SceneOptionsError),
    /// The parts ask for no scenes at all.
    #[error("the parts of the data set have no scenes, expected one at least")]
    NoScenes,
    /// A part's name would not survive in file readers.
    #[error("part name is {found:?}, expected letters, digits, `_` or `-`")]
    PartName {
        /// The name.
        found: String,
    },
    /// Two parts would show the same scene.
    #[error("part `{name}` has scenes of an earlier part, expected other indices")]
    PartsOverlap {
        /// Name of the later one.
        name: String,
    },
    /// There is a data set already.
    #[error("`{path}` exists already, expected a folder without a data set")]
    Exists {
        /// Its annotation file.
        path: PathBuf,
    },
    /// A file or folder cannot be written.
    #[error("`{path}` cannot be written")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A picture cannot be encoded.
    #[error("`{path}`: the picture cannot be encoded")]
    Encode {
        /// The picture's file.
        path: PathBuf,
        /// What the encoder said.
        #[source]
        source: ImageError,
    },
    /// An entry cannot be written as JSON.
    #[error("`{path}`: an entry cannot be written as JSON")]
    Json {
        /// The JSON file.
        path: PathBuf,
        /// What the serialiser said.
        #[source]
        source: serde_json::Error,
    },
    /// The references cannot be pickled.
    #[error("`{path}`: the references cannot be pickled")]
    Pickle {
        /// The pickle.
        path: PathBuf,
        /// What the serialiser said.
        #[source]
        source: serde_pickle::Error,
    },
}

impl DatasetError {
    fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}

/// Where the files of a data set lie.
struct Layout {
    refcoco: PathBuf,
    grefcoco: PathBuf,
    images: PathBuf,
    refs: PathBuf,
    refcoco_instances: PathBuf,
    grefs: PathBuf,
    grefcoco_instances: PathBuf,
}

impl Layout {
    fn new(root: &Path) -> Self {
        let base = root.join("refer_seg");
        let (refcoco, grefcoco) = (base.join("refcoco"), base.join("grefcoco"));
        Self {
            refs: refcoco.join("refs(unc).p"),
            refcoco_instances: refcoco.join("instances.json"),
            grefs: grefcoco.join("grefs(unc).json"),
            grefcoco_instances: grefcoco.join("instances.json"),
            images: base.join("images/mscoco/images/train2014"),
            refcoco,
            grefcoco,
        }
    }

    fn annotation_files(&self) -> [&Path; 4] {
        [
            &self.refs,
            &self.refcoco_instances,
            &self.grefs,
            &self.grefcoco_instances,
        ]
    }
}

/// A file that takes its name only when it is complete; dropped before, it
/// disappears.
struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl NewFile {
    fn create(path: &Path) -> Result<Self, DatasetError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(DatasetError::writing(&temporary))?;
        Ok(Self {
            path: path.to_owned(),
            temporary,
            writer: Some(BufWriter::with_capacity(1 << 16, file)),
        })
    }

    fn text(&mut self, text: &str) -> Result<(), DatasetError> {
        self.write_all(text.as_bytes())
            .map_err(DatasetError::writing(&self.path))
    }

    fn json(&mut self, value: &impl Serialize) -> Result<(), DatasetError> {
        let json = |source| DatasetError::Json {
            path: self.path.clone(),
            source,
        };
        let text = serde_json::to_string(value).map_err(json)?;
        self.text(&text)
    }

    fn finish(mut self) -> Result<(), DatasetError> {
        self.flush().map_err(DatasetError::writing(&self.path))?;
        self.writer = None;
        fs::rename(&self.temporary, &self.path).map_err(DatasetError::writing(&self.path))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer
            .as_mut()
            .map_or(Ok(0), |writer| writer.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), BufWriter::flush)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; on the way out of an
        // error, a file that stays does no harm beyond its space.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// All that the annotation files say about one scene.
struct Record {
    part: String,
    image: ImageEntry,
    annotations: Vec<AnnotationEntry>,
    phrases: Vec<(String, PhraseKind, Vec<usize>)>,
}

#[derive(Serialize)]
struct ImageEntry {
    id: u64,
    file_name: String,
    width: u32,
    height: u32,
}

#[derive(Serialize)]
struct AnnotationEntry {
    id: u64,
    image_id: u64,
    category_id: u64,
    iscrowd: u8,
    area: u32,
    /// Left, top, width, height.
    bbox: [f32; 4],
    segmentation: [Vec<u32>; 1],
}

#[derive(Serialize)]
struct CategoryEntry {
    id: u64,
    name: &'static str,
    supercategory: &'static str,
}

/// A reference of RefCOCO, where `Id` is one number, or of gRefCOCO, where it
/// is a list.
#[derive(Serialize)]
struct Reference<Id> {
    ref_id: u64,
    ann_id: Id,
    image_id: u64,
    category_id: Id,
    split: String,
    file_name: String,
    sent_ids: Vec<u64>,
    sentences: Vec<Sentence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_target: Option<bool>,
}

#[derive(Serialize)]
struct Sentence {
    sent_id: u64,
    sent: String,
    raw: String,
    tokens: Vec<String>,
}

impl Sentence {
    fn new(sent_id: u64, text: &str) -> Self {
        Self {
            sent_id,
            sent: text.to_owned(),
            raw: text.to_owned(),
            tokens: text.split(' ').map(str::to_owned).collect(),
        }
    }
}

/// COCO's categories begin at 1.
fn category(shape: Shape) -> u64 {
    shape as u64 + 1
}

/// Draws the scene at a position, writes its picture, and returns the rest.
fn write_scene(
    layout: &Layout,
    options: &DatasetOptions,
    position: usize,
) -> Result<Record, DatasetError> {
    // Positions run below the sum of the parts' counts.
    let (part, index) = options.locate(position).ok_or(DatasetError::NoScenes)?;
    let scene_options = SceneOptions {
        split: part.split,
        ..options.scenes.clone()
    };
    let scene = Scene::draw(&scene_options, index);
    let id = position as u64 + 1;
    let file_name = format!("COCO_train2014_{id:012}.png");
    let path = layout.images.join(&file_name);

    let mut file = NewFile::create(&path)?;
    PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Up)
        .write_image(
            &scene.pixels,
            scene.size,
            scene.size,
            ExtendedColorType::Rgb8,
        )
        .map_err(|source| DatasetError::Encode { path, source })?;
    file.finish()?;

    let annotations = (0..)
        .zip(&scene.objects)
        .map(|(number, object)| {
            let [left, top, right, bottom] = object.box_px;
            AnnotationEntry {
                // At most twelve objects: image 34's third is number 3402.
                id: id * 100 + number,
                image_id: id,
                category_id: category(object.shape),
                iscrowd: 0,
                area: object.area,
                bbox: [left, top, right - left, bottom - top],
                segmentation: [polygon(object, scene.size as usize)],
            }
        })
        .collect();
    Ok(Record {
        part: part.name.clone(),
        image: ImageEntry {
            id,
            file_name,
            width: scene.size,
            height: scene.size,
        },
        annotations,
        phrases: scene
            .phrases
            .into_iter()
            .map(|phrase| (phrase.text, phrase.kind, phrase.targets))
            .collect(),
    })
}

/// The annotation files while they grow.
///
/// What is large goes to disk at once; entries of pictures and RefCOCO's
/// references, which a pickle wants whole, wait in memory.
struct Annotations {
    instances: NewFile,
    grefs: NewFile,
    images: Vec<ImageEntry>,
    refs: Vec<Reference<u64>>,
    grefs_written: u64,
    summary: DatasetSummary,
}

impl Annotations {
    fn create(layout: &Layout) -> Result<Self, DatasetError> {
        let mut instances = NewFile::create(&layout.refcoco_instances)?;
        instances
            .text("{\"info\":{\"description\":\"scenes drawn by refseg\"},\"licenses\":[],")?;
        instances.text("\"annotations\":[")?;
        let mut grefs = NewFile::create(&layout.grefs)?;
        grefs.text("[")?;
        Ok(Self {
            instances,
            grefs,
            images: Vec::new(),
            refs: Vec::new(),
            grefs_written: 0,
            summary: DatasetSummary::default(),
        })
    }

    fn add(&mut self, record: &Record) -> Result<(), DatasetError> {
        for annotation in &record.annotations {
            if self.summary.annotations > 0 {
                self.instances.text(",\n")?;
            }
            self.instances.json(annotation)?;
            self.summary.annotations += 1;
        }
        self.add_refs(record);
        for (text, _, targets) in &record.phrases {
            self.add_gref(record, text, targets)?;
        }
        self.images.push(ImageEntry {
            file_name: record.image.file_name.clone(),
            ..record.image
        });
        self.summary.images += 1;
        Ok(())
    }

    /// RefCOCO: one reference for each object, with all phrases that mean it
    /// alone.
    fn add_refs(&mut self, record: &Record) {
        for (index, annotation) in record.annotations.iter().enumerate() {
            let sentences: Vec<Sentence> = record
                .phrases
                .iter()
                .filter(|(_, _, targets)| targets[..] == [index])
                .zip(self.summary.single_target_phrases as u64..)
                .map(|((text, _, _), sent_id)| Sentence::new(sent_id, text))
                .collect();
            if sentences.is_empty() {
                continue;
            }
            self.summary.single_target_phrases += sentences.len();
            // RefCOCO puts the object's number into this name; readers take
            // the picture's name from `images`.
            let stem = record.image.file_name.trim_end_matches(".png");
            self.refs.push(Reference {
                ref_id: self.refs.len() as u64,
                ann_id: annotation.id,
                image_id: record.image.id,
                category_id: annotation.category_id,
                split: record.part.clone(),
                file_name: format!("{stem}_{}.png", annotation.id),
                sent_ids: sentences.iter().map(|sentence| sentence.sent_id).collect(),
                sentences,
                no_target: None,
            });
        }
    }

    /// gRefCOCO: one reference for each phrase.
    fn add_gref(
        &mut self,
        record: &Record,
        text: &str,
        targets: &[usize],
    ) -> Result<(), DatasetError> {
        let of_targets = |value: &dyn Fn(&AnnotationEntry) -> u64| -> Vec<i64> {
            if targets.is_empty() {
                return vec![-1];
            }
            let entry = |&target: &usize| record.annotations.get(target);
            targets
                .iter()
                .filter_map(entry)
                .map(|annotation| value(annotation) as i64)
                .collect()
        };
        let reference = Reference {
            ref_id: self.grefs_written,
            ann_id: of_targets(&|annotation| annotation.id),
            image_id: record.image.id,
            category_id: of_targets(&|annotation| annotation.category_id),
            split: record.part.clone(),
            file_name: record.image.file_name.clone(),
            sent_ids: vec![self.grefs_written],
            sentences: vec![Sentence::new(self.grefs_written, text)],
            no_target: Some(targets.is_empty()),
        };
        if self.grefs_written > 0 {
            self.grefs.text(",\n")?;
        }
        self.grefs.json(&reference)?;
        self.grefs_written += 1;
        self.summary.phrases += 1;
        Ok(())
    }

    fn finish(mut self, layout: &Layout) -> Result<DatasetSummary, DatasetError> {
        self.instances.text("],\n\"images\":")?;
        self.instances.json(&self.images)?;
        self.instances.text(",\n\"categories\":")?;
        self.instances.json(&Shape::ALL.map(|shape| CategoryEntry {
            id: category(shape),
            name: shape.name(),
            supercategory: "shape",
        }))?;
        self.instances.text("}\n")?;
        self.instances.finish()?;

        // Both data sets have the same instances.
        let mut copy = NewFile::create(&layout.grefcoco_instances)?;
        File::open(&layout.refcoco_instances)
            .and_then(|mut original| io::copy(&mut original, &mut copy))
            .map_err(DatasetError::writing(&layout.grefcoco_instances))?;
        copy.finish()?;

        self.grefs.text("]\n")?;
        self.grefs.finish()?;

        let mut refs = NewFile::create(&layout.refs)?;
        // Protocol 2, as Python 2 and 3 read it.
        let pickle_options = serde_pickle::SerOptions::new().proto_v2();
        serde_pickle::to_writer(&mut refs, &self.refs, pickle_options).map_err(|source| {
            DatasetError::Pickle {
                path: layout.refs.clone(),
                source,
            }
        })?;
        refs.finish()?;
        Ok(self.summary)
    }
}

/// One closed polygon along the pixel edges of the object's mask, as x, y
/// pairs.
fn polygon(object: &Object, side: usize) -> Vec<u32> {
    let outlines = outlines(object, side);
    let Some((first, rest)) = outlines.split_first() else {
        return Vec::new();
    };
    let home = first[0];
    let mut points = first.clone();
    points.push(home);
    for outline in rest {
        // Out by two straight edges, around, and back by the same ones: what
        // they toggle, they toggle twice.
        let corner = (outline[0].0, home.1);
        points.push(corner);
        points.extend_from_slice(outline);
        points.extend([outline[0], corner, home]);
    }
    points.dedup();
    // The polygon closes by itself.
    if rest.is_empty() {
        points.pop();
    }
    points.into_iter().flat_map(|(x, y)| [x, y]).collect()
}

/// All closed outlines of the mask, outer ones and holes, as corners `(x, y)`.
fn outlines(object: &Object, side: usize) -> Vec<Vec<(u32, u32)>> {
    const RIGHT: usize = 0;
    const DOWN: usize = 1;
    const LEFT: usize = 2;
    const UP: usize = 3;
    let [left, top, right, bottom] = object.box_px.map(|edge| edge as usize);
    let (width, height) = (right - left, bottom - top);
    let inside = |x: usize, y: usize| {
        // Coordinates from 1, so that a margin of background needs no case.
        (1..=width).contains(&x)
            && (1..=height).contains(&y)
            && object.mask[(top + y - 1) * side + left + x - 1] == 1
    };
    // Bit d of a corner: an edge leaves it in direction d, the object on its
    // right-hand side.
    let columns = width + 1;
    let mut edges = vec![0u8; columns * (height + 1)];
    for y in 0..=height {
        for x in 0..=width {
            // The pixels around the corner (x, y).
            let (nw, ne) = (inside(x, y), inside(x + 1, y));
            let (sw, se) = (inside(x, y + 1), inside(x + 1, y + 1));
            let leaving = [se && !ne, sw && !se, nw && !sw, ne && !nw];
            for (direction, _) in leaving.iter().enumerate().filter(|(_, leaves)| **leaves) {
                edges[y * columns + x] |= 1 << direction;
            }
        }
    }
    let mut outlines = Vec::new();
    for start in 0..edges.len() {
        while edges[start] != 0 {
            let mut outline = Vec::new();
            let (mut at, mut before) = (start, None);
            loop {
                // Where two outlines touch at a corner, either way on is right.
                let direction = edges[at].trailing_zeros() as usize;
                edges[at] &= !(1 << direction);
                if before != Some(direction) {
                    outline.push(((left + at % columns) as u32, (top + at / columns) as u32));
                }
                before = Some(direction);
                at = match direction {
                    RIGHT => at + 1,
                    DOWN => at + columns,
                    LEFT => at - 1,
                    UP => at - columns,
                    _ => unreachable!("a corner has four directions"),
                };
                if at == start {
                    break;
                }
            }
            outlines.push(outline);
        }
    }
    outlines
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// A folder that goes away with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("refseg-scenes-{name}-{}", std::process::id());
            let folder = Self(std::env::temp_dir().join(name));
            fs::create_dir_all(&folder.0).unwrap();
            folder
        }

        fn read(&self, path: &str) -> Vec<u8> {
            fs::read(self.0.join("refer_seg").join(path)).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn options() -> DatasetOptions {
        DatasetOptions {
            scenes: SceneOptions {
                size: 112,
                ..SceneOptions::default()
            },
            parts: Part::refcoco(10, 6, 3, 3),
            overwrite: false,
            threads: NonZeroUsize::new(2),
        }
    }

    /// COCO's rasteriser, from its description: coordinates times five, edges
    /// walked along their longer axis, toggles where x changes.
    fn rasterise(polygon: &[u32], side: usize) -> Vec<u8> {
        let points: Vec<(i64, i64)> = polygon
            .chunks_exact(2)
            .map(|xy| {
                (
                    (5.0 * f64::from(xy[0]) + 0.5) as i64,
                    (5.0 * f64::from(xy[1]) + 0.5) as i64,
                )
            })
            .collect();
        let mut walked = Vec::new();
        for (index, &(mut xs, mut ys)) in points.iter().enumerate() {
            let (mut xe, mut ye) = points[(index + 1) % points.len()];
            let (dx, dy) = ((xe - xs).abs(), (ye - ys).abs());
            let flip = (dx >= dy && xs > xe) || (dx < dy && ys > ye);
            if flip {
                (xs, ys, xe, ye) = (xe, ye, xs, ys);
            }
            let steps = dx.max(dy);
            let edge: Vec<(i64, i64)> = (0..=steps)
                .map(|t| {
                    if dx >= dy {
                        let slope = (ye - ys) as f64 / (dx.max(1)) as f64;
                        (t + xs, (ys as f64 + slope * t as f64 + 0.5) as i64)
                    } else {
                        let slope = (xe - xs) as f64 / dy as f64;
                        ((xs as f64 + slope * t as f64 + 0.5) as i64, t + ys)
                    }
                })
                .collect();
            if flip {
                walked.extend(edge.into_iter().rev());
            } else {
                walked.extend(edge);
            }
        }
        let mut toggles = vec![0u32; side * side + 1];
        for pair in walked.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            if x0 == x1 {
                continue;
            }
            let x = (if x1 < x0 { x1 } else { x1 - 1 }) as f64;
            let x = (x + 0.5) / 5.0 - 0.5;
            if x.floor() != x || x < 0.0 || x > side as f64 - 1.0 {
                continue;
            }
            let y = ((y0.min(y1) as f64 + 0.5) / 5.0 - 0.5).clamp(0.0, side as f64);
            toggles[x as usize * side + y.ceil() as usize] += 1;
        }
        let mut mask = vec![0; side * side];
        let mut on = 0;
        for position in 0..side * side {
            on = (on + toggles[position]) % 2;
            mask[position % side * side + position / side] = on as u8;
        }
        mask
    }

    #[test]
    fn polygons_rasterise_to_the_drawn_masks() {
        let mut holes = 0;
        for index in 0..60 {
            let options = SceneOptions {
                size: 64 + 3 * index as u32,
                ..SceneOptions::default()
            };
            let scene = Scene::draw(&options, index);
            let side = scene.size as usize;
            for object in &scene.objects {
                holes += usize::from(outlines(object, side).len() > 1);
                assert!(rasterise(&polygon(object, side), side) == object.mask);
            }
        }
        assert!(holes > 10);
    }

    /// Pieces, holes and pixels that touch at corners only.
    #[test]
    fn any_mask_survives_as_a_polygon() {
        let side = 64;
        let mut object = Scene::draw(&SceneOptions::default(), 0).objects.remove(0);
        object.box_px = [0.0, 0.0, side as f32, side as f32];
        let mut state = 1u32;
        object.mask = (0..side * side)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 31) as u8
            })
            .collect();
        assert!(rasterise(&polygon(&object, side), side) == object.mask);
    }

    #[derive(Deserialize)]
    struct ReadRef {
        ref_id: u64,
        ann_id: u64,
        image_id: u64,
        category_id: u64,
        split: String,
        file_name: String,
        sent_ids: Vec<u64>,
        sentences: Vec<ReadSentence>,
    }

    #[derive(Deserialize)]
    struct ReadSentence {
        sent_id: u64,
        sent: String,
        raw: String,
        tokens: Vec<String>,
    }

    #[test]
    fn files_read_back_as_the_scenes() {
        let folder = Folder::new("read-back");
        let options = options();
        let mut heard = Vec::new();
        let summary = write_dataset(&folder.0, &options, |done| heard.push(done)).unwrap();
        assert_eq!(heard, (1..=15).collect::<Vec<_>>());
        assert_eq!((summary.images, summary.phrases), (15, 120));

        let bytes = folder.read("refcoco/instances.json");
        assert_eq!(bytes, folder.read("grefcoco/instances.json"));
        let instances: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let annotations = instances["annotations"].as_array().unwrap();
        assert_eq!(annotations.len(), summary.annotations);
        let grefs: Vec<serde_json::Value> =
            serde_json::from_slice(&folder.read("grefcoco/grefs(unc).json")).unwrap();
        assert_eq!(grefs.len(), 120);
        let pickle = folder.read("refcoco/refs(unc).p");
        assert_eq!(pickle[..2], [0x80, 2]);
        let refs: Vec<ReadRef> =
            serde_pickle::from_slice(&pickle, serde_pickle::DeOptions::new()).unwrap();

        let mut single = 0;
        for position in 0..15 {
            let (part, index) = options.locate(position).unwrap();
            let scene_options = SceneOptions {
                split: part.split,
                ..options.scenes.clone()
            };
            let scene = Scene::draw(&scene_options, index);
            let id = position as u64 + 1;
            let entry = &instances["images"][position];
            assert_eq!(entry["id"], id);
            let file_name = entry["file_name"].as_str().unwrap();
            let path = format!("images/mscoco/images/train2014/{file_name}");
            let picture = image::load_from_memory(&folder.read(&path)).unwrap();
            assert_eq!(picture.to_rgb8().into_raw(), scene.pixels);

            let of_image: Vec<_> = annotations.iter().filter(|a| a["image_id"] == id).collect();
            assert_eq!(of_image.len(), scene.objects.len());
            for (annotation, object) in of_image.iter().zip(&scene.objects) {
                let [left, top, right, bottom] = object.box_px;
                let bbox = serde_json::json!([left, top, right - left, bottom - top]);
                assert_eq!(annotation["bbox"], bbox);
                assert_eq!(annotation["area"], object.area);
                let polygon: Vec<u32> =
                    serde_json::from_value(annotation["segmentation"][0].clone()).unwrap();
                assert!(rasterise(&polygon, 112) == object.mask);
            }

            let of_image = grefs.iter().filter(|r| r["image_id"] == id);
            for (reference, phrase) in of_image.zip(&scene.phrases) {
                assert_eq!(reference["split"], part.name);
                assert_eq!(reference["sentences"][0]["sent"], phrase.text);
                assert_eq!(reference["no_target"], phrase.targets.is_empty());
                let ids: Vec<i64> = match phrase.targets[..] {
                    [] => vec![-1],
                    _ => phrase
                        .targets
                        .iter()
                        .map(|&t| (id * 100) as i64 + t as i64)
                        .collect(),
                };
                assert_eq!(reference["ann_id"], serde_json::json!(ids));
                assert_eq!(
                    reference["category_id"].as_array().unwrap().len(),
                    ids.len()
                );
            }

            for reference in refs.iter().filter(|r| r.image_id == id) {
                assert_eq!(reference.split, part.name);
                assert!(reference.file_name.starts_with("COCO_train2014_"));
                let target = (reference.ann_id - id * 100) as usize;
                assert_eq!(reference.category_id, category(scene.objects[target].shape));
                assert_eq!(reference.sent_ids.len(), reference.sentences.len());
                for (sentence, &sent_id) in reference.sentences.iter().zip(&reference.sent_ids) {
                    assert_eq!(sentence.sent_id, sent_id);
                    assert_eq!(sentence.sent, sentence.raw);
                    assert_eq!(sentence.tokens.join(" "), sentence.sent);
                    let means = |phrase: &&crate::scenes::ScenePhrase| {
                        phrase.text == sentence.sent && phrase.targets == [target]
                    };
                    assert_eq!(scene.phrases.iter().filter(means).count(), 1);
                    single += 1;
                }
            }
        }
        assert_eq!(single, summary.single_target_phrases);
        assert!(
            refs.iter()
                .enumerate()
                .all(|(number, r)| r.ref_id == number as u64)
        );
    }

    #[test]
    fn files_do_not_depend_on_threads_and_leave_nothing_behind() {
        let (one, three) = (Folder::new("one-thread"), Folder::new("three-threads"));
        for (folder, threads) in [(&one, 1), (&three, 3)] {
            let options = DatasetOptions {
                threads: NonZeroUsize::new(threads),
                ..options()
            };
            write_dataset(&folder.0, &options, |_| {}).unwrap();
        }
        for path in [
            "refcoco/refs(unc).p",
            "refcoco/instances.json",
            "grefcoco/grefs(unc).json",
        ] {
            assert!(one.read(path) == three.read(path), "{path}");
        }
        for folder in ["refcoco", "grefcoco", "images/mscoco/images/train2014"] {
            for entry in fs::read_dir(one.0.join("refer_seg").join(folder)).unwrap() {
                let name = entry.unwrap().file_name();
                assert!(!name.to_string_lossy().ends_with("tmp"), "{name:?}");
            }
        }
    }

    #[test]
    fn a_data_set_is_replaced_only_on_demand() {
        let folder = Folder::new("replace");
        let mut options = options();
        write_dataset(&folder.0, &options, |_| {}).unwrap();
        let error = write_dataset(&folder.0, &options, |_| {}).unwrap_err();
        assert!(matches!(error, DatasetError::Exists { .. }), "{error}");
        options.overwrite = true;
        write_dataset(&folder.0, &options, |_| {}).unwrap();
    }

    #[test]
    fn parts_that_share_scenes_are_refused() {
        let folder = Folder::new("parts");
        let mut options = options();
        options.parts[2].first_index -= 1;
        let error = write_dataset(&folder.0, &options, |_| {}).unwrap_err();
        assert_eq!(
            error.to_string(),
            "part `testA` has scenes of an earlier part, expected other indices"
        );
        options.parts = Part::refcoco(0, 0, 0, 0);
        let error = write_dataset(&folder.0, &options, |_| {}).unwrap_err();
        assert!(matches!(error, DatasetError::NoScenes), "{error}");
    }
}
