//! Reading data sets: the official code's masks on a small copy of the original layout,
//! every format with data made by hand, and everything that can be wrong with them.

mod check;
mod described;
mod own;
mod published;
mod reason;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use refseg::Image;
use refseg_data::dataset::{DataError, Dataset, Options, Source};
use serde_json::{Value, json};

type Done = Result<(), Box<dyn Error>>;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Writes a file, and the folders it lies in.
fn put(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
    let path = path.as_ref();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes)
}

/// Writes a PNG in which the pixels of `white`, XYXY without its end, are white.
fn put_picture(path: &Path, (height, width): (u32, u32), white: [u32; 4]) -> Done {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let [x1, y1, x2, y2] = white;
    let inside = |x, y| (x1..x2).contains(&x) && (y1..y2).contains(&y);
    let level = |pixel| u8::from(inside(pixel % width, pixel / width)) * 255;
    let pixels = (0..height * width).flat_map(|pixel| [level(pixel); 3]);
    Image::from_rgb(width, height, pixels.collect())?.save_png(path)?;
    Ok(())
}

/// A reference with one sentence for each of `sentences`.
fn reference(id: i64, annotations: Value, image: i64, split: &str, sentences: &[&str]) -> Value {
    let sentence = |text: &&str| json!({"sent": text, "raw": "RAW", "sent_id": 0, "tokens": []});
    let sentences: Vec<Value> = sentences.iter().map(sentence).collect();
    json!({
        "ref_id": id, "ann_id": annotations, "image_id": image, "split": split,
        "file_name": "not_this.jpg", "category_id": 1, "sentences": sentences,
    })
}

/// A picture of 6 rows and 8 columns.
fn image(id: i64) -> Value {
    json!({"id": id, "file_name": format!("{id}.jpg"), "height": 6, "width": 8})
}

/// An object that covers the columns from `left` to `right`, without the end.
fn annotation(id: i64, left: u32, right: u32) -> Value {
    json!({
        "area": 1, "iscrowd": 0, "image_id": 1, "bbox": [left, 0, right - left, 6],
        "segmentation": [[left, 0, right, 0, right, 6, left, 6]], "category_id": 1, "id": id,
    })
}

/// Writes the references and instances of a data set.
fn put_set(root: &Path, set: &str, refs: &[Value], annotations: &[Value]) -> Done {
    let refs_name = match set {
        "grefcoco" => "grefs(unc).json",
        "refcocog" => "refs(umd).json",
        _ => "refs(unc).json",
    };
    let folder = root.join("refer_seg").join(set);
    put(folder.join(refs_name), json!(refs).to_string())?;
    let instances = json!({
        "info": {"description": "by hand"}, "licenses": [],
        "images": [image(1), image(2), image(3)],
        "annotations": annotations, "categories": [],
    });
    put(folder.join("instances.json"), instances.to_string())?;
    Ok(())
}

/// The phrase and the mask's area of every expression, in order.
fn areas(data: &Dataset, size: (usize, usize)) -> Result<Vec<(String, u64)>, DataError> {
    let mut areas = Vec::new();
    for picture in &data.pictures {
        for expression in &picture.expressions {
            let truth = data.truth(expression, picture, picture.size.unwrap_or(size))?;
            areas.push((expression.phrase.clone(), truth.mask.area()));
        }
    }
    Ok(areas)
}

/// The message of the error, and of its causes, that opening or rasterising ends in.
fn failure(source: Source, split: &str, root: &Path) -> String {
    let result = Dataset::open(&source, split, root).and_then(|data| areas(&data, (6, 8)));
    match result {
        Ok(areas) => format!("no failure: {areas:?}"),
        Err(error) => {
            let mut message = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                message += &format!(": {error}");
                cause = error.source();
            }
            message.replace(&root.display().to_string(), "ROOT")
        }
    }
}

/// Opens what has faults, and skips them.
fn lenient(source: Source, split: &str, root: &Path) -> Result<Dataset, DataError> {
    Dataset::open_with(&source, split, root, &Options { keep_going: true })
}
