//! One module for each command.

pub(crate) mod ask;
pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod eval;
pub(crate) mod info;
pub(crate) mod init;
mod judgement;
mod opened;
pub(crate) mod sam;
pub(crate) mod scenes;
pub(crate) mod score;
pub(crate) mod segment;
pub(crate) mod train;
mod vqa;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use refseg::{
    Options, Segmenter,
    mask::Rle,
    nn::{InstructionSet, Precision},
    predictor::Processor,
    sam::SamPredictor,
    segmenter::Refined,
    weights::SaveDtype,
};
use refseg_data::{evaluate, scenes::Split};
use serde::Serialize;

use crate::{
    cli::{self, ComputeArgs, Dtype, ModelArgs, SplitName},
    console::Console,
    files::check_destination,
};

/// Unused tensors that a warning names.
const NAMED: usize = 5;

/// Loads a model, whatever its method, and warns about what it does not use; also says how long
/// that took.
fn load(args: &ModelArgs, console: &Console) -> Result<(Box<dyn Segmenter>, Duration)> {
    let (model, took) = timed(|| open(args, console));
    let model = model?;
    warn_of_unused(model.name(), model.unused_tensors(), console);
    Ok((model, took))
}

fn open(args: &ModelArgs, console: &Console) -> Result<Box<dyn Segmenter>> {
    let options = options(&args.compute, console);
    let model = refseg::open(&args.model, &options)?;
    Ok(match &args.refine {
        None => model,
        Some(sam) => Box::new(Refined::new(model, SamPredictor::load(sam, &options)?)),
    })
}

/// What `--device` and `--precision` ask for; says what `auto` stands for here.
fn options(compute: &ComputeArgs, console: &Console) -> Options {
    let mut options = Options::default();
    options.processor = match compute.device {
        cli::Device::Cpu => Processor::Cpu,
    };
    options.precision = match compute.precision {
        cli::Precision::F32 => Precision::F32,
        cli::Precision::Bf16 => Precision::Bf16,
        cli::Precision::Int16 => Precision::Int16,
        cli::Precision::Int8 => Precision::Int8,
        cli::Precision::Auto => {
            let set = InstructionSet::current();
            let precision = set.preferred();
            console.note(format_args!(
                "precision: {precision} ({})",
                set.path(precision)
            ));
            precision
        }
    };
    options
}

fn warn_of_unused(model: &str, unused: &[String], console: &Console) {
    if unused.is_empty() {
        return;
    }
    let names: Vec<String> = unused
        .iter()
        .take(NAMED)
        .map(|key| format!("`{key}`"))
        .collect();
    let more = unused.len() - names.len();
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let names = names.join(", ");
    console.warn(format_args!(
        "{model} has tensors that no part of the network uses: {names}{more}"
    ));
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// Checks that a file can be written, and that it is not the picture itself.
fn check_output(path: &Path, image: &Path) -> Result<()> {
    // A picture that cannot be read has an error of its own.
    if image.exists() {
        check_destination(path)?;
    }
    let is_same_file = match (fs::canonicalize(path), fs::canonicalize(image)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if is_same_file {
        bail!(
            "`{}`: is the picture itself, which is never overwritten",
            path.display()
        );
    }
    Ok(())
}

/// Longest part of a phrase in a file's name, in bytes: file systems allow 255 in all.
const LONGEST_IN_NAME: usize = 60;

/// `STEM.01.the-red-ring.png`: numbered, so that names differ whatever the phrases are.
fn mask_name(stem: &str, number: usize, count: usize, phrase: &str) -> String {
    let digits = count.to_string().len().max(2);
    let mut words = String::new();
    for word in phrase
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        let word = word.to_lowercase();
        if words.len() + 1 + word.len() > LONGEST_IN_NAME {
            break;
        }
        words.push(if words.is_empty() { '.' } else { '-' });
        words.push_str(&word);
    }
    format!("{stem}.{number:0digits$}{words}.png")
}

/// A picture in a JSON document.
#[derive(Serialize)]
struct Picture<'a> {
    path: &'a str,
    width: u32,
    height: u32,
}

/// A run-length code in a JSON document.
#[derive(Serialize)]
struct Code {
    size: [usize; 2],
    counts: String,
}

impl From<Rle> for Code {
    fn from(rle: Rle) -> Self {
        Self {
            size: rle.size,
            counts: rle.counts,
        }
    }
}

/// The middle of some durations, in milliseconds.
fn median_ms(durations: &[Duration]) -> f64 {
    let mut sorted = durations.to_vec();
    sorted.sort();
    let middle = match sorted.len() {
        0 => Duration::ZERO,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2,
    };
    milliseconds(middle)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A time as people read it, from milliseconds.
fn readable_ms(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}

/// An amount of memory as people read it.
fn readable_bytes(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1e6 => format!("{:.0} kB", b / 1e3),
        b if b < 1e9 => format!("{:.0} MB", b / 1e6),
        b => format!("{:.2} GB", b / 1e9),
    }
}

/// A path as one word of a command line.
fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_alphanumeric() || "/._+-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A number with a comma every three digits.
pub(crate) fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `one phrase`, `2 phrases`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{} {noun}s", with_commas(count as u64)),
    }
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Train => Self::Train,
            SplitName::HeldOut => Self::HeldOut,
            SplitName::Unseen => Self::Unseen,
        }
    }
}

impl From<cli::Protocol> for evaluate::Protocol {
    fn from(protocol: cli::Protocol) -> Self {
        match protocol {
            cli::Protocol::Official => Self::Official,
            cli::Protocol::Joint => Self::Joint,
            cli::Protocol::Single => Self::Single,
            cli::Protocol::Sequential => Self::Sequential,
        }
    }
}

impl From<Dtype> for SaveDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// The type's name as `torch_dtype` of config.json has it.
fn torch_name(dtype: SaveDtype) -> &'static str {
    match dtype {
        SaveDtype::F32 => "float32",
        SaveDtype::F16 => "float16",
        SaveDtype::Bf16 => "bfloat16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let ms = |n| Duration::from_millis(n);
        assert_eq!(median_ms(&[ms(5), ms(1), ms(100)]), 5.0);
        assert_eq!(median_ms(&[ms(4), ms(2)]), 3.0);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(with_commas(1_234_567), "1,234,567");
        assert_eq!(with_commas(123), "123");
        assert_eq!(readable_bytes(3_760_000_000), "3.76 GB");
        assert_eq!(counted(1, "phrase"), "1 phrase");
    }

    #[test]
    fn masks_are_named_by_number_and_phrase() {
        assert_eq!(
            mask_name("cat", 1, 3, "the red Ring!"),
            "cat.01.the-red-ring.png"
        );
        assert_eq!(mask_name("cat", 7, 100, "../../etc"), "cat.007.etc.png");
        assert_eq!(mask_name("cat", 2, 3, "😀"), "cat.02.png");
        assert!(mask_name("cat", 2, 3, &"word ".repeat(1000)).len() < 80);
    }
}
