//! Writing predictions so that a run can be killed at any time and go on.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{AnswerKey, JsonLines, Place, Prediction, PredictionsError};

/// Appends predictions to a file, the lines of a picture in one piece.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
}

/// What an earlier run left.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resume {
    /// Predictions of the pictures that are complete, in the order of the file.
    pub done: Vec<Prediction>,
    /// How much of the file they take, in bytes. The rest belongs to a picture that
    /// was not finished.
    kept: u64,
}

impl Writer {
    /// Opens a file to go on from what an earlier run left. Whatever stands behind
    /// its last complete picture is cut off; with [`Resume::default`] that is everything.
    ///
    /// # Errors
    /// [`PredictionsError::Write`].
    pub fn open(path: &Path, resume: &Resume) -> Result<Self, PredictionsError> {
        let open = || {
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            file.set_len(resume.kept)?;
            Ok(file)
        };
        Ok(Self {
            path: path.to_owned(),
            file: open().map_err(writing(path))?,
        })
    }

    /// Appends all predictions of a picture.
    ///
    /// # Errors
    /// [`PredictionsError::Write`].
    pub fn append(&mut self, picture: &[Prediction]) -> Result<(), PredictionsError> {
        let mut text = Vec::new();
        picture
            .iter()
            .try_for_each(|prediction| write_line(&mut text, prediction))
            .and_then(|()| self.file.write_all(&text))
            .map_err(writing(&self.path))
    }
}

impl Resume {
    /// Reads what is there, down to the first picture that lacks an expression;
    /// nothing if there is no file. `expected` has the expressions of each picture
    /// of the data set, by their ids.
    ///
    /// # Errors
    /// [`PredictionsError`] if the file cannot be read, a line but the last is
    /// damaged, or it does not belong to this data set.
    pub fn read(
        path: &Path,
        expected: &HashMap<&str, HashSet<&str>>,
    ) -> Result<Self, PredictionsError> {
        let mut lines = match JsonLines::<Prediction>::open(path, true) {
            Err(PredictionsError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(Self::default());
            }
            opened => opened?,
        };
        let mut resume = Self::default();
        let mut places = Places::default();
        let mut picture: Vec<Prediction> = Vec::new();
        while let Some(line) = lines.next() {
            let (place, prediction) = line?;
            let Some(end) = lines.end() else {
                break;
            };
            let Some(expressions) = expected.get(prediction.picture.as_str()) else {
                return Err(PredictionsError::UnknownPicture {
                    place,
                    picture: prediction.picture,
                });
            };
            if !expressions.contains(prediction.expression.as_str()) {
                return Err(PredictionsError::Unknown {
                    place,
                    key: AnswerKey::Expression(prediction.expression),
                });
            }
            places.add(place, &prediction)?;
            let unfinished = picture.first();
            if unfinished.is_some_and(|first| first.picture != prediction.picture) {
                break;
            }
            picture.push(prediction);
            if picture.len() == expressions.len() {
                resume.done.append(&mut picture);
                resume.kept = end;
            }
        }
        Ok(resume)
    }
}

/// Joins files of predictions into one, which appears complete or not at all.
/// Returns the number of predictions.
///
/// # Errors
/// [`PredictionsError`] if a file is damaged, two predict the same expression, or
/// the result cannot be written.
pub fn merge(shards: &[PathBuf], merged: &Path) -> Result<usize, PredictionsError> {
    let mut name = merged.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = merged.with_file_name(name);
    let written = write_shards(shards, &temporary).and_then(|count| {
        fs::rename(&temporary, merged).map_err(writing(merged))?;
        Ok(count)
    });
    if written.is_err() {
        // What matters is the error at hand; there may be no such file.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_shards(shards: &[PathBuf], path: &Path) -> Result<usize, PredictionsError> {
    let file = File::create(path).map_err(writing(path))?;
    let mut writer = BufWriter::new(file);
    let mut places = Places::default();
    for shard in shards {
        for line in JsonLines::<Prediction>::open(shard, false)? {
            let (place, prediction) = line?;
            places.add(place, &prediction)?;
            write_line(&mut writer, &prediction).map_err(writing(path))?;
        }
    }
    writer.flush().map_err(writing(path))?;
    Ok(places.0.len())
}

/// Where each expression was predicted.
#[derive(Default)]
struct Places(HashMap<String, Place>);

impl Places {
    fn add(&mut self, place: Place, prediction: &Prediction) -> Result<(), PredictionsError> {
        if let Some(first) = self.0.get(&prediction.expression) {
            return Err(PredictionsError::Duplicate {
                place,
                key: AnswerKey::Expression(prediction.expression.clone()),
                first: first.clone(),
            });
        }
        self.0.insert(prediction.expression.clone(), place);
        Ok(())
    }
}

fn write_line(mut to: impl Write, prediction: &Prediction) -> io::Result<()> {
    serde_json::to_writer(&mut to, prediction)?;
    to.write_all(b"\n")
}

fn writing(path: &Path) -> impl FnOnce(io::Error) -> PredictionsError {
    let path = path.to_owned();
    |source| PredictionsError::Write { path, source }
}
