//! `refseg info`: what a model folder holds. Headers are read, weights are not.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
};

use anyhow::Result;
use refseg::{
    builtin,
    internvl::{Config, UnshuffleVersion},
    language::LanguageFamily,
    mllmseg::Mllmseg,
    nn::{Blueprint, InstructionSet, Part, Precision},
    predictor::PredictorError,
    sam4mllm::Pair,
    tokenizer::Tokenizer,
    weights::Weights,
};
use serde::Serialize;

use super::{counted, readable_bytes, with_commas};
use crate::{cli::InfoArgs, console::Console};

pub(crate) fn run(args: &InfoArgs, console: &Console) -> Result<()> {
    if args.cpu {
        let cpu = Cpu::new();
        return if args.json {
            console.json(&cpu)
        } else {
            console.result(cpu.sheet())
        };
    }
    let facts = if builtin::is(builtin::NAME, &args.model) {
        Facts::of_builtin()?
    } else {
        Facts::of_folder(&args.model)?
    };
    if args.json {
        console.json(&facts)
    } else {
        console.result(facts.sheet())
    }
}

/// How this machine computes.
#[derive(Serialize)]
struct Cpu {
    threads: usize,
    /// What it has, narrowest first.
    available: Vec<&'static str>,
    /// What is used.
    instruction_set: &'static str,
    /// What `--precision auto` stands for.
    auto: &'static str,
    /// Precision to what multiplies with a weight that is kept in it.
    products: BTreeMap<&'static str, &'static str>,
    /// Precision to what attention multiplies where layers are in it.
    attention: BTreeMap<&'static str, &'static str>,
}

impl Cpu {
    fn new() -> Self {
        let set = InstructionSet::current();
        Self {
            threads: rayon::current_num_threads(),
            available: InstructionSet::available()
                .into_iter()
                .map(InstructionSet::name)
                .collect(),
            instruction_set: set.name(),
            auto: set.preferred().name(),
            products: set
                .table()
                .into_iter()
                .map(|(precision, path)| (precision.name(), path))
                .collect(),
            attention: Precision::ALL
                .map(|precision| (precision.name(), set.attention_path(precision)))
                .into(),
        }
    }

    fn sheet(&self) -> String {
        let mut lines = vec![
            ("threads", self.threads.to_string()),
            ("has", self.available.join(", ")),
            ("uses", format!("{} (REFSEG_CPU)", self.instruction_set)),
            ("auto", self.auto.to_owned()),
        ];
        let paths = self.products.iter().zip(self.attention.values());
        lines.extend(
            paths.map(|((name, path), attention)| {
                (*name, format!("{path}; attention in {attention}"))
            }),
        );
        aligned(&lines)
    }
}

#[derive(Serialize)]
struct Facts {
    model: String,
    method: &'static str,
    /// Side of the square picture that the model sees.
    image_size: usize,
    patches: usize,
    image_tokens: usize,
    pixel_unshuffle: &'static str,
    template: String,
    vision: Tower,
    language: Language,
    /// By part of the network, and `total`.
    parameters: BTreeMap<&'static str, u64>,
    weights: Stored,
    tokenizer: Words,
    memory_bytes: Memory,
    licence: Option<String>,
}

#[derive(Serialize)]
struct Tower {
    family: &'static str,
    layers: usize,
    width: usize,
    heads: usize,
    inner: usize,
    patch: usize,
}

#[derive(Serialize)]
struct Language {
    family: &'static str,
    layers: usize,
    width: usize,
    heads: usize,
    key_value_heads: usize,
    inner: usize,
    vocabulary: usize,
}

/// What the weight files hold.
#[derive(Serialize)]
struct Stored {
    files: usize,
    bytes: u64,
    /// Type to number of tensors.
    dtypes: BTreeMap<String, usize>,
    lora: bool,
    lora_rank: usize,
    /// Tensors that the network needs and the files do not have.
    missing: Vec<String>,
    /// Tensors of another shape than config.json implies.
    misshapen: Vec<String>,
    /// Tensors that the network does not need.
    unused: Vec<String>,
}

#[derive(Serialize)]
struct Words {
    kind: &'static str,
    size: usize,
}

/// Estimates, for f32 on the CPU.
#[derive(Serialize)]
struct Memory {
    weights: u64,
    work: u64,
    /// What is kept of each picture.
    scene: u64,
}

/// Names of the network's parts, and the keys that begin them.
const PARTS: [(&str, &str); 4] = [
    ("vision", "vision_model."),
    ("projector", "mlp1."),
    ("language", "language_model."),
    ("mask_decoder", "res_decoder."),
];
/// Tensors that the sheet names of each kind.
const NAMED: usize = 5;

impl Facts {
    fn of_folder(folder: &Path) -> Result<Self> {
        if Pair::is_in(folder) {
            return Err(PredictorError::OtherMethod {
                path: folder.to_owned(),
            }
            .into());
        }
        if !folder.is_dir() {
            return Err(PredictorError::NoModel {
                path: folder.to_owned(),
            }
            .into());
        }
        let facts = Self::new(
            folder.display().to_string(),
            &Config::from_folder(folder)?,
            &Weights::open(folder)?,
            Words::of(tokenizer_kind(folder), &Tokenizer::from_folder(folder)?),
        )?;
        Ok(Self {
            licence: licence(folder),
            ..facts
        })
    }

    fn of_builtin() -> Result<Self> {
        let facts = Self::new(
            builtin::NAME.to_owned(),
            &builtin::config()?,
            &builtin::weights()?,
            Words::of("byte-level BPE", &builtin::tokenizer()?),
        )?;
        Ok(Self {
            licence: Some("MIT OR Apache-2.0, as refseg".to_owned()),
            ..facts
        })
    }

    fn new(model: String, config: &Config, weights: &Weights, tokenizer: Words) -> Result<Self> {
        let Config {
            vision, language, ..
        } = config;
        let parts = parts_of(config)?;
        Ok(Self {
            model,
            method: "mllmseg",
            image_size: config.image_size,
            patches: config.grid(),
            image_tokens: config.image_tokens(),
            pixel_unshuffle: match config.unshuffle_version {
                UnshuffleVersion::V1 => "v1",
                UnshuffleVersion::V2 => "v2",
            },
            template: config.template.clone(),
            vision: Tower {
                family: "InternViT",
                layers: vision.layers,
                width: vision.width,
                heads: vision.heads,
                inner: vision.inner,
                patch: vision.patch,
            },
            language: Language {
                family: match language.family {
                    LanguageFamily::Qwen2 => "Qwen2",
                    LanguageFamily::InternLm2 => "InternLM2",
                    LanguageFamily::Llama => "Llama",
                    LanguageFamily::Qwen => "Qwen",
                },
                layers: language.layers,
                width: language.width,
                heads: language.heads,
                key_value_heads: language.key_value_heads,
                inner: language.inner,
                vocabulary: language.vocabulary,
            },
            parameters: parameters(&parts),
            weights: Stored::of(weights, config, &parts),
            tokenizer,
            memory_bytes: Memory::estimate(config, &parts),
            licence: None,
        })
    }

    /// The facts as people read them.
    fn sheet(&self) -> String {
        let Self {
            vision, language, ..
        } = self;
        let mut lines = vec![
            ("model", self.model.clone()),
            (
                "method",
                "MLLMSeg (InternVL and a light mask decoder)".to_owned(),
            ),
            (
                "picture",
                format!(
                    "{0} x {0} pixels, {1} x {1} patches, {2} tokens",
                    self.image_size, self.patches, self.image_tokens
                ),
            ),
            (
                "vision",
                format!(
                    "{}, {} layers of {}, {} heads, patch {}",
                    vision.family, vision.layers, vision.width, vision.heads, vision.patch
                ),
            ),
            (
                "language",
                format!(
                    "{}, {} layers of {}, {} heads on {} keys, vocabulary {}",
                    language.family,
                    language.layers,
                    language.width,
                    language.heads,
                    language.key_value_heads,
                    with_commas(language.vocabulary as u64),
                ),
            ),
            (
                "tokenizer",
                format!(
                    "{}, {} tokens",
                    self.tokenizer.kind,
                    with_commas(self.tokenizer.size as u64)
                ),
            ),
            ("template", self.template.clone()),
            ("parameters", self.parameter_line()),
        ];
        lines.extend(self.weights.lines());
        let memory = &self.memory_bytes;
        lines.push(("memory", format!(
            "about {} as f32 on the CPU ({} of weights, {} to work with), {} more for each picture kept",
            readable_bytes(memory.weights + memory.work + memory.scene),
            readable_bytes(memory.weights),
            readable_bytes(memory.work),
            readable_bytes(memory.scene),
        )));
        lines.push((
            "licence",
            self.licence
                .clone()
                .unwrap_or_else(|| "not stated in the folder".to_owned()),
        ));
        aligned(&lines)
    }

    fn parameter_line(&self) -> String {
        let of = |name: &str| millions(self.parameters.get(name).copied().unwrap_or(0));
        format!(
            "{}: vision {}, projector {}, language {}, mask decoder {}",
            of("total"),
            of("vision"),
            of("projector"),
            of("language"),
            of("mask_decoder"),
        )
    }
}

/// One line for each name, the texts below each other.
fn aligned(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, text)| format!("{name:width$}  {text}"))
        .collect();
    lines.join("\n")
}

impl Words {
    fn of(kind: &'static str, tokenizer: &Tokenizer) -> Self {
        Self {
            kind,
            size: tokenizer.vocabulary_size(),
        }
    }
}

impl Stored {
    fn of(weights: &Weights, config: &Config, parts: &[Part]) -> Self {
        let mut dtypes = BTreeMap::new();
        for info in weights.keys().filter_map(|key| weights.info(key)) {
            *dtypes.entry(info.dtype.to_string()).or_insert(0) += 1;
        }
        let used: HashSet<String> = parts.iter().map(|part| part.key.clone()).collect();
        let keys = |wanted: &dyn Fn(&Part) -> bool| -> Vec<String> {
            parts
                .iter()
                .filter(|part| wanted(part))
                .map(|part| part.key.clone())
                .collect()
        };
        Self {
            files: weights.files().len(),
            bytes: weights.bytes(),
            dtypes,
            lora: weights.is_lora(),
            lora_rank: config.lora_rank,
            missing: keys(&|part| !weights.contains(&part.key)),
            misshapen: keys(&|part| {
                weights
                    .info(&part.key)
                    .is_some_and(|info| info.shape != part.shape)
            }),
            unused: weights.unused(&used),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let types: Vec<String> = self
            .dtypes
            .iter()
            .map(|(dtype, count)| format!("{dtype} ({count})"))
            .collect();
        let mut lines = vec![
            (
                "weights",
                format!(
                    "{} in {}, tensors by type: {}",
                    readable_bytes(self.bytes),
                    counted(self.files, "file"),
                    types.join(", ")
                ),
            ),
            (
                "LoRA",
                match (self.lora, self.lora_rank) {
                    (true, rank) => format!("unmerged, rank {rank}; merged while loading"),
                    (false, _) => "none, or merged".to_owned(),
                },
            ),
        ];
        for (name, keys) in [
            ("missing", &self.missing),
            ("misshapen", &self.misshapen),
            ("unused", &self.unused),
        ] {
            if !keys.is_empty() {
                let named = keys.iter().take(NAMED).map(|key| format!("`{key}`"));
                let dots = if keys.len() > NAMED { ", …" } else { "" };
                let named = named.collect::<Vec<_>>().join(", ");
                lines.push((
                    name,
                    format!("{}: {named}{dots}", counted(keys.len(), "tensor")),
                ));
            }
        }
        lines
    }
}

impl Memory {
    /// The largest values that are alive at once. Right within a tenth for published
    /// sizes; a small model is dwarfed by what any program takes.
    fn estimate(config: &Config, parts: &[Part]) -> Self {
        const F32: u64 = 4;
        let Config {
            vision, language, ..
        } = config;
        let size = |values: usize| F32 * values as u64;
        let places = config.grid().pow(2) + 1;
        let scene_tokens = config.image_tokens() + SYSTEM_TOKENS;
        // The scores of attention before and after the softmax; the inner
        // values of an MLP before and after its activation.
        let attention = size(2 * vision.heads * places * places);
        let mlp = size(3 * places * vision.inner);
        // Convolutions copy each kernel's view: 3 x 3 of the patches, then 5 x 5 of the pixels.
        let patches = 9 * vision.width * (places - 1);
        let masks = size(MASKS_AT_ONCE * patches.max(25 * config.image_size.pow(2)));
        let kept =
            2 * language.layers * language.key_value_heads * language.head_dim() * scene_tokens;
        Self {
            weights: parts.iter().map(|part| size(part.len())).sum(),
            work: attention.max(mlp).max(masks) + size(6 * places * vision.width),
            scene: size(kept + (places - 1) * vision.width),
        }
    }
}

/// Masks that the predictor decodes at once.
const MASKS_AT_ONCE: usize = 4;
/// About what the prompt has besides the picture.
const SYSTEM_TOKENS: usize = 50;

fn parts_of(config: &Config) -> Result<Vec<Part>> {
    Ok(Blueprint::of(|source| Mllmseg::load(source, config))?)
}

fn parameters(parts: &[Part]) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for part in parts {
        let name = PARTS
            .iter()
            .find(|(_, prefix)| part.key.starts_with(prefix))
            .map(|(name, _)| *name);
        for name in name.into_iter().chain(["total"]) {
            *counts.entry(name).or_insert(0) += part.len() as u64;
        }
    }
    counts
}

fn millions(count: u64) -> String {
    match count as f64 / 1e6 {
        m if m < 100.0 => format!("{m:.1} M"),
        m if m < 10_000.0 => format!("{} M", with_commas(m.round() as u64)),
        m => format!("{:.1} B", m / 1e3),
    }
}

/// Which of its vocabulary files a tokenizer is read from.
fn tokenizer_kind(folder: &Path) -> &'static str {
    let has = |name: &str| folder.join(name).is_file();
    let config = fs::read_to_string(folder.join("tokenizer_config.json")).unwrap_or_default();
    let prefers_pieces = config.contains("\"InternLM2Tokenizer\"");
    if has("tokenizer.model") && (prefers_pieces || !has("tokenizer.json")) {
        "SentencePiece (tokenizer.model)"
    } else if has("tokenizer.json") {
        "byte-level BPE (tokenizer.json)"
    } else {
        "byte-level BPE (vocab.json, merges.txt)"
    }
}

/// The licence as the folder states it: the front matter of README.md, else the licence file's first line.
fn licence(folder: &Path) -> Option<String> {
    let of_readme = || {
        let readme = fs::read_to_string(folder.join("README.md")).ok()?;
        let (matter, _) = readme.strip_prefix("---\n")?.split_once("\n---")?;
        let line = matter
            .lines()
            .find_map(|line| line.strip_prefix("license:"))?;
        Some(format!("{} (README.md)", line.trim()))
    };
    let of_file = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
        Some(format!("{line} ({name})"))
    };
    of_readme().or_else(|| {
        ["LICENSE", "LICENSE.txt", "LICENSE.md"]
            .into_iter()
            .find_map(of_file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_preset_are_those_of_the_paper() -> Result<()> {
        let config = Config::preset("internvl2_5-1b").expect("a preset");
        let counts = parameters(&parts_of(&config)?);
        let sum: u64 = PARTS.iter().map(|(name, _)| counts[name]).sum();
        assert_eq!(sum, counts["total"]);
        // The paper's 34 M are those of a language model 4096 wide; this one is 896 wide.
        assert_eq!(counts["mask_decoder"] + 2 * 1024 * (4096 - 896), 34_385_934);
        Ok(())
    }

    #[test]
    fn a_licence_is_found_where_people_put_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        assert_eq!(licence(folder.path()), None);
        fs::write(
            folder.path().join("LICENSE"),
            "\n  MIT License\n\nCopyright",
        )?;
        assert_eq!(
            licence(folder.path()).as_deref(),
            Some("MIT License (LICENSE)")
        );
        fs::write(
            folder.path().join("README.md"),
            "---\nlicense: mit\ntags: [x]\n---\n# A model",
        )?;
        assert_eq!(licence(folder.path()).as_deref(), Some("mit (README.md)"));
        Ok(())
    }
}
