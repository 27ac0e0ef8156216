//! SAM4MLLM: a language model that sees writes down a box and points, and Segment Anything turns
//! them into a mask.
//!
//! Paper: "SAM4MLLM: Enhance Multi-Modal Large Language Model for Referring Expression
//! Segmentation", ECCV 2024. Two methods: PQPP asks for a box, then about points in it; PPG asks
//! for a box with points at once. No token, head or loss is added to the language model: all that
//! the two networks share is text.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use refseg::{Image, Options, sam4mllm::Sam4Mllm};
//!
//! let pair = Sam4Mllm::load(Path::new("weights/pair"), &Options::default())?;
//! let scene = pair.encode(&Image::open("kitchen.jpg")?)?; // slow part, once per image
//! for reading in scene.read(&["the mug behind the kettle"])? {
//!     println!("{}", reading.answer); // such as [281,251,863,999]
//!     scene.draw(&reading)?.mask.save_png("mug.png")?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Sam4Mllm`] is the face; the other parts are the method's logic, without any network.
//!
//! Boxes are XYXY, points `(x, y)`. In names, `_norm` is in thousandths of the picture's sides,
//! whole numbers from 0 to 999; `_px` is in pixels of the picture.

mod answers;
mod model;
mod probes;
mod prompts;
mod quantise;
mod settings;
mod texts;

pub use answers::{Answer, read_boxes, read_labels, read_objects};
pub use model::{ReadObject, Reading, Sam4Mllm, Sam4MllmScene};
pub use probes::ProbePattern;
pub use prompts::{Confidence, Thresholds, sam_prompt};
pub use quantise::{box_to_px, is_box, point_to_px, quantise_box, quantise_point};
pub use settings::{PAIR_FILE, Pair, PairError, Settings};
pub use texts::{
    AnswerCount, IMAGE, Method, NO, NO_OBJECT, PromptedObject, UnknownName, Wording, YES,
    boxes_answer, first_question, labels_answer, objects_answer, second_question,
};
