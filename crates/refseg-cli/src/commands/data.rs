//! `refseg data`: looks after data sets.

use anyhow::{Result, bail};
use refseg_data::dataset::{CheckOptions, CheckReport, Counts, SplitReport, check};

use super::{counted, with_commas};
use crate::{
    cli::{DataCheckArgs, DataCommand, DataCommandArgs},
    console::Console,
    table::{Align, Table},
};

/// Findings of one sort that are listed unless more are asked for.
const LISTED: usize = 3;

pub(crate) fn run(args: &DataCommandArgs, console: &Console) -> Result<()> {
    match &args.command {
        DataCommand::Check(args) => run_check(args, console),
    }
}

fn run_check(args: &DataCheckArgs, console: &Console) -> Result<()> {
    if !args.root.is_dir() {
        bail!("`{}`: there is no such folder", args.root.display());
    }
    let options = CheckOptions {
        decode_pictures: args.decode,
    };
    let report = check(&args.root, &options, |split| {
        console.detail(format_args!("checking {split}"));
    });
    if report.sets.is_empty() {
        bail!(
            "`{}`: holds none of the published data sets; expected `refer_seg` or `ReasonSeg` in it",
            args.root.display()
        );
    }
    if args.json {
        return console.json(&report);
    }
    console.result(overview(&report))?;
    for set in &report.sets {
        for split in &set.splits {
            for line in findings(split) {
                console.result(format_args!("{}/{}, {line}", set.name, split.split))?;
            }
        }
    }
    for leak in &report.leaks {
        console.result(format_args!(
            "{} shows {} of the {} of {}: do not train on the one and evaluate on the other",
            leak.training,
            with_commas(leak.pictures as u64),
            counted(leak.of, "picture"),
            leak.evaluation,
        ))?;
    }
    Ok(())
}

/// Sizes of all splits, beside those of the literature where they differ.
fn overview(report: &CheckReport) -> Table {
    use Align::{Left, Right};
    let mut table = Table::plain(&[
        ("split", Left),
        ("pictures", Right),
        ("references", Right),
        ("expressions", Right),
        ("", Left),
    ]);
    for set in &report.sets {
        for split in &set.splits {
            let published = split.published;
            let size = |of: fn(&Counts) -> Option<usize>| {
                compared(of(&split.counts), published.as_ref().and_then(of))
            };
            let verdict = match (split.faults(), published.is_some()) {
                (0, true) => "as published".to_owned(),
                (0, false) => "nothing wrong".to_owned(),
                (faults, _) => counted(faults, "fault"),
            };
            table.row([
                format!("{}/{}", set.name, split.split).into(),
                size(|counts| Some(counts.pictures)).into(),
                size(|counts| counts.references).into(),
                size(|counts| counts.expressions).into(),
                verdict.into(),
            ]);
        }
    }
    table
}

/// A size, and the published one if it is another.
fn compared(found: Option<usize>, published: Option<usize>) -> String {
    let show = |size: Option<usize>| size.map_or("–".to_owned(), |size| with_commas(size as u64));
    match published {
        Some(_) if published != found => format!("{} (not {})", show(found), show(published)),
        _ => show(found),
    }
}

/// What is wrong with a split, a paragraph for each sort.
fn findings(split: &SplitReport) -> Vec<String> {
    let found = |list: &[refseg_data::dataset::Finding]| -> Vec<String> {
        let sentence = |it: &refseg_data::dataset::Finding| format!("{}: {}", it.entry, it.problem);
        list.iter().map(sentence).collect()
    };
    let missing = split
        .missing_pictures
        .iter()
        .map(|path| path.display().to_string());
    let duplicates = split.duplicate_phrases.iter().map(|it| {
        format!(
            "\"{}\" in picture {}: {}",
            it.phrase,
            it.picture,
            it.expressions.join(", ")
        )
    });
    let sorts = [
        (
            "files that cannot be read",
            split.error.iter().cloned().collect(),
        ),
        ("entries that cannot be used", split.skipped.clone()),
        ("missing pictures", missing.collect()),
        (
            "pictures that cannot be decoded",
            found(&split.unreadable_pictures),
        ),
        (
            "pictures of another size than stated",
            found(&split.wrong_sizes),
        ),
        ("expressions that mark nothing", found(&split.empty_masks)),
        ("polygons that are none", found(&split.invalid_polygons)),
        (
            "phrases that mean different things in one picture",
            duplicates.collect::<Vec<_>>(),
        ),
    ];
    let paragraph = |(what, list): (&str, Vec<String>)| {
        let first = list.iter().take(LISTED).map(|it| format!("\n    {it}"));
        let more = list.len().saturating_sub(LISTED);
        let more = if more > 0 {
            format!("\n    and {} more", with_commas(more as u64))
        } else {
            String::new()
        };
        let (count, first) = (with_commas(list.len() as u64), first.collect::<String>());
        format!("{what} ({count}):{first}{more}")
    };
    sorts
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(paragraph)
        .collect()
}
