//! One module for each command.

pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod eval;
pub(crate) mod info;
pub(crate) mod init;
pub(crate) mod scenes;
pub(crate) mod segment;
pub(crate) mod train;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use refseg::{
    Options, Predictor,
    predictor::{Precision, Processor},
    weights::SaveDtype,
};
use refseg_data::scenes::Split;

use crate::{
    cli::{self, ComputeArgs, Dtype, SplitName},
    console::Console,
};

/// Unused tensors that a warning names.
const NAMED: usize = 5;

/// Loads a model and warns about what it does not use; also says how long that took.
fn load(model: &Path, compute: &ComputeArgs, console: &Console) -> Result<(Predictor, Duration)> {
    let mut options = Options::default();
    options.processor = match compute.device {
        cli::Device::Cpu => Processor::Cpu,
    };
    options.precision = match compute.precision {
        cli::Precision::F32 => Precision::F32,
    };
    let start = Instant::now();
    let predictor = Predictor::load(model, &options)?;
    let took = start.elapsed();
    let unused = predictor.unused_tensors();
    if !unused.is_empty() {
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
        let (names, name) = (names.join(", "), predictor.name());
        console.warn(format_args!(
            "{name} has tensors that no part of the network uses: {names}{more}"
        ));
    }
    Ok((predictor, took))
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
}
