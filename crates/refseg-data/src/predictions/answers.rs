//! Answers of any system, as files give them.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt, fs,
    path::Path,
};

use image::{ImageFormat, ImageReader};
use refseg::mask::{Mask, Rle};
use serde::{Deserialize, Deserializer};

use super::{CocoRle, JsonLines, Place, PredictionsError};

/// What a file says of one expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Whether the answer was "found"; `None` if the file leaves it to the mask.
    pub found: Option<bool>,
    /// The mask; `None` for an empty one.
    pub rle: Option<Rle>,
    /// The box for REC, as [`Mask::official_box`] gives it; `None` if it is that of the mask.
    pub rec_box: Option<[u32; 4]>,
    /// Probability that there is a target, 0 to 1, if the file gives one.
    pub presence: Option<f32>,
}

/// How a file says which expression it means.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AnswerKey {
    /// By its id.
    Expression(String),
    /// By picture and phrase; good for every expression that has both.
    Phrase {
        /// Id of the picture.
        picture: String,
        /// The phrase.
        phrase: String,
    },
}

impl fmt::Display for AnswerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expression(id) => write!(f, "expression `{id}`"),
            Self::Phrase { picture, phrase } => write!(f, "\"{phrase}\" of picture `{picture}`"),
        }
    }
}

/// What to make of faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Passes over a last line that a killed run did not finish.
    pub torn_last_line: bool,
    /// Lists predictions that are at fault instead of failing.
    pub keep_going: bool,
}

/// All answers of a system.
#[derive(Debug, Default)]
pub struct Answers {
    pub(crate) by_key: HashMap<AnswerKey, (Place, Answer)>,
    /// What was passed over because it was at fault.
    pub skipped: Vec<PredictionsError>,
}

impl Answers {
    /// Reads lines of JSON: `predictions.jsonl`, or those of another system.
    ///
    /// A line names its expression by `expression` or `id`, or by `image` (or
    /// `picture`) and `phrase`; ids are strings or whole numbers. It must have `rle`,
    /// in COCO's compressed or uncompressed form, or null for an empty mask. It may
    /// have `found` and `rec_box`; anything else is passed over.
    ///
    /// # Errors
    /// [`PredictionsError`] if the file cannot be read, or a line is at fault and
    /// `reading` does not allow it.
    pub fn read_lines(path: &Path, reading: Reading) -> Result<Self, PredictionsError> {
        let mut answers = Self::default();
        for line in JsonLines::<Line>::open(path, reading.torn_last_line)? {
            let added = match line {
                Ok((place, line)) => line
                    .answer(&place)
                    .and_then(|(key, answer)| answers.add(place, key, answer)),
                Err(error @ PredictionsError::Json { .. }) => Err(error),
                Err(error) => return Err(error),
            };
            answers.allow(reading, added)?;
        }
        Ok(answers)
    }

    /// The answer to an expression: by its id, or else by picture and phrase.
    pub fn of(&self, picture: &str, expression: &str, phrase: &str) -> Option<&Answer> {
        self.find(picture, expression, phrase)
            .map(|(_, _, answer)| answer)
    }

    /// [`Answers::of`], and where it comes from.
    pub(crate) fn find(
        &self,
        picture: &str,
        expression: &str,
        phrase: &str,
    ) -> Option<(&AnswerKey, &Place, &Answer)> {
        let keys = [
            AnswerKey::Expression(expression.to_owned()),
            AnswerKey::Phrase {
                picture: picture.to_owned(),
                phrase: phrase.to_owned(),
            },
        ];
        let found = keys.iter().find_map(|key| self.by_key.get_key_value(key));
        found.map(|(key, (place, answer))| (key, place, answer))
    }

    /// Reads one line, as [`Answers::read_lines`] does.
    ///
    /// # Errors
    /// [`PredictionsError`] with `place` if the line is at fault.
    pub fn read_line(line: &[u8], place: &Place) -> Result<(AnswerKey, Answer), PredictionsError> {
        let line: Line = serde_json::from_slice(line).map_err(|source| PredictionsError::Json {
            place: place.clone(),
            source,
        })?;
        line.answer(place)
    }

    /// Reads a folder of masks: a PNG file for each of `expressions`, called
    /// [`file_name`]. Pixels that are not black belong to the mask.
    ///
    /// # Errors
    /// [`PredictionsError`] if the folder cannot be read, two expressions have the
    /// same name, or a file is at fault and `reading` does not allow it.
    pub fn read_folder<'a>(
        folder: &Path,
        expressions: impl IntoIterator<Item = &'a str>,
        reading: Reading,
    ) -> Result<Self, PredictionsError> {
        let mut names = BTreeMap::new();
        for expression in expressions {
            let name = file_name(expression);
            if let Some(first) = names.insert(name.clone(), expression) {
                return Err(PredictionsError::SameFile {
                    first: first.to_owned(),
                    second: expression.to_owned(),
                    name,
                });
            }
        }
        let mut answers = Self::default();
        for name in png_names(folder)? {
            let place = Place {
                path: folder.join(&name).into(),
                line: None,
            };
            let added = match names.get(&name) {
                Some(&expression) => {
                    let key = AnswerKey::Expression(expression.to_owned());
                    read_png(&place, &key).and_then(|answer| answers.add(place, key, answer))
                }
                None => Err(PredictionsError::Unknown {
                    key: AnswerKey::Expression(name.trim_end_matches(".png").to_owned()),
                    place,
                }),
            };
            answers.allow(reading, added)?;
        }
        Ok(answers)
    }

    fn add(
        &mut self,
        place: Place,
        key: AnswerKey,
        answer: Answer,
    ) -> Result<(), PredictionsError> {
        match self.by_key.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert((place, answer));
                Ok(())
            }
            Entry::Occupied(entry) => Err(PredictionsError::Duplicate {
                place,
                key: entry.key().clone(),
                first: entry.get().0.clone(),
            }),
        }
    }

    fn allow(
        &mut self,
        reading: Reading,
        added: Result<(), PredictionsError>,
    ) -> Result<(), PredictionsError> {
        match added {
            Err(error) if reading.keep_going => {
                self.skipped.push(error);
                Ok(())
            }
            added => added,
        }
    }
}

/// Name of the PNG file of an expression: its id, with `_` for each character that
/// some file system does not allow in names.
pub fn file_name(expression: &str) -> String {
    let allowed = |c: char| !c.is_control() && !r#"/\:*?"<>|"#.contains(c);
    let stem: String = expression
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .collect();
    format!("{stem}.png")
}

#[derive(Deserialize)]
struct Line {
    expression: Option<Id>,
    id: Option<Id>,
    #[serde(alias = "picture")]
    image: Option<Id>,
    phrase: Option<String>,
    found: Option<bool>,
    // Null stands for an empty mask, but a line without `rle` is a mistake.
    #[serde(deserialize_with = "Option::deserialize")]
    rle: Option<CocoRle>,
    rec_box: Option<[u32; 4]>,
    presence: Option<f32>,
}

impl Line {
    fn answer(self, place: &Place) -> Result<(AnswerKey, Answer), PredictionsError> {
        let key = match (self.expression.or(self.id), self.image, self.phrase) {
            (Some(id), _, _) => AnswerKey::Expression(id.0),
            (None, Some(picture), Some(phrase)) => AnswerKey::Phrase {
                picture: picture.0,
                phrase,
            },
            _ => {
                return Err(PredictionsError::Unnamed {
                    place: place.clone(),
                });
            }
        };
        let rle = match self.rle.map(CocoRle::into_rle).transpose() {
            Ok(rle) => rle,
            Err(source) => {
                return Err(PredictionsError::Mask {
                    place: place.clone(),
                    key,
                    source,
                });
            }
        };
        let answer = Answer {
            found: self.found,
            rle,
            rec_box: self.rec_box,
            presence: self.presence,
        };
        Ok((key, answer))
    }
}

/// An id, which JSON may have as a string or as a whole number.
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "an id must be a string or a whole number")]
        enum Form {
            Text(String),
            Number(i64),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Text(text) => Self(text),
            Form::Number(number) => Self(number.to_string()),
        })
    }
}

/// Names of the PNG files in a folder, in order.
fn png_names(folder: &Path) -> Result<Vec<String>, PredictionsError> {
    let reading = |source| PredictionsError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading)? {
        let name = entry.map_err(reading)?.file_name();
        if Path::new(&name)
            .extension()
            .is_some_and(|ending| ending == "png")
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn read_png(place: &Place, key: &AnswerKey) -> Result<Answer, PredictionsError> {
    let png = |source| PredictionsError::Png {
        place: place.clone(),
        source,
    };
    let mut reader = ImageReader::open(&place.path).map_err(|error| png(error.into()))?;
    reader.set_format(ImageFormat::Png);
    let picture = reader.decode().map_err(png)?;
    let color = picture.color();
    let bytes = usize::from(color.bytes_per_pixel());
    let alpha = if color.has_alpha() {
        bytes / usize::from(color.channel_count())
    } else {
        0
    };
    let pixels = picture.as_bytes().chunks_exact(bytes);
    let bits = pixels.map(|pixel| pixel[..bytes - alpha].iter().any(|&level| level != 0));
    let (height, width) = (picture.height() as usize, picture.width() as usize);
    let mask = Mask::from_bits(height, width, bits.collect()).map_err(|source| {
        PredictionsError::Mask {
            place: place.clone(),
            key: key.clone(),
            source,
        }
    })?;
    Ok(Answer {
        found: None,
        rle: Some(mask.to_rle()),
        rec_box: None,
        presence: None,
    })
}
