//! Accuracy of short answers to questions about pictures, as VQAv2 defines it.
//!
//! Source: the evaluation that VQAv2 published. An answer is worth
//! `min(1, n / 3)` against nine people, n of whom said the same; its accuracy is
//! the mean over the ten ways to leave one of ten people out.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    metrics::Mean,
    predictions::{JsonLines, PredictionsError},
};

/// Accuracies in per cent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VqaScores {
    /// Questions.
    pub questions: u64,
    /// Over all questions; `None` if there are none.
    pub accuracy: Option<f64>,
    /// By type of answer, as the annotations have it: `yes/no`, `number`, `other`.
    pub by_answer_type: BTreeMap<String, f64>,
    /// By type of question, which is how it begins: `what color is the`, ….
    pub by_question_type: BTreeMap<String, f64>,
}

/// A question with the answers of people.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Annotation {
    /// Id of the question.
    pub question_id: u64,
    /// How the question begins.
    pub question_type: String,
    /// What sort of answer it has.
    pub answer_type: String,
    /// What people answered.
    pub answers: Vec<HumanAnswer>,
}

/// What one of the people answered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HumanAnswer {
    /// The answer.
    pub answer: String,
}

/// A question about a picture.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VisualQuestion {
    /// Its id.
    pub question_id: u64,
    /// Id of the picture.
    pub image_id: u64,
    /// The question.
    pub question: String,
}

/// Where the official files of a split lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VqaFiles {
    /// The questions.
    pub questions: PathBuf,
    /// What people answered; kept back for the test splits.
    pub annotations: Option<PathBuf>,
    pictures: PathBuf,
    /// Name of COCO's split, with which pictures' names begin.
    coco: &'static str,
}

/// Splits, with the names of their files and of COCO's.
const SPLITS: [(&str, &str, &str); 4] = [
    ("train", "train2014", "train2014"),
    ("val", "val2014", "val2014"),
    ("test-dev", "test-dev2015", "test2015"),
    ("test", "test2015", "test2015"),
];

impl VqaFiles {
    /// The files of a split by their official names, which all stand in one folder; pictures in a
    /// folder below it that is called as COCO's split is.
    ///
    /// # Errors
    /// [`VqaError::Split`] if there is no such split.
    pub fn of_split(root: &Path, split: &str) -> Result<Self, VqaError> {
        let known = SPLITS.into_iter().find(|(name, ..)| *name == split);
        let (_, name, coco) = known.ok_or_else(|| VqaError::Split {
            found: split.to_owned(),
        })?;
        let annotations = root.join(format!("v2_mscoco_{name}_annotations.json"));
        Ok(Self {
            questions: root.join(format!("v2_OpenEnded_mscoco_{name}_questions.json")),
            annotations: (!split.starts_with("test")).then_some(annotations),
            pictures: root.join(coco),
            coco,
        })
    }

    /// Where a picture lies.
    pub fn picture(&self, image_id: u64) -> PathBuf {
        let name = format!("COCO_{}_{image_id:012}.jpg", self.coco);
        self.pictures.join(name)
    }
}

/// Reads the official questions: a JSON object with a list `questions`.
///
/// # Errors
/// [`VqaError`] if the file cannot be read.
pub fn read_questions(path: &Path) -> Result<Vec<VisualQuestion>, VqaError> {
    #[derive(Deserialize)]
    struct File {
        questions: Vec<VisualQuestion>,
    }
    let File { questions } = serde_json::from_slice(&read(path)?).map_err(json(path))?;
    Ok(questions)
}

/// Reads the official annotations: a JSON object with a list `annotations`.
///
/// # Errors
/// [`VqaError`] if the file cannot be read, or has a question twice or without answers.
pub fn read_annotations(path: &Path) -> Result<Vec<Annotation>, VqaError> {
    #[derive(Deserialize)]
    struct File {
        annotations: Vec<Annotation>,
    }
    let text = read(path)?;
    let File { annotations } = serde_json::from_slice(&text).map_err(json(path))?;
    let mut seen = HashSet::new();
    for annotation in &annotations {
        let question = annotation.question_id;
        if annotation.answers.is_empty() {
            return Err(VqaError::NoAnswers {
                path: path.to_owned(),
                question,
            });
        }
        if !seen.insert(question) {
            return Err(VqaError::Duplicate {
                path: path.to_owned(),
                question,
            });
        }
    }
    Ok(annotations)
}

/// Reads predicted answers: a JSON list of objects with `question_id` and `answer`, or
/// one such object on each line.
///
/// # Errors
/// [`VqaError`] if the file cannot be read, or answers a question twice.
pub fn read_answers(path: &Path) -> Result<HashMap<u64, String>, VqaError> {
    #[derive(Deserialize)]
    struct Line {
        question_id: u64,
        answer: String,
    }
    let text = read(path)?;
    let lines: Vec<Line> = if text.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice(&text).map_err(json(path))?
    } else {
        JsonLines::open(path, false)?
            .map(|line| line.map(|(_, line)| line))
            .collect::<Result<_, _>>()?
    };
    let mut answers = HashMap::with_capacity(lines.len());
    for line in lines {
        match answers.entry(line.question_id) {
            Entry::Vacant(entry) => entry.insert(line.answer),
            Entry::Occupied(_) => {
                return Err(VqaError::Duplicate {
                    path: path.to_owned(),
                    question: line.question_id,
                });
            }
        };
    }
    Ok(answers)
}

/// Scores the answers to all annotated questions.
///
/// # Errors
/// [`VqaError::Missing`] if a question has no answer, [`VqaError::Unknown`] if an
/// answer has no question.
pub fn score(
    annotations: &[Annotation],
    answers: &HashMap<u64, String>,
) -> Result<VqaScores, VqaError> {
    let mut all = Mean::default();
    let mut by_answer: BTreeMap<String, Mean> = BTreeMap::new();
    let mut by_question: BTreeMap<String, Mean> = BTreeMap::new();
    for annotation in annotations {
        let question = annotation.question_id;
        let answer = answers.get(&question).ok_or(VqaError::Missing {
            question,
            questions: annotations.len(),
            answers: answers.len(),
        })?;
        let people: Vec<&str> = annotation
            .answers
            .iter()
            .map(|a| a.answer.as_str())
            .collect();
        let accuracy = accuracy(answer, &people);
        all.add(accuracy);
        let answer_type = by_answer.entry(annotation.answer_type.clone());
        answer_type.or_default().add(accuracy);
        let question_type = by_question.entry(annotation.question_type.clone());
        question_type.or_default().add(accuracy);
    }
    if answers.len() > annotations.len() {
        let asked: HashSet<u64> = annotations.iter().map(|a| a.question_id).collect();
        let unknown = answers.keys().filter(|id| !asked.contains(id)).min();
        if let Some(&question) = unknown {
            return Err(VqaError::Unknown { question });
        }
    }
    let percent = |mean: Mean| mean.value().map(|value| 100.0 * value);
    let percents = |means: BTreeMap<String, Mean>| {
        let named = means.into_iter();
        named
            .filter_map(|(name, mean)| Some((name, percent(mean)?)))
            .collect()
    };
    Ok(VqaScores {
        questions: all.count(),
        accuracy: percent(all),
        by_answer_type: percents(by_answer),
        by_question_type: percents(by_question),
    })
}

/// Accuracy of one answer, 0 to 1, against what people answered; 0 if there are none.
///
/// The answer is [`normalise`]d. Those of people only have their punctuation
/// processed, and only if they differ from each other.
pub fn accuracy(answer: &str, people: &[&str]) -> f64 {
    let answer = normalise(answer);
    let people: Vec<String> = people.iter().map(|answer| one_line(answer)).collect();
    let differ = people.windows(2).any(|pair| pair[0] != pair[1]);
    let same: Vec<bool> = people
        .iter()
        .map(|person| {
            if differ {
                without_punctuation(person) == answer
            } else {
                *person == answer
            }
        })
        .collect();
    let agreeing = same.iter().filter(|&&same| same).count();
    let terms = same.iter().map(|&same| {
        let others = agreeing - usize::from(same);
        (others as f64 / 3.0).min(1.0)
    });
    terms.collect::<Mean>().value().unwrap_or(0.0)
}

/// An answer in the form in which answers are compared.
pub fn normalise(answer: &str) -> String {
    let text = without_punctuation(&one_line(answer)).to_lowercase();
    let words = text.split_whitespace().filter_map(|word| match word {
        "a" | "an" | "the" => None,
        "none" => Some("0".to_owned()),
        _ => Some(
            NUMBERS
                .iter()
                .position(|&number| number == word)
                .map_or_else(|| with_apostrophe(word), |number| number.to_string()),
        ),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Number words by their value.
const NUMBERS: [&str; 11] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
];

/// Marks that are deleted or become a space. Full stops have a rule of their own;
/// apostrophes, colons and signs such as `%` and `$` stay.
const MARKS: &str = r#"!"()+,-/;<=>?@[\]_`{}"#;

fn one_line(answer: &str) -> String {
    answer.replace(['\n', '\t'], " ").trim().to_owned()
}

/// A mark goes if it stands beside a space anywhere, or if there is a number with a
/// comma in it; otherwise it becomes a space. A full stop goes unless a digit follows.
fn without_punctuation(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let number_with_comma = letters
        .windows(3)
        .any(|three| three[0].is_ascii_digit() && three[1] == ',' && three[2].is_ascii_digit());
    let beside_space = |mark: char| {
        let mut pairs = letters.windows(2);
        pairs.any(|pair| *pair == [mark, ' '] || *pair == [' ', mark])
    };
    let mut kept = String::with_capacity(text.len());
    for &letter in &letters {
        if !MARKS.contains(letter) {
            kept.push(letter);
        } else if !number_with_comma && !beside_space(letter) {
            kept.push(' ');
        }
    }
    let mut stopped = String::with_capacity(kept.len());
    let mut rest = kept.chars().peekable();
    while let Some(letter) = rest.next() {
        if letter != '.' || rest.peek().is_some_and(char::is_ascii_digit) {
            stopped.push(letter);
        }
    }
    stopped
}

/// Contractions by what stands behind the apostrophe, and the words before it.
/// Those that are words without an apostrophe, too, such as "were" and "well", are left out.
const CONTRACTIONS: [(&str, &[&str]); 6] = [
    (
        "t",
        &[
            "ain", "aren", "can", "couldn", "didn", "doesn", "don", "hadn", "hasn", "haven", "isn",
            "mightn", "mustn", "needn", "oughtn", "shan", "shouldn", "wasn", "weren", "won",
            "wouldn",
        ],
    ),
    ("re", &["they", "you"]),
    (
        "ve",
        &[
            "could", "i", "might", "must", "should", "they", "we", "who", "would", "you",
        ],
    ),
    ("ll", &["it", "that", "they", "who", "you"]),
    ("d", &["it", "they", "who", "you"]),
    (
        "s",
        &[
            "he", "here", "how", "let", "she", "somebody", "someone", "that", "there", "what",
            "where", "who",
        ],
    ),
];

/// Puts back the apostrophe that a contraction was written without.
fn with_apostrophe(word: &str) -> String {
    if word == "im" {
        return "i'm".to_owned();
    }
    for (ending, stems) in CONTRACTIONS {
        if let Some(stem) = word.strip_suffix(ending)
            && stems.contains(&stem)
        {
            return format!("{stem}'{ending}");
        }
    }
    word.to_owned()
}

/// Why answers cannot be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VqaError {
    /// A file cannot be read.
    #[error("`{path}`: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no JSON, or not of the right form.
    #[error("`{path}`: not the JSON that was expected")]
    Json {
        /// The file.
        path: PathBuf,
        /// What JSON says.
        #[source]
        source: serde_json::Error,
    },
    /// A line is at fault.
    #[error(transparent)]
    Line(#[from] PredictionsError),
    /// There is no such split.
    #[error("VQAv2 has no split `{found}`; expected one of train, val, test-dev, test")]
    Split {
        /// What was asked for.
        found: String,
    },
    /// Nobody answered a question.
    #[error("`{path}`: `answers` of question {question} is empty")]
    NoAnswers {
        /// The file.
        path: PathBuf,
        /// Id of the question.
        question: u64,
    },
    /// A question appears twice.
    #[error("`{path}`: question {question} appears twice")]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// Id of the question.
        question: u64,
    },
    /// A question has no predicted answer.
    #[error(
        "there is no answer to question {question}; {questions} questions have {answers} answers"
    )]
    Missing {
        /// Id of the question.
        question: u64,
        /// Questions in all.
        questions: usize,
        /// Predicted answers in all.
        answers: usize,
    },
    /// A predicted answer has no question.
    #[error("there is an answer to question {question}, which is not in the annotations")]
    Unknown {
        /// Id of the question.
        question: u64,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, VqaError> {
    fs::read(path).map_err(|source| VqaError::Read {
        path: path.to_owned(),
        source,
    })
}

fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> VqaError {
    let path = path.to_owned();
    |source| VqaError::Json { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_have_the_official_names() -> Result<(), VqaError> {
        let names = |split| -> Result<_, VqaError> {
            let files = VqaFiles::of_split(Path::new("v"), split)?;
            let text = |path: PathBuf| path.display().to_string();
            let picture = text(files.picture(42));
            Ok((text(files.questions), files.annotations.map(text), picture))
        };
        let (questions, annotations, picture) = names("train")?;
        assert_eq!(questions, "v/v2_OpenEnded_mscoco_train2014_questions.json");
        let known = "v/v2_mscoco_train2014_annotations.json";
        assert_eq!(annotations.as_deref(), Some(known));
        assert_eq!(picture, "v/train2014/COCO_train2014_000000000042.jpg");
        assert!(names("val")?.0.contains("_val2014_"));
        let (questions, annotations, picture) = names("test-dev")?;
        assert_eq!(
            questions,
            "v/v2_OpenEnded_mscoco_test-dev2015_questions.json"
        );
        assert_eq!(annotations, None);
        assert_eq!(picture, "v/test2015/COCO_test2015_000000000042.jpg");
        let (questions, annotations, _) = names("test")?;
        assert_eq!(questions, "v/v2_OpenEnded_mscoco_test2015_questions.json");
        assert_eq!(annotations, None);
        assert!(matches!(names("testA"), Err(VqaError::Split { .. })));
        Ok(())
    }

    #[test]
    fn answers_are_normalised() {
        let cases = [
            (" Two\tdogs\n", "2 dogs"),
            ("None", "0"),
            ("The cat and a dog", "cat and dog"),
            // Beside a space anywhere: deleted everywhere.
            ("red, white,blue", "red whiteblue"),
            // Beside none: a space.
            ("red/white", "red white"),
            ("yes!", "yes"),
            // A comma between digits: every mark goes.
            ("1,000/2", "10002"),
            ("e.g. 2.5 m.", "eg 2.5 m"),
            ("dont", "don't"),
            ("Im sure theyre", "i'm sure they're"),
            ("it's 50%", "it's 50%"),
            ("were well", "were well"),
            ("a", ""),
        ];
        for (answer, expected) in cases {
            assert_eq!(normalise(answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn accuracy_leaves_one_out() {
        // n of ten people agree: those who do are each left out against n − 1.
        let expected = [0.0, 0.3, 0.6, 0.9, 1.0, 1.0];
        for (agreeing, expected) in expected.into_iter().enumerate() {
            let mut people = vec!["dog"; agreeing];
            people.extend([
                "cat", "cow", "pig", "hen", "ant", "bee", "owl", "fox", "rat", "elk",
            ]);
            people.truncate(10);
            let found = accuracy("a Dog", &people);
            assert!((found - expected).abs() < 1e-15, "{agreeing}: {found}");
        }
        assert_eq!(accuracy("dog", &[]), 0.0);
    }

    /// People who agree are taken at their word.
    #[test]
    fn punctuation_of_people_counts_only_if_they_agree() {
        assert_eq!(accuracy("e.g", &["e.g"; 10]), 0.0);
        let mut people = ["e.g"; 10];
        people[9] = "other";
        assert_eq!(accuracy("e.g", &people), 1.0);
    }

    fn annotation(question_id: u64, question: &str, kind: &str, answer: &str) -> Annotation {
        let answer = HumanAnswer {
            answer: answer.to_owned(),
        };
        Annotation {
            question_id,
            question_type: question.to_owned(),
            answer_type: kind.to_owned(),
            answers: vec![answer; 10],
        }
    }

    #[test]
    fn means_by_type() -> Result<(), VqaError> {
        let annotations = [
            annotation(1, "is the", "yes/no", "yes"),
            annotation(2, "is the", "yes/no", "no"),
            annotation(3, "how many", "number", "2"),
        ];
        let answers = [(1, "yes"), (2, "yes"), (3, "two")];
        let answers = answers.map(|(id, answer)| (id, answer.to_owned())).into();
        let scores = score(&annotations, &answers)?;
        let named = |pairs: &[(&str, f64)]| {
            pairs
                .iter()
                .map(|&(name, value)| (name.to_owned(), value))
                .collect()
        };
        let expected = VqaScores {
            questions: 3,
            accuracy: Some(100.0 * (2.0 / 3.0)),
            by_answer_type: named(&[("yes/no", 50.0), ("number", 100.0)]),
            by_question_type: named(&[("is the", 50.0), ("how many", 100.0)]),
        };
        assert_eq!(scores, expected);
        Ok(())
    }

    #[test]
    fn questions_and_answers_must_match() {
        let annotations = [annotation(1, "is the", "yes/no", "yes")];
        let refused = |answers: &[u64]| {
            let answers = answers.iter().map(|&id| (id, String::new())).collect();
            score(&annotations, &answers)
                .expect_err("they do not match")
                .to_string()
        };
        assert_eq!(
            refused(&[2]),
            "there is no answer to question 1; 1 questions have 1 answers"
        );
        assert_eq!(
            refused(&[1, 5, 3]),
            "there is an answer to question 3, which is not in the annotations"
        );
    }

    #[test]
    fn files_are_read() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file.json");
        let expected = HashMap::from([(1, "yes".to_owned()), (2, "no".to_owned())]);
        let (first, second) = (
            "{\"question_id\":1,\"answer\":\"yes\"}",
            "{\"question_id\":2,\"answer\":\"no\"}",
        );
        for text in [
            format!(" [{first},{second}]"),
            format!("{first}\n{second}\n"),
        ] {
            fs::write(&path, text)?;
            assert_eq!(read_answers(&path)?, expected);
        }
        fs::write(&path, format!("{first}\n{first}\n"))?;
        assert!(matches!(
            read_answers(&path),
            Err(VqaError::Duplicate { question: 1, .. })
        ));
        fs::write(&path, format!("{first}\n{{}}\n"))?;
        let error = read_answers(&path).expect_err("the second line is damaged");
        assert!(error.to_string().contains("line 2"), "{error}");

        let question = |id, answers| {
            format!(
                "{{\"question_id\":{id},\"question_type\":\"is the\",\"answer_type\":\"yes/no\",\
                 \"image_id\":9,\"answers\":{answers}}}"
            )
        };
        let answers = "[{\"answer\":\"yes\",\"answer_id\":1}]";
        let annotations = |questions: [String; 2]| {
            format!(
                "{{\"info\":{{}},\"annotations\":[{}]}}",
                questions.join(",")
            )
        };
        fs::write(
            &path,
            annotations([question(1, answers), question(2, answers)]),
        )?;
        let read = read_annotations(&path)?;
        assert_eq!((read.len(), read[0].answers[0].answer.as_str()), (2, "yes"));
        fs::write(
            &path,
            annotations([question(1, answers), question(1, answers)]),
        )?;
        assert!(matches!(
            read_annotations(&path),
            Err(VqaError::Duplicate { question: 1, .. })
        ));
        fs::write(
            &path,
            annotations([question(1, answers), question(2, "[]")]),
        )?;
        assert!(matches!(
            read_annotations(&path),
            Err(VqaError::NoAnswers { question: 2, .. })
        ));
        fs::write(&path, "[]")?;
        assert!(matches!(
            read_annotations(&path),
            Err(VqaError::Json { .. })
        ));
        Ok(())
    }
}
