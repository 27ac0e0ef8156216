//! Which data set a command is about.

use anyhow::{Result, bail};
use refseg_data::{
    dataset::{Dataset, Options},
    evaluate::Examples,
    scenes::{DrawnScenes, SceneOptions, Split},
};

use super::{counted, shell_word};
use crate::{
    cli::{DataArgs, DatasetName, SplitName},
    console::Console,
    failure::WrongUsage,
};

/// Faults that a warning lists.
const LISTED: usize = 5;

/// A data set, ready to be gone through.
pub(crate) struct Opened {
    /// Its name and split.
    pub(crate) name: String,
    pub(crate) split: String,
    /// SHA-256 of its annotation files; scenes have none.
    pub(crate) digest: Option<String>,
    pub(crate) examples: Box<dyn Examples>,
}

impl Opened {
    pub(crate) fn open(args: &DataArgs, console: &Console) -> Result<Self> {
        match args.dataset {
            DatasetName::Scenes => Self::scenes(args),
            DatasetName::Vqav2 => bail!(WrongUsage(
                "vqav2 has answers, not masks: `refseg eval` asks for them, and `refseg score` judges them",
            )),
            DatasetName::Source(source) => {
                let Some(root) = &args.data else {
                    bail!(WrongUsage(
                        "--data is missing: the folder that holds the data set"
                    ));
                };
                let split = args
                    .split
                    .as_deref()
                    .unwrap_or_else(|| source.default_split());
                let options = Options {
                    keep_going: args.keep_going,
                };
                let dataset = Dataset::open_with(&source, split, root, &options)?;
                warn_of_skipped(dataset.skipped(), console);
                Ok(Self {
                    name: dataset.name.clone(),
                    split: dataset.split.clone(),
                    digest: Some(dataset.digest().to_owned()),
                    examples: Box::new(dataset),
                })
            }
        }
    }

    fn scenes(args: &DataArgs) -> Result<Self> {
        let name = args.split.as_deref().unwrap_or("held-out");
        let Ok(split) = <SplitName as clap::ValueEnum>::from_str(name, false) else {
            bail!("scenes have no split `{name}`; expected one of train, held-out, unseen");
        };
        let options = SceneOptions {
            size: args.size,
            split: Split::from(split),
            ..SceneOptions::default()
        };
        options.validate()?;
        let examples = DrawnScenes {
            options,
            first: args.first,
            count: args.count.get(),
        };
        Ok(Self {
            name: "scenes".to_owned(),
            split: name.to_owned(),
            digest: None,
            examples: Box::new(examples),
        })
    }
}

impl DataArgs {
    /// The options as they would be typed, those that matter to what is opened.
    pub(crate) fn words(&self) -> String {
        let mut words = vec![format!("--dataset {}", self.dataset)];
        words.extend(self.split.iter().map(|split| format!("--split {split}")));
        words.extend(
            self.data
                .iter()
                .map(|root| format!("--data {}", shell_word(root))),
        );
        if self.dataset == DatasetName::Scenes {
            words.push(format!(
                "--count {} --first {} --size {}",
                self.count, self.first, self.size
            ));
        }
        words.extend(self.keep_going.then(|| "--keep-going".to_owned()));
        words.join(" ")
    }
}

/// Says how many entries were at fault, and what the first of them are.
pub(crate) fn warn_of_skipped<T: std::fmt::Display>(skipped: &[T], console: &Console) {
    if !skipped.is_empty() {
        let first: Vec<String> = skipped
            .iter()
            .take(LISTED)
            .map(|fault| format!("\n  {fault}"))
            .collect();
        console.warn(format_args!(
            "{} passed over:{}",
            counted(skipped.len(), "fault"),
            first.concat()
        ));
    }
}
