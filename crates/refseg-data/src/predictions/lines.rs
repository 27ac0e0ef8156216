//! Files with a JSON value on each line.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    marker::PhantomData,
    num::NonZeroU64,
    path::Path,
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{Place, PredictionsError};

/// Reads values one by one, with their places. Blank lines are passed over.
#[derive(Debug)]
pub struct JsonLines<T> {
    path: Arc<Path>,
    reader: BufReader<File>,
    torn_last_line: bool,
    text: Vec<u8>,
    line: u64,
    offset: u64,
    value: PhantomData<T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    /// Opens a file.
    ///
    /// A killed run may leave a last line without its end. With `torn_last_line`
    /// such a line is passed over unless it can be read.
    ///
    /// # Errors
    /// [`PredictionsError::Read`].
    pub fn open(path: &Path, torn_last_line: bool) -> Result<Self, PredictionsError> {
        let file = File::open(path).map_err(|source| PredictionsError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            reader: BufReader::with_capacity(1 << 16, file),
            torn_last_line,
            text: Vec::new(),
            line: 0,
            offset: 0,
            value: PhantomData,
        })
    }

    /// Where in the file the value that was read last ends, in bytes; `None` if
    /// its line has no end.
    pub(super) fn end(&self) -> Option<u64> {
        self.text.ends_with(b"\n").then_some(self.offset)
    }

    /// Reads the next line that is not blank.
    fn advance(&mut self) -> Result<bool, PredictionsError> {
        loop {
            self.text.clear();
            let read = self.reader.read_until(b'\n', &mut self.text);
            let bytes = read.map_err(|source| PredictionsError::Read {
                path: self.path.to_path_buf(),
                source,
            })?;
            self.line += 1;
            self.offset += bytes as u64;
            if bytes == 0 {
                return Ok(false);
            }
            if !self.text.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }
}

impl<T: DeserializeOwned> Iterator for JsonLines<T> {
    type Item = Result<(Place, T), PredictionsError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(error)),
        }
        let place = Place {
            path: self.path.clone(),
            line: NonZeroU64::new(self.line),
        };
        match serde_json::from_slice(self.text.trim_ascii_end()) {
            Ok(value) => Some(Ok((place, value))),
            Err(_) if self.torn_last_line && self.end().is_none() => None,
            Err(source) => Some(Err(PredictionsError::Json { place, source })),
        }
    }
}
