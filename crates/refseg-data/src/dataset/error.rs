//! What can go wrong between a data set on disk and a mask.

use std::path::PathBuf;

use refseg::image::ImageError;
use refseg::mask::MaskError;

use super::pickle::PickleError;

/// A problem with a data set: which file, which entry, what was found and what
/// was expected. Sizes are (height, width).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No kind of data set has this name.
    #[error("there is no data set `{found}`; expected one of {expected}")]
    Source {
        /// The name given.
        found: String,
        /// The names there are.
        expected: String,
    },
    /// The data set has no split of this name.
    #[error("{source_name} has no split `{found}`; expected one of {}", expected.join(", "))]
    Split {
        /// Name of the data set.
        source_name: &'static str,
        /// The split asked for.
        found: String,
        /// The splits there are.
        expected: &'static [&'static str],
    },
    /// No data set lies where it was looked for.
    #[error("`{root}`: no data set; expected {}", expected.join(", or "))]
    Missing {
        /// The folder that was to hold it.
        root: PathBuf,
        /// The paths looked for, in order.
        expected: Vec<String>,
    },
    /// The operating system refused to read.
    #[error("`{path}`: cannot be read")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// An annotation file is larger than any real one.
    #[error("`{path}`: {bytes} bytes, but at most {limit} are read as annotations")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The largest size read.
        limit: u64,
    },
    /// A text is neither UTF-8 nor Windows-1252.
    #[error("`{path}`: byte {at} is {found:#04x}; expected UTF-8 or Windows-1252 text")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Where, in bytes from the beginning.
        at: usize,
        /// The byte there.
        found: u8,
    },
    /// JSON that is malformed, or of another form than expected.
    #[error("`{path}`: {entry} cannot be read as {expected}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Which part of it; lines and columns of the source count from its beginning.
        entry: String,
        /// What it should be.
        expected: &'static str,
        /// Where and why parsing failed.
        #[source]
        source: serde_json::Error,
    },
    /// A pickle that is malformed, or more than plain values.
    #[error("`{path}`: cannot be read as a pickle of references")]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Where and why reading failed.
        #[source]
        source: PickleError,
    },
    /// The files hold nothing of this split.
    #[error("`{path}`: nothing belongs to the split `{split}`; there is {found}")]
    NoExpressions {
        /// The file or folder.
        path: PathBuf,
        /// The split asked for.
        split: String,
        /// What there is instead.
        found: String,
    },
    /// One entry contradicts the format, or the other files.
    #[error("`{path}`: {entry}: {found}; expected {expected}")]
    Entry {
        /// The file.
        path: PathBuf,
        /// Which entry of it.
        entry: String,
        /// What is wrong with it.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// An annotation cannot be turned into a mask.
    #[error("`{path}`: {entry}: no mask can be made of it")]
    Mask {
        /// The file that holds the annotation.
        path: PathBuf,
        /// Which entry of it.
        entry: String,
        /// What is wrong with it.
        #[source]
        source: MaskError,
    },
    /// A picture, or a mask, has another size than the annotations belong to.
    #[error("`{path}`: is {found:?} (height, width); expected {expected:?}")]
    Size {
        /// The picture, the mask file or the annotation file.
        path: PathBuf,
        /// Its size.
        found: (usize, usize),
        /// The size it should have.
        expected: (usize, usize),
    },
    /// An expression was looked up in a data set that does not hold it.
    #[error("the expression `{id}` does not belong to {name}")]
    Foreign {
        /// Identifier of the expression.
        id: String,
        /// The data set.
        name: String,
    },
    /// A mask file cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// What is wrong with an entry, before it is known where it stands.
pub(super) struct Problem {
    /// What was found.
    pub(super) found: String,
    /// What would be right.
    pub(super) expected: &'static str,
}

impl Problem {
    pub(super) fn new(found: impl Into<String>, expected: &'static str) -> Self {
        Self {
            found: found.into(),
            expected,
        }
    }

    /// The problem of `entry` in the file at `path`.
    pub(super) fn at(self, path: &std::path::Path, entry: impl Into<String>) -> DataError {
        DataError::Entry {
            path: path.to_owned(),
            entry: entry.into(),
            found: self.found,
            expected: self.expected,
        }
    }
}
