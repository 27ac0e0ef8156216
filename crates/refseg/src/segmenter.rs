//! What all methods have in common: an image and phrases in, masks out.
//!
//! ```no_run
//! use refseg::{Image, Options};
//!
//! let model = refseg::open("weights/any", &Options::default())?;
//! let scene = model.encode(&Image::open("kitchen.jpg")?)?; // slow part, once per image
//! let found = scene.segment("the mug behind the kettle")?;
//! println!("{}: {} pixels", model.method(), found.mask.area());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{fmt, path::Path};

use crate::{
    image::Image,
    predictor::{Options, Predictor, PredictorError, Segmentation},
    prompt::Marker,
    sam::{Prompt, SamPredictor, SamScene},
    sam4mllm::{AnswerCount, Pair, Sam4Mllm},
};

/// Opens whatever a model folder holds: a pair of models for SAM4MLLM if it has `sam4mllm.json`,
/// otherwise one of MLLMSeg's; or the model called `builtin`, or the pair called
/// `builtin-sam4mllm`.
///
/// # Errors
/// If there is no such model, or a file of it is missing, damaged or does not fit the others.
pub fn open(
    model: impl AsRef<Path>,
    options: &Options,
) -> Result<Box<dyn Segmenter>, PredictorError> {
    let model = model.as_ref();
    if Pair::is_in(model) {
        Ok(Box::new(Sam4Mllm::load(model, options)?))
    } else {
        Ok(Box::new(Predictor::load(model, options)?))
    }
}

/// A model that finds what phrases mean, by whatever method.
pub trait Segmenter: fmt::Debug + Send + Sync {
    /// What the model is called: its folder, `builtin` or `builtin-sam4mllm`.
    fn name(&self) -> &str;

    /// What its method is called.
    fn method(&self) -> &str;

    /// Tensors of its checkpoints that no part of a network uses: worth a warning.
    fn unused_tensors(&self) -> &[String];

    /// Looks at a picture: the slow part, once per picture.
    ///
    /// # Errors
    /// If a network computes values that are not numbers.
    fn encode(&self, image: &Image) -> Result<Box<dyn Segmentable>, PredictorError>;
}

/// A picture that a model has looked at: a value to keep, share between threads, and ask.
pub trait Segmentable: fmt::Debug + Send + Sync {
    /// Width of the picture in pixels.
    fn width(&self) -> u32;

    /// Height of the picture in pixels.
    fn height(&self) -> u32;

    /// Memory that this value holds, in bytes, the shared model aside.
    fn bytes(&self) -> usize;

    /// Says how many objects the phrases of a data set may mean: a method whose questions state it
    /// then does, unless the model is set to something else.
    fn expect(&mut self, _count: AnswerCount) {}

    /// Segments what each phrase means on its own.
    ///
    /// # Errors
    /// If a phrase is empty or too long.
    fn segment_many(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError>;

    /// Segments what a phrase means.
    ///
    /// # Errors
    /// As [`Segmentable::segment_many`].
    fn segment(&self, phrase: &str) -> Result<Segmentation, PredictorError> {
        let mut all = self.segment_many(&[phrase])?;
        Ok(all.remove(0))
    }

    /// Segments several phrases in one prompt; see [`Scene::segment_joint`](crate::Scene::segment_joint).
    ///
    /// # Errors
    /// As [`Segmentable::segment_many`], and if the method has no such prompt.
    fn segment_joint(&self, _phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        Err(PredictorError::OnlySingle)
    }

    /// Segments several phrases in one prompt that has the model's own decisions; see
    /// [`Scene::segment_sequential`](crate::Scene::segment_sequential).
    ///
    /// # Errors
    /// As [`Segmentable::segment_joint`].
    fn segment_sequential(&self, _phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        Err(PredictorError::OnlySingle)
    }

    /// Segments several phrases as published evaluations do; see
    /// [`Scene::segment_teacher_forced`](crate::Scene::segment_teacher_forced).
    ///
    /// # Errors
    /// As [`Segmentable::segment_joint`], and if there are not as many markers as phrases.
    fn segment_teacher_forced(
        &self,
        _phrases: &[&str],
        _truth: &[Marker],
    ) -> Result<Vec<Segmentation>, PredictorError> {
        Err(PredictorError::OnlySingle)
    }
}

/// A model whose masks Segment Anything draws anew, from the boxes around them.
#[derive(Debug)]
pub struct Refined {
    rough: Box<dyn Segmenter>,
    sam: SamPredictor,
    name: String,
    method: String,
    unused: Vec<String>,
}

#[derive(Debug)]
struct RefinedScene {
    rough: Box<dyn Segmentable>,
    seen: SamScene,
}

impl Refined {
    /// Lets `sam` draw what `rough` finds.
    pub fn new(rough: Box<dyn Segmenter>, sam: SamPredictor) -> Self {
        Self {
            name: format!("{} refined by {}", rough.name(), sam.name()),
            method: format!("{}+sam", rough.method()),
            unused: [rough.unused_tensors(), sam.unused_tensors()].concat(),
            rough,
            sam,
        }
    }
}

impl Segmenter for Refined {
    fn name(&self) -> &str {
        &self.name
    }

    fn method(&self) -> &str {
        &self.method
    }

    fn unused_tensors(&self) -> &[String] {
        &self.unused
    }

    fn encode(&self, image: &Image) -> Result<Box<dyn Segmentable>, PredictorError> {
        Ok(Box::new(RefinedScene {
            rough: self.rough.encode(image)?,
            seen: self.sam.encode(image)?,
        }))
    }
}

impl RefinedScene {
    /// Draws what was found anew; where Segment Anything draws nothing, the rough mask stays.
    fn refined(&self, mut answers: Vec<Segmentation>) -> Result<Vec<Segmentation>, PredictorError> {
        let boxes = answers.iter().filter_map(|answer| answer.box_px);
        let prompts: Vec<Prompt> = boxes
            .map(|box_px| Prompt {
                box_px: Some(box_px.map(f64::from)),
                ..Prompt::default()
            })
            .collect();
        // A box is not ambiguous, so one mask is asked for.
        let drawn = self.seen.prompt_many(&prompts, false)?;
        let rough = answers.iter_mut().filter(|answer| answer.box_px.is_some());
        for (answer, drawn) in rough.zip(drawn) {
            let best = drawn.best();
            let mask = &drawn.masks[best];
            if mask.area() > 0 {
                answer.score = drawn.scores[best];
                answer.box_px = mask.bounds();
                answer.mask = mask.clone();
                answer.probabilities = drawn.probabilities(best)?;
                answer.side = drawn.side;
                answer.from_probabilities = false;
            }
        }
        Ok(answers)
    }
}

impl Segmentable for RefinedScene {
    fn width(&self) -> u32 {
        self.rough.width()
    }

    fn height(&self) -> u32 {
        self.rough.height()
    }

    fn bytes(&self) -> usize {
        self.rough.bytes() + self.seen.bytes()
    }

    fn expect(&mut self, count: AnswerCount) {
        self.rough.expect(count);
    }

    fn segment_many(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        self.refined(self.rough.segment_many(phrases)?)
    }

    fn segment_joint(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        self.refined(self.rough.segment_joint(phrases)?)
    }

    fn segment_sequential(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        self.refined(self.rough.segment_sequential(phrases)?)
    }

    fn segment_teacher_forced(
        &self,
        phrases: &[&str],
        truth: &[Marker],
    ) -> Result<Vec<Segmentation>, PredictorError> {
        self.refined(self.rough.segment_teacher_forced(phrases, truth)?)
    }
}
