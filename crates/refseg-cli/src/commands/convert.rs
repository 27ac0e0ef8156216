//! `refseg convert`: rewrites a model folder.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use refseg::{
    internvl::Config,
    weights::{
        Dtype, SaveDtype, TensorSpec, Weights, WeightsError, resolve_in_folder, save_sharded,
    },
};
use serde_json::Value;

use super::{counted, torch_name};
use crate::{
    cli::ConvertArgs,
    console::Console,
    failure::Hint,
    files::{NewFolder, write_whole},
};

/// Largest weight file, as Hugging Face's tools cut them.
const SHARD_BYTES: u64 = 4_000_000_000;
/// Files larger than this are not a tokenizer's or a note's.
const LARGEST_COPIED: u64 = 100 << 20;
/// Endings of files that go along with weights.
const COPIED: [&str; 6] = ["json", "txt", "model", "md", "jinja", "py"];

pub(crate) fn run(args: &ConvertArgs, console: &Console) -> Result<()> {
    if !args.src.is_dir() {
        bail!("`{}`: there is no such model folder", args.src.display());
    }
    if args.dst.exists() {
        return Err(Hint {
            hint: "give a folder that does not exist; models are never overwritten",
            error: anyhow!("`{}` exists already", args.dst.display()),
        }
        .into());
    }
    Config::from_folder(&args.src)?;
    let weights = Weights::open(&args.src)?;
    if weights.is_lora() && !args.merge {
        return Err(Hint {
            hint: "add --merge",
            error: anyhow!(
                "`{}`: has unmerged LoRA, which is not kept apart",
                args.src.display()
            ),
        }
        .into());
    }
    if args.merge && !weights.is_lora() {
        console.note("there is no LoRA to merge");
    }
    let (specs, left_out) = float_tensors(&weights);
    if left_out > 0 {
        let tensors = counted(left_out, "tensor");
        console.note(format_args!(
            "left out {tensors} of whole numbers, which no network here reads"
        ));
    }
    let dtype = args.dtype.map_or_else(|| kept(&weights), SaveDtype::from);

    let folder = NewFolder::begin(&args.dst)?;
    write_config(&args.src, folder.path(), dtype)?;
    copy_others(&args.src, folder.path(), console)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut progress = console.progress(specs.len() as u64, "tensors");
    save_sharded(
        folder.path(),
        &specs,
        dtype,
        &metadata,
        SHARD_BYTES,
        |spec| {
            progress.advance();
            read(&weights, spec)
        },
    )?;
    drop(progress);
    folder.publish()?;
    console.note(format_args!(
        "{} as {}",
        counted(specs.len(), "tensor"),
        torch_name(dtype)
    ));
    console.result(args.dst.display())
}

/// What can be read as weights, and how many tensors cannot.
fn float_tensors(weights: &Weights) -> (Vec<TensorSpec>, usize) {
    let mut specs = Vec::new();
    let mut left_out = 0;
    for key in weights.keys() {
        match weights.info(key) {
            Some(info) if !matches!(info.dtype, Dtype::Other(_)) => specs.push(TensorSpec {
                name: key.to_owned(),
                shape: info.shape.clone(),
            }),
            _ => left_out += 1,
        }
    }
    (specs, left_out)
}

/// The type that loses nothing: the one all tensors have, or f32.
fn kept(weights: &Weights) -> SaveDtype {
    let all = |dtype: Dtype| {
        let types = weights
            .keys()
            .filter_map(|key| weights.info(key))
            .map(|info| &info.dtype);
        types
            .into_iter()
            .all(|d| *d == dtype || matches!(d, Dtype::Other(_)))
    };
    if all(Dtype::Bf16) {
        SaveDtype::Bf16
    } else if all(Dtype::F16) {
        SaveDtype::F16
    } else {
        SaveDtype::F32
    }
}

fn read(weights: &Weights, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError> {
    weights.read_f32(&spec.name, &spec.shape, "its header")
}

/// `config.json` with every field it had, but for LoRA and the type.
fn write_config(from: &Path, to: &Path, dtype: SaveDtype) -> Result<()> {
    let path = resolve_in_folder(from, "config.json")?;
    let wrong = || format!("`{}`: cannot be read", path.display());
    let mut config: Value =
        serde_json::from_slice(&fs::read(&path).with_context(wrong)?).with_context(wrong)?;
    if config.get("use_llm_lora").is_some() {
        config["use_llm_lora"] = 0.into();
    }
    let name = torch_name(dtype);
    for part in ["vision_config", "llm_config"] {
        if let Some(part) = config
            .get_mut(part)
            .filter(|part| part.get("torch_dtype").is_some())
        {
            part["torch_dtype"] = name.into();
        }
    }
    config["torch_dtype"] = name.into();
    let text = serde_json::to_vec_pretty(&config).context("cannot write config.json")?;
    write_whole(&to.join("config.json"), &text)
}

/// Copies the tokenizer, licence and notes: everything small that is not made anew.
fn copy_others(from: &Path, to: &Path, console: &Console) -> Result<()> {
    let failed = || format!("`{}`: cannot be listed", from.display());
    for entry in fs::read_dir(from).with_context(failed)? {
        let file = entry.with_context(failed)?.file_name();
        let Some(name) = file.to_str().filter(|name| goes_along(name)) else {
            continue;
        };
        let path = match resolve_in_folder(from, name) {
            Ok(path) => path,
            Err(error) => {
                console.warn(format_args!("left out: {error}"));
                continue;
            }
        };
        let copied = || format!("`{}`: cannot be copied", path.display());
        if fs::metadata(&path).with_context(copied)?.len() > LARGEST_COPIED {
            console.warn(format_args!(
                "left out `{name}`, which is larger than 100 MB"
            ));
            continue;
        }
        write_whole(&to.join(name), &fs::read(&path).with_context(copied)?)?;
    }
    Ok(())
}

fn goes_along(name: &str) -> bool {
    let made_anew =
        ["config.json", "adapter_config.json"].contains(&name) || name.ends_with(".index.json");
    let ending = Path::new(name)
        .extension()
        .and_then(|ending| ending.to_str());
    let is_licence = name.to_ascii_uppercase().starts_with("LICEN") || name == "NOTICE";
    !made_anew && (is_licence || ending.is_some_and(|ending| COPIED.contains(&ending)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokenizers_and_licences_go_along_and_weights_do_not() {
        for name in [
            "tokenizer.json",
            "merges.txt",
            "tokenizer.model",
            "LICENSE",
            "README.md",
        ] {
            assert!(goes_along(name), "{name}");
        }
        for name in [
            "model.safetensors",
            "pytorch_model.bin",
            "model.safetensors.index.json",
            "config.json",
            "run.sh",
        ] {
            assert!(!goes_along(name), "{name}");
        }
    }
}
