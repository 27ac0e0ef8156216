//! Opening, reading and saving weights: formats, LoRA, and bad input.
//!
//! Fixtures: `mllmseg-*` are checkpoints of the official code in a small random
//! configuration; `weights/` is explained in its README.

use std::collections::{BTreeMap, HashSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use refseg::nn::Precision;
use refseg::weights::{
    Dtype, SaveDtype, TensorSpec, Weights, WeightsError, save_safetensors, save_sharded,
};
use refseg_kernels::Epilogue;
use tempfile::TempDir;

type TestResult = Result<(), Box<dyn Error>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// A model folder with the given files.
fn folder(files: &[(&str, &[u8])]) -> Result<TempDir, std::io::Error> {
    let folder = tempfile::tempdir()?;
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes)?;
    }
    Ok(folder)
}

/// A safetensors file with this header, whatever it says, and these bytes.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A model folder with one safetensors file of f32 tensors.
fn f32_folder(tensors: &[(&str, &[usize], &[f32])]) -> Result<TempDir, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    save(
        &folder.path().join("model.safetensors"),
        tensors,
        SaveDtype::F32,
    )?;
    Ok(folder)
}

fn save(
    path: &Path,
    tensors: &[(&str, &[usize], &[f32])],
    dtype: SaveDtype,
) -> Result<(), WeightsError> {
    let mut values = tensors.iter().map(|(_, _, values)| values.to_vec());
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    save_safetensors(path, &specs(tensors), dtype, &metadata, |_| {
        Ok(values.next().unwrap_or_default())
    })
}

fn specs(tensors: &[(&str, &[usize], &[f32])]) -> Vec<TensorSpec> {
    let spec = |(name, shape, _): &(&str, &[usize], &[f32])| TensorSpec {
        name: (*name).to_owned(),
        shape: shape.to_vec(),
    };
    tensors.iter().map(spec).collect()
}

/// Reads every tensor in the shape it has; those that are no floats fail.
fn read_all(weights: &Weights) -> usize {
    let read = |key: &&str| {
        let shape = weights.info(key).map(|info| info.shape.clone());
        weights
            .read_f32(key, &shape.unwrap_or_default(), "itself")
            .is_ok()
    };
    weights.keys().filter(read).count()
}

/// The error's message and those of its sources, one a line.
fn message(error: &WeightsError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!("\n{error}");
        source = error.source();
    }
    text
}

/// The message of the error that opening gives.
fn refusal(folder: &Path) -> Result<String, Box<dyn Error>> {
    match Weights::open(folder) {
        Ok(_) => Err(format!("`{}` was opened", folder.display()).into()),
        Err(error) => Ok(message(&error)),
    }
}

fn assert_close(found: f32, expected: f32) {
    // Eight products in f32 against f64, on values below 1.
    assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
}

#[test]
fn official_checkpoint_loads() -> TestResult {
    let weights = Weights::open(&fixture("mllmseg-qwen2-res"))?;
    assert!(!weights.is_lora());
    assert_eq!(read_all(&weights), weights.keys().count() - 1);
    let info = weights
        .info("language_model.lm_head.weight")
        .ok_or("no head")?;
    assert_eq!(
        (&info.dtype, &info.shape[..]),
        (&Dtype::F32, &[1214, 48][..])
    );
    assert!(weights.keys().is_sorted());
    assert!(!weights.contains("language_model.lm_head"));
    Ok(())
}

#[test]
fn lora_is_hidden_and_merged() -> TestResult {
    let weights = Weights::open(&fixture("mllmseg-internlm2-gres-lora"))?;
    assert!(weights.is_lora());
    for part in ["base_model", "base_layer", "lora_"] {
        assert!(weights.keys().all(|key| !key.contains(part)), "{part}");
    }
    assert_eq!(read_all(&weights), weights.keys().count() - 1);
    assert!(weights.contains("language_model.model.tok_embeddings.weight"));

    // numpy: (W + 2·B·A) in f64.
    let wqkv = weights.read_f32(
        "language_model.model.layers.0.attention.wqkv.weight",
        &[96, 64],
        "`hidden_size` in config.json",
    )?;
    for (i, expected) in [
        (0, -0.507_408),
        (1, 0.036_695_357),
        (1000, -0.313_540_9),
        (6143, 0.248_604_04),
    ] {
        assert_close(wqkv[i], expected);
    }
    let w2 = weights.read_f32(
        "language_model.model.layers.2.feed_forward.w2.weight",
        &[64, 128],
        "`intermediate_size` in config.json",
    )?;
    for (i, expected) in [
        (0, 0.125_366_29),
        (1, -0.125_753_75),
        (1000, 0.422_184_08),
        (8191, -0.020_055_544),
    ] {
        assert_close(w2[i], expected);
    }
    Ok(())
}

const LORA: [(&str, &[usize], &[f32]); 3] = [
    ("m.base_layer.weight", &[1, 2], &[10.0, 20.0]),
    ("m.lora_A.default.weight", &[1, 2], &[1.0, 2.0]),
    ("m.lora_B.default.weight", &[1, 1], &[3.0]),
];

#[test]
fn lora_is_merged_before_anything_is_rounded() -> TestResult {
    let folder = f32_folder(&LORA)?;
    let weights = Weights::open(folder.path())?;
    let rounded = weights.read_bf16("m.weight", &[1, 2], "the test")?;
    assert_eq!(
        rounded.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
        [16.0, 32.0]
    );
    for precision in Precision::ALL {
        let packed = weights.read_packed("m.weight", [1, 2], precision, "the test")?;
        let product = packed.product(&[1.0, 1.0], 1, &Epilogue::default());
        // 16/32 of 127 steps is a half, which rounds to 64 of them; of 4095 steps likewise.
        let expected = match precision {
            Precision::F32 | Precision::Bf16 => 48.0,
            Precision::Int16 => 32.0 + 2048.0 / 4095.0 * 32.0,
            Precision::Int8 => 32.0 + 64.0 / 127.0 * 32.0,
        };
        assert!(
            (product[0] - expected).abs() < 1e-5,
            "{precision}: {product:?}"
        );
    }
    Ok(())
}

#[test]
fn adapter_config_sets_the_scale() -> TestResult {
    let folder = f32_folder(&LORA)?;
    let read = || Weights::open(folder.path())?.read_f32("m.weight", &[1, 2], "the test");
    assert_eq!(read()?, [16.0, 32.0], "alpha is 2·r unless said");
    let config = folder.path().join("adapter_config.json");
    fs::write(&config, r#"{"r": 1, "lora_alpha": 4, "peft_type": "LORA"}"#)?;
    assert_eq!(read()?, [22.0, 44.0]);
    fs::write(&config, r#"{"r": 2, "lora_alpha": 4}"#)?;
    assert!(refusal(folder.path())?.contains("`r` is 2, but lora_A of `m.weight` has 1 rows"));
    fs::write(&config, r#"{"r": 1, "lora_alpha": 4, "use_dora": true}"#)?;
    assert!(refusal(folder.path())?.contains("`use_dora` is not supported"));
    Ok(())
}

#[test]
fn lora_that_does_not_fit_is_refused() -> TestResult {
    let refused = |tensors: &[(&str, &[usize], &[f32])]| refusal(f32_folder(tensors)?.path());
    let [base, a, b] = LORA;
    assert!(refused(&[base, a])?.contains("no `lora_B`"));
    assert!(refused(&[base, b])?.contains("no `lora_A`"));
    assert!(refused(&[a, b])?.contains("no `base_layer`"));
    let wide = ("m.lora_A.default.weight", &[1, 3][..], &[1.0; 3][..]);
    assert!(refused(&[base, wide, b])?.contains("[1, 2] with lora_A [1, 3] and lora_B [1, 1]"));
    let both = ("m.weight", &[1, 2][..], &[0.0; 2][..]);
    assert!(refused(&[base, a, b, both])?.contains("both stand for `m.weight`"));
    let dora = ("m.lora_magnitude_vector.weight", &[1][..], &[1.0][..]);
    assert!(refused(&[base, a, b, dora])?.contains("lora_magnitude_vector"));

    let folder = f32_folder(&[
        (
            "language_model.base_model.model.m.base_layer.weight",
            base.1,
            base.2,
        ),
        (
            "language_model.base_model.model.m.lora_A.default.weight",
            a.1,
            a.2,
        ),
        (
            "language_model.base_model.model.m.lora_B.default.weight",
            b.1,
            b.2,
        ),
    ])?;
    fs::write(folder.path().join("config.json"), r#"{"use_llm_lora": 8}"#)?;
    let text = refusal(folder.path())?;
    assert!(
        text.contains("`use_llm_lora` is 8") && text.contains("has 1 rows"),
        "{text}"
    );
    Ok(())
}

#[test]
fn pytorch_kinds_strides_and_shared_storages() -> TestResult {
    let folder = folder(&[(
        "pytorch_model.bin",
        &fs::read(fixture("weights/kinds.bin"))?,
    )])?;
    let weights = Weights::open(folder.path())?;
    let read = |key, shape: &[usize]| weights.read_f32(key, shape, "the test");
    assert_eq!(read("f32", &[2, 3])?, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(read("transposed", &[3, 2])?, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(read("tail", &[2])?, [4.0, 5.0]);
    assert_eq!(read("f16", &[4])?, [0.5, -2.0, 65504.0, 2f32.powi(-24)]);
    assert_eq!(read("bf16", &[3])?, [1.0, -0.15625, 2f32.powi(100)]);
    assert_eq!(read("f64", &[2])?, [0.1, -1e30]);
    assert_eq!(read("parameter", &[1])?, [7.0]);
    let text = message(
        &read("bn.num_batches_tracked", &[])
            .err()
            .ok_or("read an I64")?,
    );
    assert!(text.contains("`bn.num_batches_tracked` is I64"), "{text}");
    Ok(())
}

#[test]
fn pytorch_shards_and_nested_state_dicts() -> TestResult {
    let shard = |name: &str| fs::read(fixture("weights").join(name));
    let folder = folder(&[
        ("pytorch_model.bin.index.json", &shard("index.json")?),
        ("shard-1.bin", &shard("shard-1.bin")?),
        ("shard-2.bin", &shard("shard-2.bin")?),
    ])?;
    let weights = Weights::open(folder.path())?;
    assert_eq!(weights.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(weights.read_f32("b", &[1, 1], "the test")?, [3.0]);
    let file = &weights.info("b").ok_or("no b")?.file;
    assert!(file.ends_with("shard-2.bin"));

    let nested = Weights::open_file(&fixture("weights/nested.pt"))?;
    assert_eq!(nested.keys().collect::<Vec<_>>(), ["a"]);
    Ok(())
}

#[test]
fn pickles_are_never_executed() -> TestResult {
    for name in ["runs-a-command.bin", "is-a-command.bin"] {
        let folder = folder(&[(
            "pytorch_model.bin",
            &fs::read(fixture("weights").join(name))?,
        )])?;
        let text = refusal(folder.path())?;
        assert!(
            text.contains("posix.system") && text.contains("never executes"),
            "{text}"
        );
    }
    assert!(!Path::new("refseg-executed-a-pickle").exists());
    Ok(())
}

#[test]
fn tensors_larger_than_their_file_are_refused() -> TestResult {
    let expanded = fs::read(fixture("weights/expanded.bin"))?;
    let folder = folder(&[("pytorch_model.bin", &expanded)])?;
    let text = refusal(folder.path())?;
    assert!(text.contains("`a` claims shape [1073741824]"), "{text}");
    Ok(())
}

#[test]
fn what_is_missing_is_named() -> TestResult {
    let empty = folder(&[])?;
    let text = refusal(empty.path())?;
    assert!(
        text.contains("no weights") && text.contains("pytorch_model.bin"),
        "{text}"
    );
    let text = refusal(&empty.path().join("nowhere"))?;
    assert!(text.contains("nowhere`: cannot open\n"), "{text}");

    let weights = f32_folder(&[("a.weight", &[2], &[1.0, 2.0])])?;
    let weights = Weights::open(weights.path())?;
    let fails = |key, shape: &[usize]| {
        let result = weights.read_f32(key, shape, "`hidden_size` in config.json");
        result.map_or_else(|error| message(&error), |values| format!("{values:?}"))
    };
    assert!(fails("b.weight", &[2]).ends_with("model.safetensors`: no tensor `b.weight`"));
    let text = fails("a.weight", &[3]);
    let end = "`a.weight` is [2], but `hidden_size` in config.json implies [3]";
    assert!(text.ends_with(end), "{text}");
    Ok(())
}

#[test]
fn values_that_are_no_weights_are_refused() -> TestResult {
    let header = r#"{"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},
        "f":{"dtype":"F32","shape":[1,3],"data_offsets":[8,20]},
        "d":{"dtype":"F64","shape":[1],"data_offsets":[20,28]}}"#;
    let mut data = 1i64.to_le_bytes().to_vec();
    data.extend(f32_bytes(&[1.0, f32::NAN, 1.0]));
    data.extend(1e300f64.to_le_bytes());
    let folder = folder(&[("model.safetensors", &safetensors(header, &data))])?;
    let weights = Weights::open(folder.path())?;
    let fails = |key, shape: &[usize]| {
        let result = weights.read_f32(key, shape, "the test");
        result.map_or_else(|error| message(&error), |values| format!("{values:?}"))
    };
    assert!(fails("i", &[1]).contains("`i` is I64, but weights are"));
    assert!(fails("f", &[1, 3]).contains("`f` holds NaN at index 1"));
    assert!(fails("d", &[1]).contains("`d` holds inf at index 0"));
    let same = |result: Result<(), WeightsError>| {
        result.map_or_else(|error| message(&error), |()| String::new()) == fails("f", &[1, 3])
    };
    assert!(same(weights.read_bf16("f", &[1, 3], "the test").map(drop)));
    for precision in Precision::ALL {
        let packed = weights.read_packed("f", [1, 3], precision, "the test");
        assert!(same(packed.map(drop)), "{precision}");
    }
    Ok(())
}

#[test]
fn damaged_safetensors_are_refused() -> TestResult {
    let entry = |start: usize, end: usize| {
        format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{start},{end}]}}"#)
    };
    let header = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let data = f32_bytes(&[1.0, 2.0]);
    let good = safetensors(&header(entry(0, 4), entry(4, 8)), &data);
    assert!(Weights::open(folder(&[("model.safetensors", &good)])?.path()).is_ok());

    let mut long_header = good.clone();
    long_header[..8].copy_from_slice(&(good.len() as u64).to_le_bytes());
    let mut huge_header = good.clone();
    huge_header[..8].fill(0xff);
    let mut not_utf8 = good.clone();
    not_utf8[10] = 0xff;
    let huge_shape =
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}"#;
    for (what, file) in [
        ("empty", Vec::new()),
        ("shorter than a length", good[..5].to_vec()),
        ("cut in the header", good[..40].to_vec()),
        ("cut in the data", good[..good.len() - 1].to_vec()),
        ("header length beyond the end", long_header),
        ("header length of 2^64", huge_header),
        ("not UTF-8", not_utf8),
        (
            "offsets beyond the end",
            safetensors(&header(entry(0, 4), entry(8, 12)), &data),
        ),
        (
            "overlap",
            safetensors(&header(entry(0, 4), entry(0, 4)), &data),
        ),
        (
            "backwards",
            safetensors(&header(entry(4, 0), entry(4, 8)), &data),
        ),
        (
            "gap",
            safetensors(&format!(r#"{{"a":{}}}"#, entry(4, 8)), &data),
        ),
        ("overflowing shape", safetensors(huge_shape, &data)),
        ("not JSON", safetensors("{", &data)),
    ] {
        let folder = folder(&[("model.safetensors", &file)])?;
        let text = refusal(folder.path()).map_err(|error| format!("{what}: {error}"))?;
        assert!(text.contains("model.safetensors`: "), "{what}: {text}");
    }
    Ok(())
}

#[test]
fn damaged_pytorch_files_are_refused() -> TestResult {
    let good = fs::read(fixture("weights/kinds.bin"))?;
    // The zip directory stands at the end, so every cut loses some of it.
    for len in 0..good.len() {
        let folder = folder(&[("pytorch_model.bin", &good[..len])])?;
        assert!(Weights::open(folder.path()).is_err(), "{len} bytes");
    }
    for bytes in [&b"not a checkpoint"[..], b"\x80\x02}q\x00.", b"<html>"] {
        let folder = folder(&[("pytorch_model.bin", bytes)])?;
        assert!(read_all_in(folder.path()) == 0);
    }
    Ok(())
}

fn read_all_in(folder: &Path) -> usize {
    Weights::open(folder).map_or(0, |weights| read_all(&weights))
}

#[test]
fn an_index_cannot_reach_outside() -> TestResult {
    let shard = safetensors(
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        &f32_bytes(&[1.0]),
    );
    let top = tempfile::tempdir()?;
    let model = top.path().join("model");
    fs::create_dir_all(model.join("sub"))?;
    fs::write(top.path().join("outside.safetensors"), &shard)?;
    fs::write(model.join("inside.safetensors"), &shard)?;
    fs::write(model.join("sub/inside.safetensors"), &shard)?;
    let open = |name: &str, key: &str| {
        let index = serde_json::json!({"weight_map": {key: name}});
        fs::write(
            model.join("model.safetensors.index.json"),
            index.to_string(),
        )?;
        Ok::<_, std::io::Error>(Weights::open(&model).map_err(|error| message(&error)))
    };
    assert!(open("inside.safetensors", "a")?.is_ok());
    assert!(open("sub/inside.safetensors", "a")?.is_ok());
    let absolute = top.path().join("outside.safetensors");
    for (name, reason) in [
        ("../outside.safetensors", "a name with `..`"),
        ("sub/../../outside.safetensors", "a name with `..`"),
        (&absolute.to_string_lossy(), "an absolute path"),
        ("..\\outside.safetensors", "not a plain relative"),
        ("", "not a plain relative"),
        ("sub", "expected a regular file"),
        ("absent.safetensors", "cannot open"),
    ] {
        let text = open(name, "a")?
            .err()
            .ok_or_else(|| format!("`{name}` was opened"))?;
        assert!(text.contains(reason), "{name}: {text}");
    }
    let text = open("inside.safetensors", "b")?.err().ok_or("opened")?;
    assert!(text.contains("puts `b` in `inside.safetensors`"), "{text}");
    fs::write(
        model.join("model.safetensors.index.json"),
        b"{\"weight_map\": \xff}",
    )?;
    assert!(refusal(&model)?.contains("cannot be read as an index"));
    Ok(())
}

#[cfg(unix)]
#[test]
fn symbolic_links_stay_inside_the_folder_or_the_cache_entry() -> TestResult {
    use std::os::unix::fs::symlink;

    let top = tempfile::tempdir()?;
    let weights = top.path().join("weights");
    save(&weights, &[("a", &[1], &[1.0])], SaveDtype::F32)?;

    let model = top.path().join("model");
    fs::create_dir(&model)?;
    symlink(&weights, model.join("model.safetensors"))?;
    assert!(refusal(&model)?.contains("a symbolic link that leaves the folder"));
    fs::remove_file(model.join("model.safetensors"))?;
    symlink("nowhere", model.join("model.safetensors"))?;
    assert!(refusal(&model)?.contains("cannot open"));

    // A folder reached through a link, with a link inside it.
    fs::remove_file(model.join("model.safetensors"))?;
    fs::copy(&weights, model.join("real"))?;
    symlink("real", model.join("model.safetensors"))?;
    symlink(&model, top.path().join("alias"))?;
    assert!(Weights::open(&top.path().join("alias")).is_ok());

    let entry = top.path().join("hub/models--owner--name");
    let snapshot = entry.join("snapshots/abc");
    fs::create_dir_all(&snapshot)?;
    fs::create_dir(entry.join("blobs"))?;
    fs::copy(&weights, entry.join("blobs/123"))?;
    symlink("../../blobs/123", snapshot.join("model.safetensors"))?;
    assert!(Weights::open(&snapshot).is_ok());
    fs::copy(&weights, top.path().join("hub/other"))?;
    fs::remove_file(snapshot.join("model.safetensors"))?;
    symlink("../../../other", snapshot.join("model.safetensors"))?;
    assert!(refusal(&snapshot)?.contains("a symbolic link that leaves the folder"));
    Ok(())
}

#[test]
fn extra_keys_are_reported() -> TestResult {
    let one: (&[usize], &[f32]) = (&[1], &[1.0]);
    let names = [
        "used",
        "extra",
        "re_init_pos",
        "bn.num_batches_tracked",
        "up.init_pos",
        "position_ids",
        "l.rotary_emb.inv_freq",
    ];
    let folder = f32_folder(&names.map(|name| (name, one.0, one.1)))?;
    let weights = Weights::open(folder.path())?;
    let used = HashSet::from(["used".to_owned()]);
    assert_eq!(weights.unused(&used), ["extra", "re_init_pos"]);
    Ok(())
}

#[test]
fn saved_weights_read_back_in_three_types() -> TestResult {
    let values: Vec<f32> = (-100_000..100_000).map(|i| i as f32 * 0.001).collect();
    let tensors: [(&str, &[usize], &[f32]); 3] = [
        ("b", &[400, 500], &values),
        ("a", &[], &[2.5]),
        ("none", &[0, 3], &[]),
    ];
    // Half a unit in the last place, relative; and half of F16's smallest step.
    for (dtype, stored, relative, absolute) in [
        (SaveDtype::F32, Dtype::F32, 0.0, 0.0),
        (SaveDtype::F16, Dtype::F16, 2f32.powi(-11), 2f32.powi(-25)),
        (SaveDtype::Bf16, Dtype::Bf16, 2f32.powi(-8), 0.0),
    ] {
        let folder = tempfile::tempdir()?;
        save(&folder.path().join("model.safetensors"), &tensors, dtype)?;
        let weights = Weights::open(folder.path())?;
        assert_eq!(weights.info("b").map(|info| &info.dtype), Some(&stored));
        assert_eq!(weights.read_f32("a", &[], "the test")?, [2.5]);
        assert_eq!(weights.read_f32("none", &[0, 3], "the test")?, [0.0; 0]);
        let read = weights.read_f32("b", &[400, 500], "the test")?;
        for (found, value) in read.iter().zip(&values) {
            let gap = (found - value).abs();
            assert!(
                gap <= value.abs() * relative + absolute,
                "{value} became {found}"
            );
        }
        assert_eq!(fs::read_dir(folder.path())?.count(), 1, "no temporary file");
    }
    Ok(())
}

#[test]
fn what_cannot_be_saved_leaves_the_old_file() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    fs::write(&path, "old")?;
    let fails = |tensors: &[(&str, &[usize], &[f32])], dtype| {
        save(&path, tensors, dtype).map_or_else(|error| message(&error), |()| "saved".to_owned())
    };
    let text = fails(&[("a", &[2], &[1.0, 70000.0])], SaveDtype::F16);
    assert!(
        text.contains("`a` holds 70000 at index 1, which F16 cannot"),
        "{text}"
    );
    let text = fails(&[("a", &[1], &[f32::NAN])], SaveDtype::F32);
    assert!(text.contains("`a` holds NaN at index 0"), "{text}");
    let text = fails(&[("a", &[2], &[1.0])], SaveDtype::F32);
    assert!(text.contains("`a` has 1 values"), "{text}");
    let one: (&[usize], &[f32]) = (&[1], &[1.0]);
    let text = fails(&[("a", one.0, one.1), ("a", one.0, one.1)], SaveDtype::F32);
    assert!(text.contains("named `a`: it occurs twice"), "{text}");
    let text = fails(&[("a", &[usize::MAX, 2], &[])], SaveDtype::F32);
    assert!(text.contains("`a` claims shape"), "{text}");
    assert_eq!(fs::read(&path)?, b"old");
    assert_eq!(fs::read_dir(folder.path())?.count(), 1, "no temporary file");
    Ok(())
}

#[test]
fn sharded_weights_read_back() -> TestResult {
    let tensors: [(&str, &[usize], &[f32]); 4] = [
        ("a", &[3], &[1.0, 2.0, 3.0]),
        ("b", &[2], &[4.0, 5.0]),
        ("c", &[4], &[6.0; 4]),
        ("d", &[1], &[7.0]),
    ];
    let folder = tempfile::tempdir()?;
    let save = |max_shard_bytes| {
        let mut values = tensors.iter().map(|(_, _, values)| values.to_vec());
        save_sharded(
            folder.path(),
            &specs(&tensors),
            SaveDtype::F32,
            &BTreeMap::new(),
            max_shard_bytes,
            |_| Ok(values.next().unwrap_or_default()),
        )
    };
    let check = |path: &str| -> TestResult {
        let weights = Weights::open(folder.path())?;
        assert!(weights.path().ends_with(path));
        for (name, shape, values) in tensors {
            assert_eq!(weights.read_f32(name, shape, "the test")?, values);
        }
        Ok(())
    };
    // 12 + 8 bytes fill one shard, 16 + 4 the next; then comes the index.
    assert_eq!(save(20)?.len(), 3);
    check("model.safetensors.index.json")?;
    assert_eq!(save(u64::MAX)?.len(), 1);
    check("model.safetensors")?;
    Ok(())
}

/// A small xorshift generator: the same mutations in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Flips, cuts, repeats and overwrites bytes, then opens and reads everything.
/// The result may be an error or other numbers, but never a panic.
fn survives_mutations(good: &[u8], name: &str) -> TestResult {
    let folder = tempfile::tempdir()?;
    let mut random = Random(0x5eed);
    for _ in 0..3000 {
        let mut bytes = good.to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(5) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = random.below(256) as u8,
                2 => bytes.truncate(at + 1),
                3 => bytes[at] = [0, 0x7f, 0x80, 0xff][random.below(4)],
                _ => {
                    let end = bytes.len().min(at + 1 + random.below(16));
                    let piece = bytes[at..end].to_vec();
                    let to = random.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        fs::write(folder.path().join(name), bytes)?;
        read_all_in(folder.path());
    }
    Ok(())
}

#[test]
fn mutated_pytorch_files_never_panic() -> TestResult {
    let good = fs::read(fixture("weights/kinds.bin"))?;
    survives_mutations(&good, "pytorch_model.bin")?;
    // Checksums would stop most mutations before the pickle is parsed; zero
    // means that there is none.
    let mut unchecked = good;
    for (signature, checksum) in [(b"PK\x03\x04", 14), (b"PK\x01\x02", 16)] {
        for at in 0..unchecked.len() - 20 {
            if unchecked[at..].starts_with(signature) {
                unchecked[at + checksum..at + checksum + 4].fill(0);
            }
        }
    }
    let folder = folder(&[("pytorch_model.bin", &unchecked)])?;
    assert_eq!(read_all_in(folder.path()), 7);
    survives_mutations(&unchecked, "pytorch_model.bin")
}

#[test]
fn mutated_safetensors_never_panic() -> TestResult {
    let folder = f32_folder(&LORA)?;
    let good = fs::read(folder.path().join("model.safetensors"))?;
    survives_mutations(&good, "model.safetensors")
}
