//! The method on a small random LLaVA-NeXT of the official layout. Nobody can foresee what it
//! says of a phrase, so the first answer is given to it; the second question it answers itself.

use std::{error::Error, fs, path::Path};

use refseg::{
    Image, Options,
    chat::{self, Answer, ChatError, Conversation, Mllm, Question},
    sam::SamPredictor,
    sam4mllm::{Confidence, Reading, Sam4Mllm, Settings, second_question},
};
use serde_json::json;

type Outcome = Result<(), Box<dyn Error>>;

const LLAVA: &str = "tests/fixtures/llava/llava-next-tiny";
const SAM: &str = "tests/fixtures/sam/sam-vit-tiny";
const BOXES: [[i32; 4]; 2] = [[100, 100, 600, 600], [300, 200, 900, 950]];

/// A language model with its first answers laid into its mouth.
#[derive(Debug)]
struct Prompted {
    mllm: Box<dyn Mllm>,
    answer: &'static str,
}

#[derive(Debug)]
struct PromptedTalk {
    talk: Box<dyn Conversation>,
    answer: &'static str,
}

impl Mllm for Prompted {
    fn name(&self) -> &str {
        self.mllm.name()
    }

    fn look(&self, image: &Image) -> Result<Box<dyn Conversation>, ChatError> {
        Ok(Box::new(PromptedTalk {
            talk: self.mllm.look(image)?,
            answer: self.answer,
        }))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        self.mllm.encode(text)
    }

    fn unused_tensors(&self) -> &[String] {
        self.mllm.unused_tensors()
    }
}

impl Conversation for PromptedTalk {
    fn ask_many(&self, questions: &[Question<'_>]) -> Result<Vec<Answer>, ChatError> {
        let answer = |_| Answer {
            text: self.answer.to_owned(),
            ids: Vec::new(),
            log_probabilities: Vec::new(),
            watched: Vec::new(),
            ended: true,
        };
        Ok(questions.iter().map(answer).collect())
    }

    fn followed_by(
        &self,
        question: &str,
        answer: &str,
    ) -> Result<Box<dyn Conversation>, ChatError> {
        self.talk.followed_by(question, answer)
    }

    fn length(&self) -> usize {
        self.talk.length()
    }

    fn bytes(&self) -> usize {
        self.talk.bytes()
    }
}

fn image() -> Result<Image, Box<dyn Error>> {
    Ok(Image::open(Path::new(SAM).join("image0.png"))?)
}

fn llava() -> Result<Box<dyn Mllm>, ChatError> {
    Ok(Box::new(chat::open(Path::new(LLAVA), &Options::default())?))
}

fn read(answer: &'static str, settings: &Settings) -> Result<Reading, Box<dyn Error>> {
    let mllm = Box::new(Prompted {
        mllm: llava()?,
        answer,
    });
    let sam = SamPredictor::load(Path::new(SAM), &Options::default())?;
    let pair = Sam4Mllm::new("pair".to_owned(), mllm, sam, settings.clone())?;
    let mut readings = pair.encode(&image()?)?.read(&["the bird"])?;
    Ok(readings.remove(0))
}

/// Boxes are asked about in one pass, and each as if it were the only one.
#[test]
fn points_are_asked_about_at_once_and_each_box_on_its_own() -> Outcome {
    let settings = Settings {
        count: None,
        ..Settings::code()
    };
    let answer = "[100,100,600,600] [300,200,900,950]";
    let reading = read(answer, &settings)?;
    assert_eq!(reading.objects.len(), 2);

    let mllm = llava()?;
    let words = [mllm.token("No")?, mllm.token("Yes")?];
    let question = "Please provide the bounding box coordinate of the region this sentence \
                    describes (0+):\n\"the bird\".";
    let talk = mllm.look(&image()?)?.followed_by(question, answer)?;
    for (object, box_norm) in reading.objects.iter().zip(BOXES) {
        let points: Vec<[i32; 2]> = object.probes.iter().map(|(point, _)| *point).collect();
        assert_eq!(points.len(), 15);
        let text = second_question(settings.wording, box_norm, &points);
        let alone = talk.ask(&Question {
            text: &text,
            max_tokens: points.len(),
            only: &words,
            watched: &words,
        })?;
        for ((_, Confidence { no, yes }), alone) in object.probes.iter().zip(&alone.watched) {
            assert!(*no > 0.0 && *yes > 0.0 && no + yes <= 1.0);
            // f32 sums run in another order where several questions share a pass.
            assert!((no - alone[0]).abs() < 1e-5 && (yes - alone[1]).abs() < 1e-5);
        }
    }
    Ok(())
}

#[test]
fn the_demonstration_asks_for_one_object() -> Outcome {
    let reading = read("[100,100,600,600] [300,200,900,950]", &Settings::code())?;
    assert_eq!(reading.objects.len(), 1);
    assert_eq!(reading.objects[0].prompted.box_norm, BOXES[0]);
    assert!(reading.unread.is_empty());
    Ok(())
}

#[test]
fn a_pair_is_loaded_with_an_adapter() -> Outcome {
    let folder = tempfile::tempdir()?;
    let full = |path: &str| fs::canonicalize(path);
    let answers = |adapter: Option<&str>| -> Result<(String, f32), Box<dyn Error>> {
        let adapter = adapter.map(full).transpose()?;
        let pair =
            json!({"mllm": full(LLAVA)?, "adapter": adapter, "sam": full(SAM)?, "max_tokens": 8});
        fs::write(folder.path().join("sam4mllm.json"), pair.to_string())?;
        let model = Sam4Mllm::load(folder.path(), &Options::default())?;
        let scene = model.encode(&image()?)?;
        let reading = scene.read(&["the bird"])?.remove(0);
        let found = scene.draw(&reading)?;
        assert!(!found.found && found.mask.area() == 0 && found.presence == 0.0);
        // Random words are no answer, and are handed back.
        assert!(!found.unread.is_empty());
        Ok((reading.answer, found.score))
    };
    let adapter = format!("{LLAVA}/adapter");
    assert_ne!(answers(None)?, answers(Some(&adapter))?);
    Ok(())
}
