//! `refseg score`: judges anybody's answers, from files.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use refseg_data::{
    evaluate::{Examples, Ids},
    metrics::Rules,
    predictions::{self, Answers, Reading},
};

use super::{
    judgement::{About, Judgement, System},
    opened::Opened,
    shell_word, vqa,
};
use crate::{
    cli::{DatasetName, ScoreArgs},
    console::Console,
    failure::WrongUsage,
};

/// Systems that can stand side by side.
const SYSTEMS: usize = 2;

pub(crate) fn run(args: &ScoreArgs, console: &Console) -> Result<()> {
    if args.data.dataset == DatasetName::Vqav2 {
        return vqa::score(args, console);
    }
    let opened = Opened::open(&args.data, console)?;
    let examples = &*opened.examples;
    let pictures: Vec<usize> = (0..examples.pictures()).collect();
    let systems = match &args.merge {
        Some(merged) => {
            let count = predictions::merge(&args.predictions, merged)?;
            console.note(format_args!(
                "wrote {} with {count} predictions",
                merged.display()
            ));
            vec![merged.clone()]
        }
        None if args.predictions.len() <= SYSTEMS => args.predictions.clone(),
        None => bail!(WrongUsage(
            "at most two systems are compared; --merge joins the files of one",
        )),
    };
    let judge = |path: &PathBuf| {
        let answers = read(path, examples, args.data.keep_going)?;
        let name = path.display().to_string();
        System::judge(
            name,
            examples,
            &pictures,
            answers,
            args.data.keep_going,
            console,
        )
    };
    let systems = systems.iter().map(judge).collect::<Result<Vec<_>>>()?;
    let rules = Rules {
        family: examples.family(),
        blank_rejected: args.blank_rejected,
    };
    let about = About {
        dataset: opened.name,
        split: opened.split,
        data_sha256: opened.digest,
        protocol: None,
        model: None,
        command: command(args),
    };
    let judgement = Judgement::new(about, rules, systems)?;
    if let Some(folder) = &args.out {
        judgement.write(folder, examples)?;
        console.note(format_args!(
            "wrote {}",
            folder.join("report.html").display()
        ));
    }
    judgement.show(args.json, console)
}

/// What makes the metrics again, wherever they are written.
fn command(args: &ScoreArgs) -> String {
    let mut words = vec!["refseg score".to_owned()];
    words.extend(args.predictions.iter().map(|path| shell_word(path)));
    words.push(args.data.words());
    words.extend(
        args.merge
            .iter()
            .map(|path| format!("--merge {}", shell_word(path))),
    );
    words.extend(args.blank_rejected.then(|| "--blank-rejected".to_owned()));
    words.join(" ")
}

/// Answers in lines, or a folder of masks.
fn read(path: &Path, examples: &dyn Examples, keep_going: bool) -> Result<Answers> {
    let reading = Reading {
        keep_going,
        ..Reading::default()
    };
    if !path.is_dir() {
        return Ok(Answers::read_lines(path, reading)?);
    }
    let ids = (0..examples.pictures())
        .map(|picture| examples.ids(picture))
        .collect::<Result<Vec<Ids>, _>>()?;
    let expressions = ids.iter().flat_map(|ids| &ids.expressions);
    Ok(Answers::read_folder(
        path,
        expressions.map(String::as_str),
        reading,
    )?)
}
