//! The state of a run on disk, from which it goes on as if it had never been stopped.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::Path};

use refseg::weights::{SaveDtype, TensorSpec, Weights, WeightsError, save_safetensors};
use refseg_data::metrics::{Metric, Tally};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    TrainError,
    parameters::{Parameter, Parameters},
};

/// Holds every tensor four times: values, two moments, running mean.
const STATE: &str = "state.safetensors";
/// Holds the step of [`STATE`]: both are replaced together, this one last.
const PROGRESS: &str = "state.json";
/// The best evaluation so far.
const BEST: &str = "best.json";

/// The step that a state belongs to, and the settings it was made with.
#[derive(Debug, Serialize, Deserialize)]
struct Progress {
    step: u64,
    recipe: Value,
    /// Name of the state file: a new one each time, so that a kill between two renames leaves a pair that fits.
    state: String,
}

/// Writes the state of a run after `step`.
///
/// # Errors
/// If a file cannot be written; the state before is then still whole.
pub fn save(
    folder: &Path,
    settings: &Value,
    parameters: &Parameters,
    step: u64,
) -> Result<(), TrainError> {
    let name = format!("{step:07}.{STATE}");
    let mut specs = Vec::new();
    for (key, parameter) in parameters.iter() {
        for part in Part::ALL
            .into_iter()
            .filter(|part| !part.of(parameter).is_empty())
        {
            specs.push(TensorSpec {
                name: format!("{}/{key}", part.name()),
                shape: parameter.shape.clone(),
            });
        }
    }
    save_safetensors(
        &folder.join(&name),
        &specs,
        SaveDtype::F32,
        &BTreeMap::new(),
        |spec| {
            let (part, key) = split(&spec.name).ok_or_else(|| missing(folder, &spec.name))?;
            let parameter = parameters.get(key).ok_or_else(|| missing(folder, key))?;
            Ok(part.of(parameter).clone())
        },
    )?;
    let progress = Progress {
        step,
        recipe: settings.clone(),
        state: name.clone(),
    };
    write(&folder.join(PROGRESS), &json(&progress))?;
    remove_other_states(folder, &name)
}

/// Reads the state of a run into `parameters`; `None` if there is none. Tensors that are
/// optional keep what they have if the state lacks them.
///
/// # Errors
/// If a file is damaged, or the run was begun with other settings.
pub fn load(
    folder: &Path,
    settings: &Value,
    parameters: &mut Parameters,
    is_optional: impl Fn(&str) -> bool,
) -> Result<Option<u64>, TrainError> {
    let path = folder.join(PROGRESS);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TrainError::Folder { path, source }),
    };
    let progress: Progress =
        serde_json::from_slice(&bytes).map_err(|source| WeightsError::Json {
            path: path.clone(),
            expected: "the progress of a run",
            source,
        })?;
    if without_steps(&progress.recipe) != without_steps(settings) {
        let show = |settings: &Value| String::from_utf8_lossy(&json(settings)).into_owned();
        return Err(TrainError::OtherRecipe {
            path,
            found: show(&progress.recipe),
            expected: show(settings),
        });
    }
    let weights = Weights::open_file(&folder.join(&progress.state))?;
    for (key, parameter) in parameters.iter_mut() {
        let shape = parameter.shape.clone();
        for part in Part::ALL {
            let (name, values) = (format!("{}/{key}", part.name()), part.of_mut(parameter));
            let is_new = is_optional(key) && !weights.contains(&name);
            if !values.is_empty() && !is_new {
                *values = weights.read_f32(&name, &shape, "the network")?;
            }
        }
    }
    Ok(Some(progress.step))
}

/// What is remembered of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Values,
    FirstMoment,
    SecondMoment,
    Average,
}

impl Part {
    const ALL: [Self; 4] = [
        Self::Values,
        Self::FirstMoment,
        Self::SecondMoment,
        Self::Average,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::FirstMoment => "first_moment",
            Self::SecondMoment => "second_moment",
            Self::Average => "average",
        }
    }

    fn of(self, parameter: &Parameter) -> &Vec<f32> {
        match self {
            Self::Values => &parameter.values,
            Self::FirstMoment => &parameter.first_moment,
            Self::SecondMoment => &parameter.second_moment,
            Self::Average => &parameter.average,
        }
    }

    fn of_mut(self, parameter: &mut Parameter) -> &mut Vec<f32> {
        match self {
            Self::Values => &mut parameter.values,
            Self::FirstMoment => &mut parameter.first_moment,
            Self::SecondMoment => &mut parameter.second_moment,
            Self::Average => &mut parameter.average,
        }
    }
}

fn split(name: &str) -> Option<(Part, &str)> {
    let (part, key) = name.split_once('/')?;
    Some((
        Part::ALL
            .into_iter()
            .find(|candidate| candidate.name() == part)?,
        key,
    ))
}

fn missing(folder: &Path, key: &str) -> WeightsError {
    WeightsError::Missing {
        path: folder.to_owned(),
        key: key.to_owned(),
    }
}

/// The evaluation that gave the best cIoU.
#[derive(Debug, Serialize, Deserialize)]
struct Best {
    step: u64,
    ciou: f64,
}

/// Whether the evaluation after `step` is the best of the run, which is then written down. One of
/// a later step, from before the run was resumed, does not count.
///
/// # Errors
/// If the record cannot be read or written.
pub fn is_best(folder: &Path, step: u64, tally: &Tally) -> Result<bool, TrainError> {
    let Some(ciou) = Tally::scores(&tally.all())[Metric::Ciou] else {
        return Ok(false);
    };
    let path = folder.join(BEST);
    let before: Option<Best> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(source) => return Err(TrainError::Folder { path, source }),
    };
    let is_best = before.is_none_or(|best| best.step >= step || ciou > best.ciou);
    if is_best {
        write(&path, &json(&Best { step, ciou }))?;
    }
    Ok(is_best)
}

/// How long a run goes on may be decided while it runs.
fn without_steps(settings: &Value) -> Value {
    let mut settings = settings.clone();
    if let Some(settings) = settings.as_object_mut() {
        settings.remove("steps");
    }
    settings
}

pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain numbers and strings serialise")
}

/// Writes a file whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| TrainError::Folder {
            path: path.to_owned(),
            source,
        })
}

fn remove_other_states(folder: &Path, keep: &str) -> Result<(), TrainError> {
    let failed = |source| TrainError::Folder {
        path: folder.to_owned(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let is_state = name
            .to_str()
            .is_some_and(|name| name.ends_with(STATE) && name != keep);
        if is_state {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}
