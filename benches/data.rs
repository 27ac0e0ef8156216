//! Opening a data set the size of RefCOCO's training split, rasterising what its expressions
//! mean, and scoring predictions.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use refseg::mask::Mask;
use refseg_data::dataset::{Dataset, Source};
use refseg_data::predictions::{Answers, Reading};
use refseg_data::score::{Case, Scorer, TrueMask};
use serde_json::json;

const IMAGES: usize = 20_000;
const ANNOTATIONS: usize = 200_000;
const REFERENCES: usize = 50_000;
const SIZE: (usize, usize) = (480, 640);

fn data(criterion: &mut Criterion) {
    let root = tempfile::tempdir().expect("the temporary folder is writable");
    write(root.path()).expect("the temporary folder is writable");
    let open = |split| Dataset::open(&Source::RefCoco, split, root.path());

    let mut group = criterion.benchmark_group("data");
    group.sample_size(10);
    group.throughput(Throughput::Elements(REFERENCES as u64));
    group.bench_function("open, all of 50,000 references", |bencher| {
        bencher.iter(|| open(black_box("train")).map(|data| data.expressions()));
    });

    let data = open("train").expect("what was just written can be read");
    let pictures = &data.pictures[..100];
    let masks: usize = pictures
        .iter()
        .map(|picture| picture.expressions.len())
        .sum();
    group.throughput(Throughput::Elements(masks as u64));
    group.bench_function("truth, polygons of 40 points", |bencher| {
        bencher.iter(|| {
            for picture in pictures {
                for expression in &picture.expressions {
                    black_box(data.truth(expression, picture, SIZE).is_ok());
                }
            }
        });
    });
    group.finish();
}

/// Predictions in a file, as `refseg score` reads and judges them.
const PREDICTIONS: usize = 10_000;

fn score(criterion: &mut Criterion) {
    let ellipse = |x: f64, y: f64| {
        let bits = (0..SIZE.0 * SIZE.1).map(|i| {
            let (dx, dy) = ((i % SIZE.1) as f64 - x, (i / SIZE.1) as f64 - y);
            (dx / 120.0).powi(2) + (dy / 90.0).powi(2) < 1.0
        });
        Mask::from_bits(SIZE.0, SIZE.1, bits.collect()).expect("as many bits as pixels")
    };
    let (truth, predicted) = (ellipse(300.0, 220.0), ellipse(330.0, 240.0));
    let counts = predicted.to_rle().counts;
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let path = folder.path().join("predictions.jsonl");
    let line = |id| {
        let rle = json!({"size": [SIZE.0, SIZE.1], "counts": counts});
        format!("{}\n", json!({"id": id, "rle": rle}))
    };
    let lines: String = (0..PREDICTIONS).map(line).collect();
    fs::write(&path, lines).expect("the temporary folder is writable");

    let truth = TrueMask {
        mask: &truth,
        ignore: None,
        official_box: Some([180.0, 130.0, 420.0, 310.0]),
    };
    let mut group = criterion.benchmark_group("score");
    group.sample_size(10);
    group.throughput(Throughput::Elements(PREDICTIONS as u64));
    group.bench_function("10,000 predictions of 640x480", |bencher| {
        bencher.iter(|| {
            let answers = Answers::read_lines(&path, Reading::default())?;
            let mut scorer = Scorer::new(&answers, false);
            for id in 0..PREDICTIONS {
                let case = Case {
                    picture: "1",
                    expression: &id.to_string(),
                    phrase: "the mug",
                };
                scorer.score(&case, &truth)?;
            }
            scorer.finish().map(|scored| scored.cases.len())
        });
    });
    group.finish();
}

/// Writes references as Python 2 pickles them, and instances that mark four times as many objects.
fn write(root: &Path) -> Result<(), Box<dyn Error>> {
    let folder = root.join("refcoco");
    fs::create_dir_all(&folder)?;
    let mut refs = "(lp0\n".to_owned();
    for id in 0..REFERENCES {
        let (annotation, image) = (id * (ANNOTATIONS / REFERENCES), id % IMAGES);
        write!(
            refs,
            "(dS'ref_id'\nI{id}\nsS'ann_id'\nI{annotation}\nsS'image_id'\nI{image}\ns"
        )?;
        write!(refs, "S'split'\nS'train'\nsS'sentences'\n(l")?;
        for sentence in ["the mug on the left", "left mug", "blue mug by the kettle"] {
            write!(
                refs,
                "(dS'sent'\nS'{sentence} {id}'\nsS'raw'\nS'{sentence}'\nsa"
            )?;
        }
        write!(refs, "sa")?;
    }
    refs.push('.');
    fs::write(folder.join("refs(unc).p"), refs)?;

    let mut instances = "{\"images\":[".to_owned();
    for id in 0..IMAGES {
        let comma = if id > 0 { "," } else { "" };
        write!(
            instances,
            "{comma}{{\"id\":{id},\"file_name\":\"{id}.jpg\",\"height\":480,\"width\":640}}"
        )?;
    }
    instances.push_str("],\"annotations\":[");
    for id in 0..ANNOTATIONS {
        let comma = if id > 0 { "," } else { "" };
        let (x, y) = (150.0 + (id % 300) as f64, 120.0 + (id % 240) as f64);
        write!(instances, "{comma}{{\"segmentation\":[[")?;
        for point in 0..40 {
            let (sin, cos) = (f64::from(point) * std::f64::consts::TAU / 40.0).sin_cos();
            let comma = if point > 0 { "," } else { "" };
            write!(
                instances,
                "{comma}{:.2},{:.2}",
                x + 90.0 * cos,
                y + 70.0 * sin
            )?;
        }
        let image = id / (ANNOTATIONS / IMAGES);
        write!(
            instances,
            "]],\"image_id\":{image},\"bbox\":[{x},{y},9.5,9.5],\"id\":{id}}}"
        )?;
    }
    instances.push_str("]}");
    fs::write(folder.join("instances.json"), instances)?;
    Ok(())
}

criterion_group!(benches, data, score);
criterion_main!(benches);
