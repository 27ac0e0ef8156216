//! LoRA in a checkpoint: hides peft's names, and merges `W + s·B·A`.
//!
//! Paper: LoRA, arXiv 2106.09685. In a checkpoint saved while training, peft
//! has renamed the adapted language model:
//!
//! | stored | logical |
//! |---|---|
//! | `language_model.base_model.model.X` | `language_model.X` |
//! | `M.base_layer.weight`, `M.base_layer.bias` | `M.weight`, `M.bias` |
//! | `M.lora_A.default.weight` `[r, in]` | part of `M.weight` |
//! | `M.lora_B.default.weight` `[out, r]` | part of `M.weight` |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;

use serde::Deserialize;

use super::folder::{find_in_folder, read_json, resolve_in_folder};
use super::{Stored, StoredTensor, Tensor, TensorInfo, WeightsError};

/// Published models were trained with alpha = 2·r, and record only r.
const DEFAULT_SCALE: f32 = 2.0;

/// How peft calls its configuration.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Columns merged at a time: a block of `A` (64 rows) then fits the cache.
const BLOCK: usize = 1024;

/// Adds `scale · B·A` to `weight`, in place and in f32.
///
/// # Shapes
/// All row-major: `weight` `[out, in]`, `a` `[rank, in]`, `b` `[out, rank]`.
///
/// # Panics
/// When the lengths do not fit these shapes; [`Weights`](super::Weights)
/// checks shapes before it calls this.
pub fn merge_lora(weight: &mut [f32], a: &[f32], b: &[f32], rank: usize, scale: f32) {
    if rank == 0 || a.is_empty() || b.is_empty() {
        return;
    }
    let (columns, rows) = (a.len() / rank, b.len() / rank);
    assert_eq!(a.len(), rank * columns, "lora_A is not [rank, in]");
    assert_eq!(b.len(), rows * rank, "lora_B is not [out, rank]");
    assert_eq!(weight.len(), rows * columns, "the weight is not [out, in]");

    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    let rows_each = rows.div_ceil(threads);
    let weight = weight.chunks_mut(rows_each * columns);
    thread::scope(|scope| {
        for (weight, b) in weight.zip(b.chunks(rows_each * rank)) {
            scope.spawn(move || merge_rows(weight, a, b, rank, scale));
        }
    });
}

/// The sequential part of [`merge_lora`], on some rows of `weight` and `b`.
fn merge_rows(weight: &mut [f32], a: &[f32], b: &[f32], rank: usize, scale: f32) {
    let columns = a.len() / rank;
    let mut delta = [0.0f32; BLOCK];
    for start in (0..columns).step_by(BLOCK) {
        let end = columns.min(start + BLOCK);
        let delta = &mut delta[..end - start];
        for (weight, b) in weight.chunks_mut(columns).zip(b.chunks(rank)) {
            delta.fill(0.0);
            // Four rows of `A` a pass quarter the traffic of `delta`.
            let row = |k: usize| &a[k * columns + start..k * columns + end];
            let (fours, rest) = b.as_chunks::<4>();
            for (i, &[b0, b1, b2, b3]) in fours.iter().enumerate() {
                let [a0, a1, a2, a3] = [0, 1, 2, 3].map(|k| row(4 * i + k));
                for ((((delta, a0), a1), a2), a3) in
                    delta.iter_mut().zip(a0).zip(a1).zip(a2).zip(a3)
                {
                    *delta += b0 * a0 + b1 * a1 + b2 * a2 + b3 * a3;
                }
            }
            for (i, &b0) in rest.iter().enumerate() {
                for (delta, a0) in delta.iter_mut().zip(row(4 * fours.len() + i)) {
                    *delta += b0 * a0;
                }
            }
            for (weight, delta) in weight[start..end].iter_mut().zip(&*delta) {
                *weight += scale * delta;
            }
        }
    }
}

/// The two factors of one adapted weight.
pub(super) struct LoraModule {
    pub(super) a: Stored,
    pub(super) b: Stored,
    pub(super) rank: usize,
    pub(super) scale: f32,
}

/// How strongly LoRA is applied, and which rank the configuration promises.
#[derive(Default)]
pub(super) struct LoraScale {
    /// From `adapter_config.json`, where there is one.
    adapter: Option<(PathBuf, AdapterConfig)>,
    /// `use_llm_lora` of `config.json`, where it is above zero.
    llm_rank: Option<(PathBuf, u64)>,
}

/// peft's `adapter_config.json`, as far as it changes the merge.
#[derive(Deserialize)]
struct AdapterConfig {
    r: u64,
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: Option<BTreeMap<String, u64>>,
    #[serde(default)]
    alpha_pattern: Option<BTreeMap<String, f32>>,
}

/// The one field of `config.json` that concerns LoRA.
#[derive(Deserialize)]
struct ModelConfig {
    /// Rank of the language model's LoRA; 0 once merged.
    #[serde(default)]
    use_llm_lora: Option<u64>,
}

impl LoraScale {
    /// Reads `adapter_config.json` of an adapter's own folder, which must have one.
    pub(super) fn of_adapter(folder: &Path) -> Result<Self, WeightsError> {
        resolve_in_folder(folder, ADAPTER_CONFIG)?;
        Self::from_folder(folder)
    }

    /// Reads `adapter_config.json` and `config.json`, where they exist.
    pub(super) fn from_folder(folder: &Path) -> Result<Self, WeightsError> {
        let adapter = match find_in_folder(folder, ADAPTER_CONFIG)? {
            None => None,
            Some(path) => {
                let config: AdapterConfig = read_json(&path, "a peft adapter configuration")?;
                if let Some(found) = config.unsupported() {
                    let found = found.to_owned();
                    return Err(WeightsError::LoraUnsupported { path, found });
                }
                Some((path, config))
            }
        };
        let llm_rank = match find_in_folder(folder, "config.json")? {
            None => None,
            Some(path) => {
                let config: ModelConfig = read_json(&path, "a model configuration")?;
                config
                    .use_llm_lora
                    .filter(|&rank| rank > 0)
                    .map(|rank| (path, rank))
            }
        };
        Ok(Self { adapter, llm_rank })
    }

    /// The factor in front of `B·A` for a module of this rank.
    fn scale(&self, key: &str, rank: usize) -> Result<f32, WeightsError> {
        let check = |path: &Path, field, configured| {
            if configured == rank as u64 {
                return Ok(());
            }
            Err(WeightsError::LoraRank {
                path: path.to_owned(),
                field,
                configured,
                key: key.to_owned(),
                found: rank,
            })
        };
        if let Some((path, configured)) = &self.llm_rank
            && key.starts_with("language_model.")
        {
            check(path, "use_llm_lora", *configured)?;
        }
        match &self.adapter {
            None => Ok(DEFAULT_SCALE),
            Some((path, config)) => {
                check(path, "r", config.r)?;
                let rank = rank as f32;
                Ok(config.lora_alpha / if config.use_rslora { rank.sqrt() } else { rank })
            }
        }
    }
}

impl AdapterConfig {
    /// The field, if any, that asks for more than one plain scale.
    fn unsupported(&self) -> Option<&'static str> {
        let rank_pattern = self.rank_pattern.as_ref().is_some_and(|p| !p.is_empty());
        let alpha_pattern = self.alpha_pattern.as_ref().is_some_and(|p| !p.is_empty());
        [
            (self.use_dora, "use_dora"),
            (self.fan_in_fan_out, "fan_in_fan_out"),
            (rank_pattern, "rank_pattern"),
            (alpha_pattern, "alpha_pattern"),
        ]
        .into_iter()
        .find_map(|(asked, field)| asked.then_some(field))
    }
}

/// Groups stored tensors by logical name, and pairs LoRA factors with their
/// base weights. `path` is the weight file or index, for messages.
pub(super) fn to_logical(
    stored: impl Iterator<Item = StoredTensor>,
    path: &Path,
    scale: &LoraScale,
) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    by_logical_name(stored)?
        .into_iter()
        .map(|(key, parts)| {
            let tensor = parts.join(&key, path, scale)?;
            Ok((key, tensor))
        })
        .collect()
}

/// Lays the tensors of an adapter, `stored` in the file at `path`, over those
/// of its base model: LoRA factors beside the weights that they adapt, and
/// weights of its own in place of the base's.
pub(super) fn adapt(
    tensors: &mut BTreeMap<String, Tensor>,
    stored: impl Iterator<Item = StoredTensor>,
    path: &Path,
    scale: &LoraScale,
) -> Result<(), WeightsError> {
    for (key, mut parts) in by_logical_name(stored)? {
        let Some(base) = tensors.get(&key) else {
            return Err(WeightsError::LoraIncomplete {
                path: path.to_owned(),
                key,
                missing: "base_layer",
            });
        };
        if let (Some(first), Some(second)) = (&base.lora, &parts.a) {
            return Err(WeightsError::Duplicate {
                path: path.to_owned(),
                key,
                first: first.a.name.clone(),
                second: second.name.clone(),
            });
        }
        parts.weight.get_or_insert_with(|| StoredTensor {
            name: base.stored.name.clone(),
            file: base.stored.file,
            info: base.info.clone(),
        });
        let tensor = parts.join(&key, path, scale)?;
        tensors.insert(key, tensor);
    }
    Ok(())
}

fn by_logical_name(
    stored: impl Iterator<Item = StoredTensor>,
) -> Result<BTreeMap<String, Parts>, WeightsError> {
    let mut parts = BTreeMap::<String, Parts>::new();
    for tensor in stored {
        let Some((key, role)) = logical_name(&tensor.name) else {
            return Err(WeightsError::LoraUnsupported {
                path: tensor.info.file,
                found: tensor.name,
            });
        };
        let parts = parts.entry(key.clone()).or_default();
        let slot = match role {
            Role::Weight => &mut parts.weight,
            Role::LoraA => &mut parts.a,
            Role::LoraB => &mut parts.b,
        };
        if let Some(first) = slot {
            return Err(WeightsError::Duplicate {
                path: tensor.info.file,
                key,
                first: first.name.clone(),
                second: tensor.name,
            });
        }
        *slot = Some(tensor);
    }
    Ok(parts)
}

/// What a stored tensor is to its logical tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Weight,
    LoraA,
    LoraB,
}

/// Logical name and role of a stored tensor; `None` for an adapter tensor
/// that is not plain LoRA, which must not get lost silently.
fn logical_name(stored: &str) -> Option<(String, Role)> {
    // peft's wrapper stands once in a name, behind the wrapped network's name
    // or at the very start.
    let name = match stored.split_once("base_model.model.") {
        Some((network, rest)) if network.is_empty() || network.ends_with('.') => {
            format!("{network}{rest}")
        }
        _ => stored.to_owned(),
    };
    for (marker, role) in [(".lora_A.", Role::LoraA), (".lora_B.", Role::LoraB)] {
        if let Some((module, adapter)) = name.split_once(marker) {
            // With several adapters in one file it is anyone's guess which one
            // is meant.
            return matches!(adapter, "default.weight" | "weight")
                .then(|| (format!("{module}.weight"), role));
        }
    }
    if name.contains(".lora_") {
        return None;
    }
    Some((name.replacen(".base_layer.", ".", 1), Role::Weight))
}

/// The stored tensors of one logical tensor.
#[derive(Default)]
struct Parts {
    weight: Option<StoredTensor>,
    a: Option<StoredTensor>,
    b: Option<StoredTensor>,
}

impl Parts {
    fn join(self, key: &str, path: &Path, scale: &LoraScale) -> Result<Tensor, WeightsError> {
        let incomplete = |missing| WeightsError::LoraIncomplete {
            path: path.to_owned(),
            key: key.to_owned(),
            missing,
        };
        let weight = self.weight.ok_or_else(|| incomplete("base_layer"))?;
        let lora = match (self.a, self.b) {
            (None, None) => None,
            (Some(a), Some(b)) => {
                let rank = rank(&weight.info, &a.info, &b.info).ok_or_else(|| {
                    WeightsError::LoraShape {
                        path: path.to_owned(),
                        key: key.to_owned(),
                        base: weight.info.shape.clone().into(),
                        a: a.info.shape.clone().into(),
                        b: b.info.shape.clone().into(),
                    }
                })?;
                Some(LoraModule {
                    scale: scale.scale(key, rank)?,
                    rank,
                    a: a.into(),
                    b: b.into(),
                })
            }
            (None, Some(_)) => return Err(incomplete("lora_A")),
            (Some(_), None) => return Err(incomplete("lora_B")),
        };
        Ok(Tensor {
            info: weight.info.clone(),
            stored: weight.into(),
            lora,
        })
    }
}

/// The common rank, if the three shapes are `[out, in]`, `[r, in]`, `[out, r]`.
fn rank(weight: &TensorInfo, a: &TensorInfo, b: &TensorInfo) -> Option<usize> {
    match (&weight.shape[..], &a.shape[..], &b.shape[..]) {
        (&[out, input], &[r, a_input], &[b_out, b_r])
            if r > 0 && a_input == input && b_out == out && b_r == r =>
        {
            Some(r)
        }
        _ => None,
    }
}

impl From<StoredTensor> for Stored {
    fn from(tensor: StoredTensor) -> Self {
        Self {
            file: tensor.file,
            name: tensor.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peft_names_become_logical_names() {
        let cases = [
            (
                "language_model.base_model.model.model.norm.weight",
                "language_model.model.norm.weight",
                Role::Weight,
            ),
            (
                "language_model.base_model.model.m.wo.base_layer.weight",
                "language_model.m.wo.weight",
                Role::Weight,
            ),
            (
                "language_model.base_model.model.m.wo.lora_A.default.weight",
                "language_model.m.wo.weight",
                Role::LoraA,
            ),
            (
                "base_model.model.wo.lora_B.weight",
                "wo.weight",
                Role::LoraB,
            ),
            ("mlp1.0.bias", "mlp1.0.bias", Role::Weight),
        ];
        for (stored, key, role) in cases {
            assert_eq!(logical_name(stored), Some((key.to_owned(), role)));
        }
        assert_eq!(logical_name("m.wo.lora_magnitude_vector.weight"), None);
        assert_eq!(logical_name("m.wo.lora_A.second.weight"), None);
    }

    #[test]
    fn merge_equals_the_plain_product() {
        // More columns than a block, an odd rank, more rows than threads.
        let (rows, columns, rank) = (37, BLOCK + 5, 7);
        let value = |i: usize| ((i * 31 % 17) as f32 - 8.0) / 8.0;
        let a: Vec<f32> = (0..rank * columns).map(value).collect();
        let b: Vec<f32> = (0..rows * rank).map(|i| value(i + 5)).collect();
        let before: Vec<f32> = (0..rows * columns).map(|i| value(i + 3)).collect();
        let mut merged = before.clone();
        merge_lora(&mut merged, &a, &b, rank, 0.5);
        // The values are small multiples of 1/64, so every sum is exact.
        for row in 0..rows {
            for column in 0..columns {
                let product: f32 = (0..rank)
                    .map(|k| b[row * rank + k] * a[k * columns + column])
                    .sum();
                let i = row * columns + column;
                assert_eq!(
                    merged[i],
                    before[i] + 0.5 * product,
                    "row {row}, column {column}"
                );
            }
        }
    }
}
