//! Asks a model about the pictures of a data set.
//!
//! What comes out are predictions, nothing else: they are judged by
//! [`crate::score`], whoever made them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use refseg::{
    Image, Segmentable, Segmentation, Segmenter,
    mask::{Mask, MaskError, THRESHOLD},
    predictor::PredictorError,
    prompt::Marker,
};

use crate::{
    conversations::answer_count,
    dataset::{DataError, Truth},
    metrics::{Family, Outcome},
    predictions::{CocoRle, Prediction},
};

/// Pictures with phrases and what they mean: a data set that was read, or one that is drawn.
pub trait Examples: Sync {
    /// Whose definitions of the metrics hold.
    fn family(&self) -> Family;

    /// Number of pictures.
    fn pictures(&self) -> usize;

    /// Ids of a picture and of its expressions, without looking at it.
    ///
    /// # Errors
    /// Whatever the data set is at fault with.
    fn ids(&self, picture: usize) -> Result<Ids, DataError>;

    /// A picture with its expressions.
    ///
    /// # Errors
    /// Whatever the data set is at fault with.
    fn example(&self, picture: usize) -> Result<Example, DataError>;

    /// The expressions of a picture alone, where they can be had without decoding it.
    ///
    /// # Errors
    /// Whatever the data set is at fault with.
    fn asked(&self, picture: usize) -> Result<Vec<Asked>, DataError> {
        Ok(self.example(picture)?.expressions)
    }
}

/// What a picture and its expressions are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// The picture, unique in the data set.
    pub picture: String,
    /// Its expressions, each unique in the data set.
    pub expressions: Vec<String>,
}

/// A picture with its expressions, in the order of the data set.
#[derive(Debug, Clone)]
pub struct Example {
    /// Its id.
    pub id: String,
    /// The pixels.
    pub image: Image,
    /// What is said about it.
    pub expressions: Vec<Asked>,
}

/// An expression and its truth.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its id.
    pub id: String,
    /// The phrase, as the model gets it.
    pub phrase: String,
    /// The kind of phrase, where the data set knows it.
    pub kind: Option<&'static str>,
    /// What it means.
    pub truth: Truth,
}

/// How the phrases of a picture are asked. Scores under different protocols cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// As published: one prompt for all phrases, in which the model reads the true markers of
    /// the phrases before; masks from a second prompt with `[SEG]` everywhere.
    Official,
    /// One prompt for all phrases, with `[SEG]` everywhere.
    Joint,
    /// Each phrase on its own.
    Single,
    /// One prompt for all phrases, in which the model reads its own decisions about those before.
    Sequential,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Official, Self::Joint, Self::Single, Self::Sequential];

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Official => "official",
            Self::Joint => "joint",
            Self::Single => "single",
            Self::Sequential => "sequential",
        }
    }

    /// Whether nothing of the truth reaches the model.
    pub fn is_leak_free(self) -> bool {
        self != Self::Official
    }

    /// What a reader of the scores should know.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Official => {
                "all phrases of a picture in one prompt, as published; the model reads the true markers of the phrases before, so compare with published scores only"
            }
            Self::Joint => {
                "all phrases of a picture in one prompt; nothing of the truth reaches the model"
            }
            Self::Single => "each phrase on its own; nothing of the truth reaches the model",
            Self::Sequential => {
                "all phrases of a picture in one prompt, with the model's own decisions; nothing of the truth reaches the model"
            }
        }
    }

    fn ask(
        self,
        scene: &dyn Segmentable,
        expressions: &[Asked],
        family: Family,
    ) -> Result<Vec<Segmentation>, PredictorError> {
        let phrases: Vec<&str> = expressions
            .iter()
            .map(|asked| asked.phrase.as_str())
            .collect();
        match self {
            Self::Joint => scene.segment_joint(&phrases),
            Self::Single => scene.segment_many(&phrases),
            Self::Sequential => scene.segment_sequential(&phrases),
            Self::Official => {
                let marker = |asked: &Asked| match family {
                    // Published code marks nothing but gRefCOCO as without a target.
                    Family::Gres if asked.truth.mask.area() == 0 => Marker::Rej,
                    _ => Marker::Seg,
                };
                let markers: Vec<Marker> = expressions.iter().map(marker).collect();
                scene.segment_teacher_forced(&phrases, &markers)
            }
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a picture could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The data set is at fault.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot answer.
    #[error("picture `{picture}`: the model cannot answer")]
    Model {
        /// Id of the picture.
        picture: String,
        /// What it says.
        #[source]
        source: Box<PredictorError>,
    },
    /// Answer and truth do not fit together.
    #[error("picture `{picture}`: the answer cannot be compared with the truth")]
    Mask {
        /// Id of the picture.
        picture: String,
        /// What is wrong.
        #[source]
        source: MaskError,
    },
    /// The operating system gives no more threads.
    #[error("cannot start the threads to compute with")]
    Threads(#[source] rayon::ThreadPoolBuildError),
}

/// Asks a model about some pictures of a data set, on as many threads as the current pool has,
/// and hands the predictions of each picture to `take`, in the order of `pictures`. Predictions do
/// not depend on the number of threads.
///
/// # Errors
/// [`EvaluateError`], and whatever `take` fails with; pictures that come later in `pictures` are
/// then lost.
pub fn predict<E: From<EvaluateError>>(
    predictor: &dyn Segmenter,
    examples: &dyn Examples,
    pictures: &[usize],
    protocol: Protocol,
    mut take: impl FnMut(Vec<Prediction>) -> Result<(), E>,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..rayon::current_num_threads().min(pictures.len()) {
            // A worker computes on one thread: products are faster whole on one thread than
            // shared by several.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            let pool = pool.map_err(EvaluateError::Threads)?;
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&picture) = pictures.get(position) else {
                        break;
                    };
                    let predicted =
                        pool.install(|| predict_one(predictor, examples, picture, protocol));
                    let failed = predicted.is_err();
                    // A closed channel means that another picture failed.
                    if sender.send((position, predicted)).is_err() || failed {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut waiting = BTreeMap::new();
        let mut taken = 0;
        for (position, predicted) in receiver {
            waiting.insert(position, predicted);
            while let Some(predicted) = waiting.remove(&taken) {
                take(predicted?)?;
                taken += 1;
            }
        }
        Ok(())
    })
}

fn predict_one(
    predictor: &dyn Segmenter,
    examples: &dyn Examples,
    picture: usize,
    protocol: Protocol,
) -> Result<Vec<Prediction>, EvaluateError> {
    let Example {
        id,
        image,
        expressions,
    } = examples.example(picture)?;
    let start = Instant::now();
    let answers = predictor
        .encode(&image)
        .and_then(|mut scene| {
            scene.expect(answer_count(examples.family()));
            protocol.ask(&*scene, &expressions, examples.family())
        })
        .map_err(|source| EvaluateError::Model {
            picture: id.clone(),
            source: Box::new(source),
        })?;
    let ms = start.elapsed().as_secs_f64() * 1e3 / expressions.len().max(1) as f64;
    expressions
        .iter()
        .zip(&answers)
        .map(|(asked, answer)| {
            prediction(&id, asked, answer, ms).map_err(|source| EvaluateError::Mask {
                picture: id.clone(),
                source,
            })
        })
        .collect()
}

/// The line of an answer. Its mask is what the model drew, also where it was rejected:
/// whether that counts is for the rules to say.
fn prediction(
    picture: &str,
    asked: &Asked,
    answer: &Segmentation,
    ms: f64,
) -> Result<Prediction, MaskError> {
    let truth = &asked.truth;
    let size = (truth.mask.height(), truth.mask.width());
    let drawn = |threshold| {
        let probabilities = &answer.probabilities;
        let side = answer.side;
        Mask::from_probabilities(probabilities, side, side, size.0, size.1, threshold)
    };
    // A mask with borders of its own is taken as it is, and its pixels are above one half.
    let (mask, strictly) = if answer.from_probabilities {
        // REC takes pixels strictly above one half.
        (drawn(THRESHOLD)?, drawn(THRESHOLD.next_up())?)
    } else {
        (answer.mask.clone(), answer.mask.clone())
    };
    let outcome = Outcome::of_masks(&mask, &truth.mask, truth.ignore.as_ref(), answer.found)?;
    let rec_box = truth.official_box.map(|_| strictly.official_box());
    Ok(Prediction {
        picture: picture.to_owned(),
        expression: asked.id.clone(),
        phrase: asked.phrase.clone(),
        found: answer.found,
        presence: answer.presence,
        score: answer.score,
        rle: CocoRle::of(&mask),
        rec_box,
        intersection: outcome.intersection,
        union: outcome.union,
        predicted: outcome.predicted,
        truth: outcome.truth,
        ms: (ms * 1e3).round() / 1e3,
    })
}
