//! ReasonSeg: `SPLIT/x.jpg` beside `SPLIT/x.json`, which holds phrases and polygons with
//! labels.
//!
//! A label "flag" is skipped, one that contains "ignore" marks pixels that do not count,
//! and every other marks the target. Polygons are painted from the largest to the
//! smallest, so that small ones show on large ones.

use std::path::{Path, PathBuf};

use refseg::mask::{Mask, MaskError};
use serde::Deserialize;

use super::draft::{Annotation, Draft};
use super::error::Problem;
use super::region::{Covered, Region, RegionError};
use super::{DataError, Expression, Picture};

/// A polygon, and whether it marks pixels that do not count.
#[derive(Debug)]
pub(super) struct LabelledPolygon {
    ignored: bool,
    /// (x, y) in pixels.
    points: Vec<(i64, i64)>,
}

/// Coordinates beyond this many pixels are no coordinates. It also keeps the arithmetic
/// below within 64 bits.
const MAX_COORDINATE: f64 = (1 << 20) as f64;

#[derive(Deserialize)]
struct Sample {
    text: Vec<String>,
    shapes: Vec<LabelledShape>,
}

#[derive(Deserialize)]
struct LabelledShape {
    label: String,
    points: Vec<[f64; 2]>,
}

/// Reads one split below `root`.
pub(super) fn read(draft: &mut Draft, split: &str, root: &Path) -> Result<(), DataError> {
    let folder = find(split, root)?;
    for path in json_files(&folder)? {
        let bytes = draft.read(&path)?;
        let sample = parse(&bytes, &path);
        let Some((texts, region)) = draft.keep(sample)? else {
            continue;
        };
        let truth = draft.annotate(Annotation {
            path: path.clone(),
            entry: "`shapes`".to_owned(),
            region,
            bbox: None,
        });
        let id = path.file_stem().unwrap_or_default().to_string_lossy();
        // Evaluation asks for the first text alone; training has them all.
        let asked = if split == "train" { texts.len() } else { 1 };
        for (index, text) in texts.iter().take(asked).enumerate() {
            let picture = || Picture {
                id: id.to_string(),
                path: path.with_extension("jpg"),
                size: None,
                expressions: Vec::new(),
            };
            let expression = Expression {
                id: format!("{id}:{index}"),
                phrase: text.trim().to_owned(),
                truth: vec![truth],
            };
            let added = draft.express(&id, picture, expression);
            draft.keep(added.map_err(|problem| problem.at(&path, "`text`")))?;
        }
    }
    if draft.pictures.is_empty() && draft.skipped.is_empty() {
        return Err(DataError::NoExpressions {
            path: folder,
            split: split.to_owned(),
            found: "no file *.json".to_owned(),
        });
    }
    Ok(())
}

/// Paints polygons for a picture of `size` (height, width).
pub(super) fn rasterise(
    polygons: &[LabelledPolygon],
    size: (usize, usize),
) -> Result<Covered, RegionError> {
    const TARGET: u8 = 1;
    const IGNORED: u8 = 255;
    // Checks the size before anything of it is allocated.
    Mask::empty(size.0, size.1)?;
    let mut painted = Vec::with_capacity(polygons.len());
    for polygon in polygons {
        let mask = fill(&polygon.points, size)?;
        painted.push((mask.area(), polygon.ignored, mask));
    }
    // Equal areas keep their order in the file.
    painted.sort_by_key(|(area, _, _)| std::cmp::Reverse(*area));
    let mut labels = vec![0; size.0 * size.1];
    for (_, ignored, mask) in &painted {
        let label = if *ignored { IGNORED } else { TARGET };
        for (pixel, _) in labels.iter_mut().zip(mask.bits()).filter(|(_, bit)| **bit) {
            *pixel = label;
        }
    }
    let labelled = |label| {
        let bits = labels.iter().map(|&pixel| pixel == label).collect();
        Mask::from_bits(size.0, size.1, bits)
    };
    Ok(Covered {
        mask: labelled(TARGET)?,
        ignore: match polygons.iter().any(|polygon| polygon.ignored) {
            true => Some(labelled(IGNORED)?),
            false => None,
        },
    })
}

fn find(split: &str, root: &Path) -> Result<PathBuf, DataError> {
    let folders = ["reason_seg/ReasonSeg", "ReasonSeg", ""].map(|base| root.join(base).join(split));
    let found = folders.iter().find(|folder| folder.is_dir());
    found.cloned().ok_or_else(|| DataError::Missing {
        root: root.to_owned(),
        expected: folders
            .iter()
            .map(|folder| format!("`{}`", folder.display()))
            .collect(),
    })
}

fn json_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = super::folder::entries(folder)?;
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    Ok(files)
}

fn parse(bytes: &[u8], path: &Path) -> Result<(Vec<String>, Region), DataError> {
    let text = decode(bytes, path)?;
    let sample: Sample = serde_json::from_str(&text).map_err(|source| DataError::Json {
        path: path.to_owned(),
        entry: "the file".to_owned(),
        expected: "`text` and `shapes`",
        source,
    })?;
    if sample.text.iter().all(|text| text.trim().is_empty()) {
        return Err(Problem::new("no words", "one phrase or more").at(path, "`text`"));
    }
    let mut polygons = Vec::new();
    for (index, shape) in sample.shapes.iter().enumerate() {
        let label = shape.label.to_lowercase();
        if label == "flag" {
            continue;
        }
        let whole = |value: f64| (value.abs() <= MAX_COORDINATE).then_some(value as i64);
        let point = |&[x, y]: &[f64; 2]| Some((whole(x)?, whole(y)?));
        let Some(points) = shape.points.iter().map(point).collect() else {
            let problem = Problem::new("a point far outside any picture", "pixels");
            return Err(problem.at(path, format!("shapes[{index}]")));
        };
        polygons.push(LabelledPolygon {
            ignored: label.contains("ignore"),
            points,
        });
    }
    Ok((sample.text, Region::Labelled(polygons)))
}

/// UTF-8, or else Windows-1252.
fn decode(bytes: &[u8], path: &Path) -> Result<String, DataError> {
    /// Characters of the bytes 0x80 to 0x9f; five bytes have none.
    const C1: [char; 32] = [
        '€', '\0', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\0', 'Ž', '\0', '\0',
        '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\0', 'ž', 'Ÿ',
    ];
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Ok(text.to_owned());
    }
    let character = |(at, &byte): (usize, &u8)| match byte {
        0x80..=0x9f if C1[usize::from(byte - 0x80)] == '\0' => Err(DataError::Encoding {
            path: path.to_owned(),
            at,
            found: byte,
        }),
        0x80..=0x9f => Ok(C1[usize::from(byte - 0x80)]),
        _ => Ok(char::from(byte)),
    };
    bytes.iter().enumerate().map(character).collect()
}

/// Fills a polygon and draws its outline, one pixel wide, as OpenCV's `fillPoly` does:
/// to the same pixels, for polygons that reach beyond the picture, too.
fn fill(points: &[(i64, i64)], (height, width): (usize, usize)) -> Result<Mask, MaskError> {
    let mut bits = vec![false; height * width];
    let last = (width as i64 - 1, height as i64 - 1);
    let mut edges = Vec::new();
    for (index, &end) in points.iter().enumerate() {
        let start = points[index.checked_sub(1).unwrap_or(points.len() - 1)];
        let (visible, mut from, mut to) = clip(start, end, last);
        if visible {
            draw_line(from, to, |x, y| {
                bits[y as usize * width + x as usize] = true
            });
        }
        if start.1 == end.1 {
            continue;
        }
        // An edge runs through the clipped points, or through the whole ones' rows where
        // clipping has made it level.
        if from.1 == to.1 {
            (from.1, to.1) = (start.1, end.1);
        }
        let slope = ((to.0 - from.0) << FRACTION) / (to.1 - from.1);
        let (top, anchor) = if start.1 < end.1 {
            (start, from)
        } else {
            (end, to)
        };
        edges.push(Edge {
            rows: top.1..start.1.max(end.1),
            x: (anchor.0 << FRACTION) + (top.1 - anchor.1) * slope,
            slope,
        });
    }
    let mut crossings = Vec::new();
    for (y, row) in (0..).zip(bits.chunks_exact_mut(width)) {
        let crossed = edges.iter().filter(|edge| edge.rows.contains(&y));
        crossings.clear();
        crossings.extend(crossed.map(|edge| edge.x + (y - edge.rows.start) * edge.slope));
        crossings.sort_unstable();
        let (spans, _) = crossings.as_chunks::<2>();
        for &[left, right] in spans {
            let first = ((left + (1 << FRACTION) - 1) >> FRACTION).max(0);
            let end = ((right >> FRACTION) + 1).min(width as i64);
            if first < end {
                row[first as usize..end as usize].fill(true);
            }
        }
    }
    Mask::from_bits(height, width, bits)
}

/// Binary digits behind the point of an edge's position.
const FRACTION: u32 = 16;

/// One side of a polygon, as the rows it crosses, and where.
struct Edge {
    rows: std::ops::Range<i64>,
    /// Position in the first row, and its change from row to row, in 1/65536 pixel.
    x: i64,
    slope: i64,
}

/// Cuts a line at the border of a picture whose last pixel is `last`: rows first, then
/// columns, the start before the end, whole pixels each time. Says whether any of it is
/// in the picture; if not, the ends may have been moved all the same.
fn clip(
    mut start: (i64, i64),
    mut end: (i64, i64),
    last: (i64, i64),
) -> (bool, (i64, i64), (i64, i64)) {
    let side = |value: i64, last: i64| i64::from(value > last) - i64::from(value < 0);
    let sides = |point: (i64, i64)| (side(point.0, last.0), side(point.1, last.1));
    // Both ends beyond one border: the line passes the picture by.
    let passes = |a: (i64, i64), b: (i64, i64)| a.0 * b.0 > 0 || a.1 * b.1 > 0;

    let (mut a, mut b) = (sides(start), sides(end));
    if !passes(a, b) {
        if a.1 != 0 {
            let border = if a.1 < 0 { 0 } else { last.1 };
            start.0 += part(border - start.1, end.0 - start.0, end.1 - start.1);
            start.1 = border;
            a = sides(start);
        }
        if b.1 != 0 {
            let border = if b.1 < 0 { 0 } else { last.1 };
            end.0 += part(border - end.1, end.0 - start.0, end.1 - start.1);
            end.1 = border;
            b = sides(end);
        }
        if !passes(a, b) {
            if a.0 != 0 {
                let border = if a.0 < 0 { 0 } else { last.0 };
                start.1 += part(border - start.0, end.1 - start.1, end.0 - start.0);
                start.0 = border;
            }
            if b.0 != 0 {
                let border = if b.0 < 0 { 0 } else { last.0 };
                end.1 += part(border - end.0, end.1 - start.1, end.0 - start.0);
                end.0 = border;
            }
            (a, b) = ((0, 0), (0, 0));
        }
    }
    (a == (0, 0) && b == (0, 0), start, end)
}

/// `step * rise / run` in f64, without its fraction; zero for a line that is a point.
fn part(step: i64, rise: i64, run: i64) -> i64 {
    (step as f64 * rise as f64 / run as f64) as i64
}

/// Bresenham's line from left to right, both ends included.
fn draw_line(from: (i64, i64), to: (i64, i64), mut plot: impl FnMut(i64, i64)) {
    let ((mut x, mut y), (end_x, end_y)) = if from.0 <= to.0 {
        (from, to)
    } else {
        (to, from)
    };
    let down = if end_y < y { -1 } else { 1 };
    let (across, along) = (end_x - x, (end_y - y).abs());
    let steep = along > across;
    let (long, short) = (across.max(along), across.min(along));
    let mut error = long - 2 * short;
    for _ in 0..=long {
        plot(x, y);
        let both = error < 0;
        error += if both { 2 * (long - short) } else { -2 * short };
        if steep || both {
            y += down;
        }
        if !steep || both {
            x += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use refseg::mask::Rle;

    use super::*;

    #[derive(Deserialize)]
    struct Painted {
        size: [usize; 2],
        points: Vec<(i64, i64)>,
        rle: String,
        area: u64,
    }

    #[test]
    fn polygons_are_painted_as_opencv_does() -> Result<(), Box<dyn std::error::Error>> {
        let json = include_str!("../../tests/fixtures/opencv-polygons.json");
        let cases: Vec<Painted> = serde_json::from_str(json)?;
        for case in &cases {
            let mask = fill(&case.points, (case.size[0], case.size[1]))?;
            let expected = Mask::from_rle(&Rle {
                size: case.size,
                counts: case.rle.clone(),
            })?;
            assert!(mask == expected, "{:?} {mask:?}", case.points);
            assert_eq!(mask.area(), case.area);
        }
        assert_eq!(cases.len(), 60);
        Ok(())
    }

    #[test]
    fn far_corners_are_no_panic() -> Result<(), MaskError> {
        let far = MAX_COORDINATE as i64;
        for points in [
            vec![],
            vec![(far, far)],
            vec![(-far, -far), (far, far), (-far, far)],
            vec![(far, 0), (far - 1, 1), (-far, -far), (0, far)],
            vec![(-far, -1), (far, 1), (far, 2)],
        ] {
            fill(&points, (5, 7))?;
        }
        let all = fill(
            &[(-far, -far), (far, -far), (far, far), (-far, far)],
            (5, 7),
        )?;
        assert_eq!(all.area(), 35);
        Ok(())
    }

    #[test]
    fn text_is_utf8_or_windows_1252() -> Result<(), DataError> {
        let path = Path::new("x.json");
        assert_eq!(decode("naïve €".as_bytes(), path)?, "naïve €");
        assert_eq!(
            decode(b"na\xefve \x80 \x93x\x94 \x9f", path)?,
            "naïve € “x” Ÿ"
        );
        let error = decode(b"\xef \x81", path).map_err(|error| error.to_string());
        let expected = "`x.json`: byte 2 is 0x81; expected UTF-8 or Windows-1252 text";
        assert_eq!(error, Err(expected.to_owned()));
        Ok(())
    }
}
