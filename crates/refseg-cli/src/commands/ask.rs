//! `refseg ask`: asks a multimodal language model about a picture.

use anyhow::Result;
use refseg::{
    Image,
    chat::{self, Answer, ChatError, ChatModel, MAX_QUESTION_BYTES, Mllm, Question},
    image::DecodeOptions,
};
use serde::Serialize;

use super::{Picture, counted, milliseconds, options, readable_ms, timed, warn_of_unused};
use crate::{cli::AskArgs, console::Console};

pub(crate) fn run(args: &AskArgs, console: &Console) -> Result<()> {
    let bytes = args.question.len();
    if bytes > MAX_QUESTION_BYTES {
        return Err(ChatError::LongQuestion { bytes }.into());
    }
    let image = Image::open_with(
        &args.image,
        &DecodeOptions {
            apply_orientation: !args.ignore_orientation,
            max_pixels: args.max_pixels,
        },
    )?;
    let (model, load) = timed(|| open(args, console));
    let model = model?;
    warn_of_unused(model.name(), model.unused_tensors(), console);

    let (conversation, look) = timed(|| model.look(&image));
    let conversation = conversation?;
    let question = Question {
        max_tokens: args.max_tokens.get(),
        ..Question::new(&args.question)
    };
    let (answer, ask) = timed(|| conversation.ask(&question));
    let Answer {
        text,
        ids,
        log_probabilities,
        ended,
        ..
    } = answer?;

    let timings = Timings {
        load: milliseconds(load),
        picture: milliseconds(look),
        answer: milliseconds(ask),
    };
    console.note(format_args!(
        "load {}, picture {} ({}), answer {} ({})",
        readable_ms(timings.load),
        readable_ms(timings.picture),
        counted(conversation.length(), "token"),
        readable_ms(timings.answer),
        counted(ids.len(), "token"),
    ));
    if !ended {
        console.warn(format_args!(
            "the answer was cut off after {}",
            counted(ids.len(), "token")
        ));
    }
    if args.json {
        console.json(&Document {
            model: model.name(),
            image: Picture {
                path: &args.image.to_string_lossy(),
                width: image.width(),
                height: image.height(),
            },
            question: &args.question,
            answer: &text,
            ids: &ids,
            log_probabilities: &log_probabilities,
            ended,
            timings_ms: timings,
        })
    } else {
        console.result(text)
    }
}

fn open(args: &AskArgs, console: &Console) -> Result<ChatModel, ChatError> {
    let options = options(&args.compute, console);
    match &args.adapter {
        None => chat::open(&args.model, &options),
        Some(adapter) => chat::open_adapted(&args.model, adapter, &options),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    model: &'a str,
    image: Picture<'a>,
    question: &'a str,
    answer: &'a str,
    ids: &'a [u32],
    log_probabilities: &'a [f32],
    ended: bool,
    timings_ms: Timings,
}

#[derive(Serialize)]
struct Timings {
    load: f64,
    picture: f64,
    answer: f64,
}
