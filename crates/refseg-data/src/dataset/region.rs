//! What an annotation marks: as it is written down, and as a mask.

use std::path::PathBuf;

use refseg::Image;
use refseg::image::DecodeOptions;
use refseg::mask::{Mask, MaskError, Rle};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::DataError;
use super::reason::{self, LabelledPolygon};

/// Marked pixels, in the form of the annotation file.
#[derive(Debug)]
pub(super) enum Region {
    /// Polygons, each x, y, x, y, … in pixels; their union.
    Polygons(Vec<Vec<f64>>),
    /// Run-length codes; their union.
    RunLengths(Vec<RunLengths>),
    /// A grey or colour PNG of the picture's size; every pixel that is not black.
    MaskFile(PathBuf),
    /// ReasonSeg's polygons, targets and pixels to ignore.
    Labelled(Vec<LabelledPolygon>),
}

/// A COCO run-length code, compressed or not.
#[derive(Debug, Deserialize)]
pub(super) struct RunLengths {
    /// Height and width.
    size: [usize; 2],
    counts: Counts,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "`counts` is neither a text nor a list of run lengths"
)]
enum Counts {
    Text(String),
    Lengths(Vec<u32>),
}

/// What one or more regions cover.
pub(super) struct Covered {
    /// The pixels marked as target.
    pub(super) mask: Mask,
    /// The pixels marked as not counting, where the data set knows such.
    pub(super) ignore: Option<Mask>,
}

/// Why a region could not be rasterised.
pub(super) enum RegionError {
    /// The region's own numbers are wrong.
    Mask(MaskError),
    /// The region belongs to a picture of another size (height, width).
    Size((usize, usize)),
    /// Its outline is too long to be one, or is not made of numbers.
    Outline,
    /// Its mask file cannot be used.
    File(DataError),
}

impl From<MaskError> for RegionError {
    fn from(error: MaskError) -> Self {
        Self::Mask(error)
    }
}

impl Region {
    /// Reads `segmentation` of a COCO annotation: polygons, one run-length code or a
    /// list of them. An empty list marks nothing.
    pub(super) fn from_json(json: &RawValue) -> Result<Self, serde_json::Error> {
        let mut start = json
            .get()
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace());
        match (start.next(), start.next()) {
            (Some(b'{'), _) => {
                serde_json::from_str(json.get()).map(|code| Self::RunLengths(vec![code]))
            }
            (_, Some(b'{')) => serde_json::from_str(json.get()).map(Self::RunLengths),
            _ => serde_json::from_str(json.get()).map(Self::Polygons),
        }
    }

    /// Rasterises for a picture of `size` (height, width). With `whole_only`, polygons
    /// with an odd number of coordinates or fewer than three points mark nothing.
    pub(super) fn rasterise(
        &self,
        size: (usize, usize),
        whole_only: bool,
    ) -> Result<Covered, RegionError> {
        let mask = match self {
            Self::Polygons(polygons) => rasterise_polygons(polygons, size, whole_only)?,
            Self::RunLengths(codes) => {
                let mut union = Mask::empty(size.0, size.1)?;
                for code in codes {
                    union = union.union(&code.decode(size)?)?;
                }
                union
            }
            Self::MaskFile(path) => read_mask(path, size).map_err(RegionError::File)?,
            Self::Labelled(polygons) => return reason::rasterise(polygons, size),
        };
        Ok(Covered { mask, ignore: None })
    }
}

impl RunLengths {
    pub(super) fn decode(&self, size: (usize, usize)) -> Result<Mask, RegionError> {
        let [height, width] = self.size;
        // Also keeps a claim of any size from being allocated.
        if (height, width) != size {
            return Err(RegionError::Size((height, width)));
        }
        Ok(match &self.counts {
            Counts::Text(counts) => Mask::from_rle(&Rle {
                size: self.size,
                counts: counts.clone(),
            })?,
            Counts::Lengths(runs) => Mask::from_run_lengths(height, width, runs)?,
        })
    }
}

/// Whether the reference's evaluation of gRefCOCO would draw a polygon.
pub(super) fn is_whole(polygon: &[f64]) -> bool {
    polygon.len() >= 6 && polygon.len().is_multiple_of(2)
}

fn rasterise_polygons(
    polygons: &[Vec<f64>],
    (height, width): (usize, usize),
    whole_only: bool,
) -> Result<Mask, RegionError> {
    // The rasteriser keeps every step along an outline. Real ones take thousands; this
    // many take a quarter of a gigabyte.
    const MAX_STEPS: f64 = (1 << 25) as f64;
    const STEPS_PER_PIXEL: f64 = 5.0;
    let longest = STEPS_PER_PIXEL * (height + width) as f64;
    for polygon in polygons {
        let (points, _) = polygon.as_chunks::<2>();
        let next = points.iter().cycle().skip(1);
        let steps = points.iter().zip(next).map(|([x, y], [next_x, next_y])| {
            let length = (x - next_x).abs().max((y - next_y).abs());
            // Steps outside the picture are not kept.
            (STEPS_PER_PIXEL * length).min(longest)
        });
        if steps.sum::<f64>() > MAX_STEPS || polygon.iter().any(|value| !value.is_finite()) {
            return Err(RegionError::Outline);
        }
    }
    Ok(
        if whole_only && !polygons.iter().all(|polygon| is_whole(polygon)) {
            let whole = polygons.iter().filter(|polygon| is_whole(polygon));
            Mask::from_polygons(&whole.cloned().collect::<Vec<_>>(), height, width)?
        } else {
            Mask::from_polygons(polygons, height, width)?
        },
    )
}

fn read_mask(path: &PathBuf, size: (usize, usize)) -> Result<Mask, DataError> {
    let options = DecodeOptions {
        apply_orientation: false,
        ..DecodeOptions::default()
    };
    let image = Image::open_with(path, &options)?;
    let found = (image.height() as usize, image.width() as usize);
    if found != size {
        return Err(DataError::Size {
            path: path.clone(),
            found,
            expected: size,
        });
    }
    let (pixels, _) = image.pixels().as_chunks::<3>();
    let bits = pixels.iter().map(|&rgb| rgb != [0; 3]).collect();
    Mask::from_bits(found.0, found.1, bits).map_err(|source| DataError::Mask {
        path: path.clone(),
        entry: "the mask".to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(json: &str) -> Region {
        let raw: Box<RawValue> = serde_json::from_str(json).expect("valid JSON");
        Region::from_json(&raw).expect("a valid segmentation")
    }

    fn bits(json: &str, whole_only: bool) -> Option<Vec<bool>> {
        let covered = region(json).rasterise((2, 3), whole_only).ok()?;
        Some(covered.mask.bits().to_vec())
    }

    /// The left column and the lower middle pixel, in each of the forms.
    #[test]
    fn every_form_of_segmentation_gives_its_mask() {
        const DRAWN: [bool; 6] = [true, false, false, true, true, false];
        for json in [
            r#"[[0,0,1,0,1,2,0,2],[1,1,2,1,2,2,1,2]]"#,
            r#"{"size":[2,3],"counts":[0,2,1,1,2]}"#,
            // Compressed: the third run and those behind it are written as differences.
            r#"{"size":[2,3],"counts":"021O1"}"#,
            r#" [ {"size":[2,3],"counts":[0,2,4]}, {"size":[2,3],"counts":"312"} ]"#,
        ] {
            assert_eq!(bits(json, false).as_deref(), Some(&DRAWN[..]), "{json}");
            assert_eq!(bits(json, true).as_deref(), Some(&DRAWN[..]), "{json}");
        }
        assert_eq!(bits("[]", false), Some(vec![false; 6]));
    }

    #[test]
    fn only_grefcoco_drops_polygons_of_odd_length() {
        let odd = "[[0,0,1,0,1,2,0,2,7]]";
        let column = vec![true, false, false, true, false, false];
        assert_eq!(bits(odd, false), Some(column));
        assert_eq!(bits(odd, true), Some(vec![false; 6]));
        assert_eq!(bits("[[0,0,3,2]]", false), Some(vec![false; 6]));
    }

    #[test]
    fn a_code_for_another_size_is_refused_before_it_is_decoded() {
        let huge = region(r#"{"size":[65536,65535],"counts":[4294901760]}"#);
        let result = huge.rasterise((2, 3), false);
        assert!(matches!(result, Err(RegionError::Size((65536, 65535)))));
    }

    #[test]
    fn an_outline_without_end_is_refused() {
        let zigzag: Vec<f64> = (0..400_000).map(|i| f64::from(i % 4 / 2) * 1e9).collect();
        let result = Region::Polygons(vec![zigzag]).rasterise((640, 640), false);
        assert!(matches!(result, Err(RegionError::Outline)));
        let nan = vec![vec![0.0, 0.0, f64::NAN, 1.0, 1.0, 1.0]];
        let result = Region::Polygons(nan).rasterise((640, 640), false);
        assert!(matches!(result, Err(RegionError::Outline)));
        // Far outside, but short.
        let far = vec![vec![-1e300, 0.0, 1e300, 0.0, 1e300, 1e300]];
        let result = Region::Polygons(far).rasterise((640, 640), false);
        assert!(result.is_ok());
    }

    #[test]
    fn what_is_no_segmentation_is_an_error() -> Result<(), serde_json::Error> {
        for json in ["7", "null", "[[1,\"2\"]]", "{\"size\":[2,3]}", "[7]"] {
            let raw: Box<RawValue> = serde_json::from_str(json)?;
            assert!(Region::from_json(&raw).is_err(), "{json}");
        }
        let raw: Box<RawValue> = serde_json::from_str(r#"{"size":[2,3],"counts":-1}"#)?;
        let error = Region::from_json(&raw).map_err(|error| error.to_string());
        assert!(
            matches!(&error, Err(message) if message.contains("neither a text nor a list")),
            "{error:?}"
        );
        Ok(())
    }
}
