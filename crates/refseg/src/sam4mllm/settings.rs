//! Which two models belong together, and how they are asked: `sam4mllm.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;

use super::{
    probes::ProbePattern,
    prompts::Thresholds,
    texts::{AnswerCount, Method, UnknownName, Wording},
};
use crate::builtin;

/// The file that makes a folder a pair of models.
pub const PAIR_FILE: &str = "sam4mllm.json";

/// Two models that belong together.
///
/// In a folder's `sam4mllm.json` each member may be left out; paths count from the folder, but may
/// lead anywhere, for the models of a pair are large and shared.
///
/// ```json
/// {"mllm": "mllm", "adapter": null, "sam": "sam", "sam_decoder": null, "preset": "paper",
///  "method": "pqpp", "wording": "coords", "count": "0+", "probes": "grid5",
///  "threshold_no": 0.9, "threshold_yes": 0.9, "squash": 672, "max_tokens": 256, "seed": 0}
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Folder of the language model.
    pub mllm: PathBuf,
    /// Folder with LoRA to lay over it.
    pub adapter: Option<PathBuf>,
    /// Checkpoint of Segment Anything, or a folder with one.
    pub sam: PathBuf,
    /// Fine-tuned tensors to lay over it.
    pub sam_decoder: Option<PathBuf>,
    /// How they are asked.
    pub settings: Settings,
}

/// How the language model is asked, and what is made of its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What the first question asks for.
    pub method: Method,
    /// How the second question begins.
    pub wording: Wording,
    /// How many objects phrases may mean; `None` leaves it to the data set, and is `0+` without one.
    pub count: Option<AnswerCount>,
    /// Which points the second question is about.
    pub probes: ProbePattern,
    /// How sure the model must be of a point.
    pub thresholds: Thresholds,
    /// Side of the square that pictures are resized to for the language model, whatever their
    /// shape; `None` leaves them as they are. Released adapters were trained with 672, and are
    /// demonstrated without.
    pub squash: Option<u32>,
    /// Tokens of the first answer, at most. A box takes nine of Llama 3's.
    pub max_tokens: usize,
    /// Decides where points lie that are drawn at random.
    pub seed: u64,
}

/// Why a folder is no pair of models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PairError {
    /// The file cannot be read.
    #[error("`{path}`: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("`{path}`: cannot be read as a pair of models")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A member has a name that means nothing.
    #[error("`{path}`: `{field}` is at fault")]
    Name {
        /// The file.
        path: PathBuf,
        /// The member.
        field: &'static str,
        /// What it is, and what it could be.
        #[source]
        source: UnknownName,
    },
    /// A member has a value that cannot be used.
    #[error("`{path}`: `{field}` is {found}, expected {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The member.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it could be.
        expected: &'static str,
    },
}

impl Settings {
    /// The paper's points and thresholds: a 5×5 grid, 0.9 for both answers.
    pub fn paper() -> Self {
        Self {
            method: Method::Pqpp,
            wording: Wording::Coordinates,
            count: None,
            probes: ProbePattern::Grid5,
            thresholds: Thresholds::PAPER,
            squash: None,
            max_tokens: 256,
            seed: 0,
        }
    }

    /// The official demonstration's: a list of 15 points, 0.9 for `No` and 0.75 for `Yes`, and a
    /// question that says `1`.
    pub fn code() -> Self {
        Self {
            count: Some(AnswerCount::One),
            probes: ProbePattern::Code15,
            thresholds: Thresholds::CODE,
            ..Self::paper()
        }
    }

    /// What a `sam4mllm.json` in memory says besides paths; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Pair::from_folder`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self, PairError> {
        Written::parse(bytes, path)?.settings(path)
    }
}

impl Pair {
    /// Whether a folder holds a pair of models, or the built-in pair is meant, which
    /// [`Pair::from_folder`] does not know.
    pub fn is_in(model: &Path) -> bool {
        builtin::is(builtin::PAIR_NAME, model) || model.join(PAIR_FILE).is_file()
    }

    /// Reads `sam4mllm.json` of a folder; the models are not looked at.
    ///
    /// # Errors
    /// If it cannot be read, is malformed, has a member that means nothing, or a value that cannot
    /// be used.
    pub fn from_folder(folder: &Path) -> Result<Self, PairError> {
        let path = folder.join(PAIR_FILE);
        let text = fs::read(&path).map_err(|source| PairError::Read {
            path: path.clone(),
            source,
        })?;
        let written = Written::parse(&text, &path)?;
        let settings = written.settings(&path)?;
        let below = |written: Option<PathBuf>| written.map(|path| folder.join(path));
        Ok(Self {
            mllm: below(written.mllm).unwrap_or_else(|| folder.join("mllm")),
            adapter: below(written.adapter),
            sam: below(written.sam).unwrap_or_else(|| folder.join("sam")),
            sam_decoder: below(written.sam_decoder),
            settings,
        })
    }
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    mllm: Option<PathBuf>,
    adapter: Option<PathBuf>,
    sam: Option<PathBuf>,
    sam_decoder: Option<PathBuf>,
    preset: Option<String>,
    method: Option<String>,
    wording: Option<String>,
    count: Option<String>,
    probes: Option<String>,
    threshold_no: Option<f32>,
    threshold_yes: Option<f32>,
    squash: Option<u32>,
    max_tokens: Option<usize>,
    seed: Option<u64>,
}

impl Written {
    fn parse(bytes: &[u8], path: &Path) -> Result<Self, PairError> {
        serde_json::from_slice(bytes).map_err(|source| PairError::Json {
            path: path.to_owned(),
            source,
        })
    }

    /// The preset, changed by what is written beside it.
    fn settings(&self, path: &Path) -> Result<Settings, PairError> {
        let preset: Preset = named(path, "preset", &self.preset)?.unwrap_or(Preset::Paper);
        let preset = match preset {
            Preset::Paper => Settings::paper(),
            Preset::Code => Settings::code(),
        };
        let share = |field, found: Option<f32>, otherwise: f32| {
            let value = found.unwrap_or(otherwise);
            check(path, field, value, (0.0..=1.0).contains(&value), "0 to 1")
        };
        let thresholds = Thresholds {
            no: share("threshold_no", self.threshold_no, preset.thresholds.no)?,
            yes: share("threshold_yes", self.threshold_yes, preset.thresholds.yes)?,
        };
        let squash = self.squash.map(|side| {
            let can_be = (1..=MAX_SQUASH).contains(&side);
            check(path, "squash", side, can_be, "a side of 1 to 4096 pixels")
        });
        let max_tokens = self.max_tokens.unwrap_or(preset.max_tokens);
        let can_be = (1..=MAX_TOKENS).contains(&max_tokens);
        Ok(Settings {
            method: named(path, "method", &self.method)?.unwrap_or(preset.method),
            wording: named(path, "wording", &self.wording)?.unwrap_or(preset.wording),
            count: named(path, "count", &self.count)?.or(preset.count),
            probes: named(path, "probes", &self.probes)?.unwrap_or(preset.probes),
            thresholds,
            squash: squash.transpose()?,
            max_tokens: check(path, "max_tokens", max_tokens, can_be, "1 to 8192")?,
            seed: self.seed.unwrap_or(preset.seed),
        })
    }
}

/// Largest side of a squashed picture.
const MAX_SQUASH: u32 = 4096;
/// Most tokens of an answer: none of these models reads more.
const MAX_TOKENS: usize = 8192;

/// Where settings begin.
enum Preset {
    Paper,
    Code,
}

impl FromStr for Preset {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let all = [("paper", Self::Paper), ("code", Self::Code)];
        super::texts::named(all, text, "`paper`, `code`")
    }
}

fn named<T: FromStr<Err = UnknownName>>(
    path: &Path,
    field: &'static str,
    text: &Option<String>,
) -> Result<Option<T>, PairError> {
    let parsed = text.as_deref().map(str::parse).transpose();
    parsed.map_err(|source| PairError::Name {
        path: path.to_owned(),
        field,
        source,
    })
}

fn check<T: std::fmt::Display>(
    path: &Path,
    field: &'static str,
    value: T,
    can_be: bool,
    expected: &'static str,
) -> Result<T, PairError> {
    if can_be {
        return Ok(value);
    }
    Err(PairError::Value {
        path: path.to_owned(),
        field,
        found: value.to_string(),
        expected,
    })
}
