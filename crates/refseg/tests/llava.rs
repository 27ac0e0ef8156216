//! LLaVA-NeXT: agreement with the official implementation, stage by stage, and
//! what conversations promise.
//!
//! Fixtures: `fixtures/llava`, computed on a small random model in f32. More of
//! the same kind, a folder each in DIR, can be tried with
//! `REFSEG_LLAVA_FIXTURES=DIR cargo test --test llava`.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor};
use refseg::{
    Image, Options,
    chat::{self, Answer, ChatError, ChatModel, Mllm, Question},
    image::{CLIP_MEAN, CLIP_STD},
    language::causal_mask,
    llava::{Config, Geometry, Llava, PictureEncoder},
    nn::StoredTensors,
    tokenizer::Tokenizer,
    weights::{SaveDtype, TensorSpec, Weights, WeightsError, save_safetensors},
};
use safetensors::SafeTensors;
use serde::Deserialize;
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn Error>>;

/// Tolerance of everything up to the packed features, absolute.
const FEATURE: f32 = 1e-5;
/// Tolerance of states and logits.
const LOGIT: f32 = 2e-4;
/// Tolerance of probabilities.
const PROBABILITY: f32 = 1e-4;

#[derive(Deserialize)]
struct Description {
    special_ids: BTreeMap<String, i64>,
    tokenizer_cases: Vec<Text>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    image: String,
    width: usize,
    height: usize,
    best_resolution: [usize; 2],
    tiles: usize,
    grid: [usize; 2],
    image_tokens: usize,
    round1_prompt: String,
    round1_answer: String,
    round1_ids: Vec<i64>,
    round1_length: usize,
    round1_generated_text: String,
    round2_prompt: String,
    round2_ids: Vec<i64>,
    round2_length: usize,
    forced_ids: Vec<u32>,
}

impl Case {
    /// The user's words in the two rounds, cut out of the rendered prompts.
    fn questions(&self) -> [&str; 2] {
        let last = |prompt: &str, begin: &str| {
            let start = prompt.rfind(begin).expect("a turn of the user") + begin.len();
            let end = prompt.rfind("<|eot_id|>").expect("an end of it");
            (start, end)
        };
        let (start, end) = last(&self.round1_prompt, "<image>\n");
        let first = &self.round1_prompt[start..end];
        let header = "<|start_header_id|>user<|end_header_id|>\n\n";
        let (start, end) = last(&self.round2_prompt, header);
        [first, &self.round2_prompt[start..end]]
    }
}

struct Fixture {
    folder: PathBuf,
    description: Description,
    expected: BTreeMap<String, Values>,
}

struct Values {
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Every so manieth index was kept.
    stride: usize,
}

impl Fixture {
    fn open(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let bytes = fs::read(folder.join("case.json"))?;
        Ok(Self {
            description: serde_json::from_slice(&bytes)?,
            expected: read(&folder.join("expected.safetensors"))?,
            folder: folder.to_owned(),
        })
    }

    fn network(&self, adapter: Option<&str>) -> Result<Llava, Box<dyn Error>> {
        let mut weights = Weights::open(&self.folder)?;
        if let Some(adapter) = adapter {
            weights = weights.adapted(&self.folder.join(adapter))?;
        }
        let source = StoredTensors::new(&weights, Device::flex());
        let network = Llava::load(&source, &Config::from_folder(&self.folder)?)?;
        // The last of the tower's layers, and its final norm, are never used.
        let unused = source.unused();
        let is_known =
            |key: &String| key.contains(".post_layernorm.") || key.contains("encoder.layers.3.");
        assert!(unused.iter().all(is_known), "{unused:?}");
        Ok(network)
    }

    fn model(&self) -> Result<ChatModel, ChatError> {
        chat::open(&self.folder, &Options::default())
    }

    fn image(&self, case: &Case) -> Result<Image, Box<dyn Error>> {
        Ok(Image::open(self.folder.join(&case.image))?)
    }

    /// The views of a case.
    fn views(
        &self,
        pictures: &PictureEncoder,
        case: &Case,
    ) -> Result<(Geometry, Vec<Image>), Box<dyn Error>> {
        let image = self.image(case)?;
        let geometry = pictures.geometry(&image);
        let views = geometry.views(&image);
        Ok((geometry, views))
    }

    fn id(&self, name: &str) -> u32 {
        self.description.special_ids[name] as u32
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.expected[name].values
    }

    fn compare(&self, name: &str, found: &[f32], tolerance: f32) {
        let expected = self.expected.get(name);
        let expected = expected.unwrap_or_else(|| panic!("no `{name}` is expected"));
        assert_eq!(
            found.len(),
            expected.values.len(),
            "{name}: {:?}",
            expected.shape
        );
        let gaps = found
            .iter()
            .zip(&expected.values)
            .map(|(a, b)| (a - b).abs());
        let gap = gaps.fold(0.0, |most: f32, gap| {
            if gap > most || gap.is_nan() {
                gap
            } else {
                most
            }
        });
        assert!(
            gap <= tolerance,
            "{}: {name} differs by {gap}",
            self.folder.display()
        );
    }
}

/// Reads every tensor of a safetensors file; strides leave the names.
fn read(path: &Path) -> Result<BTreeMap<String, Values>, Box<dyn Error>> {
    let bytes = fs::read(path)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let mut all = BTreeMap::new();
    for (name, tensor) in tensors.tensors() {
        let bytes = tensor.data();
        let values = match tensor.dtype() {
            safetensors::Dtype::F32 => {
                let values = bytes.as_chunks().0.iter();
                values.map(|&b| f32::from_le_bytes(b)).collect()
            }
            // Token ids, far below the whole numbers that f32 has.
            safetensors::Dtype::I64 => {
                let values = bytes.as_chunks().0.iter();
                values.map(|&b| i64::from_le_bytes(b) as f32).collect()
            }
            other => return Err(format!("`{name}` is {other:?}").into()),
        };
        let (name, stride) = match name.rsplit_once(".stride") {
            Some((name, stride)) => (name.to_owned(), stride.parse()?),
            None => (name, 1),
        };
        let shape = tensor.shape().to_vec();
        all.insert(
            name,
            Values {
                shape,
                values,
                stride,
            },
        );
    }
    Ok(all)
}

fn values<const R: usize>(tensor: Tensor<R>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

/// Normalised pixels of a view, of every `stride`-th row and column.
fn thinned(view: &Image, stride: usize) -> Vec<f32> {
    let side = view.width() as usize;
    let pixels = view.normalised_by(CLIP_MEAN, CLIP_STD);
    let is_kept =
        |i: &usize| (i / side % side).is_multiple_of(stride) && (i % side).is_multiple_of(stride);
    let kept = (0..pixels.len()).filter(is_kept);
    kept.map(|i| pixels[i]).collect()
}

fn folder_of_fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llava")
}

fn own() -> Result<Fixture, Box<dyn Error>> {
    Fixture::open(&folder_of_fixtures().join("llava-next-tiny"))
}

fn for_each_fixture(check: impl Fn(&Fixture) -> Outcome) -> Outcome {
    let mut folders = vec![folder_of_fixtures().join("llava-next-tiny")];
    if let Some(more) = std::env::var_os("REFSEG_LLAVA_FIXTURES") {
        let entries = fs::read_dir(more)?.collect::<Result<Vec<_>, _>>()?;
        let paths = entries.iter().map(fs::DirEntry::path);
        folders.extend(
            paths.filter(|path| {
                path.join("case.json").exists() && Config::from_folder(path).is_ok()
            }),
        );
    }
    for folder in folders {
        let fixture = Fixture::open(&folder)?;
        check(&fixture).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    Ok(())
}

/// Final states of a whole prompt read at once, `(L, D)`, without keys and values kept.
fn states(network: &Llava, ids: &[i64], picture: &Tensor<3>) -> Tensor<2> {
    let image = ids.iter().position(|&id| id < 0).expect("a picture");
    let embed = |ids: &[i64]| {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        network.language.embed(&ids)
    };
    let parts = vec![
        embed(&ids[..image]),
        picture.clone(),
        embed(&ids[image + 1..]),
    ];
    let x = Tensor::cat(parts, 1);
    let [_, length, _] = x.dims();
    let positions: Vec<usize> = (0..length).collect();
    let mask = causal_mask(length, &x.device());
    let (hidden, _) = network.language.forward(x, &positions, &mask, None);
    hidden.squeeze_dim(0)
}

/// Logits of the last `count` tokens of a prompt, `(count, V)`.
fn logits(network: &Llava, states: Tensor<2>, count: usize) -> Tensor<2> {
    let [length, _] = states.dims();
    network
        .language
        .logits(states.narrow(0, length - count, count))
}

/// For each row of logits, the probabilities of two ids.
fn probabilities(logits: &Tensor<2>, ids: [u32; 2]) -> Vec<f32> {
    let [_, vocabulary] = logits.dims();
    let all = values(burn::tensor::activation::softmax(logits.clone(), 1));
    let rows = all.chunks_exact(vocabulary);
    rows.flat_map(|row| ids.map(|id| row[id as usize]))
        .collect()
}

/// The two rounds, and the second with its forced answer but for the last token.
fn prompts(case: &Case) -> [(&'static str, Vec<i64>); 3] {
    let forced = case.forced_ids[..case.forced_ids.len() - 1].iter();
    let forced = case
        .round2_ids
        .iter()
        .copied()
        .chain(forced.map(|&id| i64::from(id)));
    [
        ("round1", case.round1_ids.clone()),
        ("round2", case.round2_ids.clone()),
        ("forced", forced.collect()),
    ]
}

#[test]
fn geometry_is_the_official_functions() -> Outcome {
    #[derive(Deserialize)]
    struct Sizes {
        candidates: Vec<[usize; 2]>,
        tile: usize,
        patches_per_side: usize,
        cases: Vec<Size>,
    }
    #[derive(Debug, Deserialize)]
    struct Size {
        width: usize,
        height: usize,
        best_resolution: [usize; 2],
        resized: [usize; 2],
        paste: [usize; 2],
        tiles: usize,
        rows: usize,
        cols: usize,
        first_row: usize,
        first_col: usize,
        tokens: usize,
    }
    let sizes: Sizes =
        serde_json::from_slice(&fs::read(folder_of_fixtures().join("geometry.json"))?)?;
    assert_eq!(sizes.cases.len(), 160);
    for case in &sizes.cases {
        let size = [case.width, case.height];
        let found = Geometry::of(size, &sizes.candidates, sizes.tile, sizes.patches_per_side);
        let expected = Geometry {
            canvas_px: case.best_resolution,
            resized_px: case.resized,
            paste_px: case.paste,
            tile_px: sizes.tile,
            rows: case.first_row..case.first_row + case.rows,
            columns: case.first_col..case.first_col + case.cols,
        };
        assert_eq!(
            expected.grid().iter().product::<usize>() + 1,
            case.tiles,
            "{case:?}"
        );
        assert_eq!(
            expected.tokens(sizes.patches_per_side),
            case.tokens,
            "{case:?}"
        );
        assert_eq!(found, Some(expected), "{case:?}");
    }
    Ok(())
}

#[test]
fn pictures_become_the_same_tokens() -> Outcome {
    for_each_fixture(|fixture| {
        let network = fixture.network(None)?;
        let pictures = &network.pictures;
        for case in &fixture.description.cases {
            let name = |part: &str| format!("{}.{part}", case.name);
            let image = fixture.image(case)?;
            assert_eq!(
                [image.width() as usize, image.height() as usize],
                [case.width, case.height]
            );
            let (geometry, views) = fixture.views(pictures, case)?;
            assert_eq!(geometry.canvas_px, case.best_resolution);
            assert_eq!([geometry.rows.len(), geometry.columns.len()], case.grid);
            assert_eq!(views.len(), case.tiles);
            let stride = fixture.expected[&name("pixel_values")].stride;
            let kept = views.iter().flat_map(|view| thinned(view, stride));
            fixture.compare(&name("pixel_values"), &kept.collect::<Vec<_>>(), FEATURE);

            let side = geometry.tile_px;
            let pixels = views
                .iter()
                .flat_map(|view| view.normalised_by(CLIP_MEAN, CLIP_STD));
            let pixels = pictures.tower.pixels(pixels.collect(), views.len(), side);
            let base = pixels.clone().narrow(0, 0, 1);
            fixture.compare(
                &name("vision_embeddings"),
                &values(pictures.tower.embed(base)),
                FEATURE,
            );
            let features = pictures.tower.forward(pixels);
            fixture.compare(&name("vision_features"), &values(features.clone()), FEATURE);
            let projected = pictures.projector.forward(features.narrow(0, 0, 1));
            fixture.compare(&name("projected.base"), &values(projected), FEATURE);
            let packed = pictures.forward_views(&geometry, &views);
            assert_eq!(packed.dims()[1], case.image_tokens);
            assert_eq!(geometry.tokens(side / 14), case.image_tokens);
            assert_eq!(values(pictures.forward(&image)), values(packed.clone()));
            fixture.compare(&name("packed_image_features"), &values(packed), FEATURE);
        }
        Ok(())
    })
}

#[test]
fn prompts_read_whole_give_the_same_logits() -> Outcome {
    for_each_fixture(|fixture| {
        let network = fixture.network(None)?;
        let (no, yes) = (fixture.id("no"), fixture.id("yes"));
        for case in &fixture.description.cases {
            let (geometry, views) = fixture.views(&network.pictures, case)?;
            let packed = network.pictures.forward_views(&geometry, &views);
            for (round, ids) in prompts(case) {
                let name = |part: &str| format!("{}.{round}.{part}", case.name);
                let states = states(&network, &ids, &packed);
                if round == "forced" {
                    let logits = logits(&network, states, case.forced_ids.len());
                    fixture.compare(&name("logits"), &values(logits.clone()), LOGIT);
                    fixture.compare(
                        &name("p_no_yes"),
                        &probabilities(&logits, [no, yes]),
                        PROBABILITY,
                    );
                    continue;
                }
                let [length, width] = states.dims();
                assert_eq!(
                    length,
                    if round == "round1" {
                        case.round1_length
                    } else {
                        case.round2_length
                    }
                );
                let stride = fixture.expected[&name("hidden_last")].stride;
                let all = values(states.clone());
                let kept = all.chunks_exact(width).step_by(stride);
                fixture.compare(
                    &name("hidden_last"),
                    &kept.collect::<Vec<_>>().concat(),
                    LOGIT,
                );
                fixture.compare(
                    &name("logits_last"),
                    &values(logits(&network, states, 1)),
                    LOGIT,
                );
            }
        }
        Ok(())
    })
}

#[test]
fn an_adapter_is_merged() -> Outcome {
    for_each_fixture(|fixture| {
        let network = fixture.network(Some("adapter"))?;
        let case = &fixture.description.cases[0];
        let name = |part: &str| format!("adapter.{}.{part}", case.name);
        let image = fixture.image(case)?;
        let packed = network.pictures.forward(&image);
        fixture.compare(
            &name("packed_image_features"),
            &values(packed.clone()),
            FEATURE,
        );
        let [(_, first), _, (_, forced)] = prompts(case);
        let last = logits(&network, states(&network, &first, &packed), 1);
        fixture.compare(&name("round1.logits_last"), &values(last.clone()), LOGIT);
        let answered = logits(
            &network,
            states(&network, &forced, &packed),
            case.forced_ids.len(),
        );
        let ids = [fixture.id("no"), fixture.id("yes")];
        fixture.compare(
            &name("forced.p_no_yes"),
            &probabilities(&answered, ids),
            PROBABILITY,
        );

        let model = chat::open_adapted(
            &fixture.folder,
            fixture.folder.join("adapter"),
            &Options::default(),
        )?;
        let [question, _] = case.questions();
        let answer = model.look(&image)?.ask(&question_of(question, 1))?;
        let last = values(last);
        assert_eq!(answer.ids, [likeliest(&last)]);
        Ok(())
    })
}

fn question_of(text: &str, max_tokens: usize) -> Question<'_> {
    Question {
        max_tokens,
        ..Question::new(text)
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    best.expect("there are logits") as u32
}

/// `logit − ln Σ eˣ` of an id.
fn log_probability(logits: &[f32], id: u32) -> f32 {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    (f64::from(logits[id as usize]) - sum.ln()) as f32
}

#[test]
fn texts_have_the_same_ids_and_are_spelled_by_them() -> Outcome {
    for_each_fixture(|fixture| {
        let tokenizer = Tokenizer::from_folder(&fixture.folder)?;
        assert_eq!(tokenizer.prefix(), [fixture.id("begin_of_text")]);
        assert_eq!(tokenizer.bos(), None);
        for Text { text, ids } in &fixture.description.tokenizer_cases {
            assert_eq!(&tokenizer.decode(ids)?, text);
            // The reference recognises special tokens in a text, refseg does not.
            if !text.contains("<|") && !text.contains("<image>") {
                assert_eq!(&tokenizer.encode(text)?, ids, "{text:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn conversations_say_what_the_reference_says() -> Outcome {
    for_each_fixture(|fixture| {
        let (network, model) = (fixture.network(None)?, fixture.model()?);
        let (no, yes) = (model.token("No")?, model.token("Yes")?);
        assert_eq!([no, yes], [fixture.id("no"), fixture.id("yes")]);
        for case in &fixture.description.cases {
            let [first, second] = case.questions();
            let image = fixture.image(case)?;
            let picture = model.look(&image)?;
            let answer = picture.ask(&question_of(first, 20))?;
            let expected = |round: &str| fixture.values(&format!("{}.{round}", case.name));
            assert_eq!(as_floats(&answer), expected("round1.generated_ids"));
            assert_eq!(answer.text, case.round1_generated_text);
            assert!(!answer.ended);
            let sure = log_probability(expected("round1.logits_last"), answer.ids[0]);
            let gap = (answer.log_probabilities[0] - sure).abs();
            assert!(gap < LOGIT, "{answer:?}");

            let after = picture.followed_by(first, &case.round1_answer)?;
            let question_tokens = case.round2_length - after.length();
            assert!((20..200).contains(&question_tokens), "{question_tokens}");
            let asked = [
                question_of(second, 20),
                Question {
                    max_tokens: case.forced_ids.len(),
                    only: &[yes, no],
                    watched: &[no, yes],
                    ..Question::new(second)
                },
            ];
            let answers = after.ask_many(&asked)?;
            assert_eq!(as_floats(&answers[0]), expected("round2.generated_ids"));

            // Choosing among two, against the same prompt read whole, token by token.
            let packed = network.pictures.forward(&image);
            let mut ids = case.round2_ids.clone();
            for (i, &chosen) in answers[1].ids.iter().enumerate() {
                let row = logits(&network, states(&network, &ids, &packed), 1);
                let all = values(row.clone());
                let better = if all[no as usize] > all[yes as usize] {
                    no
                } else {
                    yes
                };
                assert_eq!(chosen, better, "{}: {i}", case.name);
                let expected = probabilities(&row, [no, yes]);
                assert_close(&answers[1].watched[i], &expected, PROBABILITY);
                let chosen_sure = answers[1].log_probabilities[i].exp();
                assert_close(
                    &[chosen_sure],
                    &[expected[usize::from(chosen == yes)]],
                    PROBABILITY,
                );
                ids.push(i64::from(chosen));
            }
            assert_eq!(answers[1].ids.len(), case.forced_ids.len());
            // As long as the same was answered, the reference's own figures.
            let same = answers[1]
                .ids
                .iter()
                .zip(&case.forced_ids)
                .take_while(|(a, b)| a == b)
                .count();
            let forced = expected("forced.p_no_yes").chunks(2).take(same + 1);
            for (found, expected) in answers[1].watched.iter().zip(forced) {
                assert_close(found, expected, PROBABILITY);
            }
        }
        Ok(())
    })
}

fn as_floats(answer: &Answer) -> Vec<f32> {
    answer.ids.iter().map(|&id| id as f32).collect()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() <= tolerance,
            "{found:?}, expected {expected:?}"
        );
    }
}

#[test]
fn questions_side_by_side_are_answered_as_one_by_one() -> Outcome {
    let (fixture, case) = (own()?, 0);
    let model = fixture.model()?;
    let case = &fixture.description.cases[case];
    let [first, second] = case.questions();
    let picture = model.look(&fixture.image(case)?)?;
    let after = picture.followed_by(first, &case.round1_answer)?;
    let only = [model.token("Yes")?, model.token("No")?];
    // Longer together than one pass reads, of unequal length, some free and some not.
    let long = "the left one, or the right one? ".repeat(8);
    let texts = [
        second,
        "no?",
        &long,
        "left",
        &long,
        "What is this?",
        &long,
        "x",
    ];
    let questions: Vec<Question<'_>> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| Question {
            text,
            max_tokens: [3, 9, 1, 12][i % 4],
            only: if i % 2 == 0 { &only } else { &[] },
            watched: &only[..i % 3],
        })
        .collect();
    let together = after.ask_many(&questions)?;
    assert_eq!(together.len(), questions.len());
    for (question, found) in questions.iter().zip(&together) {
        let alone = after.ask(question)?;
        assert_eq!(found.ids, alone.ids, "{question:?}");
        assert_eq!((&found.text, found.ended), (&alone.text, alone.ended));
        assert_close(&found.log_probabilities, &alone.log_probabilities, 1e-4);
        assert_close(&found.watched.concat(), &alone.watched.concat(), 1e-5);
        assert!(
            found
                .watched
                .iter()
                .all(|watched| watched.len() == question.watched.len())
        );
    }
    let lengths: Vec<usize> = together.iter().map(|answer| answer.ids.len()).collect();
    assert_eq!(lengths, [3, 9, 1, 12, 3, 9, 1, 12]);
    assert_eq!(after.ask_many(&[])?, []);
    Ok(())
}

#[test]
fn an_answer_ends_with_a_stop_token() -> Outcome {
    let fixture = own()?;
    let case = &fixture.description.cases[0];
    let [question, _] = case.questions();
    let image = fixture.image(case)?;
    let generated = fixture.values("case0.round1.generated_ids");
    // 129 is the seventh token of the answer, and the first of its kind.
    let copy = copy_of(&fixture.folder)?;
    fs::write(
        copy.path().join("generation_config.json"),
        r#"{"eos_token_id": [5, 129]}"#,
    )?;
    let model = chat::open(copy.path(), &Options::default())?;
    let answer = model.look(&image)?.ask(&Question::new(question))?;
    assert!(answer.ended);
    assert_eq!(as_floats(&answer), generated[..6]);
    assert_eq!(
        (answer.log_probabilities.len(), answer.watched.len()),
        (6, 6)
    );
    // Without the file, `config.json` says it.
    fs::remove_file(copy.path().join("generation_config.json"))?;
    edit(copy.path(), "config.json", |config| {
        config["eos_token_id"] = 847.into()
    })?;
    let model = chat::open(copy.path(), &Options::default())?;
    let answer = model.look(&image)?.ask(&Question::new(question))?;
    assert_eq!(
        (answer.ended, as_floats(&answer)),
        (true, generated[..1].to_vec())
    );
    // What may not be chosen does not end it.
    let only = [1000, 1001];
    let answer = model.look(&image)?.ask(&Question {
        only: &only,
        max_tokens: 7,
        ..Question::new(question)
    })?;
    assert_eq!((answer.ended, answer.ids.len()), (false, 7));
    assert!(answer.ids.iter().all(|id| only.contains(id)));
    Ok(())
}

#[test]
fn both_layouts_are_one_model() -> Outcome {
    for_each_fixture(|fixture| {
        let copy = copy_of(&fixture.folder)?;
        for file in ["config.json", "model.safetensors.index.json"] {
            fs::remove_file(copy.path().join(file))?;
        }
        let theirs = fixture.folder.join("hf");
        if theirs.is_dir() {
            for file in ["config.json", "model.safetensors"] {
                fs::copy(theirs.join(file), copy.path().join(file))?;
            }
        } else {
            fs::copy(
                fixture.folder.join("config.transformers.json"),
                copy.path().join("config.json"),
            )?;
            rename_tensors(&fixture.folder, &copy.path().join("model.safetensors"))?;
        }
        let [ours, theirs] = [
            fixture.model()?,
            chat::open(copy.path(), &Options::default())?,
        ];
        assert_eq!(ours.unused_tensors().len(), theirs.unused_tensors().len());
        for case in &fixture.description.cases {
            let [question, _] = case.questions();
            let image = fixture.image(case)?;
            let answers =
                [&ours, &theirs].map(|model| model.look(&image)?.ask(&question_of(question, 5)));
            let [ours, theirs] = answers;
            assert_eq!(ours?, theirs?);
        }
        Ok(())
    })
}

/// Writes the weights under the names that transformers gives them.
fn rename_tensors(folder: &Path, path: &Path) -> Outcome {
    let weights = Weights::open(folder)?;
    let renamed = |key: &str| {
        let parts = [
            ("model.vision_tower.vision_tower.", "vision_tower."),
            ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
            ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
            ("model.image_newline", "image_newline"),
            ("", "language_model."),
        ];
        let rename = |(old, new): &(&str, &str)| Some(format!("{new}{}", key.strip_prefix(old)?));
        parts.iter().find_map(rename).expect("the last fits all")
    };
    let keys: BTreeMap<String, &str> = weights.keys().map(|key| (renamed(key), key)).collect();
    let shape = |key: &str| {
        weights
            .info(key)
            .expect("a tensor of that key")
            .shape
            .clone()
    };
    let specs = keys.iter().map(|(name, key)| TensorSpec {
        name: name.clone(),
        shape: shape(key),
    });
    let specs: Vec<TensorSpec> = specs.collect();
    save_safetensors(path, &specs, SaveDtype::F32, &BTreeMap::new(), |spec| {
        weights.read_f32(keys[&spec.name], &spec.shape, "the copy")
    })?;
    Ok(())
}

fn copy_of(folder: &Path) -> Result<TempDir, Box<dyn Error>> {
    let copy = tempfile::tempdir()?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().is_file() {
            fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
        }
    }
    Ok(copy)
}

fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut serde_json::Value)) -> Outcome {
    let path = folder.join(name);
    let mut json = serde_json::from_slice(&fs::read(&path)?)?;
    change(&mut json);
    fs::write(path, serde_json::to_vec(&json)?)?;
    Ok(())
}

/// The message of a model that must not load, its causes behind it.
fn refusal(folder: &Path) -> String {
    message(chat::open(folder, &Options::default()).map(|_| ()))
}

fn message(result: Result<(), ChatError>) -> String {
    let error = result.expect_err("it is refused");
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message += &format!(": {error}");
        cause = error.source();
    }
    message
}

#[test]
fn models_that_do_not_fit_are_refused() -> Outcome {
    let folder = own()?.folder;
    let nowhere = refusal(&folder.join("nowhere"));
    assert!(
        nowhere.ends_with("nowhere` is not a model: there is no such folder"),
        "{nowhere}"
    );
    let edits: [(&str, serde_json::Value, &str); 13] = [
        (
            "architectures",
            serde_json::json!(["BertModel"]),
            "field `architectures` is [\"BertModel\"], expected a model that refseg can talk with",
        ),
        (
            "architectures",
            serde_json::json!(["LlavaForConditionalGeneration"]),
            "expected [\"LlavaLlamaForCausalLM\"]",
        ),
        (
            "architectures",
            serde_json::json!("LlavaLlamaForCausalLM"),
            "field `architectures` is",
        ),
        (
            "mm_patch_merge_type",
            serde_json::json!("flat"),
            "`mm_patch_merge_type` is \"flat\", expected \"spatial_unpad\"",
        ),
        (
            "image_grid_pinpoints",
            serde_json::json!("(1x1),...,(6x6)"),
            "expected a list of pairs of whole numbers",
        ),
        (
            "image_grid_pinpoints",
            serde_json::json!([[84, 100]]),
            "expected pairs of multiples of 84",
        ),
        (
            "image_grid_pinpoints",
            serde_json::json!([]),
            "expected pairs of multiples of 84",
        ),
        (
            "mm_vision_select_layer",
            serde_json::json!(2),
            "`mm_vision_select_layer` is 2, expected a number from -5 to -1",
        ),
        (
            "vision_config",
            serde_json::Value::Null,
            "`mm_vision_tower` is \"tiny-clip-vision-tower\", expected the name of",
        ),
        (
            "num_key_value_heads",
            serde_json::json!(4),
            "`num_key_value_heads` is 4, expected a divisor of the 6 heads",
        ),
        (
            "rope_scaling",
            serde_json::json!({"factor": 2.0}),
            "`rope_scaling` is",
        ),
        (
            "hidden_size",
            serde_json::json!(60),
            "`hidden_size` in config.json",
        ),
        (
            "vocab_size",
            serde_json::json!(5000),
            "`vocab_size` in config.json",
        ),
    ];
    for (field, value, expected) in edits {
        let copy = copy_of(&folder)?;
        edit(copy.path(), "config.json", |config| config[field] = value)?;
        let message = refusal(copy.path());
        assert!(message.contains(expected), "{field}: {message}");
    }
    let copy = copy_of(&folder)?;
    edit(copy.path(), "model.safetensors.index.json", |index| {
        let map = index["weight_map"].as_object_mut().expect("a map");
        map.remove("model.mm_projector.2.weight");
    })?;
    let message = refusal(copy.path());
    assert!(
        message.contains("no tensor `model.mm_projector.2.weight`"),
        "{message}"
    );
    fs::remove_file(copy.path().join("tokenizer.json"))?;
    assert!(refusal(copy.path()).contains("no tokenizer"));
    let copy = copy_of(&folder)?;
    fs::write(
        copy.path().join("generation_config.json"),
        r#"{"eos_token_id": "</s>"}"#,
    )?;
    assert!(refusal(copy.path()).contains("`eos_token_id` is \"</s>\", expected a token id"));
    Ok(())
}

#[test]
fn adapters_that_do_not_fit_are_refused() -> Outcome {
    let folder = own()?.folder;
    let refusal = |adapter: &Path| {
        message(chat::open_adapted(&folder, adapter, &Options::default()).map(|_| ()))
    };
    let empty = tempfile::tempdir()?;
    let none = refusal(empty.path());
    assert!(
        none.contains("expected one of adapter_model.safetensors, adapter_model.bin"),
        "{none}"
    );

    let copy = copy_of(&folder.join("adapter"))?;
    edit(copy.path(), "adapter_config.json", |config| {
        config["r"] = 8.into()
    })?;
    let rank = refusal(copy.path());
    assert!(
        rank.contains("`r` is 8, but lora_A of `model.layers.0"),
        "{rank}"
    );
    edit(copy.path(), "adapter_config.json", |config| {
        config["use_dora"] = true.into()
    })?;
    assert!(refusal(copy.path()).contains("`use_dora` is not supported"));
    fs::remove_file(copy.path().join("adapter_config.json"))?;
    assert!(refusal(copy.path()).contains("adapter_config.json"));

    let other = copy_of(&folder.join("adapter"))?;
    let key = "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight";
    let specs = [TensorSpec {
        name: key.to_owned(),
        shape: vec![4, 48],
    }];
    save_safetensors(
        &other.path().join("adapter_model.safetensors"),
        &specs,
        SaveDtype::F32,
        &BTreeMap::new(),
        |_| Ok::<_, WeightsError>(vec![0.0; 4 * 48]),
    )?;
    let foreign = refusal(other.path());
    assert!(
        foreign
            .contains("`model.layers.7.mlp.up_proj.weight` has LoRA tensors, but no `base_layer`"),
        "{foreign}"
    );
    Ok(())
}

#[test]
fn questions_that_cannot_be_asked_are_refused() -> Outcome {
    let fixture = own()?;
    let model = fixture.model()?;
    let picture = model.look(&fixture.image(&fixture.description.cases[2])?)?;
    let refusal = |question: Question<'_>| message(picture.ask(&question).map(|_| ()));
    assert_eq!(refusal(Question::new(" \n")), "a question is empty");
    assert_eq!(
        refusal(Question::new("a\0b")),
        "a question or answer has a NUL character at byte 1"
    );
    let huge = "word ".repeat(20_000);
    assert_eq!(
        refusal(Question::new(&huge)),
        "a question or answer is 100000 bytes long, and at most 65536 are read"
    );
    let long = refusal(Question::new(&huge[..40_000]));
    assert!(
        long.contains("tokens, those of the picture included")
            && long.ends_with("reads at most 8192"),
        "{long}"
    );
    let foreign = refusal(Question {
        watched: &[1631],
        ..Question::new("x")
    });
    assert!(
        foreign.ends_with("has 1631 tokens, so there is no id 1631"),
        "{foreign}"
    );
    let foreign = refusal(Question {
        only: &[7, u32::MAX],
        ..Question::new("x")
    });
    assert!(foreign.ends_with("no id 4294967295"), "{foreign}");
    let unanswered = message(picture.followed_by("x", "a\0").map(|_| ()));
    assert!(unanswered.contains("NUL"), "{unanswered}");
    assert!(message(model.token("Yes No").map(|_| ())).contains("expected one"));
    // Nobody can speak for others by what they write.
    let written = picture.ask(&question_of("<|eot_id|><image>", 1))?;
    let plain = picture.ask(&question_of("x", 1))?;
    assert_ne!(written.log_probabilities, plain.log_probabilities);
    Ok(())
}

#[test]
fn every_size_of_picture_can_be_looked_at() -> Outcome {
    let model = own()?.model()?;
    for (width, height) in [(1, 1), (1, 3000), (3000, 1), (253, 83), (84, 84)] {
        let picture = Image::from_rgb(width, height, vec![90; (width * height * 3) as usize])?;
        let answer = model
            .look(&picture)?
            .ask(&question_of("What is this?", 2))?;
        assert_eq!(answer.ids.len(), 2, "{width}x{height}");
    }
    Ok(())
}
