//! `log.jsonl` of a run's folder: a line for each step, one for each evaluation.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use refseg_data::metrics::{Metric, Tally};
use refseg_train::{
    curve::{Curve, HeldOut},
    losses::Losses,
};
use serde_json::{Value, json};

/// The log, and the curve that it makes.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    curve: Curve,
}

impl Log {
    /// Opens the log of a run that has done so many steps; what a killed run
    /// wrote beyond its last checkpoint is dropped.
    pub(super) fn open(folder: &Path, done: u64) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let failed = || format!("`{}`: cannot keep the log", path.display());
        let old = match fs::read_to_string(&path) {
            Ok(old) => old,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(failed),
        };
        let mut curve = Curve::default();
        let mut kept = String::new();
        for line in old.lines() {
            // A line that a kill cut off is no JSON any more.
            let Ok(record) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if record["step"].as_u64().is_some_and(|step| step <= done) {
                add(&mut curve, &record);
                kept += line;
                kept.push('\n');
            }
        }
        crate::files::write_whole(&path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(failed)?;
        Ok(Self { path, file, curve })
    }

    /// Writes a step down.
    pub(super) fn step(&mut self, step: u64, losses: &Losses, norm: f64, rate: f64) -> Result<()> {
        let mut record = json!({"step": step, "loss": losses.total});
        for (name, value) in &losses.parts {
            record[*name] = (*value).into();
        }
        record["norm"] = norm.into();
        record["rate"] = rate.into();
        self.write(&record)
    }

    /// Writes an evaluation down.
    pub(super) fn held_out(&mut self, step: u64, tally: &Tally) -> Result<()> {
        let all = Tally::scores(&tally.all());
        let kinds: serde_json::Map<String, Value> = tally
            .kinds()
            .map(|(kind, sums)| (kind.to_owned(), Tally::scores(sums)[Metric::Miou].into()))
            .collect();
        self.write(&json!({
            "step": step,
            "held_out": {
                "ciou": all[Metric::Ciou], "giou": all[Metric::Giou],
                "precision_at_half": all[Metric::PrecAt0_5],
                "n_acc": all[Metric::NAcc], "t_acc": all[Metric::TAcc], "miou": kinds,
            },
        }))
    }

    /// All that the log says.
    pub(super) fn curve(&self) -> &Curve {
        &self.curve
    }

    fn write(&mut self, record: &Value) -> Result<()> {
        add(&mut self.curve, record);
        // In one piece, so that a kill cuts a line off at most.
        self.file
            .write_all(format!("{record}\n").as_bytes())
            .with_context(|| format!("`{}`: cannot be written", self.path.display()))
    }
}

fn add(curve: &mut Curve, record: &Value) {
    let Some(step) = record["step"].as_u64() else {
        return;
    };
    if let Some(loss) = record["loss"].as_f64() {
        curve.losses.push((step, loss));
    }
    if let Some(scores) = record["held_out"].as_object() {
        let score = |name: &str| scores.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        curve.held_out.push(HeldOut {
            step,
            ciou: score("ciou"),
            n_acc: score("n_acc"),
            t_acc: score("t_acc"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_forgets_what_its_checkpoint_does_not_know() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut log = Log::open(folder.path(), 0)?;
        for step in 1..=5 {
            log.step(step, &Losses::default(), 1.0, 1e-3)?;
        }
        log.held_out(3, &Tally::default())?;
        log.file.write_all(b"{\"step\":6,\"lo")?;
        let log = Log::open(folder.path(), 3)?;
        assert_eq!(log.curve.losses.len(), 3);
        assert_eq!(log.curve.held_out.len(), 1);
        assert_eq!(
            fs::read_to_string(folder.path().join("log.jsonl"))?
                .lines()
                .count(),
            4
        );
        Ok(())
    }
}
