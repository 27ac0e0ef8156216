//! A data set while it is read.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::Problem;
use super::region::Region;
use super::{DataError, Expression, Options, Picture};

/// Most bytes of one annotation file; COCO's own have half a billion.
const MAX_BYTES: u64 = 2 << 30;

/// A marked object, or whatever else an expression can mean.
#[derive(Debug)]
pub(super) struct Annotation {
    /// The file that states it.
    pub(super) path: PathBuf,
    /// Which entry of that file.
    pub(super) entry: String,
    pub(super) region: Region,
    /// Left, top, width and height in pixels, where they are stated.
    pub(super) bbox: Option<[f64; 4]>,
}

/// What has been read so far.
pub(super) struct Draft {
    keep_going: bool,
    digest: Sha256,
    by_id: HashMap<String, usize>,
    expression_ids: HashSet<String>,
    pub(super) pictures: Vec<Picture>,
    pub(super) annotations: Vec<Annotation>,
    pub(super) references: usize,
    pub(super) skipped: Vec<String>,
}

impl Draft {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            keep_going: options.keep_going,
            digest: Sha256::new(),
            by_id: HashMap::new(),
            expression_ids: HashSet::new(),
            pictures: Vec::new(),
            annotations: Vec::new(),
            references: 0,
            skipped: Vec::new(),
        }
    }

    /// Reads an annotation file, whose bytes count for the digest.
    pub(super) fn read(&mut self, path: &Path) -> Result<Vec<u8>, DataError> {
        let failed = |source| DataError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let claimed = file.metadata().map_err(failed)?.len();
        let mut bytes = Vec::with_capacity(claimed.min(MAX_BYTES) as usize);
        // One byte past the limit shows that there is more, even of an endless file.
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(DataError::TooLarge {
                path: path.to_owned(),
                bytes: claimed.max(bytes.len() as u64),
                limit: MAX_BYTES,
            });
        }
        self.digest.update(&bytes);
        Ok(bytes)
    }

    /// The result of reading one entry; `None` if it failed and is to be skipped.
    pub(super) fn keep<T>(&mut self, result: Result<T, DataError>) -> Result<Option<T>, DataError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.keep_going => {
                self.skipped.push(with_causes(&error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Adds an annotation and returns what expressions refer to it by.
    pub(super) fn annotate(&mut self, annotation: Annotation) -> u32 {
        self.annotations.push(annotation);
        // Each takes more than a byte of files that MAX_BYTES limits.
        self.annotations.len() as u32 - 1
    }

    /// Adds an expression, to the picture of this identifier if there is one already.
    pub(super) fn express(
        &mut self,
        picture_id: &str,
        picture: impl FnOnce() -> Picture,
        expression: Expression,
    ) -> Result<(), Problem> {
        if !self.expression_ids.insert(expression.id.clone()) {
            let found = format!("a second expression `{}`", expression.id);
            return Err(Problem::new(found, "each identifier once in a split"));
        }
        let index = match self.by_id.get(picture_id) {
            Some(&index) => index,
            None => {
                self.by_id
                    .insert(picture_id.to_owned(), self.pictures.len());
                self.pictures.push(picture());
                self.pictures.len() - 1
            }
        };
        self.pictures[index].expressions.push(expression);
        Ok(())
    }

    /// SHA-256 over all that was read, in hexadecimal digits.
    pub(super) fn digest(&self) -> String {
        let digest = self.digest.clone().finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// `name` below `folder`; an error if it would lead elsewhere.
pub(super) fn inside(folder: &Path, name: &str) -> Result<PathBuf, Problem> {
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if name.is_empty() || !Path::new(name).components().all(plain) {
        let found = format!("the file name {name:?}");
        return Err(Problem::new(found, "a path that stays inside its folder"));
    }
    Ok(folder.join(name))
}

/// The error's message and those of its causes.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}
