//! `refseg eval`: asks a model about a data set and judges its answers.
//!
//! The answers are written down picture by picture, so that a run that was
//! killed goes on where it was; then they are judged from the file, as
//! `refseg score` judges anybody's.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use refseg::Segmenter;
use refseg_data::{
    evaluate::{self, Examples, Ids, Protocol},
    metrics::Rules,
    predictions::{Answers, Prediction, Reading, Resume, Writer},
};
use serde::{Deserialize, Serialize};

use super::{
    counted,
    judgement::{About, Judgement, System},
    load,
    opened::Opened,
    shell_word, vqa,
};
use crate::{
    cli::{DatasetName, EvalArgs, Shard},
    console::Console,
    digest,
    files::write_whole,
};

/// The answers, one line for each expression.
const PREDICTIONS: &str = "predictions.jsonl";
/// What the answers were asked with.
const SETTINGS: &str = "run.json";

pub(crate) fn run(args: &EvalArgs, console: &Console) -> Result<()> {
    if args.data.dataset == DatasetName::Vqav2 {
        return vqa::eval(args, console);
    }
    let opened = Opened::open(&args.data, console)?;
    let (predictor, _) = load(&args.model, console)?;
    let protocol = Protocol::from(args.protocol);
    let settings = Settings {
        dataset: opened.name.clone(),
        split: opened.split.clone(),
        data_sha256: opened.digest.clone(),
        model: predictor.name().to_owned(),
        model_sha256: digest::of_model(&args.model)?,
        protocol: protocol.name().to_owned(),
        limit: args.limit,
        shard: args.shard.map(|shard| shard.to_string()),
        refseg: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // Without a folder of their own, answers are kept only until they are judged.
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = args.out.as_deref().unwrap_or(temporary.path());
    let run = Run::open(folder, &settings, &opened, chosen(args, &opened))?;
    run.predict(&*predictor, &*opened.examples, protocol, console)?;

    let reading = Reading::default();
    let answers = Answers::read_lines(&folder.join(PREDICTIONS), reading)?;
    let name = settings.model.clone();
    let system = System::judge(
        name,
        &*opened.examples,
        &run.pictures,
        answers,
        false,
        console,
    )?;
    let rules = Rules {
        family: opened.examples.family(),
        blank_rejected: args.blank_rejected,
    };
    let about = About {
        dataset: opened.name,
        split: opened.split,
        data_sha256: opened.digest,
        protocol: Some(protocol),
        model: Some((settings.model, settings.model_sha256)),
        command: command(args, protocol),
    };
    let judgement = Judgement::new(about, rules, vec![system])?;
    if let Some(folder) = &args.out {
        judgement.write(folder, &*opened.examples)?;
        console.note(format_args!(
            "wrote {}",
            folder.join("report.html").display()
        ));
    }
    judgement.show(args.json, console)
}

/// What makes the metrics again, wherever they are written.
fn command(args: &EvalArgs, protocol: Protocol) -> String {
    let mut words = vec!["refseg eval".to_owned(), args.data.words()];
    words.push(format!("--model {}", shell_word(&args.model.model)));
    let refine = args.model.refine.as_deref().map(shell_word);
    words.extend(refine.map(|sam| format!("--refine sam:{sam}")));
    words.push(format!("--protocol {protocol}"));
    words.extend(args.blank_rejected.then(|| "--blank-rejected".to_owned()));
    words.extend(args.limit.map(|limit| format!("--limit {limit}")));
    words.extend(args.shard.map(|shard| format!("--shard {shard}")));
    words.join(" ")
}

/// The pictures that this run is about.
fn chosen(args: &EvalArgs, opened: &Opened) -> Vec<usize> {
    let all = opened.examples.pictures();
    let count = args.limit.map_or(all, |limit| limit.get().min(all));
    let shard = args.shard.unwrap_or(Shard { index: 1, count: 1 });
    (shard.index - 1..count).step_by(shard.count).collect()
}

/// What makes the answers what they are. A folder of answers belongs to one of these.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    dataset: String,
    split: String,
    data_sha256: Option<String>,
    model: String,
    model_sha256: String,
    protocol: String,
    limit: Option<std::num::NonZeroUsize>,
    shard: Option<String>,
    refseg: String,
}

/// A folder of answers, begun or continued.
struct Run {
    predictions: PathBuf,
    /// All pictures that it is about.
    pictures: Vec<usize>,
    /// Those without answers yet.
    left: Vec<usize>,
    resume: Resume,
}

impl Run {
    fn open(
        folder: &Path,
        settings: &Settings,
        opened: &Opened,
        pictures: Vec<usize>,
    ) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("`{}`: cannot make the folder", folder.display()))?;
        settings.claim(&folder.join(SETTINGS))?;
        let predictions = folder.join(PREDICTIONS);
        let ids = pictures
            .iter()
            .map(|&picture| opened.examples.ids(picture))
            .collect::<Result<Vec<Ids>, _>>()?;
        let expected: HashMap<&str, HashSet<&str>> = ids
            .iter()
            .map(|ids| {
                let expressions = ids.expressions.iter().map(String::as_str);
                (ids.picture.as_str(), expressions.collect())
            })
            .collect();
        let resume = Resume::read(&predictions, &expected)?;
        let done: HashSet<&str> = resume
            .done
            .iter()
            .map(|line| line.picture.as_str())
            .collect();
        let left = pictures
            .iter()
            .zip(&ids)
            .filter(|(_, ids)| !done.contains(ids.picture.as_str()))
            .map(|(&picture, _)| picture)
            .collect();
        Ok(Self {
            predictions,
            pictures,
            left,
            resume,
        })
    }

    fn predict(
        &self,
        predictor: &dyn Segmenter,
        examples: &dyn Examples,
        protocol: Protocol,
        console: &Console,
    ) -> Result<()> {
        let (all, before) = (self.pictures.len(), self.pictures.len() - self.left.len());
        if before > 0 {
            console.note(format_args!(
                "going on after {before} of {}",
                counted(all, "picture")
            ));
        }
        let mut writer = Writer::open(&self.predictions, &self.resume)?;
        let mut running = Running::default();
        self.resume.done.iter().for_each(|line| running.add(line));
        let mut progress = console.progress(all as u64, "pictures");
        progress.set(before as u64);
        let (start, mut done) = (Instant::now(), before);
        evaluate::predict(predictor, examples, &self.left, protocol, |lines| {
            writer.append(&lines)?;
            lines.iter().for_each(|line| running.add(line));
            done += 1;
            progress.message(running.to_string());
            progress.set(done as u64);
            Ok::<_, anyhow::Error>(())
        })?;
        drop(progress);
        if done > before {
            let seconds = start.elapsed().as_secs_f64();
            console.note(format_args!(
                "{} in {seconds:.0} s ({:.1} pictures/s)",
                counted(done - before, "picture"),
                (done - before) as f64 / seconds
            ));
        }
        Ok(())
    }
}

impl Settings {
    /// Writes the settings down, or checks that they are those of the answers already there.
    fn claim(&self, path: &Path) -> Result<()> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = serde_json::to_vec_pretty(self).context("cannot write the settings")?;
                return write_whole(path, &text);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("`{}`: cannot be read", path.display()));
            }
        };
        let found: Self = serde_json::from_slice(&text).with_context(|| {
            format!("`{}`: is not the settings of an evaluation", path.display())
        })?;
        if found != *self {
            let show = |settings: &Self| serde_json::to_string(settings).unwrap_or_default();
            bail!(
                "`{}`: the answers there were asked with other settings: {}, and now {}; choose another --out, or the same settings",
                path.display(),
                show(&found),
                show(self)
            );
        }
        Ok(())
    }
}

/// What has come out so far, for the progress bar.
#[derive(Default)]
struct Running {
    intersection: u64,
    union: u64,
    expressions: u64,
}

impl Running {
    fn add(&mut self, line: &Prediction) {
        self.intersection += line.intersection;
        self.union += line.union;
        self.expressions += 1;
    }
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ciou = 100.0 * self.intersection as f64 / self.union.max(1) as f64;
        write!(
            f,
            "cIoU {ciou:.2} over {}",
            counted(self.expressions as usize, "expression")
        )
    }
}
