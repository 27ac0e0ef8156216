//! VQAv2: short answers to questions about pictures, not masks.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result, bail};
use refseg::{
    Image,
    chat::{self, Mllm, Question},
};
use refseg_data::vqa::{self, VisualQuestion, VqaFiles, VqaScores};
use serde_json::json;

use super::{counted, options, warn_of_unused};
use crate::{
    cli::{EvalArgs, ScoreArgs},
    console::Console,
    failure::WrongUsage,
    files::{check_destination, write_whole},
    table::{Align, Table},
};

/// What asks for a short answer, as Qwen-VL does.
const ENDING: &str = " Answer:";
/// Tokens of an answer, as Qwen-VL's evaluation has it.
const ANSWER_TOKENS: usize = 10;
/// The answers, in the form that VQAv2's own server takes.
const ANSWERS: &str = "answers.json";

/// `refseg score`: judges a file of answers.
pub(super) fn score(args: &ScoreArgs, console: &Console) -> Result<()> {
    let (Some(annotations), [answers]) = (&args.data.data, &args.predictions[..]) else {
        bail!(WrongUsage(
            "vqav2 takes one file of answers, and --data with the file of annotations",
        ));
    };
    let annotations = vqa::read_annotations(annotations)?;
    let scores = vqa::score(&annotations, &vqa::read_answers(answers)?)?;
    show(&scores, args.json, console)
}

/// `refseg eval`: asks a model, and judges its answers where people's are known.
pub(super) fn eval(args: &EvalArgs, console: &Console) -> Result<()> {
    let Some(root) = &args.data.data else {
        bail!(WrongUsage(
            "--data is missing: the folder with the files of VQAv2"
        ));
    };
    let of_masks = args.model.refine.is_some() || args.blank_rejected;
    if of_masks || args.shard.is_some() || args.data.keep_going {
        bail!(WrongUsage(
            "vqav2 knows none of --refine, --blank-rejected, --shard and --keep-going",
        ));
    }
    let files = VqaFiles::of_split(root, args.data.split.as_deref().unwrap_or("val"))?;
    let pictures = by_picture(vqa::read_questions(&files.questions)?);
    let limit = args.limit.map_or(pictures.len(), |limit| limit.get());
    let pictures = &pictures[..limit.min(pictures.len())];
    let annotations = files.annotations.as_deref().map(vqa::read_annotations);
    let annotations = annotations.transpose()?;
    if annotations.is_none() && args.out.is_none() {
        bail!(WrongUsage(
            "what people answered is not public for this split: --out keeps the model's answers",
        ));
    }
    if let Some(folder) = &args.out {
        let failed = || format!("`{}`: cannot make the folder", folder.display());
        fs::create_dir_all(folder).with_context(failed)?;
        check_destination(&folder.join(ANSWERS))?;
    }
    let model = chat::open(&args.model.model, &options(&args.model.compute, console))?;
    warn_of_unused(model.name(), model.unused_tensors(), console);

    let mut answers = HashMap::new();
    let mut progress = console.progress(pictures.len() as u64, "pictures");
    for (image_id, questions) in pictures {
        let image = Image::open(files.picture(*image_id))?;
        let said = ask(&model, &image, questions)?;
        answers.extend(questions.iter().map(|q| q.question_id).zip(said));
        progress.advance();
    }
    drop(progress);

    if let Some(folder) = &args.out {
        let mut results: Vec<_> = answers.iter().collect();
        results.sort();
        let results: Vec<_> = results
            .into_iter()
            .map(|(id, answer)| json!({"question_id": id, "answer": answer}))
            .collect();
        write_whole(&folder.join(ANSWERS), &serde_json::to_vec(&results)?)?;
        console.note(format_args!("wrote {}", folder.join(ANSWERS).display()));
    }
    match annotations {
        Some(mut annotations) => {
            annotations.retain(|known| answers.contains_key(&known.question_id));
            show(&vqa::score(&annotations, &answers)?, args.json, console)
        }
        None => {
            let count = counted(answers.len(), "answer");
            console.note(format_args!(
                "{count}, which only VQAv2's own server can judge"
            ));
            Ok(())
        }
    }
}

/// Answers without the white space around them.
fn ask(model: &dyn Mllm, image: &Image, questions: &[VisualQuestion]) -> Result<Vec<String>> {
    let texts: Vec<String> = questions
        .iter()
        .map(|question| format!("{}{ENDING}", question.question))
        .collect();
    let questions: Vec<Question<'_>> = texts
        .iter()
        .map(|text| Question {
            max_tokens: ANSWER_TOKENS,
            ..Question::new(text)
        })
        .collect();
    let answers = model.look(image)?.ask_many(&questions)?;
    Ok(answers
        .into_iter()
        .map(|answer| answer.text.trim().to_owned())
        .collect())
}

/// Questions with the picture that they are about, in the order in which pictures first appear.
fn by_picture(questions: Vec<VisualQuestion>) -> Vec<(u64, Vec<VisualQuestion>)> {
    let mut places: HashMap<u64, usize> = HashMap::new();
    let mut pictures: Vec<(u64, Vec<VisualQuestion>)> = Vec::new();
    for question in questions {
        let place = *places.entry(question.image_id).or_insert(pictures.len());
        if place == pictures.len() {
            pictures.push((question.image_id, Vec::new()));
        }
        pictures[place].1.push(question);
    }
    pictures
}

fn show(scores: &VqaScores, as_json: bool, console: &Console) -> Result<()> {
    if as_json {
        return console.json(&json!({
            "dataset": "vqav2",
            "metrics": {"accuracy": scores.accuracy},
            "counts": {"questions": scores.questions},
            "by_answer_type": scores.by_answer_type,
            "by_question_type": scores.by_question_type,
        }));
    }
    let mut table = Table::markdown(&[("answers", Align::Left), ("accuracy", Align::Right)]);
    for (kind, accuracy) in &scores.by_answer_type {
        table.row([kind.as_str().into(), format!("{accuracy:.2}").into()]);
    }
    if let Some(accuracy) = scores.accuracy {
        table.row(["all".into(), format!("{accuracy:.2}").into()]);
    }
    console.result(table)
}
