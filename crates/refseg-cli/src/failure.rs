//! A failure in sentences: what went wrong, what caused it, and what to do.

use std::{error::Error, fmt, io, process::ExitCode};

use owo_colors::{OwoColorize, Stream};
use refseg::{
    chat::ChatError, image::ImageError, internvl::ConfigError, predictor::PredictorError,
    prompt::PromptError, sam::SamError, tokenizer::TokenizerError, weights::WeightsError,
};
use refseg_data::scenes::DatasetError;
use refseg_train::TrainError;

/// A command was called in a way that its options alone cannot tell.
#[derive(Debug)]
pub(crate) struct WrongUsage(pub(crate) &'static str);

impl fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for WrongUsage {}

/// What the user can do about a failure, said by who knows.
#[derive(Debug)]
pub(crate) struct Hint {
    /// What to do.
    pub(crate) hint: &'static str,
    /// The failure.
    pub(crate) error: anyhow::Error,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Hint {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// Prints a failure and says with which code to end.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        // Whoever read our results has read enough.
        return ExitCode::SUCCESS;
    }
    let word = |word: &'static str| {
        word.if_supports_color(Stream::Stderr, |w| w.red())
            .to_string()
    };
    let mut lines = vec![format!("{} {error}", word("error:"))];
    lines.extend(
        error
            .chain()
            .skip(1)
            .map(|cause| format!("  caused by: {cause}")),
    );
    if let Some(hint) = hint(error) {
        let word = "hint:"
            .if_supports_color(Stream::Stderr, |w| w.cyan())
            .to_string();
        lines.push(format!("{word} {hint}"));
    }
    // If nobody listens on standard error, the exit code is all there is to say.
    let _ = io::Write::write_all(&mut io::stderr(), (lines.join("\n") + "\n").as_bytes());
    if error.is::<WrongUsage>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let is_pipe = |cause: &(dyn Error + 'static)| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(is_pipe)
}

/// What to do about a failure, if there is something.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    if let Some(Hint { hint, .. }) = error.downcast_ref() {
        return Some(hint);
    }
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<PredictorError>() {
            return of_predictor(error);
        }
        if let Some(error) = cause.downcast_ref::<SamError>() {
            return of_sam(error);
        }
        if let Some(error) = cause.downcast_ref::<ChatError>() {
            return of_chat(error);
        }
        if let Some(error) = cause.downcast_ref::<TrainError>() {
            return of_training(error);
        }
        if let Some(DatasetError::Exists { .. }) = cause.downcast_ref() {
            return Some("give another folder, or --overwrite to replace it");
        }
        let image = cause.downcast_ref::<ImageError>().and_then(of_image);
        let weights = || cause.downcast_ref::<WeightsError>().and_then(of_weights);
        let config = || cause.downcast_ref::<ConfigError>().and_then(of_config);
        image.or_else(weights).or_else(config)
    })
}

fn of_predictor(error: &PredictorError) -> Option<&'static str> {
    match error {
        PredictorError::NoModel { .. } => Some(
            "leave it out for the built-in one, or make one to try with \
             `refseg init internvl2_5-1b DIR`",
        ),
        PredictorError::Config(error) => of_config(error),
        PredictorError::Weights(error) => of_weights(error),
        PredictorError::Tokenizer(TokenizerError::NoFiles { .. }) => {
            Some("copy the tokenizer's files from where the model came from")
        }
        PredictorError::OtherTokenizer { .. }
        | PredictorError::Tokenizer(TokenizerError::MissingToken { .. }) => {
            Some("copy the tokenizer's files of this very model, which know [SEG] and [REJ]")
        }
        PredictorError::Sam(error) => of_sam(error),
        PredictorError::Chat(ChatError::NotOneToken { .. }) => {
            Some("the method `ppg` of sam4mllm.json needs no such token")
        }
        PredictorError::OnlySingle => {
            Some("leave out --joint, or take --protocol single, which every method knows")
        }
        PredictorError::OtherMethod { .. } => Some(
            "`refseg segment`, `refseg eval` and `refseg bench` take a pair; the other commands take one of its models",
        ),
        PredictorError::Prompt(PromptError::TooLong { .. }) => {
            Some("ask for fewer phrases at once, or leave out --joint")
        }
        _ => None,
    }
}

fn of_sam(error: &SamError) -> Option<&'static str> {
    match error {
        SamError::NoModel { .. } | SamError::Weights(WeightsError::NoWeights { .. }) => {
            Some("name the checkpoint itself, such as sam_vit_b_01ec64.pth or mobile_sam.pt")
        }
        SamError::Weights(error) => of_weights(error),
        SamError::MaskInput { .. } => Some("give a file that --low-res wrote with this model"),
        _ => None,
    }
}

fn of_chat(error: &ChatError) -> Option<&'static str> {
    match error {
        ChatError::NoModel { .. } => {
            Some("give the folder of a LLaVA-NeXT, Qwen-VL or InternVL model, as published")
        }
        ChatError::NotAChat { .. } => {
            Some("`refseg segment` asks this model for what a phrase means")
        }
        ChatError::Config(error) => of_config(error),
        ChatError::Weights(error) => of_weights(error),
        ChatError::Tokenizer(TokenizerError::NoFiles { .. }) | ChatError::OtherTokenizer { .. } => {
            Some("copy the tokenizer's files from where the model came from")
        }
        _ => None,
    }
}

fn of_training(error: &TrainError) -> Option<&'static str> {
    match error {
        TrainError::Weights(error) => of_weights(error),
        _ => None,
    }
}

fn of_config(error: &ConfigError) -> Option<&'static str> {
    match error {
        ConfigError::Read { .. } => {
            Some("a model folder has config.json, weights and a tokenizer, as published")
        }
        _ => None,
    }
}

fn of_weights(error: &WeightsError) -> Option<&'static str> {
    match error {
        WeightsError::Safetensors { .. }
        | WeightsError::Pytorch { .. }
        | WeightsError::Read { .. } => Some("the file may be cut off: download or copy it again"),
        WeightsError::Overflow { .. } => {
            Some("choose --dtype bf16 or f32, which hold larger values")
        }
        _ => None,
    }
}

fn of_image(error: &ImageError) -> Option<&'static str> {
    match error {
        ImageError::UnknownFormat { .. } | ImageError::UnsupportedKind { .. } => {
            Some("convert it to PNG first")
        }
        ImageError::Truncated { .. } => Some("download or copy it again"),
        ImageError::TooManyPixels { .. } | ImageError::FileTooLarge { .. } => {
            Some("raise the limit with --max-pixels, if you trust the file")
        }
        _ => None,
    }
}
