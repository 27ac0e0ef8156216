//! One memory-mapped safetensors file.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::SafeTensors;

use super::{Dtype, WeightsError};

/// A mapped file and the table of contents from its header.
pub(super) struct SafetensorsFile {
    path: PathBuf,
    data: Data,
    entries: BTreeMap<String, Entry>,
}

/// Where the bytes are.
enum Data {
    Map(Mmap),
    /// Part of the program itself.
    Embedded(&'static [u8]),
}

impl Data {
    /// Forgets pages that were read. What is asked for again comes from the file again.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Map(map) = self {
            // SAFETY: the map is shared with the file and read-only, so that its pages hold
            // nothing that the file does not: forgetting one changes no byte that is read from
            // it later. The range is inside the map, it was read just now.
            let forgotten = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // Only advice: whoever does not take it keeps more memory.
            drop(forgotten);
        }
    }
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where its bytes are in the map.
    bytes: Range<usize>,
}

impl SafetensorsFile {
    /// Maps the file and reads its header.
    pub(super) fn open(path: PathBuf) -> Result<Self, WeightsError> {
        let io = |action| {
            let path = path.clone();
            move |source| WeightsError::Io {
                path,
                action,
                source,
            }
        };
        let file = File::open(&path).map_err(io("open"))?;
        // SAFETY: the map is read-only and private to this value. That nobody
        // truncates or rewrites the file in place meanwhile is asked of the
        // user in the documentation of `Weights`; refseg itself only ever
        // replaces weight files by rename, which leaves mapped ones alone.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
        Self::new(path, Data::Map(map))
    }

    /// Reads the header of a file that is part of the program; `path` is what
    /// errors call it.
    pub(super) fn embedded(path: PathBuf, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        Self::new(path, Data::Embedded(bytes))
    }

    /// The header must describe the rest of the file without gap or overlap.
    fn new(path: PathBuf, data: Data) -> Result<Self, WeightsError> {
        let invalid = |source| WeightsError::Safetensors {
            path: path.clone(),
            bytes: data.len() as u64,
            source: Box::new(source),
        };
        // Checks the header's length, every offset and every shape against the
        // length of the data.
        let (header_len, metadata) = SafeTensors::read_metadata(&data).map_err(invalid)?;
        // The header is preceded by its length, eight bytes.
        let data_start = header_len + 8;
        let entries = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (start, end) = info.data_offsets;
                let entry = Entry {
                    dtype: info.dtype.into(),
                    shape: info.shape.clone(),
                    bytes: data_start + start..data_start + end,
                };
                (name, entry)
            })
            .collect();
        Ok(Self {
            path,
            data,
            entries,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.dtype.clone(), entry.shape.as_slice()))
    }

    pub(super) fn dtype_and_shape(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let entry = self.entries.get(name)?;
        Some((entry.dtype.clone(), &entry.shape))
    }

    /// Size of the file.
    pub(super) fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// Hands the tensor's little-endian bytes to `read`, then gives the memory they were mapped
    /// into back, so that a model being read does not stand in memory twice.
    pub(super) fn with_bytes<T>(&self, name: &str, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let range = self.entries.get(name)?.bytes.clone();
        let result = read(self.data.get(range.clone())?);
        self.data.release(range);
        Some(result)
    }
}
