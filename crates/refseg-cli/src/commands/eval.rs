//! `refseg eval`: judges a model on drawn scenes, at the size of the picture.

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use refseg::{Image, Predictor, Segmentation, prompt::Marker};
use refseg_data::{
    metrics::{Metric, Outcome, Sums, Tally},
    scenes::{PhraseKind, Scene, SceneOptions, Split},
};
use serde::Serialize;

use super::{counted, load, with_commas};
use crate::{
    cli::{Dataset, EvalArgs, Protocol, SplitName},
    console::Console,
    table::{Align, Table},
};

pub(crate) fn run(args: &EvalArgs, console: &Console) -> Result<()> {
    let Dataset::Scenes = args.dataset;
    let options = SceneOptions {
        size: args.size,
        split: Split::from(args.split),
        ..SceneOptions::default()
    };
    options.validate()?;
    let (predictor, _) = load(&args.model.model, &args.model.compute, console)?;
    let judge = Judge {
        predictor: &predictor,
        options,
        protocol: args.protocol,
    };
    let start = Instant::now();
    let mut progress = console.progress(args.count.get() as u64, "scenes");
    let tally = judge.all(args.first, args.count.get(), |done, tally| {
        let scores = Tally::scores(&tally.all());
        progress.message(format!("cIoU {}", shown(scores[Metric::Ciou])));
        progress.set(done as u64);
    })?;
    drop(progress);

    let seconds = start.elapsed().as_secs_f64();
    let scenes = counted(args.count.get(), "scene");
    console.note(format_args!(
        "{scenes} in {seconds:.0} s ({:.1} scenes/s)",
        args.count.get() as f64 / seconds
    ));
    console.note(protocol_note(args.protocol));
    if args.json {
        return console.json(&Document {
            model: predictor.name(),
            dataset: "scenes",
            split: split_name(args.split),
            first: args.first,
            count: args.count.get(),
            size: args.size,
            protocol: protocol_name(args.protocol),
            leak_free: args.protocol != Protocol::Published,
            all: Scores::of(&tally.all()),
            kinds: tally
                .kinds()
                .map(|(kind, sums)| (kind.to_owned(), Scores::of(sums)))
                .collect(),
            seconds,
        });
    }
    let all = Tally::scores(&tally.all());
    console.result(table(&tally))?;
    console.result(format_args!(
        "\ncIoU {}  gIoU {}  Prec@0.5 {}  N-acc {}  T-acc {}",
        shown(all[Metric::Ciou]),
        shown(all[Metric::Giou]),
        shown(all[Metric::PrecAt0_5]),
        shown(all[Metric::NAcc]),
        shown(all[Metric::TAcc]),
    ))
}

/// Asks a model about scenes and compares its answers with the truth.
struct Judge<'a> {
    predictor: &'a Predictor,
    options: SceneOptions,
    protocol: Protocol,
}

/// The phrases of one scene, judged.
type JudgedScene = Vec<(&'static str, Outcome)>;

impl Judge<'_> {
    /// Judges `count` scenes on all cores; the sums do not depend on how many there are.
    fn all(
        &self,
        first: u64,
        count: usize,
        mut report: impl FnMut(usize, &Tally),
    ) -> Result<Tally> {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..rayon::current_num_threads().min(count) {
                // A worker computes on one thread: small products are faster
                // whole on one thread than shared by several.
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(1)
                    .build()
                    .context("cannot start the threads to compute with")?;
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let position = next.fetch_add(1, Ordering::Relaxed);
                        if position >= count {
                            break;
                        }
                        let judged = pool.install(|| self.scene(first + position as u64));
                        let failed = judged.is_err();
                        // A closed channel means that another scene failed.
                        if sender.send((position, judged)).is_err() || failed {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut in_order = InOrder::default();
            for (position, judged) in receiver {
                in_order.add(position, judged?);
                report(in_order.done, &in_order.tally);
            }
            Ok(in_order.tally)
        })
    }

    fn scene(&self, index: u64) -> Result<JudgedScene> {
        let scene = Scene::draw(&self.options, index);
        let image = Image::from_rgb(scene.size, scene.size, scene.pixels.clone())?;
        let seen = self.predictor.encode(&image)?;
        let phrases: Vec<&str> = scene
            .phrases
            .iter()
            .map(|phrase| phrase.text.as_str())
            .collect();
        let answers = match self.protocol {
            Protocol::Single => seen.segment_many(&phrases),
            Protocol::Joint => seen.segment_joint(&phrases),
            Protocol::Published => {
                let truth = scene.phrases.iter().map(|phrase| match phrase.targets[..] {
                    [] => Marker::Rej,
                    _ => Marker::Seg,
                });
                seen.segment_teacher_forced(&phrases, &truth.collect::<Vec<_>>())
            }
        };
        let judged = scene.phrases.iter().zip(answers?).map(|(phrase, answer)| {
            let truth = scene.target_mask(&phrase.targets);
            (phrase.kind.name(), compare(&answer, &truth))
        });
        Ok(judged.collect())
    }
}

fn compare(answer: &Segmentation, truth: &[u8]) -> Outcome {
    let pixels = answer.mask.bits().iter().zip(truth);
    let pixels = pixels.map(|(&predicted, &truth)| (predicted, truth == 1));
    Outcome::of_pixels(pixels, answer.found)
}

/// Adds scenes up in their own order, whichever is done first, so that progress reads the same each time.
#[derive(Default)]
struct InOrder {
    tally: Tally,
    done: usize,
    waiting: BTreeMap<usize, JudgedScene>,
}

impl InOrder {
    fn add(&mut self, position: usize, judged: JudgedScene) {
        self.waiting.insert(position, judged);
        while let Some(judged) = self.waiting.remove(&self.done) {
            for (kind, outcome) in judged {
                self.tally.add(kind, &outcome);
            }
            self.done += 1;
        }
    }
}

fn table(tally: &Tally) -> Table {
    use Align::{Left, Right};
    let mut table = Table::markdown(&[
        ("kind", Left),
        ("phrases", Right),
        ("cIoU", Right),
        ("mIoU", Right),
        ("Prec@0.5", Right),
        ("found", Right),
    ]);
    let kinds: BTreeMap<&str, &Sums> = tally.kinds().collect();
    let listed = PhraseKind::ALL
        .iter()
        .filter_map(|kind| kinds.get_key_value(kind.name()));
    let all = tally.all();
    for (kind, sums) in listed
        .map(|(kind, sums)| (*kind, *sums))
        .chain([("all", &all)])
    {
        let found = sums.accepted + sums.without_target - sums.rejected;
        let scores = Tally::scores(sums);
        table.row([
            kind.into(),
            with_commas(sums.expressions).into(),
            // Without targets there is nothing that masks could share.
            shown(scores[Metric::Ciou].filter(|_| sums.with_target > 0)).into(),
            shown(scores[Metric::Miou]).into(),
            shown(scores[Metric::PrecAt0_5]).into(),
            shown(Some(100.0 * found as f64 / sums.expressions as f64)).into(),
        ]);
    }
    table
}

fn shown(percent: Option<f64>) -> String {
    percent.map_or_else(|| "–".to_owned(), |percent| format!("{percent:.2}"))
}

fn protocol_note(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Single => {
            "protocol: each phrase on its own; nothing of the truth reaches the model"
        }
        Protocol::Joint => {
            "protocol: all phrases of a picture in one prompt; nothing of the truth reaches the model"
        }
        Protocol::Published => {
            "protocol: as published; the model reads the true markers of earlier phrases, so compare with published scores only"
        }
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Single => "single",
        Protocol::Joint => "joint",
        Protocol::Published => "published",
    }
}

fn split_name(split: SplitName) -> &'static str {
    match split {
        SplitName::Train => "train",
        SplitName::HeldOut => "held-out",
        SplitName::Unseen => "unseen",
    }
}

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    dataset: &'static str,
    split: &'static str,
    first: u64,
    count: usize,
    size: u32,
    protocol: &'static str,
    /// Whether the model saw nothing of the truth.
    leak_free: bool,
    all: Scores,
    kinds: BTreeMap<String, Scores>,
    seconds: f64,
}

/// In per cent; null where there is nothing to count.
#[derive(Serialize)]
pub(super) struct Scores {
    phrases: u64,
    pub(super) ciou: Option<f64>,
    giou: Option<f64>,
    precision_at_half: Option<f64>,
    n_acc: Option<f64>,
    t_acc: Option<f64>,
}

impl Scores {
    pub(super) fn of(sums: &Sums) -> Self {
        let scores = Tally::scores(sums);
        Self {
            phrases: sums.expressions,
            ciou: scores[Metric::Ciou],
            giou: scores[Metric::Giou],
            precision_at_half: scores[Metric::PrecAt0_5],
            n_acc: scores[Metric::NAcc],
            t_acc: scores[Metric::TAcc],
        }
    }
}
