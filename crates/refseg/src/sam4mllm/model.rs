//! The two networks together: an answer in words prompts Segment Anything.
//!
//! Paper: SAM4MLLM (ECCV 2024). Reference: `simple_infer.ipynb`. Differs: the box of the second
//! question is the one that was answered, where the reference has another; every box has a
//! second question of its own, all of them in one pass; objects are united.

use std::{path::Path, sync::Arc};

use super::{
    answers::{read_boxes, read_objects},
    prompts::{Confidence, sam_prompt},
    quantise::is_box,
    settings::{Pair, Settings},
    texts::{AnswerCount, Method, NO, PromptedObject, YES, first_question, second_question},
};
use crate::{
    builtin,
    chat::{self, Conversation, Mllm, Question},
    image::Image,
    mask::Mask,
    predictor::{Options, PredictorError, Segmentation, check_phrase},
    random::SplitMix64,
    sam::{Prompt, SamPredictor, SamScene},
    segmenter::{Segmentable, Segmenter},
};

/// A language model and a Segment Anything model, loaded.
#[derive(Debug, Clone)]
pub struct Sam4Mllm {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    mllm: Box<dyn Mllm>,
    sam: SamPredictor,
    settings: Settings,
    /// Ids of `No` and `Yes`; PPG asks no such question.
    words: Option<[u32; 2]>,
    unused: Vec<String>,
}

/// A picture that both models have looked at: a value to keep, share between threads, and ask.
#[derive(Debug, Clone)]
pub struct Sam4MllmScene {
    model: Arc<Inner>,
    talk: Arc<dyn Conversation>,
    seen: SamScene,
    count: AnswerCount,
}

/// What the language model said about a phrase.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The phrase.
    pub phrase: String,
    /// The first answer.
    pub answer: String,
    /// How likely the model was to name an object: the probability of the first answer's first token
    /// if it named one, the rest to one if it said that there is none, and 0 if it said neither.
    pub presence: f32,
    /// The objects in it.
    pub objects: Vec<ReadObject>,
    /// What makes the answer unclear: what could not be read of it, or what contradicts itself.
    pub unread: Vec<String>,
}

/// An object, as the language model describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadObject {
    /// What prompts Segment Anything: the box, and the points of which the model is sure.
    pub prompted: PromptedObject,
    /// Each point it was asked about, and how sure it is; none with PPG.
    pub probes: Vec<([i32; 2], Confidence)>,
}

impl Sam4Mllm {
    /// Loads the pair of models of a folder with `sam4mllm.json`, or the one called
    /// `builtin-sam4mllm`.
    ///
    /// # Errors
    /// If the file is at fault, or a model cannot be loaded.
    pub fn load(folder: &Path, options: &Options) -> Result<Self, PredictorError> {
        if builtin::is(builtin::PAIR_NAME, folder) {
            return Self::builtin(options);
        }
        let pair = Pair::from_folder(folder)?;
        let mllm = match &pair.adapter {
            None => chat::open(&pair.mllm, options),
            Some(adapter) => chat::open_adapted(&pair.mllm, adapter, options),
        }?;
        let sam = match &pair.sam_decoder {
            None => SamPredictor::load(&pair.sam, options)?,
            Some(decoder) => SamPredictor::load_tuned(&pair.sam, decoder, options)?,
        };
        let name = folder.display().to_string();
        Self::new(name, Box::new(mllm), sam, pair.settings)
    }

    /// The pair that is part of the program.
    ///
    /// # Errors
    /// None: its files are part of the program, and tests read them.
    pub fn builtin(options: &Options) -> Result<Self, PredictorError> {
        let mllm = Box::new(builtin::mllm(options)?);
        let sam = builtin::sam(options)?;
        let settings = builtin::pair_settings()?;
        Self::new(builtin::PAIR_NAME.to_owned(), mllm, sam, settings)
    }

    /// Pairs two models that are already there.
    ///
    /// # Errors
    /// If the language model is to say `Yes` or `No`, and either is not one token.
    pub fn new(
        name: String,
        mllm: Box<dyn Mllm>,
        sam: SamPredictor,
        settings: Settings,
    ) -> Result<Self, PredictorError> {
        let words = match settings.method {
            Method::Pqpp => Some([mllm.token(NO)?, mllm.token(YES)?]),
            Method::Ppg => None,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                unused: [mllm.unused_tensors(), sam.unused_tensors()].concat(),
                name,
                mllm,
                sam,
                settings,
                words,
            }),
        })
    }

    /// The language model.
    pub fn mllm(&self) -> &dyn Mllm {
        &*self.inner.mllm
    }

    /// How the models are asked.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Looks at a picture with both models: the slow part, once per picture.
    ///
    /// # Errors
    /// If a network computes values that are not numbers.
    pub fn encode(&self, image: &Image) -> Result<Sam4MllmScene, PredictorError> {
        let Inner {
            mllm,
            sam,
            settings,
            ..
        } = &*self.inner;
        let talk = match settings.squash {
            None => mllm.look(image)?,
            Some(side) => mllm.look(&image.resize(side, side))?,
        };
        Ok(Sam4MllmScene {
            model: Arc::clone(&self.inner),
            talk: Arc::from(talk),
            seen: sam.encode(image)?,
            count: settings.count.unwrap_or(AnswerCount::ZeroOrMore),
        })
    }
}

impl Segmenter for Sam4Mllm {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn method(&self) -> &str {
        "sam4mllm"
    }

    fn unused_tensors(&self) -> &[String] {
        &self.inner.unused
    }

    fn encode(&self, image: &Image) -> Result<Box<dyn Segmentable>, PredictorError> {
        Ok(Box::new(self.encode(image)?))
    }
}

impl Sam4MllmScene {
    /// What the language model says about each phrase, on its own.
    ///
    /// # Errors
    /// If a phrase is empty or too long.
    pub fn read(&self, phrases: &[&str]) -> Result<Vec<Reading>, PredictorError> {
        phrases.iter().try_for_each(|phrase| check_phrase(phrase))?;
        if phrases.is_empty() {
            return Ok(Vec::new());
        }
        let settings = &self.model.settings;
        let texts: Vec<String> = phrases
            .iter()
            .map(|phrase| first_question(settings.method, phrase, self.count))
            .collect();
        let questions: Vec<Question<'_>> = texts
            .iter()
            .map(|text| Question {
                max_tokens: settings.max_tokens,
                ..Question::new(text)
            })
            .collect();
        let answers = self.talk.ask_many(&questions)?;
        let answered = phrases.iter().zip(&texts).zip(answers);
        answered
            .map(|((phrase, question), answer)| self.understand(phrase, question, answer))
            .collect()
    }

    /// Makes masks of what the language model said.
    ///
    /// # Errors
    /// If the network computes values that are not numbers.
    pub fn draw(&self, reading: &Reading) -> Result<Segmentation, PredictorError> {
        let (height, width) = self.size();
        let prompts: Vec<Prompt> = reading
            .objects
            .iter()
            .map(|ReadObject { prompted, .. }| {
                sam_prompt(prompted.box_norm, &prompted.points_norm, self.size())
            })
            .collect();
        let masks = self.seen.prompt_many(&prompts, true)?;
        let mut mask = Mask::empty(height, width)?;
        let side = self.seen.mask_side();
        let mut probabilities = vec![0.0; side * side];
        let mut scores = 0.0;
        for object in &masks {
            mask = mask.union(&object.masks[object.best()])?;
            scores += object.scores[object.best()];
            for (probability, of_object) in probabilities
                .iter_mut()
                .zip(object.probabilities(object.best())?)
            {
                *probability = of_object.max(*probability);
            }
        }
        // Segment Anything may find nothing in a box.
        let found = mask.area() > 0;
        Ok(Segmentation {
            phrase: reading.phrase.clone(),
            found,
            presence: reading.presence,
            score: if found {
                scores / masks.len() as f32
            } else {
                0.0
            },
            box_px: mask.bounds(),
            mask,
            probabilities,
            side,
            from_probabilities: false,
            unread: reading.unread.clone(),
        })
    }

    /// Reads the first answer, and asks the second question where the method has one.
    fn understand(
        &self,
        phrase: &str,
        question: &str,
        answer: chat::Answer,
    ) -> Result<Reading, PredictorError> {
        let (objects, no_object, unread) = match self.model.words {
            None => {
                let read = read_objects(&answer.text);
                let (no_object, unread) = (read.no_object, read.remarks());
                let usable = read.said.into_iter().filter(|o| is_box(o.box_norm));
                let object = |prompted| ReadObject {
                    prompted,
                    probes: Vec::new(),
                };
                let objects = self.count_off(usable).map(object).collect();
                (objects, no_object, unread)
            }
            Some(words) => {
                let read = read_boxes(&answer.text);
                let (no_object, unread) = (read.no_object, read.remarks());
                let usable = read.said.into_iter().filter(|&b| is_box(b));
                let boxes: Vec<[i32; 4]> = self.count_off(usable).collect();
                let objects = self.probe(phrase, question, &answer.text, &boxes, words)?;
                (objects, no_object, unread)
            }
        };
        let first = answer.log_probabilities.first();
        let likely = first.map_or(0.0, |log| log.exp());
        Ok(Reading {
            phrase: phrase.to_owned(),
            presence: match (objects.is_empty(), no_object) {
                (false, _) => likely,
                (true, true) => 1.0 - likely,
                (true, false) => 0.0,
            },
            answer: answer.text,
            objects,
            unread,
        })
    }

    /// No more things than the question speaks of.
    fn count_off<T>(&self, things: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        things.take(match self.count {
            AnswerCount::One => 1,
            AnswerCount::OneOrMore | AnswerCount::ZeroOrMore => usize::MAX,
        })
    }

    /// Asks about points in each box, of all boxes at once.
    fn probe(
        &self,
        phrase: &str,
        question: &str,
        answer: &str,
        boxes_norm: &[[i32; 4]],
        words: [u32; 2],
    ) -> Result<Vec<ReadObject>, PredictorError> {
        if boxes_norm.is_empty() {
            return Ok(Vec::new());
        }
        let settings = &self.model.settings;
        // The same points whatever else is asked about the picture.
        let mut random = SplitMix64::named(phrase, settings.seed);
        let points: Vec<Vec<[i32; 2]>> = boxes_norm
            .iter()
            .map(|&box_norm| settings.probes.points(box_norm, &mut random))
            .collect();
        let texts: Vec<String> = boxes_norm
            .iter()
            .zip(&points)
            .map(|(&box_norm, points)| second_question(settings.wording, box_norm, points))
            .collect();
        let questions: Vec<Question<'_>> = texts
            .iter()
            .zip(&points)
            .map(|(text, points)| Question {
                text,
                max_tokens: points.len(),
                only: &words,
                watched: &words,
            })
            .collect();
        let answers = self
            .talk
            .followed_by(question, answer)?
            .ask_many(&questions)?;
        let confidence = |watched: Vec<f32>| match watched[..] {
            [no, yes] => Confidence { no, yes },
            // Nothing was said about the words, so nothing is known.
            _ => Confidence { no: 0.0, yes: 0.0 },
        };
        let answered = boxes_norm.iter().zip(points).zip(answers);
        Ok(answered
            .map(|((&box_norm, points), answer)| {
                let confidences: Vec<Confidence> =
                    answer.watched.into_iter().map(confidence).collect();
                let points_norm = settings.thresholds.filter(&points, &confidences);
                ReadObject {
                    prompted: PromptedObject {
                        box_norm,
                        points_norm,
                    },
                    probes: points.into_iter().zip(confidences).collect(),
                }
            })
            .collect())
    }

    /// Height and width of the picture.
    fn size(&self) -> (usize, usize) {
        (self.seen.height() as usize, self.seen.width() as usize)
    }
}

impl Segmentable for Sam4MllmScene {
    fn width(&self) -> u32 {
        self.seen.width()
    }

    fn height(&self) -> u32 {
        self.seen.height()
    }

    fn bytes(&self) -> usize {
        self.talk.bytes() + self.seen.bytes()
    }

    fn expect(&mut self, count: AnswerCount) {
        self.count = self.model.settings.count.unwrap_or(count);
    }

    fn segment_many(&self, phrases: &[&str]) -> Result<Vec<Segmentation>, PredictorError> {
        let readings = self.read(phrases)?;
        readings.iter().map(|reading| self.draw(reading)).collect()
    }
}
