//! What a run leaves behind: a model folder in the official layout.
//!
//! Low-rank changes are kept beside the matrices that they change, under peft's names, as the
//! official training leaves them; `refseg convert --merge` makes a plain checkpoint of that.

use std::{collections::BTreeMap, path::Path};

use refseg::weights::{Dtype, SaveDtype, TensorSpec, WeightsError, save_sharded};
use serde_json::{Value, json};

use super::{DECODER, LAYERS, Tuning, is_vocabulary};
use crate::{
    TrainError, checkpoint,
    parameters::{Parameter, Parameters, Values},
};

/// Largest weight file, as Hugging Face's tools cut them.
const SHARD_BYTES: u64 = 4_000_000_000;
/// The language model's keys begin so; peft's wrapper goes in between.
const LANGUAGE: &str = "language_model.";
/// Alpha over rank of published models, whose configuration records the rank alone.
const PUBLISHED_SCALE: f64 = 2.0;

/// Writes the model that the run has come to into `folder`, which holds the tokenizer already.
pub(super) fn export(
    tuning: &Tuning,
    folder: &Path,
    parameters: &Parameters,
) -> Result<(), TrainError> {
    let lora = tuning.recipe.train.lora;
    let mut sources = BTreeMap::new();
    for (key, shape) in tensors(tuning, parameters) {
        let adapted = is_adapted(parameters, &key);
        let name = stored_name(&key, lora.is_some(), adapted);
        sources.insert(name, (Source::Tensor(key), shape));
    }
    for (key, parameter) in parameters.iter() {
        if let Some(name) = factor_name(key) {
            let source = Source::Factor(key.to_owned());
            sources.insert(name, (source, parameter.shape.clone()));
        }
    }
    let specs: Vec<TensorSpec> = sources
        .iter()
        .map(|(name, (_, shape))| TensorSpec {
            name: name.clone(),
            shape: shape.clone(),
        })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    save_sharded(
        folder,
        &specs,
        dtype(tuning),
        &metadata,
        SHARD_BYTES,
        |spec| {
            let (source, shape) = &sources[&spec.name];
            match source {
                Source::Factor(key) => Ok(of(parameters, key).to_vec()),
                Source::Tensor(key) => tensor(tuning, parameters, key, shape),
            }
        },
    )?;
    checkpoint::write(
        &folder.join("config.json"),
        &checkpoint::json(&config(tuning)),
    )?;
    if let Some(lora) = lora.filter(|lora| lora.scale() != PUBLISHED_SCALE) {
        let adapter = json!({
            "peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
        });
        let path = folder.join("adapter_config.json");
        checkpoint::write(&path, &checkpoint::json(&adapter))?;
    }
    Ok(())
}

/// Where the values of a stored tensor come from.
enum Source {
    /// A tensor of the network, by its key.
    Tensor(String),
    /// A factor of a low-rank change.
    Factor(String),
}

/// Keys and shapes of all tensors: those of the checkpoint, and the parameters beside them.
fn tensors(tuning: &Tuning, parameters: &Parameters) -> BTreeMap<String, Vec<usize>> {
    let grown = tuning.config.language.vocabulary;
    let of_base = tuning.base.keys().filter_map(|key| {
        let info = tuning.base.info(key)?;
        if matches!(info.dtype, Dtype::Other(_)) {
            return None;
        }
        let mut shape = info.shape.clone();
        if is_vocabulary(key) {
            shape[0] = grown;
        }
        Some((key.to_owned(), shape))
    });
    let own = parameters
        .iter()
        .filter(|(key, _)| factor_name(key).is_none() && !key.ends_with(".rows"));
    let own = own.map(|(key, parameter)| (key.to_owned(), parameter.shape.clone()));
    let mut all: BTreeMap<String, Vec<usize>> = of_base.chain(own).collect();
    // What another decoder left in the checkpoint is no part of this network.
    all.retain(|key, _| !key.starts_with(DECODER) || tuning.is_part(key));
    all
}

fn tensor(
    tuning: &Tuning,
    parameters: &Parameters,
    key: &str,
    shape: &[usize],
) -> Result<Vec<f32>, WeightsError> {
    if let Some(parameter) = parameters.get(key) {
        return Ok(parameter.of(Values::Average).to_vec());
    }
    let mut values = tuning.base.values(key, shape, "the network")?;
    if let Some(rows) = parameters.get(&format!("{key}.rows")) {
        let start = tuning.over().first_row * rows.shape[1];
        let new = rows.of(Values::Average);
        values[start..start + new.len()].copy_from_slice(new);
    }
    Ok(values)
}

fn of<'a>(parameters: &'a Parameters, key: &str) -> &'a [f32] {
    let values = |parameter: &'a Parameter| parameter.of(Values::Average);
    parameters.get(key).map_or(&[], values)
}

/// The type of the checkpoint, whose frozen tensors then lose nothing.
fn dtype(tuning: &Tuning) -> SaveDtype {
    let mut types = tuning.base.keys().filter_map(|key| tuning.base.info(key));
    match types.next().map(|info| &info.dtype) {
        Some(Dtype::Bf16) => SaveDtype::Bf16,
        Some(Dtype::F16) => SaveDtype::F16,
        _ => SaveDtype::F32,
    }
}

/// `config.json` of the start, as this model differs from it.
fn config(tuning: &Tuning) -> Value {
    let mut config = tuning.config_json.clone();
    let lora = tuning.recipe.train.lora;
    config["use_llm_lora"] = lora.map_or(0, |lora| lora.rank).into();
    config["llm_config"]["vocab_size"] = tuning.config.language.vocabulary.into();
    config["res_decoder_fusion"] = tuning.config.fusion.name().into();
    config
}

fn is_adapted(parameters: &Parameters, key: &str) -> bool {
    let module = key.rsplit_once('.').map_or(key, |(module, _)| module);
    key.starts_with(LAYERS) && parameters.get(&format!("{module}.low_rank_a")).is_some()
}

/// The name under which peft stores a tensor of the network.
fn stored_name(key: &str, is_lora: bool, is_adapted: bool) -> String {
    let Some(below) = key.strip_prefix(LANGUAGE).filter(|_| is_lora) else {
        return key.to_owned();
    };
    let below = match below.rsplit_once('.').filter(|_| is_adapted) {
        Some((module, end)) => format!("{module}.base_layer.{end}"),
        None => below.to_owned(),
    };
    format!("{LANGUAGE}base_model.model.{below}")
}

/// The name under which peft stores a factor; `None` if the key is not one's.
fn factor_name(key: &str) -> Option<String> {
    let (module, factor) = key.rsplit_once('.')?;
    let below = module.strip_prefix(LANGUAGE)?;
    let factor = match factor {
        "low_rank_a" => "lora_A",
        "low_rank_b" => "lora_B",
        _ => return None,
    };
    Some(format!(
        "{LANGUAGE}base_model.model.{below}.{factor}.default.weight"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_official_training() {
        let key = "language_model.model.layers.0.self_attn.q_proj.bias";
        assert_eq!(stored_name(key, false, false), key);
        assert_eq!(
            stored_name(key, true, true),
            "language_model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"
        );
        assert_eq!(
            stored_name("language_model.model.norm.weight", true, false),
            "language_model.base_model.model.model.norm.weight"
        );
        assert_eq!(stored_name("mlp1.0.bias", true, false), "mlp1.0.bias");
        assert_eq!(
            factor_name("language_model.model.layers.0.attention.wo.low_rank_a").as_deref(),
            Some(
                "language_model.base_model.model.model.layers.0.attention.wo.lora_A.default.weight"
            )
        );
        assert_eq!(factor_name("res_decoder.text_down.weight"), None);
    }
}
