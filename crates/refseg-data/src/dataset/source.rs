//! The kinds of data sets, and the names of their splits.

use std::fmt;
use std::str::FromStr;

use super::DataError;
use crate::metrics::Family;

/// A kind of data set. Its name is what `FromStr` reads and `Display` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `refcoco`, in the partition of UNC.
    RefCoco,
    /// `refcoco+`, in the partition of UNC.
    RefCocoPlus,
    /// `refcocog`, in the partition of UMD.
    RefCocoG,
    /// `refclef`, in the partition of UNC.
    RefClef,
    /// `grefcoco`: some expressions have several targets, some none.
    GRefCoco,
    /// `reasonseg`.
    ReasonSeg,
    /// `coco`: a COCO JSON file of ours or anyone's, with phrases on its annotations.
    Coco,
    /// `folder`: pictures, phrases and masks as files side by side.
    Folder,
    /// `jsonl`: one expression a line.
    Jsonl,
}

impl Source {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::RefCoco,
        Self::RefCocoPlus,
        Self::RefCocoG,
        Self::RefClef,
        Self::GRefCoco,
        Self::ReasonSeg,
        Self::Coco,
        Self::Folder,
        Self::Jsonl,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RefCoco => "refcoco",
            Self::RefCocoPlus => "refcoco+",
            Self::RefCocoG => "refcocog",
            Self::RefClef => "refclef",
            Self::GRefCoco => "grefcoco",
            Self::ReasonSeg => "reasonseg",
            Self::Coco => "coco",
            Self::Folder => "folder",
            Self::Jsonl => "jsonl",
        }
    }

    /// The names of its splits. What has no splits is one called `all`.
    pub fn splits(self) -> &'static [&'static str] {
        match self {
            Self::RefCoco | Self::RefCocoPlus => &["train", "val", "testA", "testB", "test"],
            Self::RefCocoG => &["train", "val", "test"],
            Self::RefClef => &["train", "val", "testA", "testB", "testC", "test"],
            Self::GRefCoco => &["train", "val", "testA", "testB"],
            Self::ReasonSeg => &["train", "val", "test"],
            Self::Coco | Self::Folder | Self::Jsonl => &["all"],
        }
    }

    /// Whose published metrics hold for it.
    pub fn family(self) -> Family {
        match self {
            Self::RefCoco | Self::RefCocoPlus | Self::RefCocoG | Self::RefClef => Family::Res,
            Self::GRefCoco | Self::Coco | Self::Folder | Self::Jsonl => Family::Gres,
            Self::ReasonSeg => Family::Reason,
        }
    }

    /// The split that is meant unless another is named.
    pub fn default_split(self) -> &'static str {
        if self.splits().contains(&"val") {
            "val"
        } else {
            "all"
        }
    }

    /// Fails unless there is a split of this name.
    pub(super) fn check_split(self, split: &str) -> Result<(), DataError> {
        if self.splits().contains(&split) {
            return Ok(());
        }
        Err(DataError::Split {
            source_name: self.name(),
            found: split.to_owned(),
            expected: self.splits(),
        })
    }
}

impl FromStr for Source {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let named = |source: &Self| source.name() == name;
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| DataError::Source {
                found: name.to_owned(),
                expected: Self::ALL.map(Self::name).join(", "),
            })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() -> Result<(), DataError> {
        for source in Source::ALL {
            assert_eq!(source.to_string().parse::<Source>()?, source);
        }
        Ok(())
    }

    #[test]
    fn errors_list_what_is_accepted() {
        let message = |result: Result<(), DataError>| result.map_err(|error| error.to_string());
        assert_eq!(
            message("RefCOCO".parse::<Source>().map(drop)),
            Err(
                "there is no data set `RefCOCO`; expected one of refcoco, refcoco+, refcocog, \
                 refclef, grefcoco, reasonseg, coco, folder, jsonl"
                    .to_owned()
            )
        );
        assert_eq!(
            message(Source::GRefCoco.check_split("test")),
            Err(
                "grefcoco has no split `test`; expected one of train, val, testA, testB".to_owned()
            )
        );
    }
}
